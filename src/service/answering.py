"""The model and the queue before it: from its loading to an answer that fits, or the refusal that a client gets."""

import asyncio
import contextlib
import json
import tempfile
import time
from pathlib import Path

from common import read_json, sha256_text
from constrained_decode import load_engine
from language_model import hub
from language_model.model_folder import model_identity
from service import metrics
from service.bodies import Refused
from service.queue import Busy, Queue, TooLong, Unanswered
from service.review.desk import Reviews
from service.settings import model_settings
from service.task_contract import TaskContract
from tasks import load_task

UPSTREAM = "openai_api"  # the engine that asks a server named with --upstream
UPSTREAM_WORKERS = 64  # answers that a server elsewhere is asked for at a time
BATCHES_SEEN = 4  # of so many batches that wait the engine gets those rows that are of a length
READY_EVERY_S = 5.0  # how long an engine's last sign of life counts
SIGN_WITHIN_S = 10.0  # for an engine in this process to give one
SIGN_OF_LIFE = [{"role": "user", "content": "Are you there?"}]


class Service:
    """The model and the queue before it."""

    def __init__(self, settings):
        self.settings = settings
        self.limits = settings.limits
        self.task = load_task(settings.task)
        self.contract = TaskContract(self.task, settings.limits)
        self.engine = None
        self.queue = None
        self.reviews = None
        self.is_open = True
        self.stack = contextlib.ExitStack()
        self.asking = asyncio.Lock()  # the engine's last sign of life
        self.asked_s = -READY_EVERY_S
        self.was_up = False

    def close(self):
        self.is_open = False
        if self.queue:
            self.queue.close()

    def start(self):
        """Load the model, or find its server."""
        settings = self.settings
        engine = self._engine()
        if not self.is_open:
            self.stack.close()
            return
        n_workers = self._n_clients() if engine.is_elsewhere else 1
        self.engine = engine
        self.queue = Queue(engine, self.limits.most_waiting, n_workers, BATCHES_SEEN)
        print("the model is loaded, requests are answered", flush=True)
        if settings.review_folder:
            self.reviews = Reviews(
                self.contract, settings.review_folder, settings.review_cases, self.identity, self.answered, self.is_free
            )

    def _n_clients(self):
        return self.settings.batch_size or UPSTREAM_WORKERS

    def _engine(self):
        settings = self.settings
        config = model_settings(settings, self.task)
        module = load_engine(UPSTREAM if settings.upstream else settings.backend)
        if settings.upstream:
            return module.load(
                settings.model_path,
                self.task,
                config,
                self._n_clients(),
                endpoint=settings.upstream,
                timeout_s=self.limits.timeout_s,
            )
        if not module.STARTS_SERVER:
            return module.load(settings.model_path, self.task, config, settings.batch_size)
        # An engine that is a server of its own: started with the service, and stopped with it.
        log = Path(tempfile.gettempdir()) / f"steward_{settings.backend}_{settings.port}.log"
        address, _ = self.stack.enter_context(
            module.serve(settings.model_path, self.task, config, self._n_clients(), settings.engine_args, log)
        )
        engine = module.connect(settings.model_path, self.task, config, address, self._n_clients())
        if self.is_open:
            engine.check()
        return engine

    @property
    def identity(self):
        """Which model answers, for decisions and kept answers; of a server elsewhere only the name is known.

        Asked once the model is loaded: an adapter's base may be fetched for that.
        """
        if self.settings.upstream:
            return f"{self.settings.upstream}:{self.engine.model}"
        return f"{Path(self.settings.model_path).name}:{fingerprint(self.settings.model_path)[:12]}"

    async def is_ready(self):
        """Whether the next request would be answered: the model is loaded; its server gives a sign of life, or it does
        itself if it failed last.
        """
        if self.queue is None or not self.is_open:
            return False
        if not self.engine.is_elsewhere and not self.queue.is_broken:
            return True
        async with self.asking:
            if time.monotonic() - self.asked_s >= READY_EVERY_S:
                self.was_up = await self._gives_sign()
                self.asked_s = time.monotonic()
        return self.was_up

    async def _gives_sign(self):
        """Whether a server elsewhere is up; an engine in this process, which failed last, is asked a question: no other
        request may come any more to show that it works.
        """
        if self.engine.is_elsewhere:
            return await asyncio.to_thread(self.engine.is_up)
        with contextlib.suppress(Busy, TooLong, Unanswered, TimeoutError):
            await self.queue.answer(SIGN_OF_LIFE, SIGN_WITHIN_S)
        return not self.queue.is_broken

    async def is_free(self):
        """Whether it would answer, and no request waits."""
        return self.queue is not None and not len(self.queue) and await self.is_ready()

    async def answer(self, case, with_shares=False, is_patient=False):
        """(answer, the engine's Answer) to a client's case, or Refused; kept for review where that was asked for."""
        keeps = self.reviews is not None and self.settings.keep_traffic
        outcome, reply = await self._outcome(self.task.messages(case), with_shares or keeps, is_patient)
        if outcome.reasons:
            if outcome.answer is None:
                metrics.FAILED.labels("failed a check").inc()
            raise Refused(422, "; ".join(outcome.reasons), answer=outcome.answer)
        if keeps:
            self.reviews.offer(case, answer=outcome.answer, probabilities=reply.probabilities)
        return outcome.answer, reply

    async def answered(self, messages, with_shares=False, is_patient=False):
        """(the answer, the engine's Answer) to a conversation; what the task itself would refuse is none of its
        concern.
        """
        outcome, reply = await self._outcome(messages, with_shares, is_patient)
        return outcome.answer, reply

    async def _outcome(self, messages, with_shares, is_patient):
        """(the Outcome, the engine's Answer) to a conversation; every way in which there is none is a Refused in the
        words that a client gets.
        """
        reply = await self._reply(messages, with_shares, is_patient)
        outcome = self.task.outcome(reply.text)
        if outcome.answer is None and not outcome.reasons:
            metrics.FAILED.labels("not valid").inc()
            fits = "that fits the schema" if self.task.answer_schema else "that can be read"
            raise Refused(502, f"the model's server sent no answer {fits}")
        if self.task.verdict:
            metrics.verdicts(self.task.verdict.key).labels(self.task.verdict.of(outcome.answer)).inc()
        metrics.CLOSED.inc(bool(reply.late))
        return outcome, reply

    async def _reply(self, messages, with_shares, is_patient):
        start = time.monotonic()
        if self.queue is None:
            raise too_busy(1, "the model is still being loaded")
        try:
            reply = await self.queue.answer(messages, self.limits.timeout_s, with_shares, is_patient)
        except Busy as error:
            raise too_busy(error.after_s, None if self.is_open else "the service is going down") from None
        except TooLong:
            raise self.too_long() from None
        except TimeoutError:
            metrics.FAILED.labels("timeout").inc()
            raise Refused(504, f"no answer within {self.limits.timeout_s:g} s") from None
        except Unanswered as error:
            metrics.FAILED.labels("engine").inc()
            raise Refused(502, "the model could not answer", cause=str(error)) from None
        if reply.failure:
            raise self.failed(reply.failure.split(": ")[0])
        metrics.MODEL_SECONDS.observe(time.monotonic() - start)
        return reply

    def failed(self, why):
        """The refusal of a request that the model's server left without an answer."""
        if why == "too long":
            return self.too_long()
        metrics.FAILED.labels(why).inc()
        return Refused(504 if why == "timeout" else 502, f"the model's server did not answer: {why}", cause=why)

    def too_long(self):
        return Refused(413, self.contract.words.too_long)

    def detail(self, case, answer, reply):
        """What ?detail=true adds to an answer."""
        found = {}
        if self.task.verdict:
            shares = reply.probabilities
            found["probabilities"] = shares and {label: round(share, 4) for label, share in shares.items()}
        found["closed_at_budget"] = bool(reply.late)
        if self.task.answer == "text":
            # No schema ends a text: where the budget is used up it breaks off.
            found["cut_at_budget"] = reply.finish_reason == "length"
        return found | self.contract.beside(case, answer)

    def log_facts(self, answer):
        """What of an answer stands in the log: the verdict, never a text."""
        return {self.task.verdict.key: self.task.verdict.of(answer)} if self.task.verdict else {}


def fingerprint(model_path):
    """Of the model's weights, as its manifest names them; of an adapter with its base, or without a manifest, of all
    that distinguishes it.
    """
    manifest = Path(model_path) / "manifest.json"
    is_whole = manifest.is_file() and not hub.is_adapter(model_path)
    named = read_json(manifest).get("weights_sha256") if is_whole else None
    return named or sha256_text(json.dumps(model_identity(model_path)))


def too_busy(after_s, why=None):
    """429 where the queue is full, 503 with a reason where there is none to stand in."""
    return Refused(503 if why else 429, why or "too many requests are waiting", {"Retry-After": str(after_s)})
