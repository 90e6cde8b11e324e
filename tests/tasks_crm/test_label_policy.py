"""docs/label_policy.md says what policy.py does: its table, its thresholds, and every worked example recomputed."""

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks import load_task
from tasks.crm import policy
from tasks.crm.fields import evidence
from tasks.crm.kpis import score
from tasks.crm.reasons import reasoning

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "label_policy.md").read_text(encoding="utf-8")
LABELS = load_task().verdict.labels
EXAMPLE = re.compile(
    r"^### (?P<title>.+?)\n\n```json\n(?P<left>\{.*\})\n(?P<right>\{.*\})\n```\n\n<!-- (?P<declared>.+?) -->\n"
    r"`points: (?P<sum>.+?) -> (?P<label>\w+)`\n\n(?P<why>\S.+)",
    re.M,
)
KINDS = {
    "first": "first_name",
    "last": "last_name",
    "birth": "birth_date",
    "tax": "tax_id",
    "org": "company",
    "postal": "postal_code",
    "job": "job_title",
}
HARD_KINDS = (
    "same household",
    "father and son",
    "twins",
    "shared mailbox",
    "franchise",
    "moved person",
    "moved organisation",
    "namesake",
    "subsidiary",
    "name-only",
    "married",
    "typo in the birth date",
    "nickname",
    "swapped",
    "id agrees",
    "empty record",
)


@dataclass
class Example:
    title: str
    case: dict
    sum: str
    label: str
    same: bool
    relations: dict
    rarity: dict
    shared_mailbox: bool
    near: bool  # within policy.BORDER of a threshold
    written_apart: bool  # the slip hides from a comparison field by field what agrees


def examples():
    for match in EXAMPLE.finditer(TEXT):
        truth, *declared = match["declared"].split("; ")
        assert truth in ("same", "other")
        numbers = {words.partition(" ")[0]: numbers_in(words) for words in declared if "=" in words}
        case = {"record1": json.loads(match["left"]), "record2": json.loads(match["right"])}
        yield Example(
            match["title"],
            case,
            match["sum"],
            match["label"],
            truth == "same",
            numbers.get("relations", {}),
            numbers.get("rarity", {}),
            "shared mailbox" in declared,
            "near a border" in declared,
            "written apart" in declared,
        )


def numbers_in(words):
    return {name: float(value) for name, value in re.findall(r"(\w+)=(-?[\d.]+)", words)}


EXAMPLES = list(examples())
each = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.title)


def weighed(example):
    return policy.weigh(example.relations, example.rarity, example.shared_mailbox)


def by_points_alone(points, groups, contradicted):
    """The verdict of somebody who does not know the truth."""
    if points >= policy.DUPLICATE_FROM:
        return "DUPLICATE" if groups > 1 and not contradicted else "POSSIBLE"
    return "NO_MATCH" if points < policy.NO_MATCH_BELOW else "POSSIBLE"


def test_the_table_is_the_policys():
    rows = re.findall(r"^\| (\w+) \| [^|]+ \| (-?[\d.]+) \| (-?[\d.]+) \| (\w+) \|$", TEXT, re.M)
    assert {field: (float(agree), float(differ)) for field, agree, differ, _ in rows} == policy.POINTS
    assert {field: group for field, _, _, group in rows} == {
        field: policy.GROUP.get(field, field) for field in policy.POINTS
    }


def test_thresholds_and_the_rules_numbers_are_the_policys():
    verdicts = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", TEXT, re.M))
    assert tuple(verdicts) == LABELS
    assert (
        verdicts["DUPLICATE"].startswith(f"{policy.DUPLICATE_FROM:g} or more")
        and verdicts["NO_MATCH"] == f"below {policy.NO_MATCH_BELOW:g}"
    )
    assert f"within {policy.BORDER:g} points of a threshold" in TEXT
    assert f"many people's: {policy.SHARED_MAILBOX:g} points instead of {policy.POINTS['email'][0]:g}" in TEXT
    assert f"another last name is {policy.MARRIED:g} instead of {policy.POINTS['last'][1]:g}" in TEXT
    assert "**Contradictions.** " + ", ".join(f"`{field}`" for field in policy.CONTRADICTIONS) + " that differ" in TEXT
    for field, share in policy.STREET_COVERS.items():
        assert f"`{field}` then counts {100 * share:.0f} %" in TEXT


def test_every_hard_kind_has_an_example():
    titles = [title.lower() for title in re.findall(r"^### (.+)$", TEXT, re.M)]
    assert len(EXAMPLES) == len(titles), "an example in another form is not tested"
    assert [kind for kind in HARD_KINDS if not any(kind in title for title in titles)] == []
    assert {example.label for example in EXAMPLES} == set(LABELS)


@each
def test_the_sum_is_right_and_every_field_is_in_it(example):
    parts, total = example.sum.rsplit(" = ", 1)
    terms = re.findall(r"([+-] )?(\w+) (\d+\.\d\d)", parts)
    assert [name for _, name, _ in terms if name != "nothing"] == list(example.relations)
    assert sum(float(value) * (-1 if sign.startswith("-") else 1) for sign, _, value in terms) == pytest.approx(
        float(total), abs=0.031
    ), "rounded terms"
    assert weighed(example)[0] == pytest.approx(float(total), abs=0.0051)


@each
def test_the_verdict_follows_with_and_without_knowing_the_truth(example):
    points, groups, contradicted = weighed(example)
    assert example.label == policy.label(example.relations, example.rarity, example.shared_mailbox, example.same)
    assert (
        example.label == by_points_alone(points, groups, contradicted)
        or not example.relations
        or example.relations.get(policy.PROOF) == 1.0
    )
    distance = min(abs(points - policy.DUPLICATE_FROM), abs(points - policy.NO_MATCH_BELOW))
    assert example.near == (distance <= policy.BORDER), "an example inside the border must say so, and no other may"


@each
def test_the_records_show_what_is_declared(example):
    found = {item.kind: item for item in evidence(example.case)}
    compared = {kind for kind, item in found.items() if item.left and item.right}
    assert compared == {KINDS.get(field, field) for field in example.relations}
    if not example.written_apart:
        for field, share in example.relations.items():
            assert (found[KINDS.get(field, field)].relation == "different") == (share < 0), field


def test_the_sentence_is_the_generators_and_true():
    [sentence] = re.findall(r"^> (.+)$", TEXT, re.M)
    twins = next(example for example in EXAMPLES if example.title == "Twins")
    assert sentence == reasoning(twins.label, twins.case)
    counts = score({"input": twins.case}, {"reasoning": sentence})
    assert counts["statements"] == counts["true"] >= 4 and counts["invented"] == 0
    assert "at most 320 characters" in TEXT and load_task().answer_schema["properties"]["reasoning"]["maxLength"] == 320


# ---- the rules themselves


AGREEING = {"email": 1.0, "phone": 1.0, "first": 1.0, "last": 1.0, "birth": 1.0, "street": 1.0, "city": 1.0}
RARITY = {"first": 2.5, "last": 3.0}


@pytest.mark.parametrize("field", policy.CONTRADICTIONS)
@pytest.mark.parametrize("same", [True, False])
def test_a_contradiction_is_never_a_duplicate(field, same):
    points, groups, contradicted = policy.weigh(AGREEING | {field: -1.0}, RARITY, False)
    assert (
        points > policy.DUPLICATE_FROM
        and contradicted
        and policy.verdict(points, groups, contradicted, same) == "POSSIBLE"
    )


def test_an_organisation_at_another_street_is_never_a_duplicate_a_person_may_be():
    organisation = policy.weigh({"org": 1.0, "phone": 1.0, "website": 1.0, "street": -1.0}, {}, False)
    person = policy.weigh({"first": 1.0, "last": 1.0, "phone": 1.0, "email": 1.0, "street": -1.0}, RARITY, False)
    assert policy.verdict(*organisation, True) == "POSSIBLE" and policy.verdict(*person, True) == "DUPLICATE"


def test_one_group_alone_is_never_a_duplicate():
    for fields in (("email", "phone", "website"), ("first", "last", "middle"), ("street", "postal", "city", "unit")):
        points, groups, contradicted = policy.weigh(dict.fromkeys(fields, 1.0), {"first": 6.0, "last": 6.0}, False)
        assert groups == 1 and policy.verdict(points + 10, groups, contradicted, True) == "POSSIBLE"


def test_two_parties_are_never_a_duplicate_and_one_is_no_match_only_when_contradicted_or_far_below():
    for points, groups, contradicted in itertools.product(range(-20, 40), (1, 2, 3), (False, True)):
        assert policy.verdict(points, groups, contradicted, False) != "DUPLICATE"
        assert (
            contradicted
            or points + policy.BORDER < policy.DOUBTED_FROM
            or policy.verdict(points, groups, contradicted, True) != "NO_MATCH"
        )


def test_an_id_that_agrees_and_records_without_a_common_field_are_for_review():
    against = {"tax": 1.0, "first": -1.0, "last": -1.0, "birth": -1.0}
    assert policy.weigh(against, RARITY, False)[0] < policy.NO_MATCH_BELOW
    for same in (True, False):
        assert policy.label(against, RARITY, False, same) == policy.label({}, {}, False, same) == "POSSIBLE"
        assert policy.label(against | {"tax": 0.5}, RARITY, False, same) == "NO_MATCH"


def test_what_is_missing_and_an_empty_relation_say_nothing():
    assert policy.weigh({}, {}, False) == (0.0, 0, False)
    assert policy.weigh({"email": 0.0, "birth": 0.0}, {}, False) == (0.0, 0, False)


def test_rarer_names_weigh_more_and_a_shared_street_takes_from_the_town():
    sums = [
        policy.weigh({"first": 1.0, "last": 1.0}, {"first": rarity, "last": rarity}, False)[0]
        for rarity in (1.0, 2.0, 4.0)
    ]
    assert sums == sorted(sums) and sums[2] == pytest.approx(4 * sums[0])
    town = policy.weigh({"city": 1.0, "postal": 1.0}, {}, False)[0]
    assert policy.weigh({"street": 1.0, "city": 1.0, "postal": 1.0}, {}, False)[0] < policy.POINTS["street"][0] + town
