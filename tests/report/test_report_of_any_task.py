"""A task without a verdict has a report of its own columns, without the charts of verdicts, and shows each wrong answer
beside the gold one.
"""

import json
import re

import pytest

from common import read_jsonl, to_json
from report.wrong_answers import compared_answers
from support import small_tasks
from support.reporting import Bench, Elements, answered

COLUMNS_OF = {
    "notes": ["Exact %", "Names a part %"],
    "booking": ["Exact %", "JSON valid %"],
    "switches": ["Exact %", "Valid %"],
}
WRONG = {
    "notes": "Push the lid button.",
    "booking": '{"city":"Oslo","nights":3,"guest":"Ann Lee"}',
    "switches": '<tool_call name="set_light">{"room":"hall","on":true}</tool_call>',
}


@pytest.fixture(params=small_tasks.NAMES)
def task(request, monkeypatch):
    return small_tasks.loaded(monkeypatch, request.param)


def made(task, tmp_path, monkeypatch, scores, **more):
    bench = Bench(tmp_path, monkeypatch, (scores, scores, scores))
    bench.put("phi4mini", bench.good, **more)
    bench.make(task.name)
    return bench


def payload(bench):
    text = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', bench.text("index.html"), re.S).group(1)
    return json.loads(text)


def test_the_table_has_the_tasks_columns_or_those_of_every_task(task, tmp_path, monkeypatch):
    bench = made(task, tmp_path, monkeypatch, answered(task, row0=WRONG[task.name]))
    text = bench.text("model_comparison.md")
    head, _, row, *_ = [line for line in text.splitlines() if line.startswith("|")]
    own = COLUMNS_OF[task.name]
    assert [cell.strip() for cell in head.split("|")[3 : 3 + len(own)]] == own
    assert row.split("|")[3].strip() == f"{1100 / 12:.1f}"
    assert bench.text("metrics.csv").splitlines()[0].startswith("model,checkpoint,kind,n,exact_pct,exact_pct_low")
    assert bench.text("metrics.csv").splitlines()[1].split(",")[3] == "12"
    # No baseline belongs to the task, so none is missed.
    assert "baseline" not in text


def test_the_page_has_no_charts_of_verdicts(task, tmp_path, monkeypatch):
    bench = made(task, tmp_path, monkeypatch, answered(task, row0=WRONG[task.name]))
    page = bench.text("index.html")
    assert "Wrong answers</h2>" in page and "exact_pct" in page
    for word in ("Confusion matrix</strong>", "Calibration</strong>", "Risk and coverage</strong>", "{{"):
        assert word not in page
    assert len(Elements(page).tags("script")) == 2


def test_a_wrong_answer_stands_beside_the_gold_one_under_its_question(task, tmp_path, monkeypatch):
    found = payload(made(task, tmp_path, monkeypatch, answered(task, row0=WRONG[task.name], row1="")))
    assert (found["labels"], found["sides"], found["models"][0]["wrong"]) == ([], ["gold", "answer"], 2)
    wrong, empty = found["rows"]
    case = read_jsonl(task.folder / "sample.jsonl")[0]["input"]
    assert wrong["question"] == task.messages(case)[-1]["content"]
    differing = [field for field in wrong["fields"] if field["relation"] == "different"]
    gold, answer = ("".join(differing[0][side]) for side in ("left", "right"))
    assert len(differing) == 1 and gold != answer
    assert {field["relation"] for field in empty["fields"]} == {"left_only"}


def test_damaged_metrics_of_any_task_are_named(task, tmp_path, monkeypatch):
    bench = made(task, tmp_path, monkeypatch, answered(task))
    path = bench.reports / "phi4mini_metrics.json"
    whole = json.loads(path.read_text())
    for key in ("kpis", "slices", "predictions", "data"):
        path.write_text(json.dumps({name: value for name, value in whole.items() if name != key}))
        with pytest.raises(Exception, match=f"phi4mini_metrics.json: '{key}' is missing"):
            bench.make(task.name)


def test_two_precisions_are_compared_by_the_first_column(task, tmp_path, monkeypatch):
    bench = made(task, tmp_path, monkeypatch, answered(task))
    bench.put("phi4mini_4bit", answered(task, row0=WRONG[task.name]), model="phi4mini", precision="nf4")
    bench.make(task.name)
    assert "Exact % +8.3 against nf4" in bench.text("model_comparison.md")


def test_slices_of_percentages_are_drawn_as_shares(tmp_path, monkeypatch):
    task = small_tasks.loaded(monkeypatch, "notes")
    monkeypatch.setattr(
        task.module("kpis"), "slices", lambda case: {"mood": "hurry" if "hurry" in to_json(case) else "calm"}, False
    )
    scores = answered(task, row0=WRONG["notes"])
    assert list(scores[1]["slices"]["mood"]) == ["calm", "hurry"]
    bench = made(task, tmp_path, monkeypatch, scores)
    chart = next(attrs for attrs in Elements(bench.text("index.html")).tags("svg") if attrs["class"] == "chart")
    assert "mood: hurry, exact 100.0 (95 %: 100.0 to 100.0, n = 4)" in chart["aria-label"]
    assert payload(bench)["rows"][0]["slices"] == {"mood": "calm"}


def test_every_value_of_an_answer_is_a_row(monkeypatch):
    task = small_tasks.loaded(monkeypatch, "switches")
    rows, _ = answered(task, row6=WRONG["switches"])
    found = {
        field["field"]: (field["left"], field["right"], field["relation"]) for field in compared_answers(task, rows[6])
    }
    assert found == {
        "name": ("set_heat", "set_light", "different"),
        "arguments.degrees": ("15", "", "left_only"),
        "arguments.room": ("", "hall", "right_only"),
        "arguments.on": ("", "true", "right_only"),
    }
