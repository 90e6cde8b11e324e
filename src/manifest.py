"""Where a result came from: command, versions, hardware, time and memory, kept beside it in a manifest."""

import contextlib
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

from common import ROOT, shown_path, write_json


class Clock:
    """Wall time and peak memory of a step, for its manifest."""

    def __init__(self):
        self.start = time.perf_counter()

    def facts(self):
        facts = {
            "wall_s": round(time.perf_counter() - self.start, 3),
            "peak_memory_mib": round(peak_memory_bytes() / 2**20, 1),
        }
        torch = sys.modules.get("torch")
        if torch and torch.cuda.is_available():
            facts["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        return facts


def peak_memory_bytes():
    """The most memory that this process held; Linux's own ru_maxrss starts at what the parent held when it started us."""
    import resource

    with contextlib.suppress(OSError, TypeError):
        return int(re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def write_manifest(path, clock, **facts):
    """Say where a result came from. Written last, so its presence means that the result is whole."""
    write_json(
        path,
        {
            "step": Path(sys.argv[0]).name,
            "command": shown_command(),
            **facts,
            **clock.facts(),
            "git_commit": git_commit(),
            "versions": versions(),
            "hardware": hardware(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )


def shown_command():
    return " ".join(shown_path(part) for part in ["python", *sys.argv])


def git_commit():
    with contextlib.suppress(OSError):
        head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
        dirty = subprocess.run(
            ["git", "-C", ROOT, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
        )
        if head.returncode == 0:
            return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")
    return None


def versions():
    """Versions of the libraries that this process really loaded."""
    from importlib.metadata import version

    found = {"python": platform.python_version()}
    for name in (
        "torch",
        "transformers",
        "trl",
        "peft",
        "bitsandbytes",
        "datasets",
        "accelerate",
        "sklearn",
        "splink",
        "numpy",
        "vllm",
        "llama_cpp",
        "httpx2",
    ):
        if name in sys.modules:
            found[name] = version({"sklearn": "scikit-learn", "llama_cpp": "llama-cpp-python"}.get(name, name))
    return found


def hardware():
    facts = {
        "machine": platform.machine(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["gpu_count"] = torch.cuda.device_count()
    return facts
