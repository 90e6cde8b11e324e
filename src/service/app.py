"""The application: `application()` builds the service from the settings that src/serve.py stored, in every worker
process.
"""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from common import UserError, WorkFailed
from language_model import model_server
from service import cases, chat, contract, memory, metrics
from service.answering import Service
from service.bodies import Json, Refused
from service.gate import Gate
from service.review import routes as review_routes
from service.settings import Settings

FAILED_MARK = "failed"  # file in the folder that several processes share: one could not load the model
USER = "user"  # in it, where what the user gave was wrong
FAILED = []  # why the model could not be loaded


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
        background = [asyncio.create_task(run(service)), asyncio.create_task(memory.give_back())]
        yield
        stopped.set()
        service.close()
        for task in background:
            task.cancel()
        await asyncio.to_thread(service.stack.close)

    app = FastAPI(
        title="Steward",
        version=contract.VERSION,
        description=service.contract.description,
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        default_response_class=Json,
    )
    add_routes(app, service)
    cases.add_routes(app, service)
    chat.add_routes(app, service)
    if service.task.verdict:
        review_routes.add_routes(app, service)
    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(RequestValidationError, wrong_query)
    app.add_exception_handler(HTTPException, no_route)
    app.add_middleware(Gate, settings=settings)
    contract.describe(app, service.contract, bool(settings.key_hashes))
    return app


async def run(service):
    """Load the model, then answer what is to be reviewed; a service whose model cannot be loaded ends."""
    try:
        await asyncio.to_thread(service.start)
    except Exception as error:
        ended_by(error)
        return
    if service.reviews:
        await service.reviews.answer_all()


def add_routes(app, service):
    @app.get("/healthz", **contract.HEALTHZ)
    async def healthz():
        return {"status": "ok"}

    @app.get("/readyz", **contract.readyz(service.contract))
    async def readyz():
        ready = await service.is_ready()
        return Json({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    @app.get("/metrics", **contract.metrics(service.contract))
    async def prometheus():
        text = metrics.text(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))
        return Response(text, media_type="text/plain; version=0.0.4")


async def refused(request, error):
    if error.cause:
        request.state.log = getattr(request.state, "log", {}) | {"cause": error.cause}
    return Json(error.body, error.status, headers=error.headers)


async def wrong_query(request, error):
    """Which parameter is wrong, and not what was sent in it."""
    return Json({"error": "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors())}, 422)


async def no_route(request, error):
    return Json({"error": error.detail}, error.status_code, headers=error.headers)


def ended_by(error):
    """End this process, and the one that would start it again, with a message and no traceback."""
    if not isinstance(error, UserError | WorkFailed):
        traceback.print_exception(error)
    print(f"error: {error}", file=sys.stderr, flush=True)
    FAILED.append(error)
    if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        (Path(folder) / FAILED_MARK).write_text(USER if isinstance(error, UserError) else "", encoding="utf-8")
    stop()


def failure(folder):
    """What one of several processes failed with, as the error that their parent ends with; None where none did."""
    mark = Path(folder) / FAILED_MARK
    if not mark.is_file():
        return None
    return UserError if mark.read_text(encoding="utf-8") == USER else WorkFailed


def stop():
    """End the process that would start this one again; where there is only this one, src/serve.py puts its own way
    here.
    """
    if multiprocessing.parent_process():
        os.kill(os.getppid(), signal.SIGTERM)
