"""An interpreter whose libraries are imported already, for tests that run many steps as processes of their own.

Importing PyTorch, transformers and what belongs to them takes ten seconds of a slow core, a step on a few rows one. One
process imports them and forks a child for every call; a small program stands in for the interpreter and hands it the
call: python src/x.py, python -m x and python -c x. Nothing of the project is imported before the fork, so a copy of the
project runs its own files. Calls whose environment would change what an import does go to the real interpreter.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

QUIET = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# What these say is read when a library is imported, or by the interpreter itself when it starts.
READ_AT_IMPORT = ("HF_", "OMP_", "PYTHON", "TORCH", "TRANSFORMERS_", "CUDA_")
STARTS_WITHIN_S = 180
LIBRARIES = (
    "accelerate.commands.launch",
    "datasets",
    "duckdb",
    "fastapi",
    "jsonschema",
    "peft",
    "rapidfuzz",
    "sklearn.ensemble",
    "splink",
    "torch.utils.tensorboard",
    "trl.trainer.sft_trainer",
    "uvicorn",
)

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
environment = dict(os.environ)
told = {{key: value for key, value in environment.items() if key.startswith({prefixes})}}
call = sys.argv[1:]
while call[:1] == ["-u"]:
    call = call[1:]
if told != {imported} or not call or (call[0].startswith("-") and call[0] not in ("-m", "-c")):
    os.execv("{python}", ["{python}", *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect("{address}")
request = json.dumps([call, os.getcwd(), environment]).encode()
socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
server.sendall(request)
pid = int.from_bytes(server.recv(8), "big")
for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(sign, lambda sign, frame: os.kill(pid, sign))
status = int.from_bytes(server.recv(8), "big")
if os.WIFSIGNALED(status):
    signal.signal(os.WTERMSIG(status), signal.SIG_DFL) if os.WTERMSIG(status) != signal.SIGKILL else None
    os.kill(os.getpid(), os.WTERMSIG(status))
sys.exit(os.waitstatus_to_exitcode(status))
"""


@functools.cache
def warm_python():
    """Path of the program that stands in for the interpreter; its server ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    address = folder / "socket"
    environment = os.environ | QUIET
    imported = {key: value for key, value in environment.items() if key.startswith(READ_AT_IMPORT)}
    # The pipe at its standard input is closed when this process ends, however it ends.
    log = folder / "log"
    with open(log, "w") as words:
        server = subprocess.Popen(
            [sys.executable, __file__, address],
            stdin=subprocess.PIPE,
            stdout=words,
            stderr=words,
            env=environment,
            cwd=folder,
        )
    program = folder / "python"
    program.write_text(
        CLIENT.format(python=sys.executable, prefixes=READ_AT_IMPORT, imported=imported, address=address)
    )
    program.chmod(0o755)
    launcher = folder / "accelerate"
    launcher.write_text(f'#!/bin/sh\nexec {program} -m accelerate.commands.accelerate_cli "$@"\n')
    launcher.chmod(0o755)
    end = time.monotonic() + STARTS_WITHIN_S
    while not address.exists():
        assert server.poll() is None, f"the warm interpreter ended while it started: {log.read_text()[-2000:]}"
        assert time.monotonic() < end, "the warm interpreter did not start in time"
        time.sleep(0.05)
    return str(program)


def serve(address):
    """Fork a child for every call until the process that started this one has ended."""
    import_libraries()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.part")
    listener.listen(64)
    os.rename(f"{address}.part", address)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.freeze()  # or the first collection in a child copies all that is shared
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            shutil.rmtree(address.parent, ignore_errors=True)
            return None
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            call = watched(connection, address.parent / "python")
            if call is None:
                os._exit(0)
            return call
        connection.close()


def import_libraries():
    # What common.quiet_libraries sets in a step before it imports these.
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    for name in LIBRARIES:
        # A call that needs what is not installed says so itself.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # These are imported when they are first asked for.
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM, Trainer  # noqa: F401


def watched(connection, program):
    """In a forked process: None in the one that waits for the call to end, the call in the one that runs it."""
    head, files, _, _ = socket.recv_fds(connection, 8, 3)
    n_bytes = int.from_bytes(head, "big")
    request = b""
    while len(request) < n_bytes:
        request += connection.recv(n_bytes - len(request))
    pid = os.fork()
    if pid == 0:
        connection.close()
        for place, file in enumerate(files):
            os.dup2(file, place)
            os.close(file)
        return prepared_call(*json.loads(request), program)
    for file in files:
        os.close(file)
    connection.sendall(pid.to_bytes(8, "big"))
    ended = os.pidfd_open(pid)
    ready, _, _ = select.select([ended, connection], [], [])
    if connection in ready:
        # Whoever waited for the call was killed.
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    connection.sendall(status.to_bytes(8, "big"))
    return None


def prepared_call(call, folder, environment, program):
    """The call, in a process that looks like one that has just started."""
    import multiprocessing.process
    import multiprocessing.spawn

    os.chdir(folder)
    # Read when multiprocessing is imported; a worker that is spawned looks for the script from there.
    multiprocessing.process.ORIGINAL_DIR = folder
    os.environ.clear()
    os.environ.update(environment)
    for name, place, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        buffered = {"buffering": 1} if mode == "w" and (place == 2 or os.isatty(place)) else {}
        errors = "backslashreplace" if place == 2 else "strict"
        file = os.fdopen(place, mode, encoding="utf-8", errors=errors, closefd=False, **buffered)
        setattr(sys, name, file)
        setattr(sys, f"__{name}__", file)
    multiprocessing.spawn.set_executable(sys.executable)
    sys.executable = str(program)
    return call


def run(call):
    """python src/x.py ..., python -m x ... or python -c x ..."""
    kind = call[0]
    sys.path.pop(0)
    if kind in ("-m", "-c"):
        sys.path.insert(0, os.getcwd() if kind == "-m" else "")
        sys.argv = [kind, *call[2:]]
        if kind == "-m":
            runpy.run_module(call[1], run_name="__main__", alter_sys=True)
        else:
            exec(compile(call[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(kind)))
        sys.argv = call
        runpy.run_path(kind, run_name="__main__")


def exit_code(call):
    try:
        run(call)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def end(code):
    """What the interpreter does at its end, but for taking apart what it imported, which takes seconds here."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    todo = serve(Path(sys.argv[1]))
    end(exit_code(todo) if todo else 0)
