"""What the service says and checks for CRM: POST /match with two records, the verdict's own keys as the answer."""

from tasks.case_limits import kind_of, size_problem
from tasks.crm.data import RECORDS
from tasks.crm.fields import evidence as field_evidence
from tasks.crm.fields import uncompared
from tasks.crm.reasons import reasoning

ROUTE = "/match"
ANSWER_KEY = None  # exactly {"result": ..., "reasoning": ...}
DESCRIPTION = (
    "Two records of a CRM in, a verdict out: DUPLICATE, POSSIBLE (a person should look) or NO_MATCH, with one sentence "
    "why. Every answer fits the schema, whatever the records hold."
)
WORDS = {
    "full_case": "a pair of records",
    "too_large": "Too large: the body, or the records for the model",
    "too_long": "the records are longer than the model can read",
}
EXAMPLE = {
    "record1": {"name": "Ann Lee", "phone": "+1 512 555 0101", "city": "Austin"},
    "record2": {"full_name": "Anne Lee", "telephone": "512-555-0101", "city": "Austin"},
}
EXAMPLE_ANSWER = {"result": "DUPLICATE", "reasoning": "Clear duplicate: phone and city match; name is similar."}
EXAMPLE_CHAT = '{"record1":{"name":"Ann Lee"},"record2":{"name":"A. Lee"}}'
EXAMPLE_REASON = "other person, same household"
REVIEW_PAGE = {
    "question": "Are these the same?",
    "caption": "The two records, field by field",
    "columns": {"record1": "A", "record2": "B"},
    # relation -> (its words, the kind that gives it its colour)
    "relations": {
        "same": ("= same", "same"),
        "similar": ("\u2248 similar", "similar"),
        "different": ("\u2260 different", "different"),
        "left_only": ("only in A", "missing"),
        "right_only": ("only in B", "missing"),
        "not_compared": ("not compared", "missing"),
        "not_given": ("in neither", "missing"),
    },
    "reasons": [
        "other person, near name",
        "same household or company, other person",
        "same one, moved or renamed",
        "same one, nickname or other spelling",
        "recycled phone or e-mail",
        "parent company, branch or site",
        "too little to go by",
        "the model misread a field",
    ],
    # What is likely meant by a correction to this verdict; every other reason is one arrow key away.
    "likely_reasons": {
        "DUPLICATE": "same one, nickname or other spelling",
        "POSSIBLE": "too little to go by",
        "NO_MATCH": "other person, near name",
    },
}


def case_schema(limits, value):
    """The JSON Schema of a pair; `value` is that of a field's value."""
    record = {
        "type": "object",
        "additionalProperties": value,
        "maxProperties": limits.most_fields,
        "description": f"Field names and values; up to {limits.most_levels} levels deep",
    }
    return {
        "type": "object",
        "properties": dict.fromkeys(RECORDS, record),
        "required": list(RECORDS),
        "additionalProperties": False,
    }


def check_body(value, limits):
    """What is wrong with a body, in one sentence; None where it is a pair of records within the limits."""
    if not isinstance(value, dict):
        return f"an object with record1 and record2 is wanted, found {kind_of(value)}"
    missing = [name for name in RECORDS if name not in value]
    if missing:
        return f"{' and '.join(missing)} missing"
    if len(value) > len(RECORDS):
        return "only record1 and record2 are read; there are other keys"
    for name in RECORDS:
        record = value[name]
        if not isinstance(record, dict):
            return f"{name} must be an object, found {kind_of(record)}"
        if problem := size_problem(name, record, limits):
            return problem
    return None


def evidence(case):
    """How the two records agree, field by field, in words that a program can show; what nobody compares stands last."""
    compared = [
        {"field": one.words, "relation": one.relation, "record1": one.left, "record2": one.right}
        for one in field_evidence(case)
    ]
    return compared + [
        {"field": key, "relation": "not_compared", "record1": left, "record2": right}
        for key, left, right in uncompared(case)
    ]


def reason_for(label, case):
    """The sentence beside a verdict that a steward corrected, made from the fields as the project's own rows are."""
    return reasoning(label, case)
