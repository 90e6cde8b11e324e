"""What a CRM row is: its two records, how they are compared for sameness, and its mirror image."""

import json
import re

from common import parse_json

RECORDS = ("record1", "record2")


def check_case(case):
    """What is wrong with a row's input, in words; empty when it is a pair of records."""
    if not isinstance(case, dict):
        return [f"'input' must be an object with record1 and record2, found {type(case).__name__}"]
    problems = [f"'input' has no {name!r}" for name in RECORDS if name not in case]
    problems += [
        f"'input' has the unknown key {key!r}; only record1 and record2 are read" for key in case if key not in RECORDS
    ]
    problems += [
        f"input.{name} must be a JSON object, found {type(case[name]).__name__}"
        for name in RECORDS
        if name in case and not isinstance(case[name], dict)
    ]
    return problems


def parts(case):
    """The things that must not be seen in two splits: here both records."""
    return [case[name] for name in RECORDS]


def canonical(case):
    """The case as a prompt shows it: keys sorted, the records in a fixed order, so neither order can change a verdict.

    The reasoning speaks of fields, never of the first or second record; SIDES finds one that does.
    """
    if not case.keys() >= set(RECORDS):
        return case
    records = sorted(
        (sorted_keys(case[name]) for name in RECORDS), key=lambda record: json.dumps(record, sort_keys=True)
    )
    return dict(zip(RECORDS, records, strict=True))


def sorted_keys(value):
    if isinstance(value, dict):
        return {key: sorted_keys(value[key]) for key in sorted(value)}
    return [sorted_keys(item) for item in value] if isinstance(value, list) else value


SIDES = re.compile(
    r"\b(?:record ?_?[12]|(?:the )?(?:first|second|left|right|former|latter) (?:record|one|entry))\b", re.I
)


SIDES_NOTE = (
    "speak of the first or second record; prompts show the records in a fixed order of their own, so such words will "
    "often be wrong: speak of fields instead"
)


def case_of_words(words):
    """A pair from two words of a command line, each a record as JSON."""
    if len(words) != len(RECORDS):
        raise ValueError(f"two records as JSON are wanted, found {len(words)}")
    return {name: json_of(name, word) for name, word in zip(RECORDS, words, strict=True)}


def json_of(name, word):
    try:
        return parse_json(word)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not JSON ({error})") from error


def swap(case):
    """The same question asked the other way round; the verdict should not change."""
    return {"record1": case["record2"], "record2": case["record1"]}
