"""TRL's trainer beside ours: the same rows, a failed run is a result, and a table of ratios and memory."""

import json
import os
import time

import pytest

import make_standin
from common import read_json
from measurements import _training_table, training_speed
from support.pipeline import exit_code
from tasks import load_task
from tasks.qod.synthetic import rows as synthetic_rows
from training import processes

TASK = load_task("qod")
N_ROWS = 4
SETTINGS = ("train.batch_size=2", "train.grad_accum=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prompts, and the shape of a small model without weights."""
    place = tmp_path_factory.mktemp("training_speed")
    prompts = [
        {
            "id": row["id"],
            "prompt": TASK.messages(row["input"]),
            "completion": [{"role": "assistant", "content": TASK.completion(row["output"])}],
        }
        for row in synthetic_rows(N_ROWS, 1)
    ]
    (place / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts), encoding="utf-8")
    texts = [message["content"] for row in prompts for message in row["prompt"] + row["completion"]]
    tokenizer, model = make_standin.make(texts, 1)
    tokenizer.save_pretrained(place / "shape")
    model.config.save_pretrained(place / "shape")
    return place


def call(folder, *words):
    prompts = folder / "train.jsonl"
    # An epoch to warm up, so that the measured one holds every row once.
    steps = ["--repeats", 1, "--warm_up", N_ROWS // 2]
    begun = ["--config", "configs/standin.yaml", "--task", "qod", "--prompts", prompts, *steps]
    shape = ["--random_weights", folder / "shape", "--out", folder / "training_speed_standin.json"]
    return exit_code(training_speed, *begun, *shape, "--set", *SETTINGS, *words)


@pytest.fixture(scope="module")
def report(folder):
    with pytest.MonkeyPatch.context() as patch:
        # A process of its own would load PyTorch again.
        # Threads stay as the suite sets them: two that wait for one another on a busy machine are many times slower.
        patch.setattr(processes, "launcher_set_threads", lambda: False)
        patch.setattr(training_speed, "apart", lambda work, argument, limit_s: work(argument))
        assert call(folder) == 0
    return read_json(folder / "training_speed_standin.json")


def test_every_way_reads_all_rows_and_no_padding_is_counted(report):
    runs = {case: found[0] for case, found in report["runs"].items()}
    assert set(runs) == {f"{way} lora" for way in training_speed.WAYS}
    for run in runs.values():
        assert (run["rows"], run["tokens"]) == (N_ROWS, run["file"]["tokens"])
        assert (run["steps"], run["rows_a_step"]) == (N_ROWS / 2, 2.0)
        assert run["tokens_per_s"] == pytest.approx(run["tokens"] / run["seconds"], rel=0.01)
        assert 0 < run["padding_pct"] < 50 or run["at_once"] == 1
    assert len({run["trainable_parameters"] for run in runs.values()}) == 1
    assert report["weights"] == "random" and report["trained_on"]["versions"]["trl"]


def test_trl_runs_with_its_own_defaults(report):
    found = {case.split()[0]: runs[0] for case, runs in report["runs"].items()}
    assert [found[way]["gradient_ckpt"] for way in training_speed.WAYS] == [True, False, False, False, False]
    assert found["trl"]["optimizer"] == "adamw_torch_fused" and found["ours"]["optimizer"] == "adamw_torch_fused"
    assert found["trl"]["at_once"] == found["ours_literal"]["at_once"] == 2


def test_the_table_shows_each_way_beside_trl(report, folder):
    table = _training_table.training_table(folder)
    lines = [line for line in table.splitlines() if line.startswith("| Stand-in (random weights), random weights |")]
    assert [line.split(" | ")[1] for line in lines] == [f"{words}, lora" for words in training_speed.WAYS.values()]
    assert lines[0].split(" | ")[6] == "1.00 (1.00 to 1.00)"
    assert f"an epoch is {N_ROWS} rows" in table


def test_nothing_measured_makes_no_table(tmp_path):
    assert _training_table.training_table(tmp_path) is None


def run_with(rate):
    file = {"rows": 4, "tokens": 100, "left_out": 0}
    facts = {"used_gb": rate, "padding_pct": 1.0, "at_once": 2, "packing": False, "gradient_ckpt": True, "file": file}
    return facts | {"tokens_per_s": rate, "rows_a_step": 2.0}


def test_a_ratio_is_taken_within_a_repeat_and_a_failed_run_has_none():
    failed = {"failed": "out of memory"}
    runs = {
        "trl lora": [run_with(10.0), failed, run_with(20.0)],
        "ours lora": [run_with(20.0), run_with(1000.0), run_with(60.0)],
        "trl qlora": [failed] * 3,
        "ours qlora": [run_with(5.0)] * 3,
    }
    cases = training_speed.cases_of(runs)
    assert cases["ours lora"]["times_of_trl"] == {"median": 2.5, "least": 2.0, "most": 3.0}
    assert (cases["ours lora"]["n"], cases["trl lora"]["n"]) == (3, 2)
    assert cases["trl lora"]["epoch_s"] == {"median": 7.5, "least": 5.0, "most": 10.0}
    assert cases["trl qlora"] == failed and cases["ours qlora"]["times_of_trl"] is None
    trained_on = {"hardware": {"cpu_cores": 2}}
    report = {"model": "m", "weights": "real", "repeats": 3, "cases": cases, "trained_on": trained_on}
    table = _training_table.table_of([report])
    assert "| m | TRL as it comes, qlora | - | - | - | - | - | - | - | out of memory |" in table
    assert "| m | ours, qlora | 2.0 | 2 rows | yes | 5.00 (5.00 to 5.00) | - | 20.0 | 5.00 | 1.0 |" in table


def test_a_run_that_dies_or_takes_too_long_is_ended_and_named():
    assert training_speed.apart(len, "abc", 60) == 3
    assert training_speed.apart(os._exit, 3, 60) == {"failed": "its process ended with exit code 3"}
    assert training_speed.apart(int, "x", 60)["failed"].startswith("ValueError: invalid literal")
    began = time.monotonic()
    assert training_speed.apart(time.sleep, 60, 0.5) == {"failed": "not done after 0.5 s"}
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--rows", 0], "--rows 0: at least 1"),
        (["--limit_s", "nan"], "--limit_s nan: at least 1"),
        (["--random_weights", "nowhere"], "nowhere/config.json"),
        (["--set", "train.packing=maybe"], "train.packing"),
    ],
)
def test_wrong_words_are_named(folder, words, named, capsys):
    assert call(folder, *words) == 2
    assert named in capsys.readouterr().err


def test_no_run_at_all_is_an_error(folder, monkeypatch, capsys):
    monkeypatch.setattr(training_speed, "apart", lambda work, *_: {"folder": "f", "failed": "x"})
    monkeypatch.setattr(training_speed, "made_weights", None)
    assert call(folder) == 1
    assert "no weights could be made: x" in capsys.readouterr().err
