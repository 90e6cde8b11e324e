"""From a sentence to a checked call: template, generation, decoding, the JSON in the text, the strict check, answer.

What leaves here is a call that passed the strict check, or says why there is none.
"""

import re
from dataclasses import asdict

from common import first_json
from tasks import load_task
from tasks.answers import Outcome
from tasks.case_limits import size_of
from tasks.qod import checks, data
from tasks.qod.reading import DEEPEST, Violation, is_refusal, is_same

OBJECT = re.compile(r'\{\s*["}]')  # how an object begins; a brace of prose does not
WORDS = {
    "device": "the device (phone number, IPv4 address, IPv6 address)",
    "device.publicPort": "the port or the private address beside the device's public IPv4 address",
    "applicationServer": "the application server (IPv4 or IPv6 address)",
    "devicePorts": "the ports of the device",
    "applicationServerPorts": "the ports of the application server",
    "qosProfile": "the profile (its name, a throughput or a use)",
    "duration": "the duration",
    "sink": "the address for notifications",
}
SENTENCES = {
    "missing": "{} is missing",
    "conflicting": "{} is named with several values",
    "invalid": "{} cannot be used as it is named",
}


def call_for(request, write):
    """The checked call that a sentence asks for, or {"error": ...}; `write` turns messages into the model's text."""
    if problems := data.check_case({"request": request}):
        return failure(Violation("request", "$", one) for one in problems)
    messages = load_task("qod").messages({"request": request})
    value, violations = judged(write(messages))
    return failure(violations) if violations else value


def failure(violations):
    return {"error": {"failed": [asdict(one) for one in violations]}}


def outcome(text):
    """What of a written text goes to whoever asked: a checked call, a refusal with its reasons, or reasons alone."""
    value, violations = judged(text)
    if value is None:
        return Outcome(None)
    if violations:
        # A sink may break two rules with one sentence.
        failed = dict.fromkeys(f"{one.path} {one.words}" for one in violations)
        return Outcome(None, (f"the answer that the model wrote fails the checks: {'; '.join(failed)}",))
    return Outcome(value, reasons(value) if is_refusal(value) else ())


def judged(text):
    """(the object in a text, its strict violations); (None, what is wrong) where there is none."""
    value = extracted(text)
    if value is None:
        return None, [Violation("json", "$", "the text holds no JSON object, or several that differ")]
    return value, checks.strict_violations(value)


def extracted(text):
    """The one JSON object in a text, with prose or code fences around it; None where there is none, or a doubt."""
    found = []
    at = 0
    while begun := OBJECT.search(text, at):
        try:
            value, length = first_json(text[begun.start() :])
        except (ValueError, RecursionError):
            # An object that breaks off: what stands inside it is not what was meant.
            return None
        if size_of(value)[1] > DEEPEST:
            return None
        found.append(value)
        at = begun.start() + length
    return found[0] if found and all(is_same(one, found[0]) for one in found) else None


def reasons(refusal):
    """What a refusal names, in sentences."""
    return tuple(SENTENCES[name].format(WORDS[one]) for name in checks.LISTS for one in refusal["error"][name])
