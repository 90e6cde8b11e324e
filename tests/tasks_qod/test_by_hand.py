"""The requests written by hand: a hundred with their answers, and sixty odd ones without."""

import json
import re
from pathlib import Path

import jsonschema
import pytest

from tasks.qod.checks import LISTS, NAMES, strict_violations
from tasks.qod.data import check_case, plain_text

FOLDER = Path(__file__).resolve().parents[2] / "src" / "tasks" / "qod"


def lines_of(name):
    """Each line as an object; a line ends at a line feed alone, since requests hold other breaks."""
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").split("\n") if line]


ROWS = lines_of("by_hand.jsonl")
ODD = [{"request": line["request"]} for line in lines_of("odd_requests.jsonl")]
CALLS = [row for row in ROWS if "error" not in row["output"]]
LACKING = [row["output"]["error"] for row in ROWS if "error" in row["output"]]


def stated_values(call):
    """Every value of a call that must stand in its request; profile and duration are said in words."""
    device = call["device"]
    yield from device.get("ipv4Address", {}).values()
    yield from (device[key] for key in ("phoneNumber", "ipv6Address") if key in device)
    yield from call["applicationServer"].values()
    for key in ("devicePorts", "applicationServerPorts"):
        ports = call.get(key, {})
        yield from ports.get("ports", [])
        yield from (end for span in ports.get("ranges", []) for end in span.values())
    if "sink" in call:
        yield call["sink"]


def stands_in(value, request):
    """Whether a request holds a value as a whole, a phone number with + or 00 and any separators."""
    text = str(value).lower()
    if text.startswith("+"):
        separators = r"[ ().-]*"
        return re.search(rf"(\+|\b00){separators}{separators.join(text[1:])}(?!\d)", request)
    return re.search(rf"(?<![\w.]){re.escape(text)}(?![\w/]|\.\d)", request.lower())


def test_there_are_a_hundred_requests_with_a_name_each():
    assert [row["id"] for row in ROWS] == [f"hand-{number:03d}" for number in range(1, 101)]
    assert all(check_case(row["input"]) == [] for row in ROWS)
    assert sum(row["meta"]["language"] == "en" for row in ROWS) == 70
    assert {row["meta"]["language"] for row in ROWS} == {"en", "de", "fr", "es", "it", "pt", "nl"}


def test_no_request_is_there_twice_and_no_device_either():
    assert len({plain_text(row["input"]) for row in ROWS + [{"input": case} for case in ODD]}) == len(ROWS) + len(ODD)
    devices = [json.dumps(row["output"]["device"]) for row in CALLS]
    servers = [json.dumps(row["output"]["applicationServer"]) for row in CALLS]
    assert len(set(devices)) == len(set(servers)) == len(CALLS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_every_answer_is_one_of_the_task_with_its_keys_in_order(row):
    schema = json.loads((FOLDER / "answer.schema.json").read_text(encoding="utf-8"))
    answer = row["output"]
    jsonschema.Draft202012Validator(schema).validate(answer)
    assert strict_violations(json.dumps(answer)) == []
    orders = [
        ["device", "applicationServer", "devicePorts", "applicationServerPorts", "qosProfile", "duration", "sink"],
        ["phoneNumber", "ipv4Address", "ipv6Address"],
        ["publicAddress", "privateAddress", "publicPort"],
    ]
    device = answer.get("device", {})
    for part, order in zip([answer, device, device.get("ipv4Address", {})], orders, strict=True):
        assert "error" in part or list(part) == [key for key in order if key in part]


@pytest.mark.parametrize("row", CALLS, ids=lambda row: row["id"])
def test_every_value_of_a_call_stands_in_its_request(row):
    values = list(stated_values(row["output"]))
    assert len(values) >= 2
    assert [value for value in values if not stands_in(value, row["input"]["request"])] == []


def test_every_form_of_the_policy_is_asked_for():
    calls = [row["output"] for row in CALLS]
    # Each of the three identifiers alone, each two of them, and all.
    assert len({tuple(call["device"]) for call in calls}) == 7
    assert len({tuple(call["device"].get("ipv4Address", ())) for call in calls}) == 4
    assert {call["qosProfile"] for call in calls} == {"QOS_E", "QOS_S", "QOS_M", "QOS_L"}
    assert {tuple(call["applicationServer"]) for call in calls} == {
        ("ipv4Address",),
        ("ipv6Address",),
        ("ipv4Address", "ipv6Address"),
    }
    assert {row["meta"]["kind"] for row in CALLS} == {"named", "throughput", "latency", "use"}
    assert sum("sink" in call for call in calls) >= 5


def test_every_name_of_a_refusal_is_used_and_a_quarter_of_the_requests_lack_something():
    assert 20 <= len(LACKING) <= 30
    assert {name for error in LACKING for key in LISTS for name in error[key]} == set(NAMES)
    assert all(any(error[key] for error in LACKING) for key in LISTS)


def test_the_odd_requests_can_be_asked():
    assert len(ODD) == 60
    assert [case for case in ODD if check_case(case)] == []
    assert sum(len(case["request"]) >= 3_900 for case in ODD) >= 5
