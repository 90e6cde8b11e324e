"""What stewards decided: one JSON object a line, each with the hash of the one before, so that a changed, lost or
inserted line shows.

A decision is on the disk before it is acknowledged. What a killed process left half-written was never acknowledged, and
is cut off.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import threading
import time
from pathlib import Path

from common import sha256_text, to_json

FIRST = "0" * 64  # what the first decision names as the one before


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


class Decisions:
    """One file of decisions; several threads and processes may add to it."""

    def __init__(self, path):
        self.path = Path(path)
        self.lock = threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.exclusively() as file:
            self.n_cut_off = cut_off(file)

    @contextlib.contextmanager
    def exclusively(self):
        # Unbuffered: what a full disk refuses must not be tried again when the file is closed.
        with self.lock, open(self.path, "a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def add(self, decision):
        """Write one decision; returns it with number and hashes, or raises OSError and leaves the file as it was."""
        with self.exclusively() as file:
            cut_off(file)  # another process may have been stopped in the middle of its line
            before = last_line(file)
            size = file.seek(0, os.SEEK_END)
            whole = chained(decision, before)
            try:
                line = line_of(whole)
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(self.path, size)
                raise
        return whole

    def since(self, offset):
        """(the decisions behind a place in the file, the place behind them)"""
        with self.exclusively() as file:
            file.seek(offset)
            lines = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
        return [json.loads(line) for line in lines], offset + sum(map(len, lines))


def chained(decision, before):
    entry = (
        {"n": before["n"] + 1 if before else 1, "time": round(time.time(), 3)}
        | decision
        | {"previous": before["hash"] if before else FIRST}
    )
    return entry | {"hash": hash_of(entry)}


def hash_of(entry):
    """Of everything but the hash itself."""
    rest = {key: value for key, value in entry.items() if key != "hash"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def line_of(entry):
    # ASCII: half a character of a torn line would not be text.
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def last_line(file):
    """The last decision; read backwards, for the file may be long."""
    end = file.seek(0, os.SEEK_END)
    found = b""
    while end and found.count(b"\n") < 2:
        start = max(0, end - 65_536)
        file.seek(start)
        found = file.read(end - start) + found
        end = start
    lines = found.splitlines()
    return json.loads(lines[-1]) if lines else None


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


def read(path):
    with open(path, "rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield json.loads(line)


def problems(path):
    """What is wrong with a file's chain, by line; empty where every line is the one that was written."""
    found = []
    before = None
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                found.append(
                    f"{path}:{number}: half a line; its writer was stopped before it was acknowledged, and the "
                    "service's next start cuts it off"
                )
                break
            try:
                entry = json.loads(line)
                hashes = entry["previous"], entry["hash"], entry["n"]
            except (ValueError, KeyError, TypeError):
                found.append(f"{path}:{number}: not a decision")
                continue
            if hash_of(entry) != hashes[1]:
                found.append(f"{path}:{number}: changed after it was written")
            expected = (before["hash"], before["n"] + 1) if before else (FIRST, 1)
            if (hashes[0], hashes[2]) != expected:
                found.append(f"{path}:{number}: does not follow the line before it; lines were removed, added or moved")
            before = entry
    return found


def standing(entries):
    """{case's hash: the decision that counts}: the latest that nobody took back; what was skipped does not count."""
    undone = {entry["of"] for entry in entries if entry["action"] == "undo"}
    found = {}
    for entry in entries:
        if entry["action"] in ("accept", "correct") and entry["n"] not in undone:
            found[entry["pair"]] = entry
    return found
