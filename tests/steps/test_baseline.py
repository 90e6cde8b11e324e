"""The baselines answer the same rows in the same formats as a language model, and nothing of the test labels reaches
them.
"""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import baseline
import tasks
from common import run
from scoring import baselines
from support import small_tasks
from tasks import load_task
from tasks.crm import baseline as classical
from tasks.crm.data import swap
from tasks.crm.synthetic import rows as synthetic_rows

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("majority", "boosting", "splink")
N_ROWS = {"train": 400, "val": 60, "test": 100}
TASK = load_task()


def splits(seed=5):
    everything = list(synthetic_rows(sum(N_ROWS.values()), seed))
    starts = {"train": 0, "val": 400, "test": 460}
    return {name: everything[start : start + N_ROWS[name]] for name, start in starts.items()}


def write(folder, **rows_by_split):
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in rows_by_split.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def call(folder, *more):
    """baseline.main in this process, as `make baseline` calls it; its exit code."""
    before = sys.argv
    sys.argv = [
        "baseline.py",
        "--train",
        f"{folder}/train.jsonl",
        "--val",
        f"{folder}/val.jsonl",
        "--data",
        f"{folder}/test.jsonl",
        "--out",
        f"{folder}/reports",
        *more,
    ]
    try:
        with pytest.raises(SystemExit) as stopped:
            run(baseline.main)
    finally:
        sys.argv = before
    return stopped.value.code


def read(folder, name):
    """(predictions, predictions manifest, metrics) of one baseline."""
    stem = folder / "reports" / f"baseline_{name}"
    predictions = [
        json.loads(line) for line in Path(f"{stem}_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return predictions, *(
        json.loads(Path(f"{stem}_{end}.json").read_text()) for end in ("predictions.manifest", "metrics")
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("baseline"), **splits())
    (folder / "manifest.json").write_text('{"synthetic": true}')
    assert call(folder) == 0
    return folder


def test_the_three_have_the_same_kpis_over_the_same_rows(made):
    kpis = [read(made, name)[2]["kpis"] for name in NAMES]
    assert kpis[0].keys() == kpis[1].keys() == kpis[2].keys() and "macro_f1" in kpis[0]
    for key in ("accuracy", "macro_f1", "ece", "swap_changed_pct"):
        assert {kpi[key]["n"] for kpi in kpis} == {N_ROWS["test"]}
        assert all(len(kpi[key]["ci95"]) == 2 for kpi in kpis)
    assert {kpi["json_valid_pct"]["value"] for kpi in kpis} == {None}, "a baseline writes no JSON of its own"


def test_the_file_that_make_waits_for_comes_last_and_only_after_all_three(made, tmp_path):
    whole = made / "reports" / "baselines.json"
    facts = json.loads(whole.read_text())
    assert facts["made"] == list(NAMES) and facts["skipped"] == {}
    assert all(whole.stat().st_mtime_ns >= path.stat().st_mtime_ns for path in whole.parent.iterdir())
    folder = write(tmp_path, **splits())
    assert call(folder, "--only", "majority") == 0
    assert not (folder / "reports" / "baselines.json").exists()


@pytest.mark.parametrize("name", NAMES)
def test_predictions_have_the_format_of_a_language_models(made, name):
    predictions, manifest, metrics = read(made, name)
    assert [row["id"] for row in predictions] == [row["id"] for row in splits()["test"]]
    for row, given in zip(predictions, splits()["test"], strict=True):
        assert list(row) == [
            "id",
            "input",
            "gold",
            "raw",
            "answer",
            "label",
            "probabilities",
            "swapped_probabilities",
            "finish_reason",
            "prompt_tokens",
            "completion_tokens",
            "seconds",
        ]
        assert (
            row["input"] == given["input"]
            and row["gold"] == given["output"]
            and row["raw"] is None
            and row["seconds"] > 0
        )
        assert row["answer"] == {"result": row["label"]} and row["label"] == max(
            row["probabilities"], key=row["probabilities"].get
        )
        for key in ("probabilities", "swapped_probabilities"):
            assert list(row[key]) == list(TASK.verdict.labels) and math.isclose(sum(row[key].values()), 1, abs_tol=3e-6)
    for facts in (manifest, metrics):
        assert facts["model"] == f"baseline_{name}" and facts["kind"] == "baseline" and facts["backend"] == "cpu"
        assert (
            facts["data"]["synthetic"] is True
            and facts["data"]["rows"] == N_ROWS["test"]
            and facts["training"]["rows"] == N_ROWS["train"]
        )


def accuracy(folder, name):
    return read(folder, name)[2]["kpis"]["accuracy"]["value"]


def macro_f1(folder, name):
    return read(folder, name)[2]["kpis"]["macro_f1"]["value"]


def test_boosting_and_splink_beat_the_majority_clearly(made):
    """On 400 training rows of the generator's hard kinds, a quarter near a threshold and half of them NO_MATCH."""
    assert accuracy(made, "boosting") > accuracy(made, "majority") + 0.1
    assert macro_f1(made, "boosting") > macro_f1(made, "majority") + 0.3
    assert macro_f1(made, "splink") > macro_f1(made, "majority") + 0.15


def test_splink_ranks_duplicates_above_no_matches(made):
    from sklearn.metrics import roc_auc_score

    decided = [row for row in read(made, "splink")[0] if row["gold"]["result"] != "POSSIBLE"]
    assert len({row["gold"]["result"] for row in decided}) == 2
    assert (
        roc_auc_score(
            [row["gold"]["result"] == "DUPLICATE" for row in decided],
            [row["probabilities"]["DUPLICATE"] for row in decided],
        )
        > 0.8
    )


def test_a_heavier_match_weight_is_never_less_of_a_match():
    import numpy as np

    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 300)
    to_verdicts = baselines.fit_verdicts(rng.normal(10 * (1 - y), 8), y, TASK)
    p = to_verdicts(np.linspace(-60, 60, 500))
    assert np.allclose(p.sum(1), 1) and (p >= 0).all()
    assert (np.diff(p[:, 0]) >= -1e-9).all() and (np.diff(p[:, 2]) <= 1e-9).all()
    assert p[-1, 0] > 0.8 and p[0, 2] > 0.8


def test_features_do_not_change_when_the_records_swap_places(made):
    import numpy as np

    rows = [*synthetic_rows(400, 9)]
    assert len(classical.features(rows[0]["input"])) == len(classical.FEATURES) == len(set(classical.FEATURES))
    straight = np.array([classical.features(row["input"]) for row in rows])
    mirrored = np.array([classical.features(swap(row["input"])) for row in rows])
    assert np.array_equal(straight, mirrored, equal_nan=True)
    assert (np.nanstd(straight[:, ~np.isnan(straight).all(0)], axis=0) > 0).sum() > 40, (
        "the features must tell rows apart"
    )
    predictions = read(made, "boosting")[0]
    assert all(row["probabilities"] == row["swapped_probabilities"] for row in predictions)


def test_features_tell_what_they_say():
    left = {"full_name": "Doe, Jennifer", "phone": "+1 (555) 010-2030", "zip": "12345", "shoe": "42"}
    right = {"first_name": "J", "last_name": "Doe", "telephone": "555-0102030", "email": "j@x.com", "shoe": "43"}
    found = dict(zip(classical.FEATURES, classical.features({"record1": left, "record2": right}), strict=True))
    assert (
        found["phone.same"] == 1
        and found["phone.last_seven"] == 1
        and found["last_name.same"] == 1
        and found["first_name.same"] == 0
    )
    assert found["name.worst_word"] == 0.95 and found["name.same_initials"] == 1
    assert found["email.one_sided"] == 1 and math.isnan(found["email.ratio"]) and math.isnan(found["city.one_sided"])
    counted = ("n.same", "n.similar", "n.different", "n.one_sided", "other.n_both")
    assert [found[name] for name in counted] == [1, 1, 1, 2, 1], "J Doe and Jennifer Doe are similar"


def test_three_thousand_cases_a_second():
    cases = [row["input"] for row in synthetic_rows(1_500, 11)]
    start = time.process_time()
    for case in cases:
        classical.features(case)
    assert len(cases) / (time.process_time() - start) >= 3_000


def answers_of(folder, name):
    return [
        (row["id"], row["label"], row["probabilities"], row["swapped_probabilities"]) for row in read(folder, name)[0]
    ]


@pytest.mark.slow
def test_the_test_labels_reach_no_prediction(made, tmp_path):
    given = splits()
    labels = [row["output"] for row in given["test"]]
    assert labels != labels[::-1]
    permuted = [{**row, "output": output} for row, output in zip(given["test"], labels[::-1], strict=True)]
    folder = write(tmp_path, **{**given, "test": permuted})
    assert call(folder) == 0
    for name in NAMES:
        assert answers_of(folder, name) == answers_of(made, name)
    assert accuracy(folder, "boosting") < accuracy(made, "boosting") - 0.2, "the labels were not really permuted"


@pytest.mark.slow
def test_a_class_missing_in_training_gets_probability_0(tmp_path):
    given = splits()
    given["train"] = [row for row in given["train"] if row["output"]["result"] != "POSSIBLE"]
    folder = write(tmp_path, **given)
    assert call(folder) == 0
    for name in NAMES:
        predictions = read(folder, name)[0]
        assert {row["probabilities"]["POSSIBLE"] for row in predictions} == {0.0}
        assert len({row["label"] for row in predictions}) == (1 if name == "majority" else 2)


def test_one_class_alone_and_tiny_data(tmp_path, capfd):
    given = splits()
    alone = [row for row in given["train"] if row["output"]["result"] == "NO_MATCH"][:20]
    folder = write(tmp_path, train=alone, val=given["val"][:3], test=given["test"][:5])
    assert call(folder) == 0
    for name in NAMES:
        assert {row["label"] for row in read(folder, name)[0]} == {"NO_MATCH"}
    assert "one class" in capfd.readouterr().out


def test_rows_without_a_known_field_still_get_answers(tmp_path, capfd):
    def row(number):
        other = number if number % 3 == 0 else number + 500
        return {
            "input": {"record1": {"beer": f"ale {number}"}, "record2": {"beer": f"ale {other}"}},
            "output": {"result": TASK.verdict.labels[min(number % 3, 1) * 2], "reasoning": "x"},
        }

    folder = write(
        tmp_path,
        train=[row(n) for n in range(200)],
        val=[row(n) for n in range(200, 260)],
        test=[row(n) for n in range(260, 300)],
    )
    assert call(folder) == 0
    assert "splink: no field is filled on both sides" in capfd.readouterr().out
    assert len(read(folder, "splink")[0]) == 40 and accuracy(folder, "boosting") > 0.9


def test_odd_values_make_no_traceback(tmp_path, capfd):
    def row(number):
        left = {
            "name": "\ud800 \0 <|im_end|>" if number % 2 else "a" * 3_000,
            "phone": ["1", 2],
            "zip": {"a": [number]},
            "email": "@",
        }
        right = {"full_name": ["x", ["y"]], "phone": 5, "name": "... , ,", "email": "a@@b", "city": True, "dob": 1e300}
        return {
            "input": {"record1": left, "record2": right},
            "output": {"result": TASK.verdict.labels[number % 3], "reasoning": "x"},
        }

    folder = write(tmp_path, train=[row(n) for n in range(30)], val=[row(0)], test=[row(n) for n in range(4)])
    assert call(folder) == 0
    assert read(folder, "splink")[0][1]["input"]["record1"]["name"] == "\ud800 \0 <|im_end|>"
    assert "Traceback" not in capfd.readouterr().err


def test_wrong_lines_are_all_named_and_old_results_stay(made, tmp_path, capfd):
    folder = write(tmp_path, **splits())
    assert call(folder, "--only", "majority") == 0
    with (folder / "val.jsonl").open("a") as file:
        file.write('{"input": {}}\nnot json\n')
    capfd.readouterr()
    assert call(folder) == 2
    message = capfd.readouterr().err
    assert f"{folder}/val.jsonl:61: " in message and f"{folder}/val.jsonl:62: " in message
    assert read(folder, "majority")[2]["kpis"]


def test_a_missing_file_names_the_step_that_makes_it(tmp_path, capfd):
    assert call(tmp_path) == 2
    assert "train.jsonl: no such file; run make prep" in capfd.readouterr().err


def test_a_task_without_classical_knowledge_is_skipped_and_its_stale_files_go(tmp_path, capfd, monkeypatch):
    monkeypatch.delattr(classical, "splink_tables")
    folder = write(tmp_path, **splits())
    stale = folder / "reports" / "baseline_splink_metrics.json"
    stale.parent.mkdir()
    stale.write_text("{}")
    assert call(folder, "--only", "majority", "splink") == 0
    assert "splink    skipped: src/tasks/crm/baseline.py has no splink_tables" in capfd.readouterr().out
    assert not stale.exists() and read(folder, "majority")[2]["kpis"]


@pytest.mark.parametrize("name", small_tasks.NAMES)
def test_a_task_without_a_verdict_has_no_baseline_and_says_so(tmp_path, capfd, monkeypatch, name):
    small_tasks.loaded(monkeypatch, name)
    assert call(tmp_path, "--task", name) == 0
    assert f"the task {name} has no baseline: " in capfd.readouterr().out
    facts = json.loads((tmp_path / "reports/baselines.json").read_text())
    assert facts["made"] == [] and set(facts["skipped"]) == set(NAMES)
    assert [path.name for path in (tmp_path / "reports").iterdir()] == ["baselines.json"]


def test_a_task_with_a_verdict_and_no_module_of_its_own_has_the_majority(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(tasks, "FOLDER", tmp_path)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    folder = tmp_path / "moods"
    folder.mkdir()
    (folder / "prompt.md").write_text("Which mood?")
    (folder / "data.py").write_text("def check_case(case):\n    return []\n")
    schema = {"type": "object", "properties": {"mood": {"enum": ["good", "bad", "unsure"]}}, "required": ["mood"]}
    (folder / "answer.json").write_text(json.dumps(schema))
    (folder / "task.yaml").write_text(
        "title: Moods\nanswer: verdict\nschema: answer.json\nverdict: {key: mood, review: unsure}\n"
    )
    rows = [{"input": {"text": f"word {n}"}, "output": {"mood": "bad" if n % 3 else "good"}} for n in range(12)]
    write(tmp_path, train=rows, val=rows[:3], test=rows[3:9])
    assert call(tmp_path, "--task", "moods") == 0
    printed = capfd.readouterr().out
    assert (
        "majority  accuracy 0.667" in printed
        and "boosting  skipped: src/tasks/moods/baseline.py has no features" in printed
    )
    predictions, _, metrics = read(tmp_path, "majority")
    assert {row["label"] for row in predictions} == {"bad"} and metrics["kpis"]["swap_changed_pct"]["value"] is None


def test_expectation_maximisation_that_fails_is_reported_and_replaced(tmp_path, capfd):
    ann = {"name": "Ann Lee", "city": "Rome"}
    bob = {"name": "Bob Roth", "city": "Oslo"}
    pair = [
        {"input": {"record1": ann, "record2": other}, "output": {"result": verdict, "reasoning": "x"}}
        for other, verdict in ((ann, "DUPLICATE"), (bob, "NO_MATCH"))
    ]
    folder = write(tmp_path, train=pair, val=pair[:1], test=[pair[0], pair[1], pair[0]])
    assert call(folder, "--only", "splink") == 0
    printed = capfd.readouterr().out
    (predictions, _, metrics) = read(folder, "splink")
    assert (
        "expectation maximisation failed" in printed
        and "m counted on the labelled matches" in metrics["training"]["method"]
    )
    assert len(predictions) == 3


def test_help_is_quick_and_a_wrong_seed_is_refused():
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, ROOT / "src/baseline.py", "--help"], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0 and "--only" in done.stdout and time.perf_counter() - start < 1
    done = subprocess.run([sys.executable, ROOT / "src/baseline.py", "--seed", "-1"], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "-1" in done.stderr
