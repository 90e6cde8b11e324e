"""The routes. `application()` builds the service from the settings that src/serve.py stored, in every worker process."""

import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from pathlib import Path

import jsonschema
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException

from common import UserError, WorkFailed, parsed_answer, read_json, sha256_text
from constrained_decode import load_engine
from load import model_server
from service import chat, contract, memory, metrics
from service.bodies import (
    JSON_TYPE,
    LINES_TYPES,
    Json,
    Refused,
    check_type,
    checked_pair,
    json_bytes,
    kind_of,
    parsed,
    read_body,
    while_there,
)
from service.gate import Gate
from service.queue import Busy, Line, TooLong, Unanswered
from service.review import desk
from service.settings import Settings, model_settings
from tasks import load_task

FAILED_MARK = "failed"  # file in the folder that several processes share: one could not load the model
FAILED = []  # why the model could not be loaded
UPSTREAM_WORKERS = 64  # answers that a server elsewhere is asked for at a time
BATCHES_AT_ONCE = 4  # of what waits the engine gets so many batches: sorted by length, little of them is padding
BATCH_WINDOW = 64  # of a batch's pairs so many are in line at a time
MOST_BATCHES = 3  # at a time: their pairs leave room in the line for single requests
BATCH_WITHIN_S = 120.0  # for its body to come
READY_EVERY_S = 5.0  # how long an engine's last sign of life counts
SIGN_WITHIN_S = 10.0  # for an engine in this process to give one


def application():
    memory.keep_few_shapes()
    return build(Settings.stored())


def build(settings):
    service = Service(settings)
    stopped = threading.Event()
    model_server.STOPPED.set(stopped)

    @contextlib.asynccontextmanager
    async def life(app):
        # Loading takes seconds to minutes; the process is alive meanwhile, and not ready.
        background = [asyncio.create_task(service.run()), asyncio.create_task(memory.give_back())]
        yield
        stopped.set()
        service.close()
        for task in background:
            task.cancel()
        await asyncio.to_thread(service.stack.close)

    app = FastAPI(
        title="Steward",
        version=contract.VERSION,
        description=contract.DESCRIPTION,
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        default_response_class=Json,
    )
    app.state.service = service
    add_routes(app, service)
    chat.add_routes(app, service)
    desk.add_routes(app, service)
    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(RequestValidationError, wrong_query)
    app.add_exception_handler(HTTPException, no_route)
    app.add_middleware(Gate, settings=settings)
    contract.describe(app, settings)
    return app


async def refused(request, error):
    if error.cause:
        request.state.log = getattr(request.state, "log", {}) | {"cause": error.cause}
    return Json({"error": error.words}, error.status, headers=error.headers)


async def wrong_query(request, error):
    """Which parameter is wrong, and not what was sent in it."""
    return Json({"error": "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors())}, 422)


async def no_route(request, error):
    return Json({"error": error.detail}, error.status_code, headers=error.headers)


class Service:
    """The model and the line before it."""

    def __init__(self, settings):
        self.settings = settings
        self.limits = settings.limits
        self.task = load_task(settings.task)
        self.schema = jsonschema.Draft202012Validator(self.task.answer_schema)
        self.engine = self.line = self.reviews = None
        self.is_open = True
        self.stack = contextlib.ExitStack()
        self.n_batches = 0
        self.asking = asyncio.Lock()  # the engine's last sign of life
        self.asked_s = -READY_EVERY_S
        self.was_up = False
        self.fingerprint = None if settings.upstream else fingerprint(settings)

    async def run(self):
        """Load the model, then answer what is to be reviewed; a service whose model cannot be loaded ends."""
        try:
            await asyncio.to_thread(self.start)
        except Exception as error:
            ended_by(error)
            return
        if self.reviews:
            await self.reviews.answer_all()

    def close(self):
        self.is_open = False
        if self.line:
            self.line.close()

    def start(self):
        """Load the model, or find its server."""
        settings = self.settings
        config = model_settings(self.settings)
        n_workers = settings.batch_size or UPSTREAM_WORKERS
        at_once = 1
        module = load_engine("openai_api" if settings.upstream else settings.backend)
        if settings.upstream:
            self.engine = module.load(
                settings.model_path,
                self.task,
                config,
                n_workers,
                endpoint=settings.upstream,
                timeout_s=self.limits.timeout_s,
            )
        elif hasattr(module, "serve"):
            # An engine that is a server of its own: started with the service, and stopped with it.
            log = Path(tempfile.gettempdir()) / f"steward_{settings.backend}_{settings.port}.log"
            address, _ = self.stack.enter_context(
                module.serve(settings.model_path, self.task, config, n_workers, settings.engine_args, log)
            )
            if not self.is_open:
                self.stack.close()
                return
            self.engine = module.connect(settings.model_path, settings.task, config, address, n_workers)
            self.engine.check()
        else:
            self.engine = module.load(settings.model_path, self.task, config, settings.batch_size)
            n_workers = 1
            at_once = BATCHES_AT_ONCE * self.engine.batch_size
        self.line = Line(self.engine, self.limits.most_waiting, n_workers, at_once)
        print("the model is loaded, requests are answered", flush=True)
        if self.settings.review_folder:
            self.reviews = desk.Reviews(self, self.settings.review_folder, self.settings.review_pairs)

    @property
    def identity(self):
        """Which model answers, for decisions and kept answers; of a server elsewhere only the name is known."""
        if self.settings.upstream:
            return f"{self.settings.upstream}:{self.engine.model}"
        return f"{Path(self.settings.model_path).name}:{self.fingerprint[:12]}"

    async def is_ready(self):
        """Whether the next request would be answered: the model is loaded; its server gives a sign of life, or it does
        itself if it failed last.
        """
        if self.line is None or not self.is_open:
            return False
        is_elsewhere = hasattr(self.engine, "is_up")
        if not is_elsewhere and not self.line.is_broken:
            return True
        async with self.asking:
            if time.monotonic() - self.asked_s >= READY_EVERY_S:
                self.was_up = await (asyncio.to_thread(self.engine.is_up) if is_elsewhere else self._answers_again())
                self.asked_s = time.monotonic()
        return self.was_up

    async def _answers_again(self):
        """Ask the engine in this process, which failed last, about two empty records: nobody else may come any more to
        show that it works.
        """
        with contextlib.suppress(Busy, TooLong, Unanswered, TimeoutError):
            await self.line.answer(self.task.messages({"record1": {}, "record2": {}}), SIGN_WITHIN_S)
        return not self.line.is_broken

    async def match(self, pair, with_shares=False):
        """(the answer's object, the engine's Answer), or Refused."""
        keeps = self.reviews is not None and self.settings.keep_traffic
        told, answer = await self.answered(self.task.messages(pair), with_shares or keeps)
        if keeps:
            self.reviews.offer(pair, told=told | {"probabilities": answer.probabilities})
        return told, answer

    async def answered(self, messages, with_shares=False):
        """The answer to a conversation, as object and as the engine's Answer; every way in which there is none is told
        as the client should hear it.
        """
        answer = await self._asked(messages, with_shares)
        told = parsed_answer(answer.text, self.schema)
        if told is None:
            metrics.FAILED.labels("not valid").inc()
            raise Refused(502, "the model's server sent no answer that fits the schema")
        metrics.VERDICTS.labels(told[self.task.verdict.key]).inc()
        metrics.CLOSED.inc(bool(answer.late))
        return told, answer

    async def _asked(self, messages, with_shares):
        start = time.monotonic()
        if self.line is None:
            raise too_busy(1, "the model is still being loaded")
        try:
            answer = await self.line.answer(messages, self.limits.timeout_s, with_shares)
        except Busy as error:
            raise (
                too_busy(error.after_s) if self.is_open else too_busy(error.after_s, "the service is going down")
            ) from None
        except TooLong:
            raise too_long() from None
        except TimeoutError:
            metrics.FAILED.labels("timeout").inc()
            raise Refused(504, f"no answer within {self.limits.timeout_s:g} s") from None
        except Unanswered as error:
            metrics.FAILED.labels("engine").inc()
            raise Refused(502, "the model could not answer", cause=str(error)) from None
        if answer.finish_reason.startswith("failed"):
            why = answer.finish_reason.split(": ")[1]
            if why == "too long":
                raise too_long()
            metrics.FAILED.labels(why).inc()
            raise Refused(504 if why == "timeout" else 502, f"the model's server did not answer: {why}", cause=why)
        metrics.MODEL_SECONDS.observe(time.monotonic() - start)
        return answer

    def detail(self, pair, answer):
        evidence = getattr(self.task.module("data"), "field_evidence", None)
        return {
            "probabilities": answer.probabilities
            and {label: round(share, 4) for label, share in answer.probabilities.items()},
            "closed_at_budget": bool(answer.late),
        } | ({"evidence": evidence(pair)} if evidence else {})


def fingerprint(settings):
    """Of the model's weights, as its manifest names them, else of its files."""
    from language_model.model_folder import model_identity

    manifest = Path(settings.model_path) / "manifest.json"
    named = read_json(manifest).get("weights_sha256") if manifest.is_file() else None
    return named or sha256_text(json.dumps(model_identity(settings.model_path)))


def too_busy(after_s, why=None):
    """429 where the line is full, 503 with a reason where there is none to stand in."""
    return Refused(503 if why else 429, why or "too many requests are waiting", {"Retry-After": str(after_s)})


def too_long():
    return Refused(413, "the records are longer than the model can read")


def ended_by(error):
    """End this process, and the one that would start it again, with a message and no traceback."""
    if not isinstance(error, UserError | WorkFailed):
        traceback.print_exception(error)
    print(f"error: {error}", file=sys.stderr, flush=True)
    FAILED.append(error)
    if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        (Path(folder) / FAILED_MARK).touch()
    stop()


def stop():
    """End the process that would start this one again; where there is only this one, src/serve.py puts its own way
    here.
    """
    if multiprocessing.parent_process():
        os.kill(os.getppid(), signal.SIGTERM)


def add_routes(app, service):
    @app.get("/healthz", **contract.HEALTHZ)
    async def healthz():
        return {"status": "ok"}

    @app.get("/readyz", **contract.READYZ)
    async def readyz():
        ready = await service.is_ready()
        return Json({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    @app.get("/metrics", **contract.METRICS)
    async def prometheus():
        return Response(
            metrics.text(os.environ.get("PROMETHEUS_MULTIPROC_DIR")), media_type="text/plain; version=0.0.4"
        )

    @app.post("/match", **contract.MATCH)
    async def match(request: Request, detail: bool = False):
        check_type(request)
        body = await read_body(request, service.limits.most_body_bytes, service.limits.timeout_s)
        request.state.log = {"bytes": len(body)}
        pair = checked_pair(parsed(body), service.limits)
        if service.settings.log_records:
            request.state.log |= {"pair": pair}
        told, answer = await while_there(request, service.match(pair, detail))
        request.state.log |= {"result": told[service.task.verdict.key]}
        return Json(told | (service.detail(pair, answer) if detail else {}))

    @app.post("/match/batch", **contract.BATCH)
    async def batch(request: Request, detail: bool = False):
        kind = check_type(request, *LINES_TYPES)
        if service.n_batches >= MOST_BATCHES:
            raise too_busy(1)
        body = await read_body(request, service.limits.most_batch_bytes, BATCH_WITHIN_S)
        # Megabytes of JSON take seconds, in which others are to be answered.
        pairs = await asyncio.to_thread(pairs_of, body, kind != JSON_TYPE)
        request.state.log = {"bytes": len(body), "pairs": len(pairs)} | (
            {"all_pairs": pairs_told(pairs)} if service.settings.log_records else {}
        )
        return StreamingResponse(streamed(service, pairs, detail), media_type="application/x-ndjson")


def pairs_of(body, is_lines):
    """The pairs of a list, or of one pair a line; a line that cannot be read keeps its place as the Refused that it
    raised.
    """
    found = [] if is_lines else parsed(body)
    if not isinstance(found, list):
        raise Refused(
            422,
            f"a list of pairs is wanted, found {kind_of(found)}; one pair a line has the content type "
            "application/x-ndjson",
        )
    if is_lines:
        for line in filter(bytes.strip, body.split(b"\n")):
            try:
                found.append(parsed(line))
            except Refused as error:
                found.append(error)
    if not found:
        raise Refused(422, "no pair in it: a list of pairs or one pair a line is wanted")
    return found


def pairs_told(pairs):
    return [None if isinstance(pair, Refused) else pair for pair in pairs]


async def streamed(service, pairs, detail):
    """One line of JSON a pair, in order; what is wrong with one says so in its place."""
    under_way = deque()
    service.n_batches += 1
    try:
        for pair in pairs:
            under_way.append(asyncio.create_task(one_of_batch(service, pair, detail)))
            if len(under_way) == BATCH_WINDOW:
                yield json_bytes(await under_way.popleft()) + b"\n"
        while under_way:
            yield json_bytes(await under_way.popleft()) + b"\n"
    finally:
        service.n_batches -= 1
        # A client that has gone leaves the line too.
        for task in under_way:
            task.cancel()


async def one_of_batch(service, pair, detail):
    while True:
        try:
            if isinstance(pair, Refused):
                raise pair
            pair = checked_pair(pair, service.limits)
            told, answer = await service.match(pair, detail)
            return told | (service.detail(pair, answer) if detail else {})
        except Refused as error:
            # A batch waits for its turn; single requests are turned away.
            if error.status != 429:
                return {"error": error.words, "status": error.status}
            await asyncio.sleep(0.1)
