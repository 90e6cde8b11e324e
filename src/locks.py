"""One writer for each output: a second one is refused at once and told who the first is.

The lock is the kernel's (flock), so a process that dies in any way lets go of it; the file that carries it says who
holds it.
"""

import contextlib
import errno
import fcntl
import json
import os
import time
from pathlib import Path

import interruption
from common import WorkFailed

UNKNOWN = {errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK}  # file systems without locks


class Held(WorkFailed):
    """Another process holds the place."""


@contextlib.contextmanager
def only_writer(place):
    """Hold a place, which need not exist yet, for a block of work; WorkFailed where another process holds it."""
    place = Path(place)
    path = place.with_name(f".{place.name}.lock")
    was_there = path.parent.is_dir()
    file = _taken(path, place)
    try:
        yield
    finally:
        # Removed while it is still held, so that no other process can hold the file that goes.
        path.unlink(missing_ok=True)
        file.close()
        if not was_there:
            # A call that is refused leaves no empty folder behind.
            with contextlib.suppress(OSError):
                path.parent.rmdir()


def _taken(path, place):
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = _opened(path)
        except OSError as error:
            # The user knows the place and not the file beside it.
            error.filename = str(path.parent)
            raise
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                raise Held(_refusal(file, place)) from None
        except OSError as error:
            if error.errno not in UNKNOWN:
                raise
        if _is_still(path, file):
            _sign(file)
            return file
        file.close()


def _opened(path):
    """The lock's file; one that another user left is only read, which is enough to see whether it is held."""
    try:
        return open(path, "a+", encoding="utf-8")
    except PermissionError:
        if not path.is_file() or not os.access(path.parent, os.W_OK):
            raise
        with open(path, encoding="utf-8") as left:
            try:
                fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return open(path, encoding="utf-8")
            path.unlink()
        return open(path, "a+", encoding="utf-8")


def _is_still(path, file):
    """Whether the locked file is the one that the path names: its last holder may have removed it meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    return False


def _sign(file):
    """Say who holds it; on a full disk the lock holds all the same."""
    with contextlib.suppress(OSError):
        holder = {
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "command": interruption.typed(),
        }
        os.ftruncate(file.fileno(), 0)
        # Past the file's buffer: what does not fit on the disk must not come up again when it is closed.
        os.write(file.fileno(), json.dumps(holder).encode())


def _refusal(file, place):
    file.seek(0)
    try:
        holder = json.loads(file.read())
        who = f"process {holder['pid']}, since {holder['since']}: {holder['command']}"
        end = f"wait for it, or end it with: kill {holder['pid']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
        end = "wait for it"
    return f"{place} is being written by {who}; {end}"
