"""Odd inputs: each is asked so many times both ways, and every outcome and unknown field is counted."""

from types import SimpleNamespace

import pytest

import constrained_decode
from common import read_json
from measurements import odd_requests, tables
from support.pipeline import exit_code
from support.qod_answers import CALL, REFUSAL, changed, text
from tasks.qod import measuring

CASES = [("short", {"request": "a"}), ("short", {"request": "b"}), ("long", {"request": "c"})]
WRITTEN = {
    "a": text(CALL),
    "b": text(REFUSAL),
    "c": f"Sure: {text(changed(('admin',), True))}",
}


class Engine(constrained_decode.Engine):
    def __init__(self, constrained):
        self.constrained = constrained
        self.calls = 0

    def answers(self, conversations, done=()):
        self.calls += 1
        assert self.calls == 1, "a second call would draw the same again"
        for at, messages in enumerate(conversations):
            request = messages[-1]["content"]
            written = "[" if request == "c" and self.constrained else WRITTEN[request]
            yield at, constrained_decode.Answer(written, "stop", 1, 1, None, 0.1)


def call(folder, monkeypatch, *words):
    def load(model_path, task, config, constrained):
        assert config.gen.temperature == 0.3, "that of the task"
        return Engine(constrained)

    monkeypatch.setattr(odd_requests, "load_engine", lambda name: SimpleNamespace(load=load))
    monkeypatch.setattr(odd_requests, "model_identity", lambda path: {"sha256": "0" * 64})
    begun = ["--task", "qod", "--model_path", folder, "--config", "configs/standin.yaml"]
    return exit_code(odd_requests, *begun, "--out", folder / "odd_requests.json", *words)


@pytest.fixture
def cases(monkeypatch):
    monkeypatch.setattr(measuring, "odd_requests", lambda: CASES)


def test_every_copy_is_counted_both_ways(tmp_path, monkeypatch, cases, capsys):
    assert call(tmp_path, monkeypatch, "--samples", 2) == 0
    report = read_json(tmp_path / "odd_requests.json")
    assert (report["requests"], report["samples"]) == (3, 2)
    nothing = {"asked": 0, "answer": 0, "refusal": 0, "failed": 0, "none": 0, "too_long": 0}
    nothing |= {"unknown_fields_out": 0, "unknown_fields_raw": 0}
    free = report["ways"]["unconstrained"]
    held = report["ways"]["constrained"]
    assert free["short"] == held["short"] == nothing | {"asked": 4, "answer": 2, "refusal": 2}
    assert free["long"] == nothing | {"asked": 2, "failed": 2, "unknown_fields_raw": 2}
    assert held["long"] == nothing | {"asked": 2, "none": 2}
    assert free["all"]["asked"] == 6 and all(report["unreadable"].values())
    assert "unknown fields in 0 that go out, 2 written" in capsys.readouterr().out


def test_an_unknown_field_that_goes_out_fails_the_measurement(tmp_path, monkeypatch, cases, capsys):
    monkeypatch.setattr(measuring, "has_unknown_fields", lambda written: True)
    assert call(tmp_path, monkeypatch, "--samples", 1) == 1
    assert "4 answers that go out have unknown fields" in capsys.readouterr().err
    assert read_json(tmp_path / "odd_requests.json")["ways"]["constrained"]["all"]["unknown_fields_out"] == 2


def test_an_input_that_should_be_refused_and_is_not_fails_it_too(tmp_path, monkeypatch, cases, capsys):
    monkeypatch.setattr(measuring, "UNREADABLE", {"a right one": {"request": "hello"}})
    assert call(tmp_path, monkeypatch) == 1
    assert "a model would be asked about: a right one" in capsys.readouterr().err


def test_what_is_too_long_for_the_model_is_counted_as_an_error(tmp_path, monkeypatch, cases):
    def check_prompt(self, messages):
        if messages[-1]["content"] == "c":
            raise odd_requests.UserError("too long")

    monkeypatch.setattr(Engine, "check_prompt", check_prompt)
    call(tmp_path, monkeypatch, "--samples", 1)
    found = read_json(tmp_path / "odd_requests.json")["ways"]["constrained"]
    assert found["long"]["too_long"] == 1 and found["short"]["too_long"] == 0


def test_the_table_has_a_row_for_each_kind(tmp_path, monkeypatch, cases):
    assert tables.qod_tables(tmp_path)["odd_requests"] is None
    call(tmp_path, monkeypatch, "--samples", 2)
    table = tables.qod_tables(tmp_path)["odd_requests"]
    title = "| Stand-in (random weights) |"
    assert [line for line in table.splitlines() if line.startswith(title)] == [
        f"{title} all | 6 | 2 / 2 / 2 | 2 / 2 / 2 | 2 | 0 | 0 |",
        f"{title} short | 4 | 2 / 2 / 0 | 2 / 2 / 0 | 0 | 0 | 0 |",
        f"{title} long | 2 | 0 / 0 / 2 | 0 / 0 / 2 | 2 | 0 | 0 |",
    ]
    assert "3 inputs, 2 answers each at temperature 0.3" in table
    assert "4 of 4 inputs that are none" in table


def test_wrong_words_are_named(tmp_path, monkeypatch, capsys):
    assert call(tmp_path, monkeypatch, "--samples", 0) == 2
    assert "--samples 0: at least 1" in capsys.readouterr().err
    greedy = SimpleNamespace(gen=SimpleNamespace(temperature=0.0))
    monkeypatch.setattr(odd_requests, "model_config", lambda args, task: greedy)
    assert call(tmp_path, monkeypatch) == 2
    assert "--samples 5: at temperature 0 every answer to an input is the same" in capsys.readouterr().err
