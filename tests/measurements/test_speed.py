"""The speed report: contenders answer the same rows, ratios are taken within a repeat, and the table shows ratios
alone.
"""

import json

import pytest

import make_standin
from common import ROOT, UserError, read_jsonl
from measurements import speed
from measurements.speed import MARK, ratios, speed_table
from report.marked_text import marker
from support import small_tasks
from support.pipeline import exit_code
from tasks import load_task
from tasks.crm.synthetic import rows as synthetic_rows

TASK = load_task()


def call(*words):
    return exit_code(speed, *words)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speed")
    rows = list(synthetic_rows(90, 3))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "README.md").write_text(f"before\n{marker(MARK, 'begin')} old {marker(MARK, 'end')}\nafter\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setattr(speed, "WARM_UP_ROWS", 2)
        # The model that ships with the project closes its answers by itself, so the plain loop's texts are whole too.
        assert (
            call(
                "--model_path",
                ROOT / "models/steward-mini",
                "--config",
                ROOT / "configs/steward_mini.yaml",
                "--data",
                folder / "rows.jsonl",
                "--rows",
                6,
                "--repeats",
                3,
                "--threads",
                1,
                "--out",
                folder / "speed.json",
                "--into",
                folder / "README.md",
            )
            == 0
        )
    return folder


@pytest.mark.slow
def test_every_contender_answers_every_repeat_and_the_texts_are_the_plain_loops(report):
    facts = json.loads((report / "speed.json").read_text())
    assert set(facts["seconds_per_pair"]) == set(facts["ratios"]) == set(speed.TITLES)
    assert all(len(times) == 3 and min(times) > 0 for times in facts["seconds_per_pair"].values())
    assert facts["same_text_as_plain_one"] == {"plain_batched": 6, "answer_one": 6, "answer_batched": 6}
    assert (facts["rows"], facts["threads"], facts["boosting"]["rows"], facts["engine"]["device"]) == (
        6,
        1,
        90 - 6 - 2,
        "cpu",
    )


@pytest.mark.slow
def test_the_table_stands_between_the_markers_and_holds_no_time(report):
    text = (report / "README.md").read_text()
    assert (
        text.startswith(f"before\n{marker(MARK, 'begin')}")
        and text.endswith(f"{marker(MARK, 'end')}\nafter\n")
        and " old " not in text
    )
    assert speed_table(report / "speed.json") in text and "1 threads" in text
    assert not any(unit in text for unit in (" ms", " seconds", "/s"))


def test_a_ratio_is_taken_within_its_repeat():
    seconds = {"plain_one": [4.0, 40.0, 4.0], "answer_one": [2.0, 20.0, 1.0], "boosting_one": [1.0, 10.0, 1.0]}
    found = ratios(seconds)["answer_one"]
    assert found["speed_of_plain_loop"] == {"median": 2.0, "least": 2.0, "most": 4.0}
    assert found["times_of_boosting"] == {"median": 2.0, "least": 1.0, "most": 2.0}


def test_a_task_without_a_verdict_is_timed_without_boosting(monkeypatch, tmp_path):
    task = small_tasks.loaded(monkeypatch, "booking")
    rows = read_jsonl(task.folder / "sample.jsonl")
    tokenizer, model = make_standin.make([task.messages(row["input"])[-1]["content"] for row in rows], 1)
    tokenizer.save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(speed, "WARM_UP_ROWS", 1)
    model_words = ("--model_path", tmp_path / "model", "--config", ROOT / "configs/standin.yaml", "--batch_size", 2)
    data_words = ("--task", "booking", "--data", task.folder / "sample.jsonl", "--out", tmp_path / "speed.json")
    assert call(*model_words, *data_words, "--rows", 2, "--repeats", 1, "--threads", 1) == 0
    facts = json.loads((tmp_path / "speed.json").read_text())
    assert set(facts["ratios"]) == {"plain_one", "plain_batched", "answer_one", "answer_batched"}
    assert facts["boosting"] is None and facts["rows"] == 2
    table = speed_table(tmp_path / "speed.json")
    assert "| Full answer, 2 at once |" in table and f"one {task.case} at a time" in table
    assert "oosting" not in table and f"2 {task.case}s in all." in table


def test_no_row_is_answered_and_fitted_on(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in synthetic_rows(100, 3)), encoding="utf-8")

    class Args:
        data = path
        fit = None
        rows = 20
        repeats = 3

    warm_up, slices, fit_rows = speed.shared_out(Args, TASK)
    seen = [json.dumps(case) for cases in (warm_up, *slices, [row["input"] for row in fit_rows]) for case in cases]
    assert len(seen) == 100 == len(set(seen)) and [len(cases) for cases in slices] == [7, 7, 6]
    Args.rows = 60
    with pytest.raises(UserError, match="--fit"):
        speed.shared_out(Args, TASK)


def test_wrong_calls_are_answered_before_anything_is_measured(tmp_path, capsys):
    (tmp_path / "no_markers.md").write_text("nothing")
    (tmp_path / "other.json").write_text("{}")
    for words, said in (
        (["--data", "x"], "--model_path"),
        (["--model_path", "m", "--data", "d", "--rows", 2], "rows of its own"),
        (["--model_path", "m", "--data", "d", "--threads", 0], "at least 1"),
        (["--table", tmp_path / "other.json"], "not a report"),
        (["--table", tmp_path / "other.json", "--into", tmp_path / "no_markers.md"], "marker"),
    ):
        assert call(*words) == 2
        assert said in capsys.readouterr().err
