"""Serve a model: python src/serve.py, then POST a case to the task's route at http://127.0.0.1:8080 (CRM: /match)

The model that ships with the project answers in this process; --model_path serves a trained one, --upstream asks an
OpenAI-compatible server (vLLM, SGLang, llama.cpp) instead. Beyond this machine (--host) a key is wanted of every
client: --keys, or the variable STEWARD_API_KEYS. A task without a service.py has POST /answer.
"""

import argparse
import contextlib
import math
import os
import shutil
import socket
import tempfile
from pathlib import Path

import interruption
import locks
from common import ROOT, UserError, WorkFailed, existing_file, quiet_libraries, run
from constrained_decode import engine_names, load_engine
from rows import cases_from_file
from service.settings import LOOPBACK, Limits, Settings, key_hashes, limits_of, model_settings, number
from service.task_contract import TaskContract
from tasks import DEFAULT, load_task

DRAINED_WITHIN_S = 60  # after SIGTERM, or as long as a request may take: a request that waits is still answered
RANGES = {"port": (1, 65_535), "workers": (1, 1_024), "batch_size": (1, 65_536)}
NOT_STARTED = "the service did not start; the lines above say why"


def main():
    args = parse_args()
    task = load_task(args.task)
    settings = settings_of(args, task)
    check_port(settings)
    model_settings(settings, task)
    quiet_libraries()
    settings.store()
    with only_service(settings), interruption.keeping(lambda: "every request that was taken in has been answered"):
        serve(settings, task)


def only_service(settings):
    """Two services that offer the same cases and write the same decisions would show one case to two people."""
    if not settings.review_folder:
        return contextlib.nullcontext()
    # Inside the folder: it may be a volume that several containers mount, and what lies around it be read-only.
    return locks.only_writer(Path(settings.review_folder) / "service")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    add_service_arguments(parser)
    add_review_arguments(parser)
    return parser.parse_args()


def add_model_arguments(parser):
    parser.add_argument(
        "--model_path",
        help="model folder (default: the one that ships for the task); with --upstream its name there (default: the "
        "first that it lists)",
    )
    parser.add_argument("--backend", default="hf", help=f"engine: {', '.join(engine_names())} (default hf)")
    parser.add_argument(
        "--upstream",
        help="address of an OpenAI-compatible server, as http://localhost:8000/v1; its key is in OPENAI_API_KEY",
    )
    parser.add_argument("--config", help="the model's YAML, for a model that the pipeline did not train")
    parser.add_argument(
        "--engine_args",
        default="",
        help='more arguments for a backend that is a server of its own: --engine_args="--dtype half"',
    )
    parser.add_argument("--batch_size", help="answers at once (default: 64 on a GPU, 16 on a CPU)")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")


def add_service_arguments(parser):
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at (default 127.0.0.1; 0.0.0.0 for all, which wants keys)",
    )
    parser.add_argument("--port", default="8080", help="port to listen at (default 8080)")
    parser.add_argument("--keys", help="file with one API key a line; a request without one gets 401")
    parser.add_argument("--workers", default="1", help="processes, each with a model of its own (default 1)")
    parser.add_argument("--queue", help=f"requests that may wait a process (default {Limits.most_waiting})")
    parser.add_argument("--timeout", help=f"seconds that a request may take (default {Limits.timeout_s:g})")
    parser.add_argument(
        "--log_records",
        action="store_true",
        help="write what is asked into the log, for debugging; without it no text of a request is there",
    )


def add_review_arguments(parser):
    parser.add_argument("--review", help="file of cases for the review page, one a line as ask.py reads them")
    parser.add_argument(
        "--keep_traffic",
        action="store_true",
        help="offer answered requests on the review page; they are kept in memory and, decided, on disk",
    )
    parser.add_argument("--reviews", help="folder of the stewards' decisions (default reviews)")


def settings_of(args, task):
    load_engine(args.backend)
    check_numbers(args)
    check_engine(args, task)
    check_review(args, task)
    if args.config:
        existing_file(args.config, "a YAML of configs/")
    hashes = key_hashes(args.keys)
    if args.host not in LOOPBACK and not hashes:
        raise UserError(
            f"--host {args.host}: whoever reaches this machine could ask; give --keys <file with one key a line>, or "
            "stay at 127.0.0.1"
        )
    return Settings(
        model_path=args.model_path or ("" if args.upstream else str(ROOT / task.shipped)),
        task=args.task,
        backend=args.backend,
        upstream=args.upstream,
        config=args.config,
        engine_args=args.engine_args,
        host=args.host,
        port=args.port,
        workers=args.workers,
        batch_size=args.batch_size,
        key_hashes=hashes,
        log_records=args.log_records,
        review_folder=(args.reviews or str(task.under("reviews"))) if args.review or args.keep_traffic else None,
        review_cases=args.review,
        keep_traffic=args.keep_traffic,
        limits=limits_of({"most_waiting": args.queue, "timeout_s": args.timeout}),
    )


def check_numbers(args):
    for name, (least, most) in RANGES.items():
        given = getattr(args, name)
        if given is not None:
            setattr(args, name, number(f"--{name}", given, int, least, most))


def check_engine(args, task):
    module = load_engine(args.backend)
    if module.NEEDS_ENDPOINT and not args.upstream:
        raise UserError(f"--backend {args.backend} asks a server that is running: name it with --upstream")
    starts_server = module.STARTS_SERVER and not args.upstream
    if starts_server and args.workers > 1:
        raise UserError(
            f"--workers {args.workers}: each would start a {args.backend} server of its own; start one, and give its "
            "address as --upstream"
        )
    if args.engine_args and not starts_server:
        raise UserError(
            "--engine_args: no server is started here that they could go to; --backend vllm and sglang start one"
        )
    if not (args.model_path or args.upstream or task.shipped):
        raise UserError(
            f"no model ships for the task {task.name}; train one with make train-<model> TASK={task.name}, then "
            f"make serve-<model> TASK={task.name} (--model_path {task.under('outputs')}/<model>-merged)"
        )


def check_review(args, task):
    if (args.review or args.keep_traffic) and not task.verdict:
        option = "--review" if args.review else "--keep_traffic"
        raise UserError(f"{option}: a review accepts or corrects verdicts, and the task {task.name} has none")
    if args.review:
        existing_file(args.review, f"{task.case}s to review, one a line")
        # A wrong line is reported before a model is loaded.
        cases_from_file(args.review, task)
    if args.keep_traffic and args.workers > 1:
        raise UserError("--keep_traffic: kept requests are in one process's memory; --workers 1")


def check_port(settings):
    """A port that is in use is reported before a model is loaded."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((settings.host, settings.port))
        except OSError as error:
            raise UserError(f"{settings.host}:{settings.port}: {error.strerror}; choose another --port") from None


def serve(settings, task):
    import uvicorn

    from service import app, connection

    options = connection.options(settings) | {
        "factory": True,
        "host": settings.host,
        "port": settings.port,
        "log_level": "warning",
        "timeout_graceful_shutdown": max(DRAINED_WITHIN_S, math.ceil(settings.limits.timeout_s) + 5),
    }
    route = TaskContract(task, settings.limits).route
    page = "the review page at /, " if task.verdict else ""
    where = f"http://{settings.host}:{settings.port}"
    print(f"starting at {where} (POST {route}, {page}the routes in /openapi.json)", flush=True)
    if settings.workers > 1:
        with shared_metrics() as folder:
            uvicorn.run("service.app:application", workers=settings.workers, **options)
            if found := app.failure(folder):
                raise found(NOT_STARTED)
        return
    server = uvicorn.Server(uvicorn.Config("service.app:application", **options))
    app.stop = lambda: setattr(server, "should_exit", True)
    server.run()
    if app.FAILED and isinstance(app.FAILED[0], UserError):
        raise UserError(NOT_STARTED)
    if app.FAILED or not server.started:
        raise WorkFailed(NOT_STARTED)


@contextlib.contextmanager
def shared_metrics():
    """A folder in which several processes count together."""
    folder = tempfile.mkdtemp(prefix="steward-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    run(main)
