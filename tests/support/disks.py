"""A disk of a test's own, so small that it can be filled, or read-only."""

import contextlib
import os
import subprocess

import pytest


@contextlib.contextmanager
def small_disk(folder, size):
    """Mount so much memory as a file system at a folder; the test is skipped where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can only be mounted by root, with the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def make(folder, mode):
    """Let a mounted disk be read only (ro) or written again (rw)."""
    subprocess.run(["mount", "-o", f"remount,{mode}", folder], check=True, capture_output=True)


def fill(folder):
    """Leave no space on it; returns the file that takes it."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    return filler
