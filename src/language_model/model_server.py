"""A model server that is started for one run and stopped with it, whatever happens to the run."""

import contextlib
import contextvars
import importlib.metadata
import os
import signal
import socket
import subprocess
import time

import interruption
from common import WorkFailed, shown_path

READY_WITHIN_S = 900  # a large model read from a slow disk, compiled for the first time
STOPPED_WITHIN_S = 30
LAST_LINES = 15
STOPPED = contextvars.ContextVar("stopped", default=None)  # an event after which nobody waits for a server any more


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def running(command, health, log, environment=(), is_ready=lambda reply: reply.status_code == 200, within_s=None):
    """The server's process while it serves; its output is in the file `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"starting {command[2] if command[1] == '-m' else command[0]}; its output is in {log}", flush=True)
    with open(log, "w") as output:
        # A session of its own, so that the processes that it starts end with it.
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | dict(environment), start_new_session=True
        )
    with interruption.with_group(server):
        try:
            wait_until_ready(server, health, log, is_ready, within_s or READY_WITHIN_S)
            yield server
        finally:
            stop(server)


def wait_until_ready(server, health, log, is_ready, within_s):
    import httpx2

    start = time.monotonic()
    stopped = STOPPED.get()
    while time.monotonic() - start < within_s:
        if stopped and stopped.is_set():
            raise WorkFailed("stopped before the server was ready")
        if server.poll() is not None:
            raise WorkFailed(
                f"the server ended with code {server.returncode} before it was ready; the last lines of "
                f"{log}:\n{last_lines(log)}"
            )
        with contextlib.suppress(httpx2.HTTPError):
            if is_ready(httpx2.get(health, timeout=5, trust_env=False)):
                print(f"ready after {time.monotonic() - start:.0f} s", flush=True)
                return
        time.sleep(0.5)
    raise WorkFailed(f"the server was not ready within {within_s:g} s; the last lines of {log}:\n{last_lines(log)}")


def last_lines(log):
    return "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])


def facts(package, command):
    """Its version, where this environment has the package, and its flags."""
    found = {"flags": " ".join(shown_path(part) for part in command[3:])}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["version"] = importlib.metadata.version(package)
    return {package: found}


def stop(server):
    """End the server and every process that it started, those that outlive it too."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, sign)
        if is_gone(server):
            return


def is_gone(server):
    """Whether all of them have ended in time."""
    until = time.monotonic() + STOPPED_WITHIN_S
    while time.monotonic() < until:
        server.poll()  # an ended process counts as there until its end is read
        try:
            os.killpg(server.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False
