"""Every check of an answer to a QoD request fails for its own fault and for no other."""

import json
import sys

import pytest

from support.qod_answers import CALL, GONE, REFUSAL, changed, text
from tasks import load_task
from tasks.qod import checks
from tasks.qod.official import official_violations
from tasks.qod.reading import DEEPEST

BASIC = {
    "json": [
        text(CALL)[:-20],
        f"Here is the call: {text(CALL)}",
        f"```json\n{text(CALL)}\n```",
        "[]",
        "",
        text(CALL).replace("5400", "NaN"),
        text(CALL)[:-1] + ',"duration":1}',
    ],
    "required": [changed((name,), GONE) for name in checks.REQUIRED],
    "types": [
        changed(("device", "phoneNumber"), 4915123456789),
        changed(("device", "ipv4Address", "publicPort"), "59765"),
        changed(("devicePorts", "ports", 0), "5060"),
        changed(("devicePorts", "ports", 0), 5060.5),
        changed(("devicePorts", "ranges", 0, "to"), True),
        changed(("qosProfile",), 3),
        changed(("device",), None),
    ],
    "unknown": [
        changed(("priority",), "high"),
        changed(("device", "imei"), "35"),
        changed(("device", "ipv4Address", "mask"), 24),
        changed(("devicePorts", "ranges", 0, "protocol"), "udp"),
        changed(("applicationServer", "port"), 443),
    ],
    "nesting": [
        changed(("device", "ipv4Address"), "203.0.113.75"),
        changed(("device",), {"publicAddress": "203.0.113.75"}),
        changed(("device",), "+4915123456789"),
        changed(("device", "ipv4Address"), {"publicPort": 59765}),
        changed(("applicationServer",), "198.51.100.7"),
        changed(("applicationServer", "ipv4Address"), {"publicAddress": "198.51.100.7"}),
        changed(("devicePorts",), [5060]),
    ],
    "profile": [changed(("qosProfile",), name) for name in ("QOS_X", "qos_m", "")],
    "duration": [changed(("duration",), value) for value in ("5400", 1.5, 5400.0, 0, -60, True, None, {"seconds": 1})],
}


def failed(found):
    return {one.check for one in found}


@pytest.mark.parametrize("judge", [checks.seven_violations, official_violations, checks.strict_violations])
def test_a_right_call_passes_as_a_text_and_as_an_object(judge):
    assert judge(CALL) == judge(text(CALL)) == []


def test_the_seven_checks_have_a_planted_failure_each():
    assert tuple(BASIC) == checks.SEVEN


@pytest.mark.parametrize(("name", "answer"), [(name, answer) for name, answers in BASIC.items() for answer in answers])
def test_a_planted_failure_fails_its_own_check_alone(name, answer):
    found = checks.seven_violations(answer)
    assert failed(found) == {name}
    assert all(one.path.startswith("$") and len(one.words) > 8 for one in found)


@pytest.mark.parametrize("name", checks.SEVEN)
def test_what_fails_a_basic_check_is_never_sent(name):
    assert all(checks.strict_violations(answer) for answer in BASIC[name])


# Each against the schema alone: (where, value, the keyword that is broken, the path that is reported).
OFFICIAL = [
    (("device",), {}, "minProperties", "$.device"),
    (("applicationServer",), {}, "minProperties", "$.applicationServer"),
    (("devicePorts",), {}, "minProperties", "$.devicePorts"),
    (("applicationServerPorts",), {}, "minProperties", "$.applicationServerPorts"),
    (("sinkCredential",), {}, "required", "$.sinkCredential.credentialType"),
    (("sinkCredential",), {"credentialType": "NONE"}, "enum", "$.sinkCredential.credentialType"),
    (("applicationServer",), GONE, "required", "$.applicationServer"),
    (("qosProfile",), GONE, "required", "$.qosProfile"),
    (("duration",), GONE, "required", "$.duration"),
    (("device", "phoneNumber"), "+0123456", "pattern", "$.device.phoneNumber"),
    (("device", "phoneNumber"), "+4915123456789\n", "pattern", "$.device.phoneNumber"),
    (("device", "phoneNumber"), "015123456789", "pattern", "$.device.phoneNumber"),
    (("device", "phoneNumber"), "+1234567890123456", "pattern", "$.device.phoneNumber"),
    (("device", "ipv4Address", "publicAddress"), "203.0.113.256", "format", "$.device.ipv4Address.publicAddress"),
    (("device", "ipv4Address", "publicAddress"), "203.0.113.0/24", "format", "$.device.ipv4Address.publicAddress"),
    (("device", "ipv4Address", "privateAddress"), "10.0.0", "format", "$.device.ipv4Address.privateAddress"),
    (("device", "ipv4Address", "publicPort"), GONE, "anyOf", "$.device.ipv4Address"),
    (("device", "ipv4Address"), {"privateAddress": "10.0.0.7"}, "anyOf", "$.device.ipv4Address"),
    (("device", "ipv6Address"), "2001:db8::g", "format", "$.device.ipv6Address"),
    (("device", "ipv6Address"), "fe80::1%eth0", "format", "$.device.ipv6Address"),
    (("device", "networkAccessIdentifier"), 7, "type", "$.device.networkAccessIdentifier"),
    (("device", "ipv4Address", "publicPort"), 65_536, "maximum", "$.device.ipv4Address.publicPort"),
    (("devicePorts", "ranges", 0, "from"), -1, "minimum", "$.devicePorts.ranges[0].from"),
    (("devicePorts", "ranges", 0, "to"), 65_536, "maximum", "$.devicePorts.ranges[0].to"),
    (("devicePorts", "ranges", 0, "to"), GONE, "required", "$.devicePorts.ranges[0].to"),
    (("devicePorts", "ranges"), [], "minItems", "$.devicePorts.ranges"),
    (("devicePorts", "ports", 0), 99_999, "maximum", "$.devicePorts.ports[0]"),
    (("applicationServerPorts",), {"ranges": [{"from": -1, "to": 5}]}, "minimum", None),
    (("applicationServerPorts",), {"ranges": [{"from": 1, "to": 70_000}]}, "maximum", None),
    (("applicationServerPorts", "ports", 1), -5, "minimum", "$.applicationServerPorts.ports[1]"),
    (("qosProfile",), "M", "minLength", "$.qosProfile"),
    (("qosProfile",), "Q" * 257, "maxLength", "$.qosProfile"),
    (("qosProfile",), "QOS M", "pattern", "$.qosProfile"),
    (("duration",), 0, "minimum", "$.duration"),
    (("duration",), 2**31, "maximum", "$.duration"),
    (("duration",), "5400", "type", "$.duration"),
    (("sink",), "http://events.example.com", "pattern", "$.sink"),
    (("sink",), "https://events.example.com/a b", "format", "$.sink"),
    (("sink",), "https://events.example.com:port/", "format", "$.sink"),
]


@pytest.mark.parametrize(("where", "value", "keyword", "path"), OFFICIAL)
def test_the_official_schema_says_which_keyword_is_broken_and_where(where, value, keyword, path):
    answer = changed(where, value)
    [found] = official_violations(answer)
    assert found.check == f"official.{keyword}" and path in (None, found.path)
    assert found in checks.strict_violations(answer)


def test_the_official_schema_allows_what_the_api_allows():
    assert official_violations(changed(("priority",), "high")) == []
    assert official_violations(changed(("qosProfile",), "voice")) == []
    assert official_violations(changed(("device",), GONE)) == []
    assert official_violations(changed(("duration",), 1_000_000)) == []


STRICT = {
    "unknown": [
        changed(("priority",), "high"),
        changed(("device", "publicAddress"), "203.0.113.75"),
        changed(("devicePorts", "ranges", 0, "protocol"), "udp"),
    ],
    "profile": [changed(("qosProfile",), "voice")],
    "identifier": [changed(("device",), GONE), changed(("device", "networkAccessIdentifier"), "user@operator.example")],
    "duration": [changed(("duration",), value) for value in (86_401, 5400.0)],
    "credential": [changed(("sinkCredential",), {"credentialType": name}) for name in ("PLAIN", "REFRESHTOKEN")],
    "address": [
        changed(("applicationServer", "ipv4Address"), value)
        for value in (
            "198.51.100.300",
            "198.51.100.0/33",
            "198.51.100.0/255.255.255.0",
            "game.example.com",
            "1.2.3",
            "",
        )
    ]
    + [
        changed(("applicationServer", "ipv6Address"), value)
        for value in ("2001:db8::/129", "198.51.100.7", "fe80::1%1")
    ],
    "ports": [
        changed(("devicePorts", "ports", 0), 5060.0),
        changed(("devicePorts", "ranges", 0, "to"), 5020.0),
        changed(("device", "ipv4Address", "publicPort"), 59765.0),
    ],
    "range": [changed(("devicePorts", "ranges", 0, "from"), 5021)],
}


@pytest.mark.parametrize(("name", "answer"), [(name, answer) for name, answers in STRICT.items() for answer in answers])
def test_a_strict_rule_says_what_the_official_schema_leaves_open(name, answer):
    assert official_violations(answer) == []
    assert failed(checks.strict_violations(answer)) == {name}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ipv4Address", "198.51.100.7/24"),
        ("ipv4Address", "198.51.100.7"),
        ("ipv6Address", "2001:db8::/64"),
        ("ipv6Address", "2001:db8::7/128"),
    ],
)
def test_a_server_is_an_address_or_a_network_with_bits_behind_its_width(key, value):
    assert checks.strict_violations(changed(("applicationServer",), {key: value})) == []


REFUSALS = {
    "refusal.shape": [
        {"error": "no device"},
        {"error": {"missing": ["device"]}},
        {"error": REFUSAL["error"] | {"admin": []}},
        REFUSAL | {"device": {}},
        changed(("error", "missing"), "device", REFUSAL),
    ],
    "refusal.names": [changed(("error", "missing", 0), name, REFUSAL) for name in ("ipv4Address", 7, None, ["device"])],
    "refusal.order": [changed(("error", "missing"), ["duration", "device"], REFUSAL)],
    "refusal.empty": [{"error": {"missing": [], "conflicting": [], "invalid": []}}],
    "refusal.twice": [
        changed(("error", "missing"), ["device", "device"], REFUSAL),
        changed(("error", "invalid"), ["qosProfile"], REFUSAL),
    ],
}


@pytest.mark.parametrize(
    ("name", "answer"), [(name, answer) for name, answers in REFUSALS.items() for answer in answers]
)
def test_a_refusal_is_held_to_its_own_rules(name, answer):
    assert checks.strict_violations(REFUSAL) == []
    assert failed(checks.strict_violations(answer)) == {name}


def test_the_names_of_a_refusal_are_those_of_the_answers_schema():
    assert list(checks.NAMES) == load_task("qod").answer_schema["$defs"]["names"]["items"]["enum"]


VALUES = {
    "device": [changed(("device", "phoneNumber"), "+4915123456780"), changed(("device", "ipv6Address"), GONE)],
    "server": [changed(("applicationServer", "ipv4Address"), "198.51.100.0/25")],
    "ports": [changed(("applicationServerPorts", "ports"), [8443, 443]), changed(("devicePorts",), GONE)],
    "profile": [changed(("qosProfile",), "QOS_L")],
    "duration": [changed(("duration",), value) for value in (90, 5400.0, "5400")],
    "sink": [changed(("sink",), GONE), changed(("sink",), None)],
    "more": [changed(("priority",), "high")],
    "refusal": [REFUSAL],
}


@pytest.mark.parametrize(("name", "answer"), [(name, answer) for name, answers in VALUES.items() for answer in answers])
def test_a_value_that_is_not_the_gold_one_is_found_in_its_part(name, answer):
    assert checks.wrong_values(text(CALL), CALL) == []
    assert failed(checks.wrong_values(text(answer), CALL)) == {f"value.{name}"}


def test_swapped_addresses_are_wrong_on_both_sides():
    gold = changed(("applicationServer",), {"ipv4Address": "198.51.100.7"})
    swapped = changed(("device", "ipv4Address", "publicAddress"), "198.51.100.7", gold)
    swapped["applicationServer"] = {"ipv4Address": "203.0.113.75"}
    assert checks.strict_violations(swapped) == []
    assert failed(checks.wrong_values(swapped, gold)) == {"value.device", "value.server"}


def test_a_refusal_has_values_too():
    assert checks.wrong_values(text(REFUSAL), REFUSAL) == []
    assert failed(checks.wrong_values(changed(("error", "missing"), ["device"], REFUSAL), REFUSAL)) == {"value.refusal"}
    assert failed(checks.wrong_values(CALL, REFUSAL)) == {"value.refusal"}


@pytest.mark.parametrize("opening", ['{"device":', '{"devicePorts":{"ports":[', "["])
@pytest.mark.parametrize("n", [DEEPEST + 1, sys.getrecursionlimit() - 150, 100_000])
def test_endless_nesting_is_no_answer(opening, n):
    closing = {"{": "}", "[": "]"}
    written = opening * n + "1" + "".join(closing[one] for one in reversed(opening * n) if one in closing)
    for judge in (checks.seven_violations, official_violations, checks.strict_violations):
        assert failed(judge(written)) == {"json"}
    assert failed(checks.wrong_values(written, CALL)) == {"json"}


@pytest.mark.parametrize("answer", [None, 3, [], "null", '"x"'])
def test_what_is_no_object_fails_as_json(answer):
    assert failed(checks.strict_violations(answer)) == {"json"}


def test_no_sentence_repeats_what_was_sent():
    answer = json.loads(text(CALL).replace("203.0.113.75", "SECRET").replace("QOS_M", "SECRET"))
    answer |= {"duration": "SECRET", "sink": "SECRET"}
    found = checks.seven_violations(answer) + checks.strict_violations(answer)
    assert len(found) >= 5 and not [one for one in found if "SECRET" in one.words]


PORTS = [
    ("device", "ipv4Address", "publicPort"),
    ("devicePorts", "ranges", 0, "from"),
    ("devicePorts", "ranges", 0, "to"),
    ("devicePorts", "ports", 0),
    ("applicationServerPorts", "ranges", 0, "from"),
    ("applicationServerPorts", "ranges", 0, "to"),
    ("applicationServerPorts", "ports", 0),
]
WITH_RANGES = changed(("applicationServerPorts", "ranges"), [{"from": 6000, "to": 6010}])
TOKEN = {"credentialType": "ACCESSTOKEN", "accessToken": "t", "accessTokenType": "mac"}
# The bad requests that the official test definitions of createSession send, with values of our own.
BAD_REQUESTS = {
    "device is empty": [changed(("device",), {})],
    "an identifier of the device has a wrong form": [
        changed(("device", "phoneNumber"), "0151 23456789"),
        changed(("device", "ipv4Address"), {"publicAddress": "203.0.113.75"}),
        changed(("device", "ipv6Address"), "2001:db8:::75"),
        changed(("device", "networkAccessIdentifier"), {"user": "ann"}),
    ],
    "device is missing and no token names one": [changed(("device",), GONE)],
    "the body does not fit": [{"call": CALL}, [CALL]],
    "there is no body": ["", "null"],
    "the body is empty": [{}],
    "a property is empty": [
        changed((name,), {})
        for name in ("applicationServer", "devicePorts", "applicationServerPorts", "sinkCredential")
    ],
    "a port is out of range": [changed(path, port, WITH_RANGES) for path in PORTS for port in (-1, 65_536)],
    "a credential that the API does not take": [
        changed(("sinkCredential",), {"credentialType": name}) for name in ("PLAIN", "REFRESHTOKEN")
    ],
    "a token of another type": [changed(("sinkCredential",), TOKEN)],
    "a profile that does not exist": [changed(("qosProfile",), "QOS_XL")],
    "a duration that the profile does not allow": [changed(("duration",), value) for value in (0, -1, 86_401)],
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_of_the_official_scenarios_is_never_sent(name):
    assert checks.strict_violations(WITH_RANGES) == []
    assert all(checks.strict_violations(answer) for answer in BAD_REQUESTS[name])
