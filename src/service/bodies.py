"""What clients send, read strictly and within limits: a refusal says what was wrong and never repeats what was sent.
And whether they are still there.
"""

import asyncio
import codecs
import json
import re

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from common import first_json, parse_json
from tasks.case_limits import kind_of

CLIENT_GONE = 499  # the status of a request that nobody waits for any more, in log and metrics
CLOSE = {"Connection": "close"}
JSON_TYPE = "application/json"
LINES_TYPES = ("application/x-ndjson", "application/jsonl")
FIRST_LOOK = 4_096  # bytes that a case of a list is looked for in, before the most that it may have
BEGINNING = 131_072  # bytes of a batch in which it shows whether it is of millions of cases
CUT_OFF = 12  # characters before its end in which half a literal or half an escape is found in a text that was cut
SPACE = re.compile(rb"[ \t\n\r]*")
LINE = re.compile(rb"\S[^\n]*")


class Refused(Exception):
    """A request that ends with an error; `cause` is for the log alone, `answer` a refusal of the task's own."""

    def __init__(self, status, words, headers=None, cause=None, answer=None):
        super().__init__(words)
        self.status = status
        self.words = words
        self.headers = headers
        self.cause = cause
        self.answer = answer

    @property
    def body(self):
        return {"error": self.words} | ({} if self.answer is None else {"answer": self.answer})


class Json(JSONResponse):
    """UTF-8, or escaped where a client's text cannot be written in it."""

    def render(self, content):
        return json_bytes(content)


def json_bytes(value):
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


async def read_body(request, limits, most_bytes=None, within_s=None, look=None):
    """The body, given up as soon as it is larger or slower than allowed, whatever its headers say; `look` sees its
    beginning while the rest is on its way, and may refuse it.
    """
    most_bytes = most_bytes or limits.most_body_bytes
    within_s = within_s or limits.body_within_s
    too_large = Refused(413, f"the body is larger than {most_bytes:,} bytes", CLOSE)
    if int(request.headers.get("content-length", 0)) > most_bytes:
        raise too_large
    body = bytearray()
    now = asyncio.get_running_loop().time
    end = now() + within_s
    try:
        async with asyncio.timeout_at(min(end, now() + limits.paused_s)) as clock:
            async for part in request.stream():
                body += part
                if len(body) > most_bytes:
                    raise too_large
                if look and len(body) > BEGINNING:
                    await look(bytes(body))
                    look = None
                clock.reschedule(min(end, now() + limits.paused_s))
    except TimeoutError:
        words = f"within {within_s:g} s" if now() >= end else f"on for {limits.paused_s:g} s"
        raise Refused(408, f"the body did not come {words}", CLOSE) from None
    except ClientDisconnect:
        raise Refused(CLIENT_GONE, "the client has gone") from None
    return body


def check_type(request, *more):
    """The content type, if it may be read."""
    kind, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    if kind.strip() not in (JSON_TYPE, *more):
        raise Refused(415, f"the body must be {' or '.join((JSON_TYPE, *more[:1]))}")
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip().strip('"') not in ("utf-8", "utf8"):
            raise Refused(415, "the body must be UTF-8; another charset is not read")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Refused(415, "the body must come as it is; a Content-Encoding is not read")
    return kind.strip()


def is_text(value):
    """Whether it is text that UTF-8 can hold: no half of a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def parsed(body):
    """The JSON value of a body; NaN, repeated keys, broken UTF-8 and endless nesting are errors."""
    try:
        return parse_json(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise not_json(error) from None


def not_json(error):
    """What is wrong with a text, as the Refused that a client gets."""
    if isinstance(error, UnicodeDecodeError):
        return Refused(400, f"not UTF-8: {error.reason} at byte {error.start}")
    if isinstance(error, json.JSONDecodeError):
        return Refused(400, f"not JSON: {error.msg} at character {error.pos}")
    if isinstance(error, RecursionError):
        return Refused(400, "not JSON that can be read: nested too deeply")
    return Refused(400, "not strict JSON: NaN, an infinite number or a key twice in one object")


# ---- many cases in one body
#
# Sixteen megabytes of "[],[],..." are millions of Python objects. So no case is read beyond its bound, what was read to
# check it is forgotten, and it is read again when its turn comes.


def split_lines(body, limits, words):
    """The bytes of each line; a line that cannot be read keeps its place as the Refused that it raised."""
    found = []
    for line in LINE.finditer(body):
        found.append(line_of(line.group(), limits, words))
        check_count(found, limits, words)
    return found


def line_of(line, limits, words):
    if len(line) > limits.most_body_bytes:
        return too_large(words, limits)
    try:
        parsed(line)
    except Refused as error:
        return error
    return line


def split_list(body, limits, words):
    """The bytes of each item of a JSON list, or Refused where the body is none."""
    at = behind_space(body, 0)
    if body[at : at + 1] != b"[":
        raise no_list(body, limits, words)
    found = []
    at = behind_space(body, at + 1)
    if body[at : at + 1] == b"]":
        at = behind_space(body, at + 1)
        return check_end(found, body, at)
    while True:
        n = item_length(body, at, limits, words)
        found.append(bytes(body[at : at + n]))
        check_count(found, limits, words)
        at = behind_space(body, at + n)
        mark = body[at : at + 1]
        at = behind_space(body, at + 1)
        if mark == b"]":
            return check_end(found, body, at)
        if mark != b",":
            raise Refused(400, f"not JSON: Expecting ',' delimiter behind {words.case} {len(found):,}")


def item_length(body, at, limits, words):
    """The bytes of the JSON value that stands at a place of a body."""
    for n_looked in (FIRST_LOOK, limits.most_body_bytes + CUT_OFF):
        is_cut = at + n_looked < len(body)
        try:
            text, _ = codecs.utf_8_decode(bytes(body[at : at + n_looked]), "strict", not is_cut)
            end = first_json(text)[1]
        except json.JSONDecodeError as error:
            if is_cut and (error.msg.startswith("Unterminated") or error.pos > len(text) - CUT_OFF):
                continue
            raise not_json(error) from None
        except (ValueError, RecursionError) as error:
            raise not_json(error) from None
        # A number at the cut may go on behind it.
        if is_cut and end == len(text):
            continue
        n = len(text[:end].encode())
        if n > limits.most_body_bytes:
            break
        return n
    raise too_large(words, limits)


def behind_space(body, at):
    return SPACE.match(body, at).end()


def check_end(found, body, at):
    if at < len(body):
        raise Refused(400, "not JSON: more behind the list")
    return found


def check_count(found, limits, words):
    if len(found) > limits.most_cases:
        raise Refused(413, f"more than {limits.most_cases:,} {words.cases} in one batch; send several", CLOSE)


def too_large(words, limits):
    return Refused(413, f"{words.a_case} of the batch is larger than {limits.most_body_bytes:,} bytes", CLOSE)


def no_list(body, limits, words):
    """What is wrong with a batch that is no list; a large one is not read to say what it is instead."""
    found = f", found {kind_of(parsed(body))}" if len(body) <= limits.most_body_bytes else ""
    return Refused(
        422,
        f"a list of {words.cases} is wanted{found}; one {words.case} a line has the content type application/x-ndjson",
    )


async def while_there(request, work):
    """The work's result; a client that hangs up meanwhile leaves the queue."""
    mine = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((mine, gone), return_when=asyncio.FIRST_COMPLETED)
        if not mine.done():
            raise Refused(CLIENT_GONE, "the client has gone")
        return mine.result()
    finally:
        mine.cancel()
        gone.cancel()
