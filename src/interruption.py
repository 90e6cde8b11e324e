"""One way to be interrupted: a signal becomes one exception, what was kept is reported, and work goes on from there."""

import contextlib
import glob
import hashlib
import json
import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

TYPED = "STEWARD_TYPED"  # what the user typed, where make runs the step
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}
# A launcher hands the terminal's signal on to processes that have it already: that is one stop, not two.
SAME_STOP_S = 2.0
NOTHING_KEPT = "nothing half-written was left"


class Interrupted(KeyboardInterrupt):
    """The user or the system wants this process to end."""

    def __init__(self, number):
        super().__init__(NAMES.get(number, f"signal {number}"))
        self.number = number

    @property
    def exit_code(self):
        return 128 + self.number


class _Stop:
    """What is known of a stop in this process."""

    number = None  # the first signal
    at = 0.0
    may_wait = False
    kept = []  # functions that say what is kept; the last one speaks
    groups = set()  # of processes that were started in sessions of their own


def listen():
    """Turn the signals that end a process into Interrupted; one that the user had ignored (nohup, &) stays ignored."""
    _Stop.number = None
    # Only a program's first thread may say what a signal does.
    for number in NAMES if threading.current_thread() is threading.main_thread() else ():
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _signalled)


def _without_traceback(kind, error, trace):
    """What a program says of an error that nobody caught; one line where Ctrl-C came while it was still starting."""
    if issubclass(kind, KeyboardInterrupt):
        print(report(error), file=sys.stderr, flush=True)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _without_traceback


def leave_to_parent():
    """For a worker process: Ctrl-C reaches the whole group, and the process that started this one ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _signalled(number, _frame):
    now = time.monotonic()
    if _Stop.number is None:
        _Stop.number = number
        _Stop.at = now
        if not _Stop.may_wait:
            raise Interrupted(number)
        # A handler may run inside a print: the buffered stream is not for it.
        os.write(2, b"\nstopping after this step; once more stops at once\n")
    elif now - _Stop.at > SAME_STOP_S:
        if not _Stop.may_wait:
            _exit_at_once(128 + number)
        _Stop.may_wait = False
        _Stop.at = now
        raise Interrupted(_Stop.number)


def _exit_at_once(code):
    """End without any clean-up but that of processes that would outlive this one."""
    for group in _Stop.groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    os._exit(code)


@contextlib.contextmanager
def with_group(process):
    """While the block runs, a second Ctrl-C also ends this process, which has a session of its own."""
    _Stop.groups.add(process.pid)
    try:
        yield
    finally:
        _Stop.groups.discard(process.pid)


@contextlib.contextmanager
def until_asked():
    """A block that looks at `is_asked` and ends where its work can be kept; a second signal ends it anywhere."""
    _Stop.may_wait = True
    try:
        yield
    finally:
        _Stop.may_wait = False
    if is_asked():
        # It came behind the last look.
        stop_now()


def is_asked():
    """Whether a signal has asked this process to end."""
    return _Stop.number is not None


def stop_now():
    """End the work here; another process of the same work may be the one that was asked."""
    raise Interrupted(_Stop.number or signal.SIGTERM)


@contextlib.contextmanager
def keeping(words):
    """A block of work in which `words()` says what is kept if it is interrupted; empty where that is nothing."""
    _Stop.kept.append(words)
    yield
    # Left in place, for the report, where the block did not end well.
    _Stop.kept.remove(words)


def kept():
    """What the work that did not end well has kept, in words; empty where that is nothing."""
    return next((words for words in (one() for one in reversed(_Stop.kept)) if words), "")


def report(error):
    """What a step says at its end: by what it was stopped, what is kept, and how it goes on."""
    kept_words = kept()
    go_on = f"go on with: {typed()}" if kept_words else f"start again with: {typed()}"
    return f"stopped by {error or 'Ctrl-C'}: {kept_words or NOTHING_KEPT}; {go_on}"


def typed():
    """The command as the user typed it: make's, where make runs this step."""
    if given := os.environ.get(TYPED):
        return given
    return shlex.join(["python", *(part for word in sys.argv[:1] for part in word.split()), *sys.argv[1:]])


class Journal:
    """A file that grows by a line as soon as something is done, beside the result that it becomes part of.

    The same work begun again, which its `name` says, finds what was done; other work has a file of its own. A line that
    a kill or a full disk cut off is dropped.
    """

    def __init__(self, result, name, unit):
        self.path = Path(f"{result}.{hashlib.sha256(name.encode()).hexdigest()[:8]}.kept")
        self.is_whole = True  # whether nothing is left to do when the block ends well
        self.name = name
        self.unit = unit
        self.entries = []
        self.n_found = 0

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.entries, n_bytes = self._found()
        self.n_found = len(self.entries)
        _Stop.kept.append(self.words)
        self.file = open(self.path, "ab", buffering=0)
        try:
            self.file.truncate(n_bytes)
            if not n_bytes:
                self._write(self.name)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _found(self):
        """(what was done under this name, how many bytes of the file say so)."""
        if not self.path.is_file():
            return [], 0
        entries = []
        n_bytes = 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                entries.append(json.loads(line))
            except ValueError:
                break
            if not line.endswith(b"\n") or entries[0] != self.name:
                entries.pop()
                break
            n_bytes += len(line)
        whole = n_bytes > 0
        return (entries[1:] if whole else []), n_bytes

    def add(self, entry):
        self._write(entry)
        self.entries.append(entry)

    def _write(self, value):
        try:
            self.file.write(json.dumps(value, separators=(",", ":")).encode() + b"\n")
        except OSError as error:
            error.filename = str(self.path)
            raise

    def report(self):
        """Say that the work goes on where it was interrupted, and what other work in its place has kept."""
        if self.n_found:
            print(f"going on: {self.words()}", flush=True)
        result = self.path.name.rsplit(".", 2)[0]
        others = [path for path in self.path.parent.glob(f"{glob.escape(result)}.*.kept") if path != self.path]
        for path in others:
            print(
                f"{path} keeps what was done with other settings; delete it if you do not go on with those", flush=True
            )

    def words(self):
        return f"{len(self.entries):,} {self.unit} are kept in {self.path}" if self.entries else ""

    def __exit__(self, kind, error, trace):
        """A result that is whole needs its parts no more; one that is not keeps them."""
        if error is None:
            _Stop.kept.remove(self.words)
        self.file.close()
        if (error is None and self.is_whole) or not self.entries:
            self.path.unlink(missing_ok=True)
