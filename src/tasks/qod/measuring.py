"""What src/measurements asks of this task: bodies for a judge made from the official API, odd requests, test rows."""

import re
from pathlib import Path

from common import read_jsonl, to_json
from tasks.qod import checks, inference, kpis
from tasks.qod.reading import is_refusal, read

FOLDER = Path(__file__).parent
SPECIFICATION = "quality-on-demand.yaml"  # of the official release, beside it the scenarios
POST_TO = "/sessions"
SCENARIOS = "quality-on-demand-createSession.feature"
SCENARIO = re.compile(r"@\w+?_createSession_([A-Z]?\d+\.\d+)_\w+\n(?:(?!\s*@).*\n)*?.*response status code is 4\d\d")
TOKEN = "the access token"
STATE = "the operator's devices, sessions and profiles"
# Scenarios of bad requests whose body may be a right one -> what decides in its place.
NOT_IN_THE_BODY = {
    "C01.03": STATE,
    "C01.04": TOKEN,
    "C01.07": STATE,
    "401.1": TOKEN,
    "401.2": TOKEN,
    "401.3": TOKEN,
    "403.1": TOKEN,
    "409.1": STATE,
    "422.1": STATE,
}
# What the phases of training are picked and measured by: two pools of the generator, and rows that it did not write.
PHASES = {"validation": "validation", "test": "test", "by_hand": FOLDER / "by_hand.jsonl"}
# Inputs that no model is asked about.
UNREADABLE = {
    "empty": {"request": ""},
    "blank": {"request": " \n\t\u3000"},
    "10,000 characters": {"request": "Voice call. " * 833 + "Now!"},
    "half of a surrogate pair": {"request": "call \ud83d for an hour"},
}


def body_of(text):
    """The body to post for an answer: a call that passes the strict check; None where it is anything else."""
    value, _ = read(text)
    if value is None or is_refusal(value) or checks.strict_violations(text):
        return None
    return to_json(value)


def bad_bodies():
    """Bodies with a fault each: its name, whether it breaks the schema or only a strict rule, and its scenarios."""
    return [line | {"body": text_of(line)} for line in read_jsonl(FOLDER / "bad_bodies.jsonl")]


def text_of(line):
    """A body as it is posted; one that is no JSON stands in its line as a text."""
    return line["text"] if "text" in line else to_json(line["body"])


def scenarios_of(text):
    """The numbers of the scenarios of an official feature file that end with a 4xx, in its order."""
    return SCENARIO.findall(text)


def odd_requests():
    """(what is odd about it, input) of each."""
    return [(line["family"], {"request": line["request"]}) for line in read_jsonl(FOLDER / "odd_requests.jsonl")]


def has_unknown_fields(written):
    """Whether an answer, or the object in a text that a model wrote, has a field that is unknown where it stands."""
    value = inference.extracted(written) if isinstance(written, str) else written
    return bool(kpis.has_unknown_fields(value))
