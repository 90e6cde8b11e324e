"""What is measured on the task: bodies with a fault each, official scenarios, odd requests."""

import json
import re
from collections import Counter

import pytest

from support.qod_answers import CALL, REFUSAL, changed, text
from tasks.qod import measuring
from tasks.qod.checks import strict_violations
from tasks.qod.data import check_case
from tasks.qod.official import official_violations

BODIES = measuring.bad_bodies()
FEATURE = """\
  @quality_on_demand_createSession_01_right
  Scenario: Fine
    Then the response status code is 201

  @quality_on_demand_createSession_C01.09_wrong_device
  # A remark
  Scenario: A device
    When it is sent
    Then the response status code is 404

  @quality_on_demand_createSession_02_1_right_again
  Scenario: Fine
    Then the response status code is 201
  @quality_on_demand_createSession_400.12_wrong
  Scenario Outline: A body
    Then the response status code is 400
    And the response property "$.status" is 400
"""


@pytest.mark.parametrize("one", BODIES, ids=lambda one: one["fault"])
def test_the_strict_check_rejects_every_bad_body(one):
    assert strict_violations(one["body"])
    assert measuring.body_of(one["body"]) is None


@pytest.mark.parametrize("one", BODIES, ids=lambda one: one["fault"])
def test_a_body_that_breaks_the_schema_is_found_by_the_schema(one):
    # Of a credential's parts the official schema checks the type alone; ours also knows the words for a token.
    is_token = one["scenarios"] == ["400.7"]
    assert bool(official_violations(one["body"])) == (one["breaks"] == "schema" or is_token)


def test_every_bad_body_has_a_name_of_its_own_and_its_scenarios():
    assert len({one["fault"] for one in BODIES}) == len({one["body"] for one in BODIES}) == len(BODIES)
    covered = Counter(tag for one in BODIES for tag in one["scenarios"])
    assert all(re.fullmatch(r"C01\.0\d|4\d\d\.\d", tag) for tag in [*covered, *measuring.NOT_IN_THE_BODY])
    assert len(covered) == 13 and not covered.keys() & measuring.NOT_IN_THE_BODY.keys()
    # Four identifiers, IPv4 in two ways; four empty properties; seven ports; two types of credential.
    assert [covered[tag] for tag in ("C01.02", "400.4", "400.5", "400.6")] == [5, 4, 7, 2]


def test_the_scenarios_of_a_feature_file_are_those_that_end_with_a_4xx():
    assert measuring.scenarios_of(FEATURE) == ["C01.09", "400.12"]


def test_a_body_is_posted_for_a_checked_call_alone():
    assert json.loads(measuring.body_of(text(CALL))) == CALL
    no_calls = [text(REFUSAL), text(changed(("admin",), True)), f"Sure! {text(CALL)}", ""]
    assert [measuring.body_of(one) for one in no_calls] == [None] * 4


def test_the_odd_requests_have_a_kind_each():
    kinds = Counter(family for family, _ in measuring.odd_requests())
    assert sum(kinds.values()) == 60 and len(kinds) == 8 and min(kinds.values()) >= 3
    assert [case for _, case in measuring.odd_requests() if check_case(case)] == []
    assert all(len(case["request"]) == 3_900 for family, case in measuring.odd_requests() if "3,900" in family)


def test_what_is_no_request_is_refused_before_the_model():
    assert len(measuring.UNREADABLE["10,000 characters"]["request"]) == 10_000
    assert [name for name, case in measuring.UNREADABLE.items() if not check_case(case)] == []


def test_unknown_fields_are_seen_in_answers_and_in_what_was_written():
    strange = changed(("device", "imei"), "35")
    refusal = {"error": REFUSAL["error"], "note": "x"}
    for one in (strange, refusal):
        assert measuring.has_unknown_fields(one) and measuring.has_unknown_fields(f"Here: {text(one)} Bye.")
    for one in (CALL, REFUSAL, "no object", text(CALL)):
        assert not measuring.has_unknown_fields(one)


@pytest.mark.parametrize(
    "sink", ["https://[2001:db8::1]/", "https://[2001:db8::1]:8443/x?y=1", "https://a.example:8443/"]
)
def test_a_sink_may_have_a_port_behind_any_address(sink):
    assert strict_violations(changed(("sink",), sink)) == []
