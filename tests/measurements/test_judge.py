"""The judge of calls: it must be able to say no, and every official scenario must be answered for."""

import contextlib
import json

import pytest

from common import read_json, to_json
from measurements import judge, tables
from measurements._mock_server import Reply
from support.pipeline import exit_code
from support.qod_answers import CALL, REFUSAL, changed, text
from tasks.qod import measuring
from tasks.qod.official import official_violations

ANSWERS = {
    "call": text(CALL),
    "unwanted": text(changed(("sink",), "https://unwanted.example.com/")),
    "refusal": text(REFUSAL),
    "wrong": text(changed(("priority",), "high")),
    "prose": f"Sure! {text(CALL)}",
}
SCENARIO = "  @quality_on_demand_createSession_{}_x\n  Scenario: x\n    Then the response status code is {}\n\n"
API = "info: {title: QoD, version: 1.1.0}\npaths:\n  /sessions:\n    post: {}\n"


class Server:
    """In the place of the mock server: the task's own schema, and one sink that it does not want."""

    def __init__(self, accepts_all=False):
        self.accepts_all = accepts_all

    def replies(self, path, bodies):
        assert path == "/sessions"
        return [Reply(201, "") if self.takes(body) else Reply(422, "no") for body in bodies]

    def takes(self, body):
        return self.accepts_all or not official_violations(body) and "unwanted" not in body


@pytest.fixture
def folder(tmp_path):
    (tmp_path / measuring.SPECIFICATION).write_text(API, encoding="utf-8")
    lines = [json.dumps({"id": name, "raw": raw}) + "\n" for name, raw in ANSWERS.items()]
    (tmp_path / "sft_predictions.jsonl").write_text("".join(lines), encoding="utf-8")
    return tmp_path


def call(folder, monkeypatch, server=None, task="qod", spec=None):
    monkeypatch.setattr(judge, "mock_server", lambda api: contextlib.nullcontext(server or Server()))
    predictions = folder / "sft_predictions.jsonl"
    words = ["--task", task, "--predictions", predictions, "--spec", spec or folder, "--out", folder / "judge.json"]
    return exit_code(judge, *words)


def with_scenarios(folder, *numbers):
    scenarios = SCENARIO.format("01", 201) + "".join(SCENARIO.format(number, number[:3]) for number in numbers)
    (folder / measuring.SCENARIOS).write_text(scenarios, encoding="utf-8")


def test_every_checked_call_is_posted_and_nothing_else(folder, monkeypatch, capsys):
    assert call(folder, monkeypatch) == 0
    report = read_json(folder / "judge.json")
    [found] = report["predictions"]
    assert (found["answers"], found["posted"], found["accepted"]) == (5, 2, 1)
    assert found["statuses"] == {"201": 1, "422": 1} and found["reasons"] == {"no": 1}
    assert found["rejected"] == [{"id": "unwanted", "status": 422, "why": "no"}]
    own = report["own_test"]
    assert own["bodies"] == own["rejected"] == len(own["faults"]) > 30 and own["accepted"] == []
    assert own["beyond_the_schema"] >= 5 and report["scenarios"] is None
    assert "accepted 1 of 2 calls, 5 answers\n  unwanted: 422 no" in capsys.readouterr().out


def test_a_judge_that_accepts_whatever_comes_is_not_trusted(folder, monkeypatch, capsys):
    assert call(folder, monkeypatch, Server(accepts_all=True)) == 1
    assert "the mock server accepted no body, a body that breaks off" in capsys.readouterr().err
    assert read_json(folder / "judge.json")["own_test"]["rejected"] == 0


def test_a_strict_check_that_lets_a_fault_pass_is_named(folder, monkeypatch, capsys):
    bodies = [*measuring.bad_bodies(), {"fault": "none", "breaks": "strict", "scenarios": [], "body": to_json(CALL)}]
    monkeypatch.setattr(measuring, "bad_bodies", lambda: bodies)
    assert call(folder, monkeypatch) == 1
    assert "the strict check lets pass none" in capsys.readouterr().err


def test_an_official_scenario_that_nobody_answers_for_is_named(folder, monkeypatch, capsys):
    with_scenarios(folder, "400.3", "401.1", "409.7", "C01.02")
    assert call(folder, monkeypatch) == 1
    assert "neither a body nor a reason for the scenarios 409.7; the figures" in capsys.readouterr().err
    with_scenarios(folder, "400.3", "401.1")
    assert call(folder, monkeypatch) == 0
    found = read_json(folder / "judge.json")["scenarios"]
    assert found["covered"] == {"400.3": 1} and found["not_in_the_body"] == {"401.1": measuring.TOKEN}
    assert (found["official"], found["forgotten"]) == (2, [])


def test_the_table_shows_shares_and_what_the_judge_is(folder, monkeypatch):
    assert tables.qod_tables(folder)["judge"] is None
    with_scenarios(folder, "400.3", "401.1")
    call(folder, monkeypatch)
    table = tables.qod_tables(folder)["judge"]
    assert "| sft | 5 | 2 | 1 | 50.00 |" in table
    assert (
        "official file of QoD 1.1.0; of 38 bodies with a fault that its schema names it rejected 38; 1 of the 2"
        in table
    )


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        (measuring.SPECIFICATION, "info: {title: x}\n", "no OpenAPI file with POST /sessions"),
        (measuring.SPECIFICATION, None, "--spec names quality-on-demand.yaml or the folder that holds it"),
        (measuring.SCENARIOS, "Feature: nothing\n", "no scenario in it that ends with a 4xx"),
        ("sft_predictions.jsonl", '{"id": 1, "text": "x"}\n', "not a file of src/predict.py"),
        ("sft_predictions.jsonl", "[1\n", "sft_predictions.jsonl:1: not a JSON line"),
    ],
)
def test_wrong_files_are_named(folder, monkeypatch, capsys, name, content, named):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content, encoding="utf-8")
    assert call(folder, monkeypatch) == 2
    assert named in capsys.readouterr().err
    assert not (folder / "judge.json").exists()


def test_a_task_without_bodies_is_refused(folder, monkeypatch, capsys):
    assert call(folder, monkeypatch, task="crm") == 2
    assert "src/tasks/crm/measuring.py has no SPECIFICATION" in capsys.readouterr().err
