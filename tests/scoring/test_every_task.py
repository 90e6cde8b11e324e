"""Every task, those that the tests add included: its sample's gold answers score full marks, rubbish scores nothing."""

import warnings

import pytest

import tasks
from common import read_jsonl
from rows import load_rows
from scoring import kpis, kpis_of_every_task
from support import small_tasks

RUBBISH = "qqqq zzzz"
NAMES = (*tasks.task_names(), *small_tasks.NAMES)


@pytest.fixture(params=NAMES)
def task(request, monkeypatch):
    name = request.param
    return small_tasks.loaded(monkeypatch, name) if name in small_tasks.NAMES else tasks.load_task(name)


def answered(task, text_of):
    """Predictions of the task's sample, each written as `text_of(row)`."""
    found = []
    for row in load_rows(task.folder / "sample.jsonl", task):
        text = text_of(row)
        answer = task.parsed(text)
        prediction = {"id": "x", "input": row["input"], "gold": row["output"], "raw": text, "answer": answer}
        if task.verdict:
            label = task.verdict.of(answer)
            shares = {each: float(each == (label or task.verdict.review)) for each in task.verdict.labels}
            prediction |= {"label": label, "probabilities": shares, "swapped_probabilities": shares}
        found.append(prediction | {"finish_reason": "stop", "completion_tokens": 9, "overruled": 0, "late": 0})
    return found


def scored(task, predictions):
    """The metrics, with every warning an error: a division by zero is a bug here."""
    assert all(kpis.is_prediction(row, task) for row in predictions)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return kpis.score(predictions, task)


def full_marks(name):
    return 100 if name.endswith("_pct") else 1


def test_gold_answers_score_full_marks_in_every_column_of_the_comparison(task):
    found = scored(task, answered(task, lambda row: task.completion(row["output"])))["kpis"]
    names = [*kpis.comparison_columns(task).values(), f"{kpis_of_every_task.VALID[task.answer]}_raw_pct"]
    names += ["accuracy", "macro_f1"] if task.verdict else ["exact_pct"]
    assert {name: found[name]["value"] for name in names} == {name: full_marks(name) for name in names}
    assert all(found[name]["n"] > 0 and found[name]["what"] for name in names)


def test_rubbish_scores_nothing_in_every_column_of_the_comparison(task):
    found = scored(task, answered(task, lambda row: RUBBISH))["kpis"]
    names = [*kpis.comparison_columns(task).values(), "accuracy" if task.verdict else "exact_pct"]
    # Any text is an answer where a text is asked for: there only an empty one is none.
    found_values = {name: found[name]["value"] for name in names if not (task.answer == "text" and name == "valid_pct")}
    assert found_values and not any(found_values.values()), found_values


def test_no_text_is_no_answer(task):
    found = scored(task, answered(task, lambda row: " \n"))["kpis"]
    assert found[f"{kpis_of_every_task.VALID[task.answer]}_pct"]["value"] == 0


def test_verdicts_are_scored_only_where_a_task_has_them(task):
    metrics = scored(task, answered(task, lambda row: task.completion(row["output"])))
    of_verdicts = {"confusion", "calibration", "risk_coverage"}
    assert of_verdicts <= metrics.keys() if task.verdict else not of_verdicts & metrics.keys()
    assert ("ece" in metrics["kpis"], "exact_pct" in metrics["kpis"]) == (bool(task.verdict), not task.verdict)
    assert all(len(each["ci95"]) == 2 for each in metrics["kpis"].values() if each["value"] is not None)


def test_a_sample_is_a_dozen_rows_and_the_tasks_own_kpis_count_what_they_name(task):
    rows = read_jsonl(task.folder / "sample.jsonl")
    assert len(rows) >= 12
    aggregates = task.hook("kpis", "AGGREGATES", {})
    counted = {name for _, *parts in aggregates.values() for name in parts}
    if aggregates:
        texts = [task.completion(row["output"]) for row in rows]
        counts = [
            task.hook("kpis", "score")(row | {"text": text}, row["output"])
            for row, text in zip(rows, texts, strict=True)
        ]
        assert all(each.keys() >= counted for each in counts)
        assert isinstance(task.hook("kpis", "score")(rows[0] | {"text": RUBBISH}, None), dict)


def test_a_file_of_another_task_is_no_prediction(monkeypatch):
    notes, booking = (small_tasks.loaded(monkeypatch, name) for name in ("notes", "booking"))
    row = answered(notes, lambda row: row["output"])[0]
    assert kpis.is_prediction(row, notes)
    for broken in (row | {"gold": {"city": "Atlantis"}}, {}, [], None, row | {"gold": None}):
        assert not kpis.is_prediction(broken, booking)


def test_exact_means_equal_as_json():
    assert kpis.same_value({"a": [1, "x", None]}, {"a": [1.0, "x", None]})
    for one, other in ((True, 1), (0, False), ({"a": 1}, {"a": 1, "b": 2}), ([1], [1, 1]), ("1", 1), (None, False)):
        assert not kpis.same_value(one, other) and not kpis.same_value([other], [one])


def test_the_validity_of_requests_is_that_of_predictions(monkeypatch):
    """One set of formulas: what the benchmark sums over requests is what the KPIs sum over rows."""
    task = small_tasks.loaded(monkeypatch, "booking")
    rows = answered(task, lambda row: task.completion(row["output"]))
    rows[0] |= {"answer": None, "finish_reason": "length"}
    rows[1] |= {"overruled": 3}
    rows[2] |= {"late": 1}
    counts = [
        kpis_of_every_task.counts(
            row["answer"] is not None, row["overruled"], row["late"], row["completion_tokens"], row["finish_reason"]
        )
        for row in rows
    ]
    shares = kpis_of_every_task.shares(task, counts)
    found = scored(task, rows)["kpis"]
    assert shares == {name: pytest.approx(found[name]["value"], abs=1e-6) for name in shares}
    assert shares["json_valid_pct"] == pytest.approx(1100 / 12) and shares["json_valid_raw_pct"] == 75
    unknown = [kpis_of_every_task.counts(True, None, None, 9, "stop")]
    shares = kpis_of_every_task.shares(task, unknown)
    assert shares["json_valid_pct"] == 100 and shares["json_valid_raw_pct"] is shares["mask_overruled_pct"] is None
