"""Where a result came from: command, versions, hardware, time and memory, kept beside it in a manifest."""

import ast
import contextlib
import json
import platform
import re
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

from common import ROOT, sha256_text, shown_path, usable_cores, write_json

SRC = Path(__file__).resolve().parent
# Files that record a result or say how long it takes, and shape none.
SHAPE_NONE = {Path(__file__).resolve(), SRC / "training" / "duration.py"}
NAMED_MODULE = re.compile(r"[a-z_]\w*(\.[a-z_]\w*)+:[\w.]+")  # how a library is told what to import


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
    """The most memory that this process held; Linux's ru_maxrss starts at what the parent held when it started us."""
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
        "cpu_cores": usable_cores(),
    }
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["gpu_count"] = torch.cuda.device_count()
    return facts


def fingerprint(facts, *sources):
    """The one name of everything that a result depends on: `facts` as JSON, and the code that makes it.

    `sources` are files of src/; what they import of the project, directly or through others, is part of the name.
    Comments, docstrings, layout and the words of errors and prints are not: a better word must not train a model again.
    Nor is SHAPE_NONE.
    """
    code = {shown_path(path): code_hash(path) for path in closure(sources)}
    return sha256_text(json.dumps([facts, code], sort_keys=True, default=str))


def closure(sources):
    """These files and every file of the project that they import, wherever in the file the import stands, but what
    shapes no result and what only that imports.
    """
    found = set()
    waiting = [Path(source).resolve() for source in sources]
    while waiting:
        path = waiting.pop()
        if path not in found | SHAPE_NONE:
            found.add(path)
            waiting += imported(path)
    return sorted(found)


def imported(path):
    """The project's files that a file imports, or names as "module:attribute" for a library that imports them."""
    return imported_at(path, path.stat().st_mtime_ns)


@cache
def imported_at(path, time_ns):
    """As `imported`, for the file as it was written at this time."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {file for alias in node.names for file in files_of(alias.name)}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {file for alias in node.names for file in files_of(f"{node.module}.{alias.name}")}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMED_MODULE.fullmatch(node.value):
            found |= files_of(node.value.partition(":")[0])
    return found - {path}


@cache
def files_of(module):
    """The project's files behind a dotted name: the module, or the package that an attribute is taken from."""
    parts = module.split(".")
    for n in range(len(parts), 0, -1):
        place = SRC.joinpath(*parts[:n])
        inits = {SRC.joinpath(*parts[:at], "__init__.py") for at in range(1, n)}
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                return {file, *(init for init in inits if init.is_file())}
    return set()


def code_hash(path):
    """A hash of what a file does, without comments, docstrings, layout and the words of its errors and prints."""
    return code_hash_at(path, path.stat().st_mtime_ns)


@cache
def code_hash_at(path, time_ns):
    """As `code_hash`, for the file as it was written at this time."""
    return sha256_text(ast.dump(WithoutWords().visit(ast.parse(path.read_text(encoding="utf-8")))))


class WithoutWords(ast.NodeTransformer):
    """A file's code without what only people read: docstrings, and what is printed or raised."""

    def visit_Expr(self, node):  # noqa: N802 - the library's name
        value = node.value
        is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
        is_print = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "print"
        return ast.Pass() if is_text or is_print else self.generic_visit(node)

    def visit_Raise(self, node):  # noqa: N802 - the library's name
        return ast.Raise()
