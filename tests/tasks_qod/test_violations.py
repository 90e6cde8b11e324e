"""Every violation makes a wrong answer that fails the checks of its name and no other."""

import json
import random
import re

import pytest

from common import ROOT, parse_json, to_json
from support.qod_answers import CALL, REFUSAL, changed, text
from tasks.qod import checks, synthetic
from tasks.qod.violations import VIOLATIONS, fails

N_CASES = 40
OF_REFUSALS = ("made_up_call", "wrong_names")
ONE_WAY = ("duration_in_minutes", "swapped_addresses")  # most calls have but one address to swap
OF_BOTH = ("prose", "code_fence", "truncated")
ROWS = list(synthetic.rows(400, 9))
each_violation = pytest.mark.parametrize("name", VIOLATIONS)


def made(name, row, seed=0):
    make, _ = VIOLATIONS[name]
    return make(row["input"], row["output"], random.Random(f"{seed} {row['id']}"))


def refuses(row):
    return "error" in row["output"]


@each_violation
def test_it_fails_its_checks_and_no_other(name):
    texts = [(found, row) for row in ROWS if (found := made(name, row)) is not None][:N_CASES]
    assert len(texts) == N_CASES
    wrong = [(found, fails(found, row["output"])) for found, row in texts]
    assert [one for one in wrong if set(one[1]) != set(VIOLATIONS[name][1])] == []


@each_violation
def test_it_applies_to_calls_or_to_refusals(name):
    applied = {refuses(row) for row in ROWS if made(name, row) is not None}
    assert applied == ({True} if name in OF_REFUSALS else {False, True} if name in OF_BOTH else {False})


@each_violation
def test_it_is_the_same_for_the_same_numbers_and_leaves_the_gold_answer_as_it_was(name):
    rows = [row for row in ROWS if made(name, row) is not None][:10]
    before = json.dumps(rows)
    texts = [[made(name, row, seed) for row in rows] for seed in (0, 0, 1)]
    assert texts[0] == texts[1] and json.dumps(rows) == before
    assert (texts[0] == texts[2]) == (name in ONE_WAY)


def test_a_gold_answer_fails_nothing():
    assert [row["id"] for row in ROWS if fails(to_json(row["output"]), row["output"])] == []


def test_most_rejected_answers_are_json():
    broken = {name for name, (_, failed) in VIOLATIONS.items() if failed == ("json",)}
    assert broken == set(OF_BOTH) and len(broken) <= 0.3 * len(VIOLATIONS)


def test_every_check_of_form_and_of_the_main_values_has_a_violation():
    failed = {check for _, checks_of_it in VIOLATIONS.values() for check in checks_of_it}
    # A number as text in the place of text is what `types` finds; models write a duration so, which has its own check.
    assert failed >= set(checks.SEVEN) - {"types"}
    assert failed >= {"value.device", "value.server", "value.profile", "value.duration", "value.refusal"}


def test_the_page_has_each_violation_with_its_checks():
    page = (ROOT / "docs/qod.md").read_text(encoding="utf-8").split("## Rejected answers")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| .* \| (`.*?) \|$", page, re.M)
    shown = {
        name: re.findall(r"`([\w.]+)`", failed) for names, failed in rows for name in re.findall(r"`(\w+)`", names)
    }
    assert shown == {name: list(failed) for name, (_, failed) in VIOLATIONS.items()}


# What a model may write, and what of it counts.
WRITTEN = {
    "form comes before values": (text(changed(("qosProfile",), "voice")), CALL, ["profile"]),
    "two faults of form": (
        text(changed(("priority",), 1, changed(("duration",), "5400"))),
        CALL,
        ["unknown", "duration"],
    ),
    "the strict rules come before values": (text(changed(("sink",), "http://a.example/b")), CALL, ["official.pattern"]),
    "two wrong values": (text(changed(("sink",), "https://a.example/b", changed(("duration",), 90))), CALL, None),
    "a refusal in a wrong form": (text(REFUSAL | {"device": {}}), CALL, ["refusal.shape"]),
    "a refusal with other names": (
        text(changed(("error", "missing"), ["device"], REFUSAL)),
        REFUSAL,
        ["value.refusal"],
    ),
    "no object": ("[]", CALL, ["json"]),
    "an endless text": ('{"device":' * 50_000, CALL, ["json"]),
}


@pytest.mark.parametrize(("written", "gold", "failed"), WRITTEN.values(), ids=WRITTEN)
def test_of_several_faults_the_first_level_counts(written, gold, failed):
    assert fails(written, gold) == (failed or ["value.duration", "value.sink"])


HELD = {
    "From +49 (151) 234-56789 to 198.51.100.7. With qos_m, at 10:30:00.": (
        {"phoneNumber": "+4915123456789"},
        {"ipv4Address": "198.51.100.7"},
        "QOS_M",
    ),
    "QOS_E from 2001:DB8::75 to 999.1.1.1 or 203.0.113.75:443": (
        {"ipv6Address": "2001:db8::75"},
        {"ipv4Address": "203.0.113.75"},
        "QOS_E",
    ),
}


@pytest.mark.parametrize("request_text", HELD)
def test_a_made_up_call_takes_what_the_request_holds(request_text):
    gold = {"error": {"missing": ["duration"], "conflicting": [], "invalid": []}}
    call = parse_json(made("made_up_call", {"id": "a", "input": {"request": request_text}, "output": gold}))
    assert (call["device"], call["applicationServer"], call["qosProfile"]) == HELD[request_text]
    assert call["duration"] in (600, 1_800, 3_600, 7_200)


def test_a_made_up_call_invents_what_the_request_lacks():
    gold = {"error": {"missing": list(checks.REQUIRED), "conflicting": [], "invalid": []}}
    call = parse_json(made("made_up_call", {"id": "a", "input": {"request": "Hello?"}, "output": gold}))
    assert checks.strict_violations(call) == [] and "ipv4Address" in call["device"]


@pytest.mark.parametrize("swapped", ["198.51.100.0/24", "203.0.113.75"])
def test_a_network_and_an_address_that_stands_on_both_sides_are_not_swapped(swapped):
    gold = changed(("applicationServer",), {"ipv4Address": swapped})
    assert made("swapped_addresses", {"id": "a", "input": {}, "output": gold}) is None


def test_a_length_without_whole_minutes_is_not_said_in_minutes():
    assert made("duration_in_minutes", {"id": "a", "input": {}, "output": changed(("duration",), 90)}) is None
