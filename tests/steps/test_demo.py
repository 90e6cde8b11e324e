"""`make demo` from a fresh copy, as a new user runs it."""

import os
import subprocess

import pytest

from support.pipeline import copy_of_the_repo, done
from support.warm_python import QUIET, warm_python


@pytest.mark.slow
def test_the_demo_ends_with_the_table_and_what_it_made(tmp_path):
    project = copy_of_the_repo(tmp_path)
    # Fewer rows than the demo makes for itself: every step and file is the same, in a third of the time.
    done("src/synthesize.py", "--rows", 320, "--out", "demo/data/all.jsonl", cwd=project)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")} | QUIET
    result = subprocess.run(
        ["make", f"PY={warm_python()}", "demo"], cwd=project, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    table = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert (
        table[0].startswith("| Model")
        and any("Steward mini" in line for line in table)
        and any("Splink" in line for line in table)
    )
    made = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("made:")]
    assert len(made) >= 6 and all((project / path).exists() for path in made)
    assert not (project / "data" / "manifest.json").exists() and not (project / "outputs").exists(), (
        "the demo stays under demo/"
    )
