"""Serve a model: python src/serve.py, then POST {"record1": {...}, "record2": {...}} to http://127.0.0.1:8080/match

The model that ships with the project answers in this process; --model_path serves a trained one, --upstream asks an
OpenAI-compatible server (vLLM, SGLang, llama.cpp) instead. Beyond this machine (--host) a key is wanted of every
client: --keys, or the variable STEWARD_API_KEYS.
"""

import argparse
import contextlib
import math
import os
import shutil
import socket
import tempfile
from pathlib import Path

from common import ROOT, UserError, WorkFailed, existing_file, quiet_libraries, run
from constrained_decode import engine_names, load_engine
from language_model.model_folder import SHIPPED
from service.settings import LOOPBACK, Limits, Settings, key_hashes, model_settings
from tasks import DEFAULT, load_task

DRAINED_WITHIN_S = 60  # after SIGTERM, or as long as a request may take: who waits in line is still answered
MOST_PORT = 65_535
NOT_STARTED = "the service did not start; the lines above say why"


def main():
    args = parse_args()
    settings = settings_of(args)
    check_port(settings)
    model_settings(settings)
    quiet_libraries()
    settings.store()
    serve(settings)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model_path",
        help=f"model folder (default {SHIPPED}); with --upstream its name there (default: the first that it lists)",
    )
    parser.add_argument(
        "--backend", default="hf", help=f"engine in this process: {', '.join(engine_names())} (default hf)"
    )
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
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at (default 127.0.0.1; 0.0.0.0 for all, which wants keys)",
    )
    parser.add_argument("--port", type=int, default=8080, help="port to listen at (default 8080)")
    parser.add_argument("--keys", help="file with one API key a line; who has none is turned away")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with a model of its own (default 1)")
    parser.add_argument("--batch_size", type=int, help="answers at once (default: 64 on a GPU, 16 on a CPU)")
    parser.add_argument(
        "--queue",
        type=int,
        default=Limits.most_waiting,
        help=f"requests that may wait a process (default {Limits.most_waiting})",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=Limits.timeout_s,
        help=f"seconds that a request may take (default {Limits.timeout_s:g})",
    )
    parser.add_argument(
        "--log_records", action="store_true", help="write the records into the log, for debugging; without it none are"
    )
    parser.add_argument(
        "--review", help='file of pairs for the review page, one {"record1": {...}, "record2": {...}} a line'
    )
    parser.add_argument(
        "--keep_traffic",
        action="store_true",
        help="offer answered requests on the review page; they are kept in memory and, decided, on disk",
    )
    parser.add_argument("--reviews", default="reviews", help="folder of the stewards' decisions (default reviews)")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    return parser.parse_args()


def settings_of(args):
    load_task(args.task)
    load_engine(args.backend)
    for name, least in (("workers", 1), ("queue", 1), ("timeout", 0.1), ("batch_size", 1), ("port", 1)):
        if (given := getattr(args, name)) is not None and not given >= least:
            raise UserError(f"--{name} {given}: at least {least}")
    if args.port > MOST_PORT:
        raise UserError(f"--port {args.port}: at most {MOST_PORT}")
    if args.backend == "openai_api" and not args.upstream:
        raise UserError("--backend openai_api asks a server that is running: name it with --upstream")
    if args.review:
        existing_file(args.review, "pairs to review, one a line")
    starts_server = not args.upstream and hasattr(load_engine(args.backend), "serve")
    if starts_server and args.workers > 1:
        raise UserError(
            f"--workers {args.workers}: each would start a {args.backend} server of its own; start one, and give its "
            "address as --upstream"
        )
    if args.engine_args and not starts_server:
        raise UserError(
            "--engine_args: no server is started here that they could go to; --backend vllm and sglang start one"
        )
    if args.config:
        existing_file(args.config, "a YAML of configs/")
    if args.keep_traffic and args.workers > 1:
        raise UserError("--keep_traffic: kept requests are in one process's memory; --workers 1")
    hashes = key_hashes(args.keys)
    if args.host not in LOOPBACK and not hashes:
        raise UserError(
            f"--host {args.host}: whoever reaches this machine could ask; give --keys <file with one key a line>, or "
            "stay at 127.0.0.1"
        )
    model_path = args.model_path or ("" if args.upstream else str(ROOT / SHIPPED))
    return Settings(
        model_path=model_path,
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
        review_folder=args.reviews if args.review or args.keep_traffic else None,
        review_pairs=args.review,
        keep_traffic=args.keep_traffic,
        limits=Limits(most_waiting=args.queue, timeout_s=args.timeout),
    )


def check_port(settings):
    """A port that is in use is said before a model is loaded."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((settings.host, settings.port))
        except OSError as error:
            raise UserError(f"{settings.host}:{settings.port}: {error.strerror}; choose another --port") from None


def serve(settings):
    import uvicorn

    from service import app

    options = {
        "factory": True,
        "host": settings.host,
        "port": settings.port,
        "access_log": False,
        "log_level": "warning",
        "server_header": False,
        "timeout_graceful_shutdown": max(DRAINED_WITHIN_S, math.ceil(settings.limits.timeout_s) + 5),
        "timeout_keep_alive": 30,
    }
    print(
        f"starting at http://{settings.host}:{settings.port} (POST /match, the review page at /, the routes in "
        "/openapi.json)",
        flush=True,
    )
    if settings.workers > 1:
        with shared_metrics() as folder:
            uvicorn.run("service.app:application", workers=settings.workers, **options)
            if (folder / app.FAILED_MARK).is_file():
                raise WorkFailed(NOT_STARTED)
        return
    server = uvicorn.Server(uvicorn.Config("service.app:application", **options))
    app.stop = lambda: setattr(server, "should_exit", True)
    server.run()
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
