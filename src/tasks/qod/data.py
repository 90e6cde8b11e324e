"""A row of QoD requests: a sentence in, the body of createSession or what the sentence lacks out."""

from tasks.qod.clock_reading import with_spans

MOST_CHARACTERS = 4_000


def check_case(case):
    """What is wrong with an input, as messages; empty when it is a request."""
    if not isinstance(case, dict) or set(case) != {"request"} or not isinstance(case["request"], str):
        return ['\'input\' must be {"request": "..."}, one text']
    if not case["request"].strip():
        return ["'request' is empty"]
    if len(case["request"]) > MOST_CHARACTERS:
        return [f"'request' has {len(case['request']):,} characters; at most {MOST_CHARACTERS:,} are read"]
    try:
        case["request"].encode()
    except UnicodeEncodeError as error:
        return [f"'request' holds half of a surrogate pair at character {error.start}, which is no text"]
    return []


def user_text(case):
    return with_spans(case["request"])


def plain_text(part):
    return " ".join(part["request"].lower().split())


def case_of_words(words):
    return {"request": " ".join(words)}
