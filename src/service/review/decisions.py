"""What stewards decided: one JSON object a line, each with the hash of the one before, so that a changed, lost or
inserted line shows.

A decision is on the disk before it is acknowledged. What a killed process left half-written was never acknowledged, and
is cut off.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
import time
from pathlib import Path

from common import sha256_text, to_json
from service.review import chain
from service.settings import Limits

FIRST_READ_S = 60.0  # for the lock when a service starts
LOCK_EVERY_S = 0.01  # how often a lock that another process holds is tried


# What an entry, a card or a request for a decision holds beside the keys of a task's answer.
OWN_KEYS = frozenset(
    "n time action pair id input model probability reason reviewer seconds blind previous hash of rows records "
    "probabilities verdict shown".split()
)


def entry_key(name):
    """The key of an answer's value in an entry or on a card: its own, unless that has a meaning here."""
    return f"answer_{name}" if name in OWN_KEYS else name


def model_key(name):
    """The key of an entry under which the model's value stands, beside the reviewer's."""
    return f"model_{entry_key(name)}"


def case_hash(task, case):
    """A case's name, an entry's `pair`: the same in whatever order a prompt shows as the same."""
    return sha256_text(to_json(task.canonical(case)))


class Held(Exception):
    """The file's lock was not free in time."""


class Decisions:
    """One file of decisions; several threads and processes may add to it.

    `entries` are those that were read. They stay known when the file is cut or lost, and nothing is added to a file
    that no longer begins with them. `until` is when a call gives up waiting for the file's lock.
    """

    def __init__(self, path, lock_s=Limits.lock_s):
        self.path = Path(path)
        self.lock_s = lock_s
        self.lock = threading.Lock()
        self.entries = []
        self.n_bytes = 0
        self.digest = hashlib.sha256()  # of the bytes that were read
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A file that is gone is not begun anew: its mark says that there were decisions.
        if not self.path.exists() and not chain.problems(self.path):
            self.path.touch()
        # Another worker may be reading a long file for the first time.
        until = time.monotonic() + max(lock_s, FIRST_READ_S)
        with self._alone(until):
            if not self.path.exists():
                raise self._changed(f"{self.path.name} is gone")
            with self._opened("r+b", until) as file:
                self._take(file)
                self.n_cut_off = cut_off(file)
                if self.entries:
                    chain.keep_mark(self.path, self.entries[-1])

    @contextlib.contextmanager
    def reading(self, until=None):
        """Alone with the file, having read what is new; of a file that is gone or damaged what was known before."""
        until = until or self.deadline()
        with self._alone(until), contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError, chain.Changed):
                self._take(stack.enter_context(self._opened("rb", until)))
            yield

    def add(self, decision, until=None):
        """Write one decision; returns it with number and hashes. Changed, Held or OSError leave the file as it was."""
        until = until or self.deadline()
        with self._alone(until), self._still_there(), self._opened("r+b", until) as file:
            self._check_unchanged(file)
            self._take(file)
            cut_off(file)  # another process may have been stopped in the middle of its line
            entry = chain.chained(decision, self.entries[-1] if self.entries else None)
            line = chain.line_of(entry)
            write(file, line)
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                raise chain.Changed(f"{self.path.name} was replaced while a decision was written")
            self._know(entry, line)
            chain.keep_mark(self.path, entry)
        return entry

    # ---- the lock

    def deadline(self):
        return time.monotonic() + self.lock_s

    @contextlib.contextmanager
    def _alone(self, until):
        """Alone in this process."""
        if not self.lock.acquire(timeout=max(0.0, until - time.monotonic())):
            raise Held
        try:
            yield
        finally:
            self.lock.release()

    @contextlib.contextmanager
    def _opened(self, mode, until):
        """The file, alone among all processes."""
        # Unbuffered: what a full disk refuses must not be tried again when the file is closed.
        with open(self.path, mode, buffering=0) as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= until:
                        raise Held from None
                    time.sleep(LOCK_EVERY_S)
            yield file

    # ---- what was read, and whether it still stands there

    @contextlib.contextmanager
    def _still_there(self):
        try:
            yield
        except FileNotFoundError:
            raise chain.Changed(f"{self.path.name} is gone") from None

    def _take(self, file):
        """Read the whole lines behind those that are known; all of them or, where one does not follow, none."""
        file.seek(self.n_bytes)
        whole, _, _ = file.read().rpartition(b"\n")
        last = self.entries[-1] if self.entries else None
        new = []
        for line in (part + b"\n" for part in whole.split(b"\n") if whole):
            last, faults = chain.faults_of(line, last)
            if faults:
                raise chain.Changed(f"{self.path.name}:{len(self.entries) + len(new) + 1}: {faults[0]}")
            new.append((last, line))
        self._check_mark([entry for entry, _ in new])
        for entry, line in new:
            self._know(entry, line)

    def _check_mark(self, new):
        """Another process may have written decisions that were cut off, or replaced, before this one read them."""
        try:
            mark = chain.mark_of(self.path)
        except ValueError as error:
            raise self._changed(str(error)) from None
        if mark is None:
            return
        known = (*self.entries[mark["n"] - 1 : mark["n"]], *new)
        if mark["hash"] not in (entry["hash"] for entry in known if entry["n"] == mark["n"]):
            raise self._changed(f"{self.path.name}:{mark['n']}: not the decision that was written here")

    def _changed(self, otherwise):
        """The error that names the first wrong line, without the folder, which is nothing for a client."""
        found = [*chain.problems(self.path, counts_half=False), otherwise]
        return chain.Changed(found[0].removeprefix(f"{self.path.parent}{os.sep}"))

    def _know(self, entry, line):
        self.entries.append(entry)
        self.n_bytes += len(line)
        self.digest.update(line)

    def _check_unchanged(self, file):
        """Read again what is known already: 10,000 decisions take about 15 ms."""
        file.seek(0)
        found = hashlib.sha256()
        left = self.n_bytes
        while left and (part := file.read(min(left, 1 << 20))):
            found.update(part)
            left -= len(part)
        if left or found.digest() != self.digest.digest():
            raise self._changed(f"{self.path.name}: other lines stand there than were read")


def write(file, line):
    """Add a line and have it on the disk, or leave the file as it was."""
    size = file.seek(0, os.SEEK_END)
    try:
        if file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(size)
        raise


def cut_off(file):
    """Drop what stands behind the last line end; returns how many bytes that was."""
    size = end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65_536)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            end = start + at + 1
            break
        end = start
    if end < size:
        os.ftruncate(file.fileno(), end)
    return size - end


def other_tasks(entries, task):
    """The first decision that is none of this task's verdicts, or None."""
    keys = (entry_key(task.verdict.key), model_key(task.verdict.key))
    decided = (entry for entry in entries if entry["action"] in ("accept", "correct"))
    return next((entry for entry in decided if any(entry.get(key) not in task.verdict.labels for key in keys)), None)


def standing(entries):
    """{case's hash: the decision that counts}: the latest that nobody took back; what was skipped does not count."""
    undone = {entry["of"] for entry in entries if entry["action"] == "undo"}
    found = {}
    for entry in entries:
        if entry["action"] in ("accept", "correct") and entry["n"] not in undone:
            found[entry["pair"]] = entry
    return found
