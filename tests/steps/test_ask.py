"""Asking about pairs without labels: answers and bare verdicts agree, ids come back, and wrong calls are told."""

import json

import pytest

import ask
from common import ROOT
from support.pipeline import exit_code
from tasks import load_task

TASK = load_task()
PAIRS = ROOT / "src/tasks/crm/sample_pairs.jsonl"


def call(*words):
    return exit_code(ask, *words)


@pytest.mark.slow
def test_bare_verdicts_are_those_of_the_answers(tmp_path, capsys):
    assert call("--pairs", PAIRS, "--out", tmp_path / "answers.jsonl") == 0 and "answers in" in capsys.readouterr().out
    assert call("--pairs", PAIRS, "--verdicts") == 0
    verdicts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = [json.loads(line)["id"] for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    assert [answer["id"] for answer in answers] == [verdict["id"] for verdict in verdicts] == asked
    for answer, verdict in zip(answers, verdicts, strict=True):
        assert set(verdict) == {"id", "result", "probabilities"} and verdict["result"] == answer["result"]
        assert verdict["probabilities"] == pytest.approx(answer["probabilities"], abs=0.02)


def test_of_equally_likely_verdicts_the_one_for_a_person_is_told():
    class Undecided:
        def check_prompt(self, messages):
            pass

        def verdicts(self, conversations, done=()):
            yield from ((at, dict.fromkeys(TASK.verdict.labels, 1 / 3)) for at, _ in enumerate(conversations))

    [found] = ask.verdicts(Undecided(), TASK, [TASK.messages({"record1": {}, "record2": {}})])
    assert found["result"] == TASK.verdict.review


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give one pair as JSON"),
        (("{}",), "two records as JSON are wanted, found 1"),
        (("{}", "{}", "--pairs", "x"), "give one pair as JSON"),
        (("{}", "oops"), "record2: not JSON"),
        (("--pairs", "nowhere.jsonl"), "nowhere.jsonl: no such file"),
    ],
)
def test_a_wrong_call_is_told(words, message, capsys):
    assert call(*words) == 2
    assert message in capsys.readouterr().err


def test_every_wrong_line_is_named(tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"record1": {}, "record2": {}}\n{"record1": 3}\nnot json\n')
    assert call("--pairs", path) == 2
    told = capsys.readouterr().err
    assert f"{path}:2" in told and f"{path}:3" in told and f"{path}:1" not in told
