"""What tests of the heavier steps share: a small prepared folder with a stand-in model, and the scripts run as a user
runs them.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import common
from support.warm_python import QUIET, warm_python

ROOT = Path(__file__).resolve().parents[2]


def run(*command, cwd, **options):
    """A script of src/ as a process of its own."""
    return subprocess.run(
        [warm_python(), *map(str, command)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | QUIET,
        timeout=600,
        **options,
    )


def done(*command, cwd):
    result = run(*command, cwd=cwd)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


def exit_code(step, *words):
    """A step's main in this process, as a user calls it."""
    before = sys.argv
    sys.argv = [f"{step.__name__}.py", *map(str, words)]
    try:
        with pytest.raises(SystemExit) as stopped:
            common.run(step.main)
    finally:
        sys.argv = before
    return stopped.value.code


def copy_of_the_repo(folder):
    """The files that git would hand to a new user, uncommitted changes included."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True
    )
    for name in listed.stdout.split("\n"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def prepared(folder, n_rows=240):
    """A copy of the project with prompts of n_rows synthetic pairs and the stand-in's weights."""
    copy_of_the_repo(folder)
    done("src/synthesize.py", "--rows", n_rows, "--out", "data/all.jsonl", cwd=folder)
    done("src/prepare_splits.py", cwd=folder)
    done("src/build_prompts.py", cwd=folder)
    done("src/make_standin.py", cwd=folder)
    return folder
