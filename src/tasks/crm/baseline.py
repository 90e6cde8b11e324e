"""The classical view of a CRM pair: similarity features for a tree model, tables and settings for Splink.

Every feature is symmetric: two values are put in order before they are compared, so swapping the records changes
nothing.
"""

import re
from math import nan

from rapidfuzz import fuzz
from rapidfuzz.distance import JaroWinkler

from tasks.crm.data import RECORDS
from tasks.crm.fields import KINDS, NAME_PARTS, SIMILAR_AT, by_kind, normal, similarity

VERDICTS_BY_WEIGHT = ("DUPLICATE", "POSSIBLE", "NO_MATCH")  # what a match weight says, the heaviest first
MOST_CHARS = 200  # a longer value is a text, not a field, and would stall comparisons that cost its length squared
RELATIONS = ("same", "similar", "different", "one_sided")
COMPARED = ("ratio", "token_sort", "token_set", "jaro_winkler", "same", "one_sided")
NAME_FEATURES = ("name.aligned", "name.worst_word", "name.same_last_word", "name.same_initials")
DETAIL_FEATURES = ("email.local_part", "email.same_domain", "phone.last_seven", "street.numbers", "postal_code.prefix")
RECORD_FEATURES = (
    "record.words",
    "record.numbers",
    "record.token_set",
    *(f"n.{name}" for name in RELATIONS),
    "share.same",
    "other.n_both",
    "other.mean",
    "other.worst",
)
FEATURES = [
    *(f"{kind}.{name}" for kind in KINDS for name in COMPARED),
    *NAME_FEATURES,
    *DETAIL_FEATURES,
    *RECORD_FEATURES,
]
DIGITS = re.compile(r"\d+")


def features(case):
    """The numbers named by FEATURES for one pair; NaN where there is nothing to compare."""
    left = profile(case["record1"])
    right = profile(case["record2"])
    found = []
    for kind in KINDS:
        found += compared(left.get(kind), right.get(kind))
    return found + name_features(left, right) + detail_features(left, right) + record_features(left, right)


def profile(record):
    """A record's normalised values by kind, its name both whole and in parts whichever way the record holds it."""
    raw = by_kind(record)
    if "name" in raw and "," in raw["name"] and not any(part in raw for part in NAME_PARTS):
        last, first = raw["name"].split(",", 1)
        raw["name"] = f"{first} {last}"
    values = {
        kind: value
        for kind, value in ((kind, normal(kind, value)[:MOST_CHARS]) for kind, value in raw.items())
        if value
    }
    parts = [values[part] for part in NAME_PARTS if part in values]
    if parts:
        values.setdefault("name", " ".join(parts))
    elif " " in values.get("name", ""):
        values["first_name"] = values["name"].split(" ", 1)[0]
        values["last_name"] = values["name"].rsplit(" ", 1)[1]
    return values


def ordered(left, right):
    return (left, right) if left <= right else (right, left)


def compared(left, right):
    """The features of COMPARED for two values of one kind."""
    if not left or not right:
        return [nan] * (len(COMPARED) - 1) + [1.0 if left or right else nan]
    if left == right:
        return [100.0, 100.0, 100.0, 1.0, 1.0, 0.0]
    a, b = ordered(left, right)
    ratio = fuzz.ratio(a, b)
    if " " not in a and " " not in b:
        return [ratio, ratio, ratio, JaroWinkler.similarity(a, b), 0.0, 0.0]
    return [ratio, fuzz.token_sort_ratio(a, b), fuzz.token_set_ratio(a, b), JaroWinkler.similarity(a, b), 0.0, 0.0]


def name_features(left, right):
    """How the words of two names fit each other whatever their order, where a nickname or an initial stands for the
    word.
    """
    if "name" not in left or "name" not in right:
        return [nan] * len(NAME_FEATURES)
    fewer, more = sorted((left["name"].split(), right["name"].split()), key=lambda words: (len(words), words))
    best = [max(word_fit(word, other) for other in more) for word in fewer]
    initials = [sorted({word[0] for word in words}) for words in (fewer, more)]
    last_words = [side.get("last_name", side["name"]) for side in (left, right)]
    return [sum(best) / len(best), min(best), float(last_words[0] == last_words[1]), overlap(*initials)]


def word_fit(word, other):
    if word == other:
        return 1.0
    # "J" and "Jen" stand for "Jennifer"; slightly less than the word itself.
    if word.startswith(other) or other.startswith(word):
        return 0.95
    return JaroWinkler.similarity(*ordered(word, other))


def detail_features(left, right):
    """Parts of values that identify more, or less, than the whole value does."""
    (left_local, left_domain), (right_local, right_domain) = (
        side.get("email", "").partition("@")[::2] for side in (left, right)
    )
    phones, streets, codes = (
        [side.get(kind, "") for side in (left, right)] for kind in ("phone", "street", "postal_code")
    )
    return [
        fuzz.ratio(*ordered(left_local, right_local)) if left_local and right_local else nan,
        agree(left_domain, right_domain),
        agree(*(phone[-7:] for phone in phones)),
        overlap(*(DIGITS.findall(street) for street in streets)) if all(streets) else nan,
        agree(*(code[:3] for code in codes)),
    ]


def agree(left, right):
    return float(left == right) if left and right else nan


def record_features(left, right):
    """How much of the whole records is shared, and how many of their fields agree."""
    # The parts of a name repeat what the whole name says.
    kinds = (left.keys() | right.keys()) - set(NAME_PARTS)
    relations = [normal_relation(kind, left.get(kind), right.get(kind)) for kind in kinds]
    counts = [float(relations.count(name)) for name in RELATIONS]
    n_both = sum(counts[:3])
    texts = [
        " ".join(sorted(value for kind, value in side.items() if kind not in NAME_PARTS)) for side in (left, right)
    ]
    return [
        overlap(*(text.split() for text in texts)),
        overlap(*(DIGITS.findall(text) for text in texts)),
        fuzz.token_set_ratio(*ordered(*texts)),
        *counts,
        counts[0] / n_both if n_both else nan,
        *other_features(left, right),
    ]


def normal_relation(kind, left, right):
    """fields.relation for values that are normal already, blind to their order."""
    if not left or not right:
        return "one_sided"
    if left == right:
        return "same"
    return "similar" if similarity(kind, *ordered(left, right)) >= SIMILAR_AT else "different"


def other_features(left, right):
    """The fields whose names are unknown here, in three numbers."""
    ratios = sorted(
        fuzz.ratio(*ordered(left[kind], right[kind])) for kind in left.keys() & right.keys() if kind not in KINDS
    )
    return [float(len(ratios)), sum(ratios) / len(ratios), ratios[0]] if ratios else [0.0, nan, nan]


def overlap(left, right):
    """Shared share of two lists of words: 1 when they hold the same, NaN when both are empty."""
    left = set(left)
    right = set(right)
    return len(left & right) / len(left | right) if left or right else nan


def splink_tables(cases):
    """Both sides of the cases as tables with one row a case, numbered in `pair`, and one column a kind of field."""
    return [splink_table([profile(case[name]) for case in cases]) for name in RECORDS]


def splink_table(profiles):
    import pandas as pd

    # Typed as text: DuckDB takes a column of nothing but None for numbers. A lone surrogate has no UTF-8.
    columns = {kind: pd.array([encodable(values.get(kind)) for values in profiles], dtype="string") for kind in KINDS}
    return pd.DataFrame({"unique_id": range(len(profiles)), "pair": range(len(profiles)), **columns})


def encodable(value):
    return value and value.encode("utf-8", "replace").decode("utf-8")


def splink_settings(columns=tuple(KINDS)):
    """Splink's settings with a comparison for each of the columns; None when none of them can be compared."""
    comparisons = [comparison for column, comparison in splink_comparisons().items() if column in columns]
    # Blocking on the number of the case scores exactly our pairs, no other.
    return (
        {
            "link_type": "link_only",
            "comparisons": comparisons,
            "blocking_rules_to_generate_predictions": ["l.pair = r.pair"],
            "retain_matching_columns": False,
        }
        if comparisons
        else None
    )


def splink_comparisons():
    """How Splink compares each column; a missing value on either side weighs nothing."""
    from splink import comparison_library as compare

    similar = {
        "company": (0.92, 0.8),
        "street": (0.92, 0.8),
        "website": (0.92, 0.8),
        "city": (0.9,),
        "state": (0.9,),
        "country": (0.9,),
        "job_title": (0.9,),
    }
    slips = {"phone": (2,), "postal_code": (1,), "birth_date": (1, 2), "tax_id": (1,)}
    return {
        "name": name_comparison(),
        "email": compare.EmailComparison("email"),
        **{column: compare.JaroWinklerAtThresholds(column, levels) for column, levels in similar.items()},
        **{column: compare.LevenshteinAtThresholds(column, levels) for column, levels in slips.items()},
    }


def name_comparison():
    """The whole name and its parts in one comparison: as two they would count the same evidence twice."""
    from splink import comparison_level_library as level
    from splink import comparison_library as compare

    same_words = "name_l = name_r OR (first_name_l = last_name_r AND last_name_l = first_name_r)"
    same_last_and_initial = "last_name_l = last_name_r AND first_name_l[1] = first_name_r[1]"
    return compare.CustomComparison(
        output_column_name="name",
        comparison_levels=[
            level.NullLevel("name"),
            level.CustomLevel(same_words, "same words"),
            level.JaroWinklerLevel("name", 0.92),
            level.CustomLevel(same_last_and_initial, "same last name and initial"),
            level.JaroWinklerLevel("name", 0.85),
            level.ExactMatchLevel("last_name"),
            level.ExactMatchLevel("first_name"),
            level.ElseLevel(),
        ],
    )
