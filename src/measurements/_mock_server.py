"""A mock server made from an OpenAPI file, which holds every body against its schema: Prism, which npx fetches."""

import contextlib
import json
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from common import UserError, WorkFailed, write_text
from language_model import model_server

PRISM = "@stoplight/prism-cli@5.14.2"  # the last that runs on Node.js 20; newer ones want 24
READY_WITHIN_S = 300  # npx fetches it first
ANSWERED_WITHIN_S = 30
N_CLIENTS = 8  # it has one thread
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer none"}  # any token will do
VIOLATIONS = "sl-violations"  # the header in which Prism says what is wrong


@dataclass(frozen=True)
class Reply:
    status: int
    why: str  # what is wrong with the body; empty where it was accepted

    @property
    def is_accepted(self):
        return 200 <= self.status < 300


class MockServer:
    """Where bodies are posted while the server runs."""

    def __init__(self, client, log):
        self.client = client
        self.log = log

    def replies(self, path, bodies):
        """A Reply for each body, in order."""
        with ThreadPoolExecutor(N_CLIENTS) as threads:
            return list(threads.map(lambda body: self.reply(path, body), bodies))

    def reply(self, path, body):
        import httpx2

        try:
            found = self.client.post(path, content=body.encode(), headers=HEADERS)
        except httpx2.HTTPError as error:
            raise WorkFailed(
                f"the mock server gave no answer ({type(error).__name__}: {error}); the last lines of its output:\n"
                f"{model_server.last_lines(self.log)}"
            ) from error
        return Reply(found.status_code, "" if found.is_success else reason(found))


def reason(reply):
    """What is wrong with a body, as the server says it."""
    if VIOLATIONS not in reply.headers:
        return " ".join(reply.text.split())[:200]
    found = json.loads(reply.headers[VIOLATIONS])
    return "; ".join(one["message"] for one in found)


@contextlib.contextmanager
def mock_server(api):
    """The MockServer of an API, a mapping as its OpenAPI file holds it."""
    import httpx2

    npx = shutil.which("npx")
    if npx is None:
        raise UserError("npx: no such command; install Node.js 18.20 or newer, which has it, then run again")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "api.json"
        # YAML makes objects of the times in examples.
        write_text(path, json.dumps(without_callbacks(api), default=str))
        port = model_server.free_port()
        address = f"http://127.0.0.1:{port}"
        log = Path(folder) / "server.log"
        flags = ["mock", "--errors", "-v", "warn", "-h", "127.0.0.1", "-p", str(port)]
        with (
            running([npx, "-y", PRISM, *flags, str(path)], address, log),
            httpx2.Client(base_url=address, timeout=ANSWERED_WITHIN_S, trust_env=False) as client,
        ):
            yield MockServer(client, log)


@contextlib.contextmanager
def running(command, address, log):
    with contextlib.ExitStack() as stack:
        # Any reply will do: Prism has no path for a health check, and refuses the others without a body or token.
        server = model_server.running(command, address, log, is_ready=lambda reply: True, within_s=READY_WITHIN_S)
        try:
            stack.enter_context(server)
        except WorkFailed as error:
            raise WorkFailed(
                f"{PRISM}, for which npx needs Node.js 18.20 or newer and the npm registry: {error}"
            ) from error
        yield


def without_callbacks(value):
    """An API without what a server sends by itself: Prism would call the address that a body names."""
    if isinstance(value, dict):
        return {key: without_callbacks(item) for key, item in value.items() if key != "callbacks"}
    return [without_callbacks(item) for item in value] if isinstance(value, list) else value
