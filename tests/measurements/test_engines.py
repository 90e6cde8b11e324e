"""Engines beside one another: what is kept is counted from the answers, and the table says it in ratios."""

import json
import sys

import pytest

from common import UserError
from constrained_decode import Answer
from measurements import engines
from tasks import load_task
from tasks.crm.synthetic import rows as synthetic_rows

TASK = load_task()
GOOD = '{"result":"POSSIBLE","reasoning":"Needs review: name matches."}'


def answer(text, late=0, tokens=20):
    return Answer(text, "stop", 50, tokens, None, 0.1, late=late)


def test_what_is_kept_counts_valid_closed_and_broken_answers_apart():
    found = engines.kept(TASK, [answer(GOOD), answer(GOOD, late=1, tokens=10), answer("no"), answer(GOOD, late=None)])
    assert found == {
        "n": 4,
        "valid_as_written_pct": 50.0,
        "valid_pct": 75.0,
        "closed_at_budget_pct": 25.0,
        "tokens_mean": 17.5,
    }
    assert engines.verdicts_of(TASK, [answer(GOOD), answer("no")]) == ["POSSIBLE", None]
    assert not engines.same(None, None) and engines.same("POSSIBLE", "POSSIBLE")


def test_engines_take_turns_and_answers_keep_their_rows():
    asked = []

    class Echo:
        def __init__(self, name):
            self.name = name

        def answers(self, conversations):
            asked.append(self.name)
            yield from reversed(list(enumerate(conversations)))

    found = engines.in_turns({"a": Echo("a"), "b": Echo("b")}, [[1, 2], [3]])
    assert asked == ["a", "b", "b", "a"] and found["a"][1] == found["b"][1] == [1, 2, 3]
    assert len(found["a"][0]) == 2


@pytest.fixture
def report(tmp_path):
    entry = {"budget": 64, "n": 200, "valid_pct": 100.0, "closed_at_budget_pct": 0.0, "same_verdict_pct": 100.0}
    entry |= {"valid_as_written_pct": 100.0, "tokens_mean": 20.0}
    facts = {
        "model": {"title": "Steward mini"},
        "data": {"path": "rows.jsonl", "sha256": "a" * 64},
        "hardware": {"cpu_cores": 2},
        "rows": 100,
        "batch_size": 16,
        "engines": [
            entry | {"engine": "hf", "p50_ms": 100.0, "rows_per_s": 20.0},
            entry | {"engine": "other", "p50_ms": 300.0, "rows_per_s": 5.0},
        ],
    }
    path = tmp_path / "engines.json"
    path.write_text(json.dumps(facts))
    return path


def test_the_table_says_ratios_to_the_first_engine(report, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("before <!-- engines:begin --> <!-- engines:end --> after")
    monkeypatch.setattr(sys, "argv", ["engines", "--table", str(report), "--into", str(page)])
    engines.main()
    text = page.read_text()
    assert "| `other` | 64 | 200 | 100.0 % | 100.0 % | 0.0 % | 100.0 % | 20.0 | 3.00 | 0.25 |" in text
    assert text.startswith("before <!--") and text.endswith("--> after")
    report.write_text("{}")
    with pytest.raises(UserError, match="not a report of src/measure.py engines"):
        engines.engines_table(report)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --model_path and --data"),
        (["--model_path", "m", "--data", "d", "--rows", "0"], "at least 1"),
        (["--model_path", "m", "--data", "d", "--engines", "openai_api"], "a server that runs elsewhere"),
    ],
)
def test_a_call_that_cannot_be_measured_is_refused(words, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["engines", *words])
    with pytest.raises(UserError, match=message):
        engines.main()


@pytest.mark.slow
def test_the_shipped_model_is_measured_end_to_end(tmp_path, monkeypatch):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in synthetic_rows(16, 5)), encoding="utf-8")
    out = tmp_path / "engines.json"
    words = ["--model_path", "models/steward-mini", "--data", str(data), "--engines", "hf", "outlines"]
    monkeypatch.setattr(sys, "argv", ["engines", *words, "--rows", "4", "--budgets", "64", "12", "--out", str(out)])
    engines.main()
    found = json.loads(out.read_text())["engines"]
    assert [(one["engine"], one["budget"]) for one in found] == [
        ("hf", 64),
        ("outlines", 64),
        ("hf", 12),
        ("outlines", 12),
    ]
    assert all(one["n"] == 8 and one["valid_pct"] == 100.0 and len(one["alone_ms"]) == 4 for one in found)
    assert found[3]["valid_as_written_pct"] < 100.0
