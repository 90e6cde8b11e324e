"""The review's routes as /openapi.json lists them.

`pair` is a case's hash, in bodies and in the decisions file alike, whatever a task calls its cases.
"""

from service.contract import OBJECT, errors, json_body
from service.review.decisions import entry_key
from service.review.leases import LEASE_S

NAME = {"type": "string", "pattern": "^\\S.{0,98}$"}
A_DAY_S = 86_400
EXAMPLE_PAIR = "6f1d..."


def decision_fields(contract):
    """The fields of a decision, beside which action it is."""
    task = contract.task
    fields = {
        "pair": {"type": "string"},
        "reviewer": NAME,
        "seconds": {"type": "number", "minimum": 0, "maximum": A_DAY_S},
        "blind": {"type": "boolean"},
        "shown": {"type": "string", "description": "The model's verdict that the reviewer saw"},
        "reason": {"type": "string", "maxLength": 1000},
    }
    if task.verdict.reason:
        fields[entry_key(task.verdict.reason)] = task.answer_schema["properties"][task.verdict.reason]
    return fields


def decision_schema(contract):
    fields = decision_fields(contract)
    decide = {"action": {"const": "decide"}, "verdict": {"enum": list(contract.task.verdict.labels)}}
    return {
        "anyOf": [
            {
                "type": "object",
                "required": ["pair", "action", "verdict", "reviewer"],
                "properties": fields | decide,
            },
            {
                "type": "object",
                "required": ["pair", "action", "reviewer"],
                "properties": fields | {"action": {"const": "skip"}},
            },
        ]
    }


def next_case(contract):
    """The route that lends a reviewer a case; without a name it lends none and shows one all the same."""
    name = {"anyOf": [NAME, {"const": ""}]}
    return posted(
        contract,
        f"The {contract.words.case} to review next, least certain first; shown to nobody else for {LEASE_S / 60:g} min",
        "A card, or null where nothing waits",
        {"type": "object", "properties": {"reviewer": name}},
        {"reviewer": "kim"},
    )


def written(contract, summary, description, schema, example):
    """A route that adds to the decisions."""
    return posted(contract, summary, description, schema, example, 409, 507)


def posted(contract, summary, description, schema, example, *statuses):
    return {
        "summary": summary,
        "response_model": None,
        "responses": {200: {"description": description} | OBJECT}
        | errors(contract, 400, 401, 403, 404, 408, 413, 415, 422, 503, *statuses),
        "openapi_extra": json_body(schema, example),
    }


def decide(contract):
    example = {
        "pair": EXAMPLE_PAIR,
        "action": "decide",
        "verdict": contract.task.verdict.labels[-1],
        "reason": contract.example_reason,
        "reviewer": "kim",
        "seconds": 8.2,
    }
    summary = f"Decide a {contract.words.case}, or skip it; on the disk before it is acknowledged"
    return written(contract, summary, "The decision's number and hash", decision_schema(contract), example)


def undo(contract):
    schema = {"type": "object", "required": ["reviewer"], "properties": {"reviewer": NAME}}
    description = f"The {contract.words.case} that is open again"
    return written(contract, "Take back the reviewer's last decision", description, schema, {"reviewer": "kim"})


def statistics(contract):
    return {
        "summary": f"Agreement, overrides, time a {contract.words.case}",
        "operation_id": "told_statistics_review_statistics_get",
        "responses": {200: {"description": "Numbers"} | OBJECT} | errors(contract, 401, 404, 503),
    }
