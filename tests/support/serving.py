"""The service run inside a test, before a model that the test makes up."""

import contextlib
import contextvars
import json
import threading
import time
from types import SimpleNamespace

import httpx2
import uvicorn

import service.answering
import service.app
import service.connection
from common import ROOT, UserError
from constrained_decode import Answer, Engine
from language_model import model_server
from service.settings import Settings
from support.endpoint import GOOD
from tasks import load_task

TASK = load_task()
PAIR = {
    "record1": {"name": "Zebulon Quux", "phone": "5550101"},
    "record2": {"full_name": "Z. Quux", "phone": "555-0101"},
}
SHARES = {"DUPLICATE": 0.2, "POSSIBLE": 0.7, "NO_MATCH": 0.1}


class Model(Engine):
    """An engine in the process that answers as the test says."""

    batch_size = 4

    def __init__(self, text=GOOD, seconds=0.0, shares=SHARES):
        self.text = text
        self.shares = shares
        self.seconds = seconds
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()

    def check_prompt(self, messages):
        if len(messages[-1]["content"]) > 5_000:
            raise UserError("1 of 1 prompts are too long")

    def answers(self, conversations):
        self.gate.wait(20)
        self.batches.append(len(conversations))
        time.sleep(self.seconds)
        for at, messages in enumerate(conversations):
            if "explode" in messages[-1]["content"]:
                raise ValueError(f"cannot read {messages[-1]['content']}")
            yield at, Answer(self.text, "stop", 50, 20, self.shares and dict(self.shares), 0.01)


@contextlib.contextmanager
def running(engine=None, monkeypatch=None, **settings):
    """A client of a service that runs in this process."""
    settings = Settings(
        **{"model_path": str(ROOT / "models/steward-mini"), "task": "crm", "port": model_server.free_port()} | settings
    )
    if engine:
        module = SimpleNamespace(load=lambda *_, **__: engine, STARTS_SERVER=False, NEEDS_ENDPOINT=False)
        monkeypatch.setattr(service.answering, "load_engine", lambda name: module)
    # A test's thread has a context of its own, as a process has.
    context = contextvars.copy_context()
    server = uvicorn.Server(
        uvicorn.Config(
            context.run(service.app.build, settings),
            port=settings.port,
            log_level="critical",
            **service.connection.options(settings),
        )
    )
    thread = threading.Thread(target=context.run, args=(server.run,), daemon=True)
    thread.start()
    client = httpx2.Client(
        base_url=f"http://127.0.0.1:{settings.port}",
        timeout=30,
        trust_env=False,
        limits=httpx2.Limits(max_connections=200),
    )
    until = time.monotonic() + 30
    try:
        while True:
            with contextlib.suppress(httpx2.HTTPError):
                if client.get("/readyz").status_code == 200:
                    break
            assert time.monotonic() < until, "never ready"
            time.sleep(0.02)
        yield client
    finally:
        server.should_exit = True
        thread.join(10)
        client.close()


HUGE = {"record1": {"note": "x" * 70_000}, "record2": {}}
REFUSED = {
    "no JSON": (b"{", 400),
    "empty": (b"", 400),
    "NaN": (b'{"record1": {"a": NaN}, "record2": {}}', 400),
    "infinity": (b'{"record1": {"a": 1e999}, "record2": {}}', 400),
    "key twice": (b'{"record1": {"a": 1, "a": 2}, "record2": {}}', 400),
    "not UTF-8": (b'{"record1": {"a": "\xff"}, "record2": {}}', 400),
    "UTF-16": ('{"record1": {}, "record2": {}}'.encode("utf-16"), 400),
    "deep list": (b"[" * 30_000 + b"]" * 30_000, 400),
    "two values": (b"{} {}", 400),
    "a list": (b"[]", 422),
    "null": (b"null", 422),
    "no record2": (b'{"record1": {}}', 422),
    "a third key": (b'{"record1": {}, "record2": {}, "x": 1}', 422),
    "record is text": (b'{"record1": "Ann", "record2": {}}', 422),
    "record is a list": (b'{"record1": [], "record2": {}}', 422),
    "too many fields": (json.dumps({"record1": {str(at): at for at in range(201)}, "record2": {}}).encode(), 422),
    "too deep": (json.dumps({"record1": {"a": json.loads("[" * 9 + "]" * 9)}, "record2": {}}).encode(), 422),
    "too large": (json.dumps(HUGE).encode(), 413),
    "too long for the model": (json.dumps({"record1": {"a": "x" * 6_000}, "record2": {}}).encode(), 413),
}


def log_of(capfd, words, n=1):
    """What was logged, once these words are there so often: a line is written behind its answer."""
    text = ""
    until = time.monotonic() + 5
    while text.count(words) < n and time.monotonic() < until:
        text += capfd.readouterr().err
        time.sleep(0.02)
    return text
