"""docs/measured/README.md: every kept run has a present command, and those commands' options exist."""

import re
import subprocess
import sys
from functools import cache

import pytest

from common import ROOT, read_json

FOLDER = ROOT / "docs/measured"
TEXT = (FOLDER / "README.md").read_text(encoding="utf-8")
MANIFESTS = sorted(FOLDER.rglob("*.json"))
# The first cell of a row holds what once was; what stands behind it holds today.
TODAY = re.sub(r"^\|[^|]*\|", "", TEXT, flags=re.M)
COMMANDS = sorted(set(re.findall(r"`python (src/[^`]+)`", TODAY)))


@cache
def help_of(words):
    result = subprocess.run([sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_run_has_a_row_for_the_script_that_made_it():
    made_by = {" ".join(read_json(path)["command"].split()[:2]) for path in MANIFESTS}
    assert len(MANIFESTS) > 40 and made_by
    assert [command for command in made_by if f"| `{command}` |" not in TEXT] == []


def test_every_file_stands_in_the_table_of_runs():
    names = re.findall(r"`((?:\w+/)*[\w<>]+(?:\.(?:transfer|synthetic))?\.json)`", TEXT)
    patterns = [re.compile(re.sub(r"<\w+>", r"\\w+", re.escape(name))) for name in names]
    files = [str(path.relative_to(FOLDER)) for path in MANIFESTS]
    assert [name for name in files if not any(pattern.fullmatch(name) for pattern in patterns)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_present_command_has_the_options_that_it_names(command):
    script, *words = command.split()
    door = (script, words[0]) if script == "src/measure.py" and words else (script,)
    known = set(re.findall(r"--\w+", help_of(door)))
    assert {word for word in words if word.startswith("--")} <= known
