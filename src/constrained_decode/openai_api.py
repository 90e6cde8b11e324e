"""Any OpenAI-compatible endpoint: a running vLLM, SGLang or llama.cpp server, or a hosted one.

The server's own constraint does the work; what it leaves open at the token budget is closed here, never its verdict.
Only JSON is asked for by schema: calls and free text come as the model writes them. Before anything is asked, a canary
shows that the constraint is obeyed.
"""

import math
import secrets
import time

import jsonschema

import constrained_decode
from common import UserError, parsed_answer
from constrained_decode import Answer, _grammar
from constrained_decode._endpoint import CONCURRENCY, STREAM, TIMEOUT_S, Closing, Endpoint, Failure, count, failed

STARTS_SERVER = False
NEEDS_ENDPOINT = True
identity = constrained_decode.nothing_but_the_folder
RANDOM_WEIGHTS = False
PATH = "/chat/completions"
TOP_LOGPROBS = 20
VERDICT_TOKENS = 24  # enough to get past the verdict however the server spells the opening
CANARY_TOKENS = 40


def load(model_path, task, config, batch_size=None, constrained=True, endpoint=None, timeout_s=TIMEOUT_S):
    """model_path is the name that the server knows the model by."""
    engine = Engine(
        str(model_path), task, config.gen, batch_size or CONCURRENCY, constrained, endpoint, min(timeout_s, TIMEOUT_S)
    )
    engine.check()
    return engine


def connect(model_path, task, config, endpoint, n_clients, constrained=True):
    engine = Engine(model_path, task, config.gen, n_clients, constrained, endpoint)
    # A server's log-probabilities would cost time that no other engine's answer is charged.
    engine.tells_probabilities = False
    return engine


class Engine(constrained_decode.Engine):
    is_elsewhere = True

    def __init__(self, model, task, gen, concurrency, constrained, endpoint, timeout_s=None):
        self.task = task
        self.gen = gen
        self.batch_size = concurrency
        grammar = _grammar.of_task(task)
        # A server keeps a schema; a call's wrapper around it is asked for by the prompt alone.
        self.schema = grammar["schema"] if constrained and grammar and not grammar["tool_call"] else None
        self.closing = Closing(grammar, task) if self.schema else None
        self.server = Endpoint(endpoint, concurrency, timeout_s)
        self.model = model or self.server.first_model()
        self.outcomes = self.server.outcomes
        self.facts = {
            "endpoint": self.server.address,
            "served_model": self.model,
            "concurrency": concurrency,
            "decoding": _grammar.decoding(self.schema, constrained, "server's json_schema, closed here at the budget"),
            "outcomes": self.outcomes,
        }

    def is_up(self):
        return self.server.is_up()

    def check(self):
        """The server is there, knows the model, and obeys a schema that no model would follow unasked."""
        schema = self._canary() if self.schema else None
        try:
            reply = self._asked([{"role": "user", "content": "Say hello."}], CANARY_TOKENS, schema)
        except Failure as failure:
            raise UserError(
                f"{self.server.address}: {failure}; is the server up, and is '{self.model}' the name it serves the "
                "model by?"
            ) from None
        if schema and parsed_answer(reply.text, jsonschema.Draft202012Validator(schema)) is None:
            raise UserError(
                f"{self.server.address}: the server answers but ignores response_format json_schema, so its answers "
                "would be free text; start it with structured outputs, or update it (their options were renamed more "
                "than once)"
            )

    def _canary(self):
        """A schema that shows whether it is obeyed; a server that knows one schema alone is asked for that."""
        if self.server.only_schema() == self.schema:
            return self.schema
        return {
            "type": "object",
            "properties": {"sign": {"const": f"canary-{secrets.token_hex(4)}"}},
            "required": ["sign"],
            "additionalProperties": False,
        }

    def answers(self, conversations, done=()):
        yield from self.server.all(self.ask, conversations, done)

    def verdicts(self, conversations, done=()):
        yield from self.server.all(self._verdict, conversations, done)

    def ask(self, messages, with_shares=None, streams=False):
        """The verdict's shares cost a server time."""
        start = time.perf_counter()
        with_shares = self.tells_probabilities if with_shares is None else with_shares
        try:
            reply = self._asked(messages, self.gen.max_new_tokens, self.schema, with_shares, streams)
        except Failure as failure:
            return failed(failure, self.outcomes, time.perf_counter() - start)
        whole = self.closing.closed(reply.text) if self.closing else reply.text
        # Whether it is an answer at all, free text shows only to the task.
        is_answer = whole is not None if self.closing else self.task.parsed(whole) is not None
        count(self.outcomes, is_answer, is_answer and whole != reply.text)
        return Answer(
            reply.text if whole is None else whole,
            reply.finish_reason or "stop",
            reply.usage.get("prompt_tokens", 0),
            reply.usage.get("completion_tokens", 0),
            self._probabilities(reply.tokens),
            time.perf_counter() - start,
            overruled=None,
            late=int(is_answer and whole != reply.text),
            first_s=reply.first_s,
        )

    def _verdict(self, messages):
        """The verdict's probabilities from the first tokens; where the server gives none a run cannot go on."""
        try:
            found = self._probabilities(self._asked(messages, VERDICT_TOKENS, self.schema, True).tokens)
        except Failure as failure:
            raise UserError(f"{self.server.address}: {failure}") from None
        if not found:
            raise UserError(
                f"{self.server.address}: the server's answer holds no logprobs at the verdict; verdict probabilities "
                "need them"
            )
        return found

    def _asked(self, messages, max_tokens, schema, with_shares=False, streams=False):
        body = {
            "model": self.model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": self.gen.temperature,
            "top_p": self.gen.top_p,
        }
        if with_shares and self.task.verdict:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        if schema:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema, "strict": True},
            }
        return self.server.post(PATH, body | (STREAM if streams else {}))

    def _probabilities(self, tokens):
        return shares_in(tokens, self.task.verdict) if self.task.verdict else None


def shares_in(tokens, verdict):
    """Each label's share where its first letter was written; None where no log-probabilities are given there."""
    opening = f'"{verdict.key}":"'
    written = ""
    for token in tokens:
        before = written
        written = written + token["token"]
        if (at := unspaced(written).find(opening)) >= 0 and len(unspaced(written)) > at + len(opening):
            # A token may hold the opening's end and the label's beginning.
            is_split = opening not in unspaced(before)
            n_lead = len(token["token"]) - len(rest_behind(written, opening)) if is_split else 0
            return shares_behind(token["token"][:n_lead], token.get("top_logprobs") or (), verdict.labels)
    return None


def shares_behind(lead, likeliest, labels):
    """Each label's share among the likeliest tokens that begin with `lead` and go on as it does."""
    shares = dict.fromkeys(labels, 0.0)
    for other in likeliest:
        spelled = other["token"][len(lead) :] if other["token"].startswith(lead) else ""
        for label in labels:
            if spelled and (label.startswith(spelled) or spelled.startswith(label)):
                shares[label] += math.exp(other["logprob"])
    total = sum(shares.values())
    return {label: share / total for label, share in shares.items()} if total > 0 else None


def unspaced(text):
    return "".join(text.split())


def rest_behind(text, opening):
    """What stands behind the opening, whose JSON may be spaced."""
    at = 0
    for letter in opening:
        at = text.index(letter, at) + 1
    return text[at:]
