"""How each decision's line names the one before it, and what shows that a line was changed, lost or inserted.

Beside the file lies its mark: number and hash of the last decision that was written. By it a cut end shows too.
"""

import contextlib
import hashlib
import json
import os
import time

from common import counted, parse_json

FIRST = "0" * 64  # what the first decision names as the one before
MARK_BYTES = 128  # always the same: written over in place, it needs no space on a full disk
KINDS = {"n": int, "action": str, "pair": str, "reviewer": str, "previous": str, "hash": str}
ACTIONS = ("accept", "correct", "skip", "undo")


class Changed(Exception):
    """The file is not what was written; the words say where."""


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


def read(path):
    with open(path, "rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield json.loads(line)


# ---- what is wrong


def entry_of(line):
    """The decision of a line, or ValueError in words for a report."""
    try:
        entry = parse_json(line.decode("ascii"))
    except RecursionError:
        raise ValueError("not a decision: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not a line that was written here: {str(error)[:200]}") from None
    if not is_entry(entry):
        raise ValueError("not a decision")
    return entry


def is_entry(entry):
    """Whether it has what every decision has, so that nothing that reads it need look again."""
    if not isinstance(entry, dict) or any(type(entry.get(key)) is not kind for key, kind in KINDS.items()):
        return False
    if entry["action"] == "undo":
        return type(entry.get("of")) is int
    if entry["action"] == "skip":
        return True
    is_told = isinstance(entry.get("reason"), str | None) and isinstance(entry.get("seconds"), int | float | None)
    return entry["action"] in ACTIONS and is_told and {"id", "input", "model"} <= entry.keys()


def faults_of(line, before):
    """(the decision of a line, what is wrong with it behind the one before)"""
    try:
        entry = entry_of(line)
        # The bytes too: another spelling of the same values, or a value that a later one hides, has the same hash.
        is_as_written = line_of(entry) == line and hash_of(entry) == entry["hash"]
    except RecursionError:
        return None, ["not a decision: nested too deeply"]
    except ValueError as error:
        return None, [str(error)]
    found = [] if is_as_written else ["changed after it was written"]
    expected = (before["hash"], before["n"] + 1) if before else (FIRST, 1)
    if (entry["previous"], entry["n"]) != expected:
        found.append("does not follow the line before it; lines were removed, added or moved")
    return entry, found


def problems(path, counts_half=True):
    """What is wrong with a file of decisions, by line; empty where every line is the one that was written. Half a line
    at the end that was never acknowledged need not count.
    """
    try:
        mark = mark_of(path)
    except ValueError as error:
        return [str(error)]
    found = []
    before = None
    n_lines = 0
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                if counts_half and not (mark and n_lines < mark["n"]):
                    found.append(
                        f"{path}:{n_lines + 1}: half a line; its writer was stopped before it was acknowledged, and "
                        "the service's next start cuts it off"
                    )
                break
            n_lines += 1
            entry, faults = faults_of(line, before)
            if entry and not faults and is_other(entry, mark):
                faults = [f"not the decision that was written here, says {mark_path(path).name}"]
            found += [f"{path}:{n_lines}: {fault}" for fault in faults]
            before = entry or before
    if mark and n_lines < mark["n"]:
        found.append(f"{path}:{n_lines + 1}: lines are missing; {counted(mark['n'], 'decision')} had been written")
    return found


# ---- the mark


def mark_path(path):
    return path.with_name(f"{path.name}.last")


def mark_of(path):
    """Number and hash of the last decision that was written, None where nobody kept them."""
    place = mark_path(path)
    try:
        text = place.read_bytes()
    except FileNotFoundError:
        return None
    if not text.strip():
        return None  # made on a full disk, and never written
    with contextlib.suppress(ValueError, RecursionError):
        mark = json.loads(text)
        if is_mark(mark):
            return mark
    raise ValueError(f"{place}: not what was written there")


def is_mark(value):
    return isinstance(value, dict) and type(value.get("n")) is int and value["n"] > 0 and type(value.get("hash")) is str


def is_other(entry, mark):
    """Whether it stands in the place of the marked decision."""
    return mark is not None and entry["n"] == mark["n"] and entry["hash"] != mark["hash"]


def keep_mark(path, entry):
    """Written after the decision is on the disk: it may lag behind what was written, and never leads."""
    line = json.dumps({"n": entry["n"], "hash": entry["hash"]}).ljust(MARK_BYTES - 1).encode() + b"\n"
    # A decision counts without its mark: only a cut end would show no longer.
    with contextlib.suppress(OSError):
        file = os.open(mark_path(path), os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.pwrite(file, line, 0)
        finally:
            os.close(file)
