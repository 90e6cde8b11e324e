"""A row of switches: a request in, a call out."""


def check_case(case):
    return [] if isinstance(case, dict) and isinstance(case.get("request"), str) else ["'input' must hold a request"]
