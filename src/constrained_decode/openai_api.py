"""Any OpenAI-compatible endpoint: a running vLLM, SGLang or llama.cpp server, or a hosted one.

The server's own constraint does the work; what it leaves open at the token budget is closed here, never its verdict.
Every request ends as an answer or as a counted failure, and a failure is no verdict. Before anything is asked, a canary
shows that the constraint is obeyed.
"""

import json
import math
import os
import re
import secrets
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

import jsonschema

from common import UserError, parsed_answer
from constrained_decode import Answer, _automaton
from tasks import load_task

ENDPOINT = "http://localhost:8000/v1"
CONCURRENCY = 16
TIMEOUT_S = 60.0  # without a byte
TRIES = 4  # of a request that the server is too busy for
LONGEST_WAIT_S = 20.0  # before trying again, whatever the server asks for
TOP_LOGPROBS = 20
VERDICT_TOKENS = 24  # enough to get past the verdict however the server spells the opening
BUSY = (429, 502, 503)
TOO_LONG = re.compile(
    r"context|too long|exceed|maximum", re.I
)  # in a server's words about a prompt that it cannot read


def load(model_path, task, config, batch_size=None, constrained=True, endpoint=None, timeout_s=TIMEOUT_S):
    """model_path is the name that the server knows the model by."""
    engine = Engine(
        str(model_path), task, config.gen, batch_size or CONCURRENCY, constrained, endpoint, min(timeout_s, TIMEOUT_S)
    )
    engine.check()
    return engine


def connect(model_path, task_name, config, endpoint, n_clients, constrained=True):
    """An engine for many threads that `ask`, unchecked."""
    engine = Engine(model_path, load_task(task_name), config.gen, n_clients, constrained, endpoint)
    engine.tells_probabilities = (
        False  # a server's log-probabilities would cost time that no other engine's answer is charged
    )
    return engine


class Failure(Exception):
    """One request came to nothing; the first word says in what way."""


@dataclass
class Reply:
    """What a server said, whole or piece by piece."""

    text: str = ""
    finish_reason: str | None = None
    usage: dict = field(default_factory=dict)
    tokens: list = field(default_factory=list)  # of a chat, with their log-probabilities, where the server tells them
    logprobs: list = field(default_factory=list)  # of a plain completion: {token: log-probability} at each place
    first_s: float | None = None

    def add(self, body):
        """One chat completion, or one piece of it; a last piece may hold the usage alone."""
        self.usage = body.get("usage") or self.usage
        for choice in body["choices"][:1]:
            self.text += said(choice)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            told = choice.get("logprobs") or {}
            self.tokens += told.get("content") or []
            self.logprobs += told.get("top_logprobs") or []


def said(choice):
    """The text of a choice: of a chat, of a piece of one, or of a plain completion."""
    part = choice.get("message") or choice.get("delta")
    if part is None and "text" not in choice:
        raise KeyError("message")
    return (choice["text"] if part is None else part.get("content")) or ""


class Engine:
    path = "/chat/completions"
    opening = ""
    tells_probabilities = True

    def __init__(self, model, task, gen, concurrency, constrained, endpoint, timeout_s=None):
        import httpx2

        self.timeout_s = timeout_s or TIMEOUT_S

        self.task = task
        self.gen = gen
        self.concurrency = concurrency
        self.constrained = constrained
        self.endpoint = (endpoint or ENDPOINT).rstrip("/")
        self.schema = jsonschema.Draft202012Validator(task.answer_schema)
        self.automaton = _automaton.compile_schema(task.answer_schema)
        key = os.environ.get("OPENAI_API_KEY")
        self.client = httpx2.Client(
            timeout=httpx2.Timeout(self.timeout_s, connect=5.0),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
        )
        self.model = model or self._first_model()
        self.outcomes = Counter()
        self.facts = {
            "endpoint": self.endpoint,
            "served_model": self.model,
            "concurrency": concurrency,
            "decoding": "server's json_schema, closed here at the budget" if constrained else "unconstrained",
            "outcomes": self.outcomes,
        }

    def _first_model(self):
        """The name of the model that the server lists first."""
        import httpx2

        try:
            told = self.client.get(f"{self.endpoint}/models")
            if told.status_code in (401, 403):
                raise UserError(
                    f"{self.endpoint}/models: not allowed (status {told.status_code}); its API key goes into "
                    "OPENAI_API_KEY"
                )
            return told.json()["data"][0]["id"]
        except (httpx2.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(
                f"{self.endpoint}/models: tells no model ({type(error).__name__}: {error}); is the server up? "
                "--model_path names a model"
            ) from None

    def is_up(self):
        """Whether the server answers at all."""
        import httpx2

        try:
            # A connection of its own: all of the client's may be waiting for answers.
            return httpx2.get(f"{self.endpoint}/models", timeout=5.0, headers=self.client.headers).status_code < 500
        except httpx2.HTTPError:
            return False

    def _only_schema(self):
        """The schema that a server says all its answers fit, as this project's own service does; None of any other."""
        import httpx2

        try:
            return self.client.get(f"{self.endpoint}/models").json()["data"][0].get("answer_schema")
        except (httpx2.HTTPError, ValueError, KeyError, IndexError, TypeError, AttributeError):
            return None

    def check(self):
        """The server is there, knows the model, and obeys a schema that no model would follow unasked."""
        word = f"canary-{secrets.token_hex(4)}"
        schema = {
            "type": "object",
            "properties": {"sign": {"const": word}},
            "required": ["sign"],
            "additionalProperties": False,
        }
        if self._only_schema() == self.task.answer_schema:
            schema = self.task.answer_schema
        try:
            reply = self._asked([{"role": "user", "content": "Say hello."}], 40, schema if self.constrained else None)
        except Failure as failure:
            raise UserError(
                f"{self.endpoint}: {failure}; is the server up, and is '{self.model}' the name it serves the model by?"
            ) from None
        if self.constrained and parsed_answer(reply.text, jsonschema.Draft202012Validator(schema)) is None:
            raise UserError(
                f"{self.endpoint}: the server answers but ignores response_format json_schema, so its answers would be "
                "free text; "
                "start it with structured outputs, or update it (their options were renamed more than once)"
            )

    def answers(self, conversations):
        yield from self._all(self._answer, conversations)

    def verdicts(self, conversations):
        yield from self._all(self._verdict, conversations)

    def answer(self, messages, with_shares):
        """One answer, from many threads at a time; the verdict's shares cost a server time."""
        return self._answer(messages, with_shares=with_shares)

    def ask(self, messages):
        """One answer, streamed, so that the time of its first token is known."""
        return self._answer(messages, streams=True)

    def _all(self, ask, conversations):
        with ThreadPoolExecutor(self.concurrency) as pool:
            waiting = {pool.submit(ask, messages): at for at, messages in enumerate(conversations)}
            for done in as_completed(waiting):
                yield waiting[done], done.result()

    def _answer(self, messages, streams=False, with_shares=None):
        start = time.perf_counter()
        schema = self.task.answer_schema if self.constrained else None
        try:
            reply = self._asked(
                messages,
                self.gen.max_new_tokens,
                schema,
                self.tells_probabilities if with_shares is None else with_shares,
                streams,
            )
        except Failure as failure:
            self.outcomes[str(failure).split(":")[0]] += 1
            return Answer("", f"failed: {failure}", 0, 0, None, time.perf_counter() - start, overruled=None, late=None)
        text = self.opening + reply.text
        whole = (
            text
            if not self.constrained or parsed_answer(text, self.schema) is not None
            else _automaton.closed(self.automaton, text)
        )
        self.outcomes["valid" if whole == text else "closed at the budget" if whole else "not valid"] += 1
        return Answer(
            whole or text,
            reply.finish_reason or "stop",
            reply.usage.get("prompt_tokens", 0),
            reply.usage.get("completion_tokens", 0),
            self._probabilities(reply.tokens),
            time.perf_counter() - start,
            overruled=None,
            late=int(whole is not None and whole != text),
            first_s=reply.first_s,
        )

    def _verdict(self, messages):
        """The verdict's probabilities from the first tokens; where the server tells none a run cannot go on."""
        try:
            found = self._probabilities(
                self._asked(
                    messages, VERDICT_TOKENS, self.task.answer_schema if self.constrained else None, True
                ).tokens
            )
        except Failure as failure:
            raise UserError(f"{self.endpoint}: {failure}") from None
        if not found:
            raise UserError(
                f"{self.endpoint}: the server's answer holds no logprobs at the verdict; verdict probabilities need "
                "them"
            )
        return found

    def _body(self, messages, max_tokens, schema, probabilities=False):
        body = {
            "model": self.model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": self.gen.temperature,
            "top_p": self.gen.top_p,
        }
        if probabilities:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        if schema:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema, "strict": True},
            }
        return body

    def _asked(self, messages, max_tokens, schema, probabilities=False, streams=False):
        """The server's reply to one request; busy servers are asked again, as late as they wish."""
        start = time.perf_counter()
        body = self._body(messages, max_tokens, schema, probabilities) | (
            {"stream": True, "stream_options": {"include_usage": True}} if streams else {}
        )
        return self._sent(body, start)

    def _sent(self, body, start):
        import httpx2

        for attempt in range(TRIES):
            try:
                with self.client.stream("POST", self.endpoint + self.path, json=body) as response:
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

    def _probabilities(self, tokens):
        """Each label's share where its first letter was written; None where the server tells no log-probabilities
        there.
        """
        opening = f'"{self.task.verdict.key}":"'
        written = ""
        for token in tokens:
            before = written
            written = written + token["token"]
            if (at := unspaced(written).find(opening)) >= 0 and len(unspaced(written)) > at + len(opening):
                # A token may hold the opening's end and the label's beginning.
                lead = (
                    token["token"][: len(token["token"]) - len(rest_behind(written, opening))]
                    if opening not in unspaced(before)
                    else ""
                )
                shares = dict.fromkeys(self.task.verdict.labels, 0.0)
                for other in token.get("top_logprobs") or ():
                    spelled = other["token"][len(lead) :] if other["token"].startswith(lead) else ""
                    for label in self.task.verdict.labels:
                        if spelled and (label.startswith(spelled) or spelled.startswith(label)):
                            shares[label] += math.exp(other["logprob"])
                total = sum(shares.values())
                return {label: share / total for label, share in shares.items()} if total > 0 else None
        return None


def unspaced(text):
    return "".join(text.split())


def rest_behind(text, opening):
    """What stands behind the opening, whose JSON may be spaced."""
    at = 0
    for letter in opening:
        at = text.index(letter, at) + 1
    return text[at:]


def wished_wait(response):
    try:
        return float(response.headers.get("retry-after", ""))
    except ValueError:
        return None


def reply_of(response, start):
    """The Reply of a good response, else a Failure that says what the server said."""
    if response.status_code != 200:
        response.read()
        # A page is no message: its words say nothing that the status does not.
        words = (
            "" if "html" in response.headers.get("content-type", "") else response.text.strip().replace("\n", " ")[:200]
        )
        kind = {
            401: "not allowed: the API key is missing or wrong (OPENAI_API_KEY)",
            403: "not allowed: the API key may not use this model",
            404: "not found: wrong model name or address",
        }.get(response.status_code, f"status {response.status_code}")
        if response.status_code == 413 or response.status_code == 400 and TOO_LONG.search(words):
            kind = "too long"
        raise Failure(f"{kind}: {words}" if words else kind)
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
