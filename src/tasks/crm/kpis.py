"""What only the CRM task can score: whether the reasoning says what the fields show, and a case's slices."""

import unicodedata

from tasks.crm import statements
from tasks.crm.data import RECORDS
from tasks.crm.fields import evidence
from tasks.crm.statements import NOT_GIVEN, PARTS_OF

# What the comparison shows where a statement is true in other words: equal values are similar too, similar ones differ.
ALSO_TRUE = {"similar": "same", "different": "similar"}


def score(row, answer):
    """Counts for one answer: statements made, true ones, unsupported ones, fields invented, and fields it could have
    named.
    """
    if answer is None:
        return {}
    facts = evidence(row["input"])
    made = statements.judged(answer["reasoning"], facts)
    checked = [one for one in made if one.is_supported is not None]
    telling = {item.kind for item in facts if item.relation in ("same", "different")}
    named = {part for one in made for part in (one.statement.kind, *PARTS_OF.get(one.statement.kind, ()))}
    if named & {"first_name", "last_name"}:
        named.add("name")
    return {
        "statements": len(checked),
        "true": sum(one.is_supported or ALSO_TRUE.get(one.statement.stated) == one.evidence for one in checked),
        "unsupported": sum(not one.is_supported for one in checked),
        "invented": sum(not one.is_supported and one.evidence == NOT_GIVEN for one in checked),
        "telling": len(telling),
        "named": len(telling & named),
    }


# name -> (what it means, how it is made from summed counts)
AGGREGATES = {
    "faithful_pct": ("field statements in valid answers that are true", "true", "statements"),
    "unsupported_pct": (
        "field statements in valid answers that are not what the field comparison shows; readers see them marked",
        "unsupported",
        "statements",
    ),
    "invented_pct": ("field statements about fields that neither record has", "invented", "statements"),
    "fields_named_pct": ("agreeing or differing fields that the reasoning names", "named", "telling"),
}


def slices(case):
    """The named groups that a case belongs to, for KPIs by slice."""
    facts = evidence(case)
    kinds = {item.kind for item in facts}
    text = " ".join(item.left + item.right for item in facts)
    one_sided = sum(item.relation in ("left_only", "right_only") for item in facts)
    return {
        "fields": "some missing on one side" if one_sided else "all on both sides",
        "script": "Latin" if all(_latin(c) for c in text if c.isalpha()) else "non-Latin",
        "subject": "person" if kinds & {"name", "first_name", "last_name", "birth_date"} else "organisation",
    }


def _latin(letter):
    return letter.isascii() or "LATIN" in unicodedata.name(letter, "")


def unsupported(case, answer):
    """What an answer states of the fields and their comparison does not show; a baseline's answer has no sentence."""
    return statements.unsupported(answer.get("reasoning", ""), evidence(case))


COMPARED = RECORDS  # what the two sides of the view below are


def compare(case):
    """Rows for a side-by-side view: field, left value, right value, relation."""
    return [
        {"field": item.words, "left": item.left, "right": item.right, "relation": item.relation}
        for item in evidence(case)
    ]
