"""The sentence of an answer of which only the verdict is known, made as that of an imported or a drawn row."""

from tasks.crm.reasons import OPENINGS, reasoning


def completed(case, answer, how):
    """The answer with its sentence: its own where it has one and `how` is keep, made from the fields, or the bare
    opening; a new object where it was made.
    """
    if not isinstance(answer, dict) or answer.get("result") not in OPENINGS:
        return answer
    own = answer.get("reasoning")
    is_missing = own is None or (isinstance(own, str) and not own.strip())
    if how == "keep" and not is_missing:
        return answer
    label = answer["result"]
    return answer | {"reasoning": f"{OPENINGS[label]}." if how == "drop" else reasoning(label, case)}
