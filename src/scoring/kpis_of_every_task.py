"""Is what a model wrote an answer at all, and by whose merit: the model's own, or that of constrained decoding."""

from scoring.ratios import percentages

MEANINGS = {
    "verdict": "JSON and fit the schema",
    "json": "JSON and fit the schema",
    "text": "a text that is not empty",
    "tool_call": "exactly one call that fits its schema",
}
# The same question has JSON in its name where the answer is JSON.
VALID = {"verdict": "json_valid", "json": "json_valid", "text": "valid", "tool_call": "valid"}


def aggregates(task):
    """KPI -> (what it means, part, whole), over the counts below."""
    valid = VALID[task.answer]
    return {
        f"{valid}_pct": (f"answers that are {MEANINGS[task.answer]}", "valid", "generated"),
        f"{valid}_raw_pct": (f"answers that {own_words(task)} by the model's own choices", "own", "known"),
        "closed_at_budget_pct": ("answers that had to be ended for the token budget", "closed", "known_closed"),
        "mask_overruled_pct": ("tokens whose first choice broke the schema", "overruled", "tokens"),
        "cut_at_budget_pct": ("answers cut off by the token budget", "cut", "generated"),
    }


def own_words(task):
    return "fit the schema" if task.answer in ("verdict", "json") else f"are {MEANINGS[task.answer]}"


def counts(valid, overruled, late, completion_tokens, finish_reason, generated=True):
    """What one answer adds to each count. `overruled` and `late` are None where an engine does not report them.

    `overruled` counts the tokens that the constraint chose against the model, `late` those that ended the answer for
    the token budget. An answer that was not generated as text (a baseline's) is neither valid nor invalid.
    """
    knows_overruled = generated and overruled is not None
    knows_late = generated and late is not None
    known = knows_overruled and knows_late
    return {
        "generated": int(generated),
        "valid": int(generated and valid),
        "cut": int(finish_reason == "length"),
        "known": int(known),
        "known_closed": int(knows_late),
        "closed": int(bool(late)),
        "own": int(known and valid and not overruled and not late),
        "overruled": overruled or 0,
        "tokens": (completion_tokens or 0) if knows_overruled else 0,
    }


def shares(task, answers):
    """KPI -> its value in percent over the counts of some answers, None where there is nothing to measure it on."""
    import numpy as np

    sums = {name: np.array([sum(answer[name] for answer in answers)], float) for name in answers[0]}
    return {
        name: None if np.isnan(value) else float(value)
        for name, ((value,), _, _) in percentages(aggregates(task), sums).items()
    }
