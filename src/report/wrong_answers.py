"""What the page's list of wrong answers filters and draws: the surest first where a task has a verdict.

A task whose kpis.py has `COMPARED` and `compare(case)` shows the two things that a case compares side by side, and with
`unsupported(case, answer)` marks what the answer states and that comparison does not show; of every other task the
question is shown, with the gold answer and the model's side by side.
"""

from common import to_json
from scoring.kpis import gold_answer, is_exact

MOST_LETTERS = 2_000
ANSWER_SIDES = ("gold", "answer")


def wrong_words(task):
    return "wrong verdicts" if task.verdict else "wrong answers"


def wrong_answers(report, most_wrong):
    """The list's data for all measured models."""
    task = report.task
    found = []
    n_wrong = []
    for at, model in enumerate(report.measured):
        wrong = [row for row in model.predictions if is_wrong(row, task)]
        n_wrong.append(len(wrong))
        wrong.sort(key=lambda row: -confidence(row))
        found += [wrong_answer(task, row, at) for row in wrong[:most_wrong]]
    return {
        "models": [{"title": model.title, "wrong": n} for model, n in zip(report.measured, n_wrong, strict=True)],
        "most": most_wrong,
        "words": wrong_words(task),
        "labels": list(task.verdict.labels) if task.verdict else [],
        "sides": list(task.hook("kpis", "COMPARED", ANSWER_SIDES)),
        "rows": found,
    }


def is_wrong(row, task):
    return row["label"] != task.verdict.of(row["gold"]) if task.verdict else not is_exact(row, task)


def confidence(row):
    return max((row.get("probabilities") or {"": -1.0}).values())


def wrong_answer(task, row, at):
    compare = task.hook("kpis", "compare")
    slices = task.hook("kpis", "slices", lambda case: {})
    unsupported = task.hook("kpis", "unsupported", lambda case, answer: [])
    answer = row.get("answer")
    invalid = answer is None and row.get("raw")
    return {
        "id": str(row.get("id", "")),
        "model": at,
        "gold": task.verdict.of(row["gold"]) if task.verdict else None,
        "predicted": row["label"] if task.verdict else None,
        "p": row.get("probabilities"),
        "swapped": row.get("swapped_probabilities"),
        "slices": slices(row["input"]),
        "goldText": beside_verdict(task, row["gold"]) if compare else {},
        "answerText": beside_verdict(task, answer) if compare else {},
        "unsupported": unsupported(row["input"], answer) if answer is not None else [],
        "question": None if compare else clipped(task.messages(row["input"])[-1]["content"]),
        "fields": [marked(field) for field in (compare(row["input"]) if compare else compared_answers(task, row))],
        "raw": clipped(row["raw"]) if invalid else None,
    }


def beside_verdict(task, answer):
    """The rest of an answer with a verdict."""
    return {name: value for name, value in (answer or {}).items() if not task.verdict or name != task.verdict.key}


def compared_answers(task, row):
    """The gold answer and the model's as rows of a side-by-side view: a row a value, or one row of two texts."""
    left = values_of(gold_answer(row, task))
    right = values_of(row["answer"])
    return [
        {
            "field": name,
            "left": left.get(name, ""),
            "right": right.get(name, ""),
            "relation": relation(left.get(name), right.get(name)),
        }
        for name in dict.fromkeys([*left, *right])
    ]


def values_of(answer, name=""):
    """Every value of an answer as text, under its dotted name."""
    if answer is None:
        return {}
    if not isinstance(answer, dict):
        return {name or "answer": answer if isinstance(answer, str) else to_json(answer)}
    found = {}
    for key, value in answer.items():
        found |= values_of(value, f"{name}.{key}" if name else key)
    return found


def relation(left, right):
    if left is None or right is None:
        return "right_only" if left is None else "left_only"
    return "same" if left == right else "different"


def marked(field):
    """A compared field with both values as lists of text that alternates unmarked, marked, unmarked and so on."""
    from rapidfuzz.distance import Indel

    left = clipped(field["left"])
    right = clipped(field["right"])
    if field["relation"] not in ("similar", "different"):
        pieces = [left], [right]
    # Values with little in common are marked whole: scattered shared letters mean nothing.
    elif Indel.normalized_similarity(left, right) < 0.5:
        pieces = ["", left], ["", right]
    else:
        same = [op for op in Indel.opcodes(left, right) if op.tag == "equal"]
        pieces = (
            alternating(left, [(op.src_start, op.src_end) for op in same]),
            alternating(right, [(op.dest_start, op.dest_end) for op in same]),
        )
    return {"field": field["field"], "relation": field["relation"], "left": pieces[0], "right": pieces[1]}


def alternating(text, kept):
    """Cut a text at its kept ranges; a single kept letter between two differences joins them."""
    kept = [(a, b) for a, b in kept if b - a > 1 or a == 0 or b == len(text)]
    parts = [""]
    end = 0
    for a, b in kept:
        if a == end:
            parts[-1] += text[a:b]
        else:
            parts += [text[end:a], text[a:b]]
        end = b
    return parts + [text[end:]] if end < len(text) else parts


def clipped(text):
    text = str(text)
    if len(text) <= MOST_LETTERS:
        return text
    return f"{text[:MOST_LETTERS]}… ({len(text) - MOST_LETTERS:,} more characters)"
