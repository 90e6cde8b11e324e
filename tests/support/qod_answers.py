"""Answers to QoD requests for the tests: a whole call, and the same with one thing changed."""

import copy
import json

CALL = {
    "device": {
        "phoneNumber": "+4915123456789",
        "ipv4Address": {"publicAddress": "203.0.113.75", "publicPort": 59765},
        "ipv6Address": "2001:db8::75",
    },
    "applicationServer": {"ipv4Address": "198.51.100.0/24", "ipv6Address": "2001:db8:7::/48"},
    "devicePorts": {"ranges": [{"from": 5010, "to": 5020}], "ports": [5060]},
    "applicationServerPorts": {"ports": [443, 8443]},
    "qosProfile": "QOS_M",
    "duration": 5400,
    "sink": "https://events.example.com/qod?of=7",
}
REFUSAL = {"error": {"missing": ["device", "duration"], "conflicting": ["qosProfile"], "invalid": []}}
GONE = object()  # in the place of a value: the key is taken out


def changed(path, value, of=CALL):
    """The answer with another value at a path of keys and places, such as ("device", "ipv4Address")."""
    whole = copy.deepcopy(of)
    part = whole
    for key in path[:-1]:
        part = part[key]
    if value is GONE:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return whole


def text(answer):
    return json.dumps(answer)
