"""A row of notes: a question in, a sentence out."""


def check_case(case):
    if not isinstance(case, dict) or not isinstance(case.get("question"), str) or not case["question"].strip():
        return ["'input' must be an object with a question"]
    return []


def user_text(case):
    return case["question"]
