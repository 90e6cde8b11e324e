"""An OpenAI-compatible server as seen from outside: requests, their replies whole or streamed, and what went wrong.

Every request ends as a reply or as a counted failure. A busy server is asked again, as late as it wishes.
"""

import json
import os
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

from common import UserError
from constrained_decode import FAILED, Answer, _automaton, _grammar

ADDRESS = "http://localhost:8000/v1"
CONCURRENCY = 16
TIMEOUT_S = 60.0  # without a byte
TRIES = 4  # of a request that the server is too busy for
LONGEST_WAIT_S = 20.0  # before trying again, whatever the server asks for
BUSY = (429, 502, 503)
# in a server's words about a prompt that it cannot read
TOO_LONG = re.compile(r"context|too long|exceed|maximum", re.I)
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
REFUSALS = {
    401: "not allowed: the API key is missing or wrong (OPENAI_API_KEY)",
    403: "not allowed: the API key may not use this model",
    404: "not found: wrong model name or address",
}


class Failure(Exception):
    """One request came to nothing; the first word says in what way."""


@dataclass
class Reply:
    """What a server wrote, whole or piece by piece."""

    text: str = ""
    finish_reason: str | None = None
    usage: dict = field(default_factory=dict)
    tokens: list = field(default_factory=list)  # of a chat, with their log-probabilities, where the server gives them
    logprobs: list = field(default_factory=list)  # of a plain completion: {token: log-probability} at each place
    first_s: float | None = None

    def add(self, body):
        """One chat completion, or one piece of it; a last piece may hold the usage alone."""
        self.usage = body.get("usage") or self.usage
        for choice in body["choices"][:1]:
            self.text += text_in(choice)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            given = choice.get("logprobs") or {}
            self.tokens += given.get("content") or []
            self.logprobs += given.get("top_logprobs") or []


def text_in(choice):
    """The text of a choice: of a chat, of a piece of one, or of a plain completion."""
    part = choice.get("message") or choice.get("delta")
    if part is None and "text" not in choice:
        raise KeyError("message")
    return (choice["text"] if part is None else part.get("content")) or ""


class Endpoint:
    """A server's address, with connections for so many requests at a time and a count of how they ended."""

    def __init__(self, address, concurrency, timeout_s=None):
        import httpx2

        self.address = (address or ADDRESS).rstrip("/")
        self.concurrency = concurrency
        self.timeout_s = timeout_s or TIMEOUT_S
        self.outcomes = Counter()
        key = os.environ.get("OPENAI_API_KEY")
        self.client = httpx2.Client(
            timeout=httpx2.Timeout(self.timeout_s, connect=5.0),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
        )

    def first_model(self):
        """The name of the model that the server lists first."""
        import httpx2

        try:
            response = self.client.get(f"{self.address}/models")
            if response.status_code in (401, 403):
                raise UserError(
                    f"{self.address}/models: not allowed (status {response.status_code}); its API key goes into "
                    "OPENAI_API_KEY"
                )
            return response.json()["data"][0]["id"]
        except (httpx2.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(
                f"{self.address}/models: lists no model ({type(error).__name__}: {error}); is the server up? "
                "--model_path names a model"
            ) from None

    def only_schema(self):
        """The schema that a server says all its answers fit, as this project's own service does; None of any other."""
        import httpx2

        try:
            return self.client.get(f"{self.address}/models").json()["data"][0].get("answer_schema")
        except (httpx2.HTTPError, ValueError, KeyError, IndexError, TypeError, AttributeError):
            return None

    def is_up(self):
        """Whether the server answers at all."""
        import httpx2

        try:
            # A connection of its own: all of the client's may be waiting for answers.
            return httpx2.get(f"{self.address}/models", timeout=5.0, headers=self.client.headers).status_code < 500
        except httpx2.HTTPError:
            return False

    def post(self, path, body):
        """The server's Reply to one request, or a Failure."""
        import httpx2

        start = time.perf_counter()
        for attempt in range(TRIES):
            try:
                with self.client.stream("POST", self.address + path, json=body) as response:
                    if response.status_code not in BUSY or attempt == TRIES - 1:
                        return reply_of(response, start)
                    wait = wished_wait(response) or 2**attempt / 4
            except httpx2.TimeoutException as error:
                raise Failure(f"timeout: no byte for {self.timeout_s:.0f} s ({type(error).__name__})") from None
            except httpx2.ConnectError as error:
                raise Failure(f"not reachable: {error}") from None
            except httpx2.HTTPError as error:
                raise Failure(f"connection cut: {type(error).__name__}") from None
            self.outcomes["asked again"] += 1
            time.sleep(min(LONGEST_WAIT_S, wait))
        raise AssertionError("unreachable")

    def all(self, ask, conversations, done=()):
        """Yields (position, result) as they come, so many requests at a time."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            waiting = {pool.submit(ask, messages): at for at, messages in enumerate(conversations) if at not in done}
            try:
                for one in as_completed(waiting):
                    yield waiting[one], one.result()
            finally:
                # Whoever stops listening, or is stopped, does not wait for what was never sent.
                pool.shutdown(wait=False, cancel_futures=True)


def wished_wait(response):
    try:
        return float(response.headers.get("retry-after", ""))
    except ValueError:
        return None


def reply_of(response, start):
    """The Reply of a good response, else a Failure with the server's words."""
    if response.status_code != 200:
        response.read()
        raise Failure(refusal(response))
    try:
        if "text/event-stream" in response.headers.get("content-type", ""):
            return streamed(response, start)
        reply = Reply()
        reply.add(json.loads(response.read()))
        # A server may leave the list of choices empty only in a stream's last piece.
        if not reply.finish_reason and not reply.text:
            raise KeyError("choices")
        return reply
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise Failure("not an answer: the server sent something else than a completion") from None


def refusal(response):
    # A page is no message: its words say nothing that the status does not.
    is_page = "html" in response.headers.get("content-type", "")
    words = "" if is_page else response.text.strip().replace("\n", " ")[:200]
    kind = REFUSALS.get(response.status_code, f"status {response.status_code}")
    if response.status_code == 413 or response.status_code == 400 and TOO_LONG.search(words):
        kind = "too long"
    return f"{kind}: {words}" if words else kind


def streamed(response, start):
    """The pieces of a stream of server-sent events as one reply."""
    reply = Reply()
    is_done = False
    for line in response.iter_lines():
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        is_done = is_done or data == "[DONE]"
        if data and data != "[DONE]":
            reply.add(json.loads(data))
            if reply.text and reply.first_s is None:
                reply.first_s = time.perf_counter() - start
    if not is_done and not reply.finish_reason:
        raise Failure("connection cut: the stream ended before the answer did")
    return reply


class Closing:
    """What a server's constraint leaves open at the token budget, ended here."""

    def __init__(self, grammar, task):
        self.automaton = _grammar.compiled(grammar)
        self.task = task

    def closed(self, text):
        """The text where it is an answer, else ended in the shortest way that fits; None where it cannot be."""
        if self.task.parsed(text) is not None:
            return text
        return _automaton.closed(self.automaton, text)


def count(outcomes, is_answer, was_closed):
    """One more answer among how a server's requests ended."""
    outcomes["closed at the budget" if was_closed else "valid" if is_answer else "not valid"] += 1


def failed(failure, outcomes, seconds):
    """The Answer of a request that came to nothing: no verdict, and counted."""
    outcomes[str(failure).split(":")[0]] += 1
    return Answer("", f"{FAILED}{failure}", 0, 0, None, seconds, overruled=None, late=None)
