"""Labelled rows as src/build_prompts.py writes them."""


def prompt_rows(task, rows):
    return [
        {
            "id": row["id"],
            "prompt": task.messages(row["input"]),
            "completion": [{"role": "assistant", "content": task.completion(row["output"])}],
        }
        for row in rows
    ]
