"""Decisions of CRM as the review page writes them."""

from service.review import decisions
from tasks import load_task

TASK = load_task()


def decision(at, **facts):
    case = facts.pop("case", {"record1": {"name": f"Ann {at}"}, "record2": {"name": f"Anne {at}"}})
    return {
        "action": "accept",
        "pair": decisions.case_hash(TASK, case),
        "id": None,
        "input": case,
        "model": "m:1",
        "model_result": "POSSIBLE",
        "model_reasoning": "Needs review: name is similar.",
        "model_probability": 0.6,
        "result": "POSSIBLE",
        "reasoning": None,
        "reason": None,
        "reviewer": "kim",
        "seconds": 2.0,
        "blind": False,
    } | facts


def corrected(at, result="NO_MATCH", **facts):
    return decision(at, action="correct", result=result, reason="other person, near name", **facts)
