"""What the service says for QoD requests: POST /qod with a request, the checked call as the answer, or 422 and why."""

from tasks.case_limits import kind_of
from tasks.qod.data import MOST_CHARACTERS, check_case

ROUTE = "/qod"
ANSWER_KEY = None  # the body of createSession itself
DESCRIPTION = (
    "A sentence in, the body of createSession of CAMARA QualityOnDemand 1.1.0 out. Every call has passed the strict "
    "check; a request that lacks something gets 422, and the reasons in words."
)
WORDS = {"refused": "or a request that lacks something, contradicts itself or holds a value that cannot be used"}
EXAMPLE = {"request": "Voice call for +49 151 23456789 to 198.51.100.7, half an hour"}
EXAMPLE_ANSWER = {
    "device": {"phoneNumber": "+4915123456789"},
    "applicationServer": {"ipv4Address": "198.51.100.7"},
    "qosProfile": "QOS_E",
    "duration": 1800,
}


def case_schema(limits, value):
    """The JSON Schema of a request."""
    return {
        "type": "object",
        "properties": {"request": {"type": "string", "minLength": 1, "maxLength": MOST_CHARACTERS}},
        "required": ["request"],
        "additionalProperties": False,
    }


def check_body(value, limits):
    """What is wrong with a body, in one sentence; None where it is a request."""
    if not isinstance(value, dict):
        return f"an object with request is wanted, found {kind_of(value)}"
    if "request" not in value:
        return "request missing"
    if len(value) > 1:
        return "only request is read; there are other keys"
    if not isinstance(value["request"], str):
        return f"request must be a string, found {kind_of(value['request'])}"
    return "; ".join(check_case(value)) or None
