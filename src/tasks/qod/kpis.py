"""What an answer to a QoD request is worth: as a call, by its values, as a refusal where one is right."""

from tasks.qod import checks
from tasks.qod.official import official_schema, official_violations
from tasks.qod.reading import is_refusal, part, read

ANSWERS = "answers to complete requests that "
# name -> (what it means, part, whole)
AGGREGATES = {
    "json_pct": ("answers that are one JSON object and nothing else", "check_json", "rows"),
    "required_pct": (f"{ANSWERS}have device, server, profile and duration", "check_required", "complete"),
    "types_pct": (f"{ANSWERS}have values of the right types", "check_types", "complete"),
    "no_unknown_pct": (f"{ANSWERS}have no field that the API does not know", "check_unknown", "complete"),
    "nesting_pct": (f"{ANSWERS}have every field in its place", "check_nesting", "complete"),
    "known_profile_pct": (f"{ANSWERS}have one of the four profiles", "check_profile", "complete"),
    "whole_seconds_pct": (f"{ANSWERS}have a duration in whole seconds", "check_duration", "complete"),
    "seven_checks_pct": (f"{ANSWERS}pass all seven checks", "seven", "complete"),
    "official_pct": (f"{ANSWERS}fit the schema of createSession", "official", "complete"),
    "strict_pct": ("answers that may be used: a call or a refusal that passes the strict check", "strict", "rows"),
    "unknown_fields_pct": ("answers with a field that is not known where it stands", "strange", "rows"),
    "device_pct": (f"{ANSWERS}have the right device", "right_device", "complete"),
    "server_pct": (f"{ANSWERS}have the right server", "right_server", "complete"),
    "ports_pct": (f"{ANSWERS}have the right ports on both sides", "right_ports", "complete"),
    "profile_pct": (f"{ANSWERS}have the right profile", "right_profile", "complete"),
    "duration_pct": (f"{ANSWERS}have the right duration", "right_duration", "complete"),
    "sink_pct": (f"{ANSWERS}have the right sink, or none", "right_sink", "complete"),
    "values_exact_pct": (f"{ANSWERS}have exactly the right values", "right", "complete"),
    "refused_pct": ("complete requests that were refused", "refused", "complete"),
    "recognised_pct": ("requests that lack something and were refused in the right form", "recognised", "lacking"),
    "refusal_exact_pct": ("requests that lack something and were refused with the right names", "named", "lacking"),
}
# Lengths of a request in words -> what its group is called.
LENGTHS = {15: "up to 15 words", 40: "16 to 40 words"}


def score(row, answer):
    """Counts of one row; what does not fit the answer's schema is judged by its text, as it was written."""
    gold = row["output"]
    value, unread = read(row["text"])
    is_usable = not checks.strict_violations(row["text"])
    of_all = {"rows": 1, "check_json": int(not unread), "strict": int(is_usable), "strange": has_unknown_fields(value)}
    of_calls = as_call(row["text"], value, gold)
    if not is_refusal(gold):
        return of_calls | of_all | {"complete": 1, "lacking": 0, "recognised": 0, "named": 0}
    is_refused = is_usable and is_refusal(value)
    named = is_refused and not checks.wrong_values(value, gold)
    lacking = {"complete": 0, "lacking": 1, "recognised": int(is_refused), "named": int(named)}
    return dict.fromkeys(of_calls, 0) | of_all | lacking


def has_unknown_fields(value):
    if value is None:
        return 0
    if is_refusal(value):
        return int(bool(value.keys() - {"error"} or part(value, "error").keys() - set(checks.LISTS)))
    return int(any(True for _ in checks.unknown_fields(value, official_schema(), "$")))


def as_call(text, value, gold):
    """What a text is worth where a call is asked for; of no JSON, and of a refusal, no value is right."""
    failed = {one.check for one in checks.seven_violations(text)}
    wrong = {one.check for one in checks.wrong_values(text, gold)}
    is_call = value is not None and not is_refusal(value)
    passed = {f"check_{name}": int(value is not None and name not in failed) for name in checks.SEVEN}
    right = {f"right_{name}": int(is_call and f"value.{name}" not in wrong) for name in checks.PARTS}
    return (
        passed
        | right
        | {
            "seven": int(not failed),
            "official": int(not official_violations(text)),
            "right": int(is_call and not wrong),
            "refused": int(value is not None and is_refusal(value)),
        }
    )


def slices(case):
    """The named groups that a request belongs to, for KPIs by slice."""
    n_words = len(case["request"].split())
    length = next((name for most, name in LENGTHS.items() if n_words <= most), f"over {max(LENGTHS)} words")
    return {"length": length}
