"""What src/measurements asks of this task: how alike two records are without a model, and a pair with less in it."""

from rapidfuzz.distance import JaroWinkler

from tasks.crm.baseline import profile
from tasks.crm.data import RECORDS
from tasks.crm.fields import NAME_PARTS, by_kind, kind_of


def similarity(case):
    """Mean Jaro-Winkler similarity of the fields that both records fill."""
    return mean_similarity(*(profile(case[side]) for side in RECORDS))


def mean_similarity(left, right):
    """Mean over the kinds that both sides fill; 0 where there are none, as nothing then speaks for a match."""
    both = left.keys() & right.keys()
    # A profile names a person whole and in parts; the parts would count the same evidence again.
    kinds = sorted(both - set(NAME_PARTS) if "name" in both else both)
    return sum(JaroWinkler.similarity(left[kind], right[kind]) for kind in kinds) / len(kinds) if kinds else 0.0


def field_removed(case, rng):
    """The case without one kind of field in one of its records; None unless both fill that kind and one more, so that a
    match still can be seen.
    """
    filled = [by_kind(case[side]).keys() for side in RECORDS]
    both = sorted(filled[0] & filled[1])
    if len(both) < 2:
        return None
    kind = rng.choice(both)
    side = rng.choice(RECORDS)
    return case | {side: without_kind(case[side], kind)}


def without_kind(value, kind, key=""):
    """A record without the values under keys of a kind, however deep."""
    if isinstance(value, dict):
        return {
            name: without_kind(item, kind, name)
            for name, item in value.items()
            if isinstance(item, dict | list) or kind_of(name) != kind
        }
    if isinstance(value, list):
        return [
            without_kind(item, kind, key) for item in value if isinstance(item, dict | list) or kind_of(key) != kind
        ]
    return value
