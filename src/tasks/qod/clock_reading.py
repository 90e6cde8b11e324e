"""Two times of day in a request and the seconds between them, read by code: a small model cannot subtract in its head.

What a sentence means by them stays the model's to decide.
"""

import re

MOST_BETWEEN = 40  # characters between the begin and the end of one span
MOST_SPANS = 4
DAY = 24 * 60
HALF = r"(?P<{}>[ap])\.?\s?m\b\.?"
TO = (
    "-|–|to|till|until|and|through|bis|bis genau|und|à|et|jusqu'à|et jusqu'à|a|y|al|alle|e|sino alle|às|até|até às|"
    "hasta"
)
# The 9 of `9 to 11 pm` and of `9 to 17:30`.
BARE = rf"(?=\s?(?:{TO})\s?\d{{1,2}}(?:(?:[:.]\d\d)?\s?[ap]\.?\s?m\b|\s?[:.h]\s?\d\d(?!\.?\d)))"
TIME = re.compile(
    # A part of an address, of a date, of a longer number or of a word is none; `slot:18:30` holds one.
    r"(?<![\w./+])(?<![0-9a-f]{2}:)(?<![\s:]:)"
    r"(?P<hour>[01]?\d|2[0-4])"
    rf"(?:\s?(?:[:.h]|Uhr)\s?(?P<minute>[0-5]\d)(?:\s?(?:{HALF.format('half')}|(?:h|hrs|Uhr)\b))?"
    rf"|\s?{HALF.format('half_alone')}|\s?(?:h|hrs|heures|horas|Uhr)\b|{BARE})"
    r"(?![\w/:+])(?!\.\d)(?!\s?(?:\d+\s?)?min)",
    re.IGNORECASE,
)


def with_spans(request):
    """A request, and behind it the spans of time that stand in it."""
    found = spans(request)
    return f"{request}\n\n[{'; '.join(found)}]" if found else request


def spans(request):
    """Two times of day that follow one another, each pair as `18:30 to 01:00 = 23400 s`."""
    times = list(TIME.finditer(request))
    found = []
    at = 0
    while at + 1 < len(times) and len(found) < MOST_SPANS:
        begin, end = times[at : at + 2]
        if end.start() - begin.end() <= MOST_BETWEEN and (span := between(begin, end)):
            found.append(span)
            at += 2
        else:
            at += 1
    return found


def between(begin, end):
    """The span in words; None where one of the two is no time of day, or both are the same."""
    later = half_of(end)
    first = minutes_of(begin, half_of(begin) or half_before(begin, end, later))
    last = minutes_of(end, later)
    if first is None or last is None or first == last:
        return None
    return f"{written(first)} to {written(last)} = {60 * ((last - first) % DAY)} s"


def half_before(begin, end, later):
    """The half of the day of a begin that names none: that of the end, or the other one (`11 to 1 am`)."""
    first = int(begin["hour"])
    last = int(end["hour"])
    if not later or not 1 <= first <= 12:
        return None
    return later if first % 12 <= last % 12 else {"a": "p", "p": "a"}[later]


def half_of(time):
    half = time["half"] or time["half_alone"]
    return half.lower() if half else None


def minutes_of(time, half):
    """Minutes since midnight; None for an hour that a clock does not have."""
    hour = int(time["hour"])
    minute = int(time["minute"] or 0)
    if half:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if half == "p" else 0)
    if hour == 24:
        return 0 if minute == 0 else None
    return 60 * hour + minute


def written(minutes):
    return f"{minutes // 60:02}:{minutes % 60:02}"
