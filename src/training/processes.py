"""The processes of one training run, one a GPU; the first of them speaks and writes."""

import contextlib
import os
from pathlib import Path

from common import usable_cores

THREADS = "OMP_NUM_THREADS"


def is_main():
    return int(os.environ.get("RANK", 0)) == 0


def n_processes():
    return int(os.environ.get("WORLD_SIZE", 1))


def say(text):
    if is_main():
        print(text, flush=True)


def use_every_core():
    """Threads for every core on a CPU, shared by this machine's processes, unless the user set their number."""
    import torch

    if torch.cuda.is_available() or (THREADS in os.environ and not launcher_set_threads()):
        return
    torch.set_num_threads(max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def launcher_set_threads():
    """Whether OMP_NUM_THREADS is accelerate's own: it sets 1 where its own environment has no such variable."""
    with contextlib.suppress(OSError):
        return f"{THREADS}=".encode() not in Path(f"/proc/{os.getppid()}/environ").read_bytes()
    return False
