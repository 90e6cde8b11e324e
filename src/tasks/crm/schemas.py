"""How systems lay records out: which fields they have, what they call them, and how they write values.

A schema is drawn once and used for many records, as a real system's is. Two records of a pair share one or come from
two.
"""

import random
import re
from dataclasses import dataclass
from functools import lru_cache

from tasks.crm.fields import KINDS
from tasks.crm.policy import POINTS

N_SCHEMAS = 6_000
ANONYMOUS = (
    ("Attribute_{}", 1),
    ("col{}", 0),
    ("field_{}", 1),
    ("c{}", 1),
    ("Spalte {}", 1),
    ("value{}", 0),
    ("f{}", 0),
)
# slot -> (the kind whose names its key takes, the fields that it shows)
SLOTS = {
    "full": ("name", ("first", "middle", "last", "suffix")),
    "full_short": ("name", ("first", "last", "suffix")),
    "last_first": ("name", ("last", "first", "middle")),
    "first": ("first_name", ("first",)),
    "first_middle": ("first_name", ("first", "middle")),
    "middle": ("middle_name", ("middle",)),
    "last": ("last_name", ("last", "suffix")),
    "birth": ("birth_date", ("birth",)),
    "gender": ("gender", ("gender",)),
    "birthplace": ("birth_place", ("birthplace",)),
    "job": ("job_title", ("job",)),
    "company": ("company", ("company",)),
    "email": ("email", ("email",)),
    "phone": ("phone", ("phone",)),
    "tax": ("tax_id", ("tax",)),
    "street": ("street", ("street",)),
    "street_unit": ("street", ("street", "unit")),
    "house": ("house_number", ("house",)),
    "street_name": ("street", ("street_name",)),
    "unit": ("unit", ("unit",)),
    "city": ("city", ("city",)),
    "state": ("state", ("state",)),
    "postal": ("postal_code", ("postal",)),
    "country": ("country", ("country",)),
    "one_line": ("street", ("street", "city", "postal")),
    "postal_city": ("city", ("postal", "city")),
    "org": ("company", ("org",)),
    "org_name": ("name", ("org",)),
    "agency": ("agency", ("agency",)),
    "industry": ("industry", ("industry",)),
    "website": ("website", ("website",)),
    **{name: (name, (name,)) for name in ("note", "row_id", "stamp")},
}
# Slots that stand together -> how many in a hundred systems have just these.
NAME_LAYOUTS = {
    "first last": 40,
    "first middle last": 8,
    "full": 18,
    "full_short": 12,
    "last_first": 6,
    "first_middle last": 6,
    "full_short first last": 10,
}
ADDRESS_LAYOUTS = {
    "street city postal": 18,
    "street city": 12,
    "street_unit city state postal": 10,
    "house street_name unit city postal state": 10,
    "house street_name city postal": 5,
    "one_line": 8,
    "street postal_city": 5,
    "street postal": 7,
    "city state": 7,
    "street unit city state postal": 8,
    "postal": 4,
    "city": 8,
}
# slot -> the share of the systems that have it
PERSON_SHARES = {
    "birth": 0.5,
    "gender": 0.25,
    "birthplace": 0.14,
    "job": 0.25,
    "company": 0.4,
    "email": 0.55,
    "phone": 0.55,
    "tax": 0.1,
}
ORG_SHARES = {"phone": 0.7, "email": 0.35, "website": 0.35, "industry": 0.4, "agency": 0.2, "tax": 0.08}
# What says nothing about who the record is -> its key's names.
NOISE_NAMES = {
    "note": "notes|note|comments|description|remarks|memo|Bemerkung",
    "row_id": "id|record id|external id|contact id|account id|uuid|key|source id",
    "stamp": "created at|updated at|created|updated|last modified",
}
NOISE_SHARES = {"note": 0.06, "row_id": 0.12, "stamp": 0.06}
ADDRESS_SLOTS = frozenset(
    "street street_unit house street_name unit city state postal country one_line postal_city".split()
)
NAME_SLOTS = frozenset("full full_short last_first first first_middle middle last".split())
GROUPS = (("address", ADDRESS_SLOTS), ("name", NAME_SLOTS), ("contact", frozenset(("email", "phone", "website"))))
GROUP_KEYS = {
    "address": ("address", "location", "Address", "MailingAddress", "adresse"),
    "name": ("name", "person", "Name", "contact"),
    "contact": ("contact", "Contact", "communication"),
}
JOINERS = {"one_line": ", ", "last_first": ", "}


@dataclass(frozen=True)
class Style:
    """How a system writes values."""

    locale: str
    case: str  # a method of str, or empty
    date: int
    phone: int
    short_streets: bool
    legal: str
    latin: bool
    umlauts: bool
    genders: tuple
    long_country: bool
    short_jobs: int
    dashes: bool  # in tax ids
    dot: str  # after a shortened street word
    ordinals: bool  # Fifth Avenue, not 5th
    unit_word: str
    web_prefix: str


@dataclass(frozen=True)
class Schema:
    slots: tuple  # (slot, fields, path of keys, joiner)
    style: dict
    visible: tuple  # every field that some slot shows
    counted: tuple  # those of them that the policy counts
    one_in_list: bool  # phone numbers and e-mails stand in lists


@lru_cache(maxsize=4 * N_SCHEMAS)
def schema(kind, index, variety=True):
    """The index-th schema for persons or organisations; without variety there are only three plain ones."""
    rng = random.Random(f"schema:{kind}:{index if variety else index % 3}")
    slots = person_slots(rng) if kind == "person" else org_slots(rng)
    anonymous = variety and rng.random() < 0.08
    # Under a key without a name a time stamp passes for a birth date.
    slots += [name for name, share in NOISE_SHARES.items() if rng.random() < share and not anonymous]
    keys = anonymous_names(slots, rng) if anonymous else key_names(slots, rng, variety)
    rows = tuple((slot, SLOTS[slot][1], path, JOINERS.get(slot, " ")) for slot, path in zip(slots, keys, strict=True))
    visible = tuple(dict.fromkeys(field for slot in slots for field in SLOTS[slot][1]))
    counted = tuple(field for field in visible if field in POINTS)
    return Schema(rows, style_choices(rng), visible, counted, variety and rng.random() < 0.04)


@lru_cache(maxsize=50_000)
def style(kind, index, variety, locale):
    """How the index-th schema writes values in one country."""
    return Style(locale=locale, **schema(kind, index, variety).style)


def person_slots(rng):
    slots = by_share(rng, NAME_LAYOUTS) + address_slots(rng, 0.75)
    return arranged(slots + [slot for slot, share in PERSON_SHARES.items() if rng.random() < share], rng)


def org_slots(rng):
    slots = ["org_name" if rng.random() < 0.45 else "org", *address_slots(rng, 0.9)]
    return arranged(slots + [slot for slot, share in ORG_SHARES.items() if rng.random() < share], rng)


def address_slots(rng, share):
    if rng.random() > share:
        return rng.choice((["city"], ["city"], ["postal"], ["country"], []))
    return by_share(rng, ADDRESS_LAYOUTS) + (["country"] if rng.random() < 0.2 else [])


def by_share(rng, layouts):
    return rng.choices(list(layouts), list(layouts.values()))[0].split()


def arranged(slots, rng):
    """Mostly names first; some systems sort otherwise."""
    if rng.random() < 0.3:
        rng.shuffle(slots)
    return list(dict.fromkeys(slots))


def anonymous_names(slots, rng):
    pattern, first = rng.choice(ANONYMOUS)
    return [(pattern.format(at + first),) for at in range(len(slots))]


def key_names(slots, rng, variety):
    """One path of keys a slot, no two alike."""
    write = rng.choice(WRITINGS) if variety else snake
    whose = rng.choice(("", "", "", "", "", "", "contact", "customer", "billing", "primary")) if variety else ""
    nested = [group for group in GROUPS if variety and rng.random() < 0.07]
    paths = []
    for slot in slots:
        names = (KINDS.get(SLOTS[slot][0]) or NOISE_NAMES[slot]).split("|")
        words = names[int(len(names) * rng.random() ** 3)] if variety else names[0]
        key = write(f"{whose} {words}" if whose and rng.random() < 0.5 else words)
        group = next((name for name, members in nested if slot in members), None)
        path = (rng.choice(GROUP_KEYS[group][:1] if not variety else GROUP_KEYS[group]), key) if group else (key,)
        taken = [other[: len(path)] for other in paths] + [other[:1] for other in paths if len(other) > len(path)]
        paths.append(path if path not in taken and not (group and (path[0],) in paths) else (f"{key}_{len(paths)}",))
    return same_group_key(paths)


def same_group_key(paths):
    """A group has one key: its first field's."""
    first = {}
    return [path if len(path) == 1 else (first.setdefault(path[0].lower()[:4], path[0]), path[1]) for path in paths]


def words_of(text):
    return re.split(r"[\s_]+", text)


def snake(text):
    return "_".join(words_of(text)).lower()


def camel(text):
    first, *rest = words_of(text)
    return first.lower() + "".join(word.capitalize() for word in rest)


def pascal(text):
    return "".join(word.capitalize() for word in words_of(text))


def titled(text):
    return " ".join(word.capitalize() for word in words_of(text))


def shouted(text):
    return snake(text).upper()


def plain(text):
    return text.lower()


WRITINGS = (snake, snake, snake, camel, pascal, titled, titled, shouted, plain, plain)


def style_choices(rng):
    return {
        "case": rng.choices(("", "upper", "lower"), (70, 12, 18))[0],
        "date": int(rng.random() * 7),
        "phone": int(rng.random() * 10),
        "short_streets": rng.random() < 0.5,
        "legal": rng.choice(("keep", "keep", "comma", "drop")),
        "latin": rng.random() < 0.3,
        "umlauts": rng.random() < 0.3,
        "genders": rng.choice((("F", "M"), ("female", "male"), ("f", "m"), ("Female", "Male"), ("w", "m"), ("2", "1"))),
        "long_country": rng.random() < 0.5,
        "short_jobs": int(rng.random() < 0.3),
        "dashes": rng.random() < 0.25,
        "dot": rng.choice(("", ".")),
        "ordinals": rng.random() < 0.3,
        "unit_word": rng.choice(("Apt", "Unit", "Suite", "#", "Flat")),
        "web_prefix": rng.choice(("", "www.", "https://", "https://www.", "http://www.")),
    }


def record(layout, text):
    """The record as its system holds it; fields without a value are left out."""
    found = {}
    for slot, fields, path, joiner in layout.slots:
        values = [text[field] for field in fields if text.get(field)]
        if not values:
            continue
        place = found
        for key in path[:-1]:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                break
        else:
            value = values[0] + joiner + " ".join(values[1:]) if len(values) > 1 else values[0]
            place[path[-1]] = [value] if layout.one_in_list and slot in ("phone", "email") else value
    return found
