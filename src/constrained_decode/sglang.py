"""SGLang: a server that is started and stopped here, held to the schema by its own fastest grammar backend.

Its answers can end open at the token budget; openai_api.py closes them. SGLang's pins differ from ours, so it lives in
an environment of its own: STEWARD_SGLANG_PYTHON names that environment's interpreter.
"""

import atexit
import contextlib
import importlib.util
import os
import shlex
import sys
import tempfile
from pathlib import Path

import constrained_decode
from common import UserError
from constrained_decode import openai_api
from language_model import model_folder, model_server

STARTS_SERVER = True
NEEDS_ENDPOINT = False
identity = constrained_decode.nothing_but_the_folder
RANDOM_WEIGHTS = True
INTERPRETER = "STEWARD_SGLANG_PYTHON"
NAME = "steward"


def load(model_path, task, config, batch_size=None, constrained=True):
    """An engine whose server runs until this process ends."""
    stack = contextlib.ExitStack()
    n_rows = batch_size or openai_api.CONCURRENCY
    endpoint, facts = stack.enter_context(
        serve(model_path, task, config, n_rows, "", Path(tempfile.gettempdir()) / "steward_sglang_server.log")
    )
    atexit.register(stack.close)
    engine = openai_api.load(NAME, task, config, n_rows, constrained, endpoint)
    engine.facts |= facts
    return engine


@contextlib.contextmanager
def serve(model_path, task, config, n_rows, more, log, constrained=True, random_weights=False):
    """(the address of a server that runs while the block does, what a manifest should say of it)."""
    if not random_weights:
        model_folder.check_whole(model_path)
    port = model_server.free_port()
    started = [*command(model_path, port, random_weights), *shlex.split(more)]
    with model_server.running(started, f"http://127.0.0.1:{port}/health", log):
        yield f"http://127.0.0.1:{port}/v1", model_server.facts("sglang", started)


def connect(model_path, task, config, endpoint, n_clients, constrained=True):
    return openai_api.connect(NAME, task, config, endpoint, n_clients, constrained)


def command(model_path, port, random_weights=False):
    interpreter = os.environ.get(INTERPRETER, sys.executable)
    if interpreter == sys.executable and not importlib.util.find_spec("sglang"):
        raise UserError(
            "--backend sglang: SGLang is not installed here; its pins differ from ours, so install it in an "
            "environment of its own and set "
            f"{INTERPRETER} to that environment's python"
        )
    if not Path(interpreter).exists():
        raise UserError(f"{INTERPRETER}={interpreter}: no such interpreter; name that of an environment with sglang")
    options = [
        "--model-path",
        str(model_path),
        "--served-model-name",
        NAME,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--grammar-backend",
        "llguidance",
        "--constrained-json-disable-any-whitespace",
    ]
    return [
        interpreter,
        "-m",
        "sglang.launch_server",
        *options,
        *(["--load-format", "dummy"] if random_weights else []),
    ]
