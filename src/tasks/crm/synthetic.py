"""Labelled pairs without end: two records of one entity, or of two that one takes for each other.

The label follows the policy in policy.py, the reasoning is written from the evidence that the records show. The same
seed and row number always give the same pair, on any number of cores.
"""

import random
from dataclasses import dataclass

from rapidfuzz import fuzz

from tasks.crm import entities, policy, pools, reasons, schemas, surfaces
from tasks.crm.entities import chance, one_of
from tasks.crm.free_text import prose
from tasks.crm.reasons import reasoning

REFERENCE_LISTS = tuple(pools.REFERENCE_LISTS.values())  # files that --reference may hold
FIXED_TEXTS = tuple(
    f"{opening}: " for opening in reasons.OPENINGS.values()
)  # one token each for a tokenizer of its own
SAME_SHARE = 0.46
PERSON_SHARE = 0.66
ONE_SCHEMA_SHARE = 0.6  # both records come from one system
REPEATED_EVERY = 10  # every tenth row asks about the entity of the row before, as in a real export
YEARS_NEAR = 10  # further apart is another generation
UNKNOWN_DAY = 0.5  # the first of January mostly stands for an unknown day
NEAR_AT = 84  # of 100: values of two entities that a reader would take for a slip
NEAR_SHARE = 0.35
IDENTIFIERS = frozenset(("email", "phone", "tax", "website", "postal"))  # two that look alike are two
UNKNOWN = ("", "", "", "", "unknown", "n/a", "-", "N/A", "null", "none")
SAID_UNKNOWN = frozenset(
    "first last org phone email birth birthplace company job industry agency website gender state country tax".split()
)
UNKNOWN_WORDS = frozenset(UNKNOWN)
NOISE = {
    "note": surfaces.remark,
    "row_id": surfaces.row_id,
    "stamp": surfaces.time_stamp,
}  # what records hold beside the facts


@dataclass(frozen=True)
class Recipe:
    """What the rows are drawn from; the ablations switch parts off."""

    pool: str = "train"
    reference: str | None = None
    variety: bool = True  # many schemas, or three plain ones
    frequency: bool = True  # names by frequency with points for rarity, or all alike
    free_text: bool = False  # reasonings in varied free prose instead of the structured sentence


@dataclass
class Side:
    """One record on its way: who, as which system writes it, and what the slips left of it."""

    entity: dict
    layout: object
    text: dict
    left: dict


def rows(n, seed, start=0, recipe=Recipe()):
    """Rows `start` to `start + n` of the endless sequence that a seed names, whatever the number asked for at once."""
    for index in range(start, start + n):
        label, case = pair(seed, index, recipe)
        yield {
            "id": f"syn-{seed}-{index:07d}",
            "input": case,
            "output": {"result": label, "reasoning": reason(label, case, recipe, index)},
        }


def reason(label, case, recipe, index):
    return prose(label, case, index) if recipe.free_text else reasoning(label, case)


def pair(seed, index, recipe):
    """(label, case) of one row; the second row about an entity draws its first record anew from the same numbers."""
    subject = index - 1 if index % REPEATED_EVERY == REPEATED_EVERY - 1 else index
    # Whole numbers: seeding with a text costs three times as much, a twentieth of a pair.
    first, rng = (random.Random((seed << 64) + (row << 1) + side) for row, side in ((subject, 0), (index, 1)))
    left, country, number = first_side(first, recipe)
    same = chance(rng, SAME_SHARE)
    left.entity = dict(left.entity)
    right = second_side(left, country, number, same, rng, recipe)
    label = label_of(left, right, same, country, recipe)
    return label, {
        "record1": schemas.record(left.layout, left.text),
        "record2": schemas.record(right.layout, right.text),
    }


def first_side(rng, recipe):
    source = pools.pools(recipe.pool, recipe.reference)
    country = source.country(source.shares.pick(rng))
    kind = "person" if chance(rng, PERSON_SHARE) else "org"
    entity = anybody(kind, rng, country)
    number = int(rng.random() * schemas.N_SCHEMAS)
    return side(entity, country, kind, number, rng, recipe, slips=one_of(rng, (0, 0, 0, 1, 1, 2))), country, number


def second_side(left, country, number, same, rng, recipe):
    kind = left.entity["type"]
    if same:
        other = entities.updated(left.entity, rng, country) if chance(rng, 0.3) else left.entity
        slips = one_of(rng, (0, 1, 1, 2, 2, 3, 4, 6, 8) if kind == "person" else (0, 1, 1, 2, 2, 3, 4, 6))
    else:
        other = anybody(kind, rng, country) if chance(rng, 0.08) else entities.look_alike(left.entity, rng, country)
        slips = one_of(rng, (0, 0, 1, 1, 2, 3))
    if not chance(rng, ONE_SCHEMA_SHARE):
        number = int(rng.random() * schemas.N_SCHEMAS)
    return side(other, country, kind, number, rng, recipe, slips)


def anybody(kind, rng, country):
    return (entities.person if kind == "person" else entities.organisation)(rng, country)


def side(entity, country, kind, number, rng, recipe, slips):
    """The entity's record in the schema of that number, soiled by so many slips."""
    layout = schemas.schema(kind, number, recipe.variety)
    style = schemas.style(kind, number, recipe.variety, country.locale)
    text = surfaces.written(entity, style, rng)
    text |= {
        field: make(rng) if field != "note" else make(rng, country.words)
        for field, make in NOISE.items()
        if field in layout.visible
    }
    left = surfaces.soil(text, layout.visible, rng, slips)
    empty_some(text, layout.visible, rng)
    return Side(entity, layout, text, left)


def empty_some(text, visible, rng):
    """Fields that nobody filled; a few say so in a word."""
    share = one_of(rng, (0, 0, 0.05, 0.05, 0.1, 0.1, 0.2, 0.2, 0.35, 0.35, 0.6, 0.7))
    kept = one_of(rng, visible)  # a record says at least one thing
    word = one_of(rng, UNKNOWN)
    for field in visible:
        if field != kept and rng.random() < share:
            text[field] = word if word and field in SAID_UNKNOWN and chance(rng, 0.5) else ""


def label_of(left, right, same, country, recipe):
    shown = shown_values(left)
    others = shown_values(right)
    relations = {
        field: relation(field, left, right, value, others[field]) for field, value in shown.items() if field in others
    }
    box = left.entity["type"] == "person" and entities.is_shared(left.entity["email"])
    return policy.label(relations, rarity(left.entity, country, recipe), box, same)


def shown_values(side):
    """The record's filled fields that count for the policy."""
    text = side.text
    values = {
        field: text[field] for field in side.layout.counted if text.get(field) and text[field] not in UNKNOWN_WORDS
    }
    if text.get("street_name") and "street_name" in side.layout.visible:
        values["street"] = text["street_name"]
    return values


def relation(field, left, right, mine, theirs):
    """How far a field that both records show agrees, from 1 to -1."""
    share = left.left.get(field, 1.0) * right.left.get(field, 1.0)
    true = left.entity[field]
    other = right.entity[field]
    if field == "street":
        share *= left.left.get("street_name", 1.0) * right.left.get("street_name", 1.0)
        if true == other:
            return (
                share
                if left.entity["number"] == right.entity["number"]
                else 0.12
                if number_unknown(left) or number_unknown(right)
                else -0.5
            )
    elif field == "birth":
        return share * date_relation(true, other)
    elif true == other:
        return share
    elif field == "postal" and true[:3] == other[:3]:
        return 0.3
    elif field in ("first", "middle") and mine[:1].lower() == theirs[:1].lower() and (len(mine) < 3 or len(theirs) < 3):
        return 0.3  # an initial that fits
    if field in IDENTIFIERS:
        return -abs(share)
    return NEAR_SHARE if fuzz.ratio(mine.lower(), theirs.lower()) >= NEAR_AT else -abs(share)


def date_relation(true, other):
    """Two birth dates: the same, one part apart, a few years apart, or another generation."""
    unknown_day = (1, 1) in (true[1:], other[1:])
    if true == other:
        return UNKNOWN_DAY if unknown_day else 1.0
    if true[0] == other[0] and unknown_day:
        return 0.1  # only the year was known
    if sum(a == b for a, b in zip(true, other, strict=True)) == 2:
        return 0.12
    return -0.35 if abs(true[0] - other[0]) <= YEARS_NEAR else -1.0


def number_unknown(side):
    return not any(name in side.layout.visible and side.text.get(name) for name in ("house", "street"))


def rarity(entity, country, recipe):
    """How many powers of ten a person's names are rare; made-up and unlisted names count as rare."""
    if entity["type"] != "person":
        return {}
    if not recipe.frequency:
        return {"first": 2.5, "last": 3.0}
    first = (country.women if entity["gender"] == "F" else country.men).rarity.get(entity["first"], 3.5)
    return {"first": first, "last": country.last.rarity.get(entity["last"], 4.0)}
