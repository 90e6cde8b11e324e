"""src/measure.py: one door to every measurement, whose manifest names a command that anybody can type."""

import json
import shlex

import pytest

from common import ROOT
from measurements import adaptation, attack, injection, transfer
from support import small_tasks
from support.pipeline import done, exit_code, run

WORDS = {
    transfer: ("--sets", "sets"),
    adaptation: ("--model_path", "m", "--folds", "folds"),
    injection: ("--out", "x.json"),
    attack: ("--out", "x.json"),
}


@pytest.mark.parametrize("name", small_tasks.NAMES)
@pytest.mark.parametrize("measurement", WORDS, ids=lambda module: module.__name__.split(".")[-1])
def test_what_measures_verdicts_refuses_a_task_without_one(monkeypatch, tmp_path, capsys, name, measurement):
    monkeypatch.chdir(tmp_path)
    small_tasks.loaded(monkeypatch, name)
    assert exit_code(measurement, "--task", name, *WORDS[measurement]) == 2
    assert f"--task {name}: its answers hold no verdict" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_help_lists_every_measurement_with_what_it_measures():
    text = done("src/measure.py", "--help", cwd=ROOT)
    for name in ("adaptation", "attack", "injection", "service", "speed", "tables", "training_speed", "transfer"):
        assert any(line.split()[:1] == [name] and len(line.split()) > 4 for line in text.splitlines()), name
    assert "usage: measure.py transfer" in done("src/measure.py", "transfer", "--help", cwd=ROOT)


def test_a_wrong_name_is_answered_with_the_nearest():
    refused = run("src/measure.py", "transfers", cwd=ROOT)
    assert refused.returncode == 2 and "nearest: transfer" in refused.stderr and "Traceback" not in refused.stderr


def test_the_manifest_names_the_command_as_it_is_typed(tmp_path):
    """Only a baseline, on four rows: what it finds does not matter here."""
    names = [
        ("Ann Lee", "Ann Lee"),
        ("Bob Stone", "Eva Braun"),
        ("Kira Novak", "Kira Novac"),
        ("Jan Weiss", "Ines Diaz"),
    ]
    labels = ("DUPLICATE", "NO_MATCH")
    (tmp_path / "sets").mkdir()
    with open(tmp_path / "sets/four.jsonl", "w") as file:
        for at, (left, right) in enumerate(names):
            case = {"record1": {"name": left}, "record2": {"name": right}}
            output = {"result": labels[at % 2], "reasoning": "Names compared."}
            file.write(json.dumps({"input": case, "output": output}) + "\n")
    words = ("transfer", "--sets", tmp_path / "sets", "--only", "jaro_winkler", "--out", tmp_path / "t.json")
    done("src/measure.py", *words, cwd=ROOT)
    facts = json.loads((tmp_path / "t.json").read_text())
    assert facts["step"] == "measure.py transfer"
    assert shlex.split(facts["command"])[:4] == ["python", "src/measure.py", "transfer", "--sets"]
