"""What clients send, read strictly and within limits: a refusal says what was wrong and never repeats what was sent.
And whether they are still there.
"""

import asyncio
import json

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from common import parse_json

CLIENT_GONE = 499  # the status of a request that nobody waits for any more, in log and metrics
JSON_TYPE = "application/json"
LINES_TYPES = ("application/x-ndjson", "application/jsonl")


class Refused(Exception):
    """A request that ends with an error; `cause` is for the log alone."""

    def __init__(self, status, words, headers=None, cause=None):
        super().__init__(words)
        self.status = status
        self.words = words
        self.headers = headers
        self.cause = cause


class Json(JSONResponse):
    """UTF-8, or escaped where a client's text cannot be written in it."""

    def render(self, content):
        return json_bytes(content)


def json_bytes(value):
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


async def read_body(request, most_bytes, within_s):
    """The body, given up as soon as it is larger or slower than allowed, whatever its headers say."""
    parts = []
    n_bytes = 0
    try:
        async with asyncio.timeout(within_s):
            async for part in request.stream():
                n_bytes += len(part)
                if n_bytes > most_bytes:
                    # What is still on its way is not read either.
                    raise Refused(413, f"the body is larger than {most_bytes:,} bytes", {"Connection": "close"})
                parts.append(part)
    except TimeoutError:
        raise Refused(408, f"the body did not come within {within_s:g} s", {"Connection": "close"}) from None
    except ClientDisconnect:
        raise Refused(CLIENT_GONE, "the client has gone") from None
    return b"".join(parts)


def check_type(request, *more):
    """The content type, if it may be read."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (JSON_TYPE, *more):
        raise Refused(415, f"the body must be {' or '.join((JSON_TYPE, *more[:1]))}")
    return kind


def is_text(value):
    """Whether it is text that UTF-8 can hold: no half of a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def parsed(body):
    """The JSON value of a body; NaN, repeated keys, broken UTF-8 and endless nesting are errors."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(400, f"not UTF-8: {error.reason} at byte {error.start}") from None
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise Refused(400, f"not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise Refused(400, "not JSON that can be read: nested too deeply") from None
    except ValueError:
        raise Refused(400, "not strict JSON: NaN, an infinite number or a key twice in one object") from None


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
