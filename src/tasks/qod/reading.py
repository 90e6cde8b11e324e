"""An answer to a QoD request as it was written: the object that it is, the places in it, and what is wrong with one."""

import re
from dataclasses import dataclass

from common import parse_json
from tasks.case_limits import kind_of, size_of

# No call is half as deep; what is deeper would end a recursion.
DEEPEST = 16


@dataclass(frozen=True)
class Violation:
    check: str
    path: str  # $.device.ipv4Address
    words: str


def read(written):
    """(the object that was written, None), or (None, the violation of the check `json`)."""
    value = written
    if isinstance(written, str):
        try:
            value = parse_json(written)
        except (ValueError, RecursionError):
            return None, Violation("json", "$", "is not one JSON object and nothing else")
    if not isinstance(value, dict):
        return None, Violation("json", "$", f"must be an object, found {kind_of(value)}")
    if size_of(value)[1] > DEEPEST:
        return None, Violation("json", "$", f"is nested more than {DEEPEST} levels deep")
    return value, None


def is_refusal(value):
    """Whether an object says what a request lacks, well or badly."""
    return "error" in value


def inside(path, key):
    """The path of what stands in an object under a key, or in a list at a place."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if re.fullmatch(r"\w+", key) else f"{path}[{key!r}]"


def is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)


def part(value, name):
    """An object within an object; an empty one where it is none."""
    found = value.get(name)
    return found if isinstance(found, dict) else {}


def listed(value, name):
    found = value.get(name)
    return found if isinstance(found, list) else []


def is_same(one, gold):
    """Equality of JSON values as they are written: 7200.0 is not 7200, and true is not 1."""
    if type(one) is not type(gold):
        return False
    if isinstance(gold, dict):
        return one.keys() == gold.keys() and all(is_same(one[key], gold[key]) for key in gold)
    if isinstance(gold, list):
        return len(one) == len(gold) and all(map(is_same, one, gold))
    return one == gold
