"""What stewards decided as training data: labelled rows, and what was chosen and rejected in every correction."""

from collections import defaultdict

from service.review.decisions import entry_key, model_key, standing


def sorted_out(entries, task, held_out, accepted_share):
    """(the decisions to export, {why: cases that stay out})"""
    verdicts = by_reviewer(entries, task)
    kept = []
    left_out = defaultdict(list)
    for pair, entry in standing(entries).items():
        given = verdicts[pair]
        if pair in held_out:
            left_out["test rows"].append(pair)
        elif len(set(given.values())) > 1:
            left_out["stewards disagree"].append({"pair": pair, "id": entry["id"], "verdicts": given})
        elif entry["action"] == "accept" and int(pair[:8], 16) / 16**8 >= accepted_share:
            left_out["accepted, not drawn"].append(pair)
        else:
            kept.append(entry)
    return kept, dict(left_out)


def by_reviewer(entries, task):
    """{case's hash: {reviewer: the verdict that stands}}"""
    found = defaultdict(dict)
    for reviewer in dict.fromkeys(entry["reviewer"] for entry in entries):
        own = [entry for entry in entries if entry["reviewer"] == reviewer]
        for pair, entry in standing(own).items():
            found[pair][reviewer] = entry[entry_key(task.verdict.key)]
    return found


def model_answer(entry, task):
    """The answer that the reviewer saw."""
    names = task.answer_schema["properties"]
    return {name: entry[model_key(name)] for name in names if model_key(name) in entry}


def answer_of(entry, contract):
    """The answer that the decision makes right; a corrected verdict's sentence is the reviewer's, else the task's own,
    else the reason of the correction.
    """
    verdict = contract.task.verdict
    answer = model_answer(entry, contract.task)
    label = entry[entry_key(verdict.key)]
    answer[verdict.key] = label
    if verdict.reason is None:
        return answer
    given = entry[entry_key(verdict.reason)]
    if given is None and entry["action"] == "correct":
        given = contract.reason_for(label, entry["input"]) or entry["reason"]
    return answer if given is None else answer | {verdict.reason: given}


def row_of(entry, contract):
    """A labelled row."""
    return {"id": f"review-{entry['pair'][:12]}", "input": entry["input"], "output": answer_of(entry, contract)}


def preference_of(entry, row, task):
    return {
        "id": row["id"],
        "prompt": task.messages(entry["input"]),
        "chosen": task.completion(row["output"]),
        "rejected": task.completion(model_answer(entry, task)),
        "reason": entry["reason"],
    }
