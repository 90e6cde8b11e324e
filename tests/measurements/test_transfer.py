"""Transfer: the metrics are the textbook's, every scorer sees the same rows, and the table holds nothing that no report
holds.
"""

import json
from pathlib import Path

import numpy as np
import pytest

import constrained_decode
from common import UserError
from measurements import _transfer_baselines as baselines
from measurements import transfer
from measurements._match_metrics import metrics
from measurements._robustness import robustness
from measurements._transfer_baselines import Scored
from measurements._transfer_table import MARK, transfer_table
from report.marked_text import marker
from support.pipeline import exit_code
from tasks import load_task
from tasks.crm.measuring import field_removed, mean_similarity, without_kind

BEGIN = marker(MARK, "begin")
END = marker(MARK, "end")
ROOT = Path(__file__).resolve().parents[2]
TASK = load_task()
LABELS = TASK.verdict.labels
PEOPLE = (
    "Ann Lee;Bob Stone;Carla Diaz;Dmitri Orlov;Eva Braun;Farid Khan;Grace Hopper;Hugo Weiss;Ines Costa;Jan Kowalski;"
    "Kira Novak;Liam Byrne"
).split(";")


def person(at, name=None):
    name = name or PEOPLE[at % len(PEOPLE)]
    return {
        "name": name,
        "email": f"{name.split()[0].lower()}{at}@mail.org",
        "city": ("Oslo", "Rome", "Lyon")[at % 3],
        "phone": f"555 01{at:03} 7",
    }


def row(at, label):
    """A pair of one person written twice, of two people, or of two who share a city and a name."""
    left = person(at)
    right = {
        "DUPLICATE": left | {"name": left["name"].upper(), "city": None},
        "NO_MATCH": person(at + 5),
        "POSSIBLE": person(at + 100, left["name"]) | {"city": left["city"]},
    }[label]
    return {
        "id": f"row-{at}",
        "input": {"record1": left, "record2": right},
        "output": {"result": label, "reasoning": "Fields compared."},
    }


def rows(n, labels=("DUPLICATE", "NO_MATCH", "NO_MATCH"), start=0):
    return [row(start + at, labels[at % len(labels)]) for at in range(n)]


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def call(*words):
    return exit_code(transfer, *words)


# Metrics


@pytest.mark.parametrize("digits", [8, 1], ids=["all different", "many ties"])
def test_metrics_are_those_of_scikit_learn(digits):
    from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, precision_score, recall_score

    rng = np.random.default_rng(3)
    truth = rng.random(500) < 0.3
    scores = np.clip(0.4 * truth + rng.random(500) * 0.7, 0, 1).round(digits)
    found = metrics(truth, scores, 0.5)
    value = {name: each["value"] for name, each in found["metrics"].items()}
    said = scores >= 0.5
    precision, recall, thresholds = precision_recall_curve(truth, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    expected = {
        "average_precision": average_precision_score(truth, scores),
        "f1": f1_score(truth, said),
        "precision": precision_score(truth, said),
        "recall": recall_score(truth, said),
        "best_f1": f1.max(),
    }
    assert {name: value[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert f1_score(truth, scores >= found["best_threshold"]) == pytest.approx(value["best_f1"], abs=1e-6)
    assert (found["n"], found["n_positive"]) == (500, truth.sum())


def test_calibration_errors_by_hand():
    # Two bins of width 0.1: four pairs at 0.9 of which three match, one at 0.2 that does not.
    found = metrics([1, 1, 1, 0, 0], [0.9, 0.9, 0.9, 0.9, 0.2], 0.5)["metrics"]
    assert found["ece_width"]["value"] == pytest.approx((4 * 0.15 + 0.2) / 5)
    assert found["ece_mass"]["value"] == pytest.approx((4 * 0.15 + 0.2) / 5), "equal scores share a bin"


def test_bins_of_equal_mass_see_what_one_wide_bin_hides():
    scores = np.concatenate([np.full(50, 0.91), np.full(50, 0.99)])
    truth = np.concatenate([np.ones(50), [1] * 45 + [0] * 5])  # 0.91 is too low by .09, 0.99 too high by .09
    found = metrics(truth, scores, 0.5)["metrics"]
    assert found["ece_width"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert found["ece_mass"]["value"] == pytest.approx(0.09)


def test_intervals_hold_the_value_and_narrow_with_more_pairs():
    rng = np.random.default_rng(1)

    def width(n):
        truth = rng.random(n) < 0.4
        found = metrics(truth, np.clip(0.2 * truth + rng.random(n) * 0.8, 0, 1), 0.5)["metrics"]["average_precision"]
        assert found["ci95"][0] < found["value"] < found["ci95"][1]
        return found["ci95"][1] - found["ci95"][0]

    assert width(4000) < 0.5 * width(400)


def test_without_a_threshold_there_is_a_ranking_and_no_decision():
    found = metrics([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1])
    assert found["threshold"] is None and found["metrics"]["f1"] == {"value": None, "ci95": None}
    assert found["metrics"]["average_precision"]["value"] == pytest.approx((1 + 2 / 3) / 2, abs=1e-6)
    assert found["best_threshold"] == 0.7 and found["metrics"]["best_f1"]["value"] == pytest.approx(0.8)


def test_a_threshold_that_no_score_reaches():
    found = metrics([1, 0], [0.3, 0.2], 0.5)["metrics"]
    assert found["f1"]["value"] == 0 and found["recall"]["value"] == 0 and found["precision"]["value"] is None


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="finite"):
        metrics([1, 0], [float("nan"), 0.2], 0.5)


# Robustness


def shares(label):
    return [1.0 if each == label else 0.0 for each in LABELS]


def asked(decide, cases, n=1000):
    verdicts = [LABELS.index(decide(case)) for case in cases]
    return robustness(lambda others: [shares(decide(case)) for case in others], cases, verdicts, TASK, n, seed=1)


def test_a_symmetric_scorer_is_steady():
    def same_name(case):
        left, right = (str(case[side].get("name")).lower() for side in ("record1", "record2"))
        return "DUPLICATE" if left == right else "NO_MATCH"

    found = asked(same_name, [each["input"] for each in rows(60)])
    steady = {"n": 60, "changed_pct": 0.0, "flipped_pct": 0.0}
    assert found["swapped"] == steady and found["shuffled"] == steady
    assert found["field_removed"]["n"] == 20 and 0 < found["field_removed"]["lost_pct"] < 70, (
        "only a removed name is missed"
    )


def test_a_scorer_that_looks_at_the_order_is_found_out():
    by_side = asked(
        lambda case: "DUPLICATE" if case["record1"].get("city") else "NO_MATCH",
        [each["input"] for each in rows(30, ("DUPLICATE",))],
    )
    assert by_side["swapped"] == {"n": 30, "changed_pct": 100.0, "flipped_pct": 100.0}
    by_key = asked(
        lambda case: "DUPLICATE" if next(iter(case["record1"])) == "name" else "POSSIBLE",
        [each["input"] for each in rows(60)],
    )
    assert by_key["swapped"]["changed_pct"] == 0 and by_key["shuffled"]["changed_pct"] > 40
    assert by_key["shuffled"]["flipped_pct"] == 0, "through review is no flip"


def test_robustness_asks_a_seeded_sample():
    cases = [each["input"] for each in rows(60)]
    assert asked(lambda case: "NO_MATCH", cases, 10)["swapped"]["n"] == 10
    assert asked(lambda case: "NO_MATCH", cases, 0) == {
        "swapped": {"n": 0, "changed_pct": None, "flipped_pct": None},
        "shuffled": {"n": 0, "changed_pct": None, "flipped_pct": None},
        "field_removed": {"n": 0, "lost_pct": None},
    }


def test_the_field_that_goes_is_one_that_both_fill_and_another_stays():
    import random

    case = {
        "record1": {"name": "Ann Lee", "city": "Oslo", "fax": "1"},
        "record2": {"Full Name": "Ann Lee", "town": "Oslo", "email": "a@b.c"},
    }
    for seed in range(20):
        less = field_removed(case, random.Random(seed))
        gone = [key for side in case for key in case[side] if key not in less[side]]
        assert len(gone) == 1 and gone[0] in ("name", "city", "Full Name", "town")
    assert field_removed({"record1": {"name": "Ann"}, "record2": {"name": "Ann"}}, random.Random(1)) is None
    nested = {"contact": {"phone": ["1", "2"], "city": "Oslo"}, "tel": "3"}
    assert without_kind(nested, "phone") == {"contact": {"phone": [], "city": "Oslo"}}


# Scorers


def test_mean_similarity_counts_a_name_once():
    one = {"name": "ann lee", "first_name": "ann", "last_name": "lee", "city": "oslo"}
    other = {"name": "ann lee", "first_name": "ann", "last_name": "lee", "city": "xxxx"}
    assert mean_similarity(one, other) == 0.5
    assert mean_similarity({"city": "oslo"}, {"name": "ann"}) == 0.0


def test_splink_probabilities_use_the_prior_of_two_random_records():
    bits = np.log2(
        np.array([1e-4 / (1 - 1e-4) * 999, 1e-4 / (1 - 1e-4)])
    )  # Bayes factors 999 and 1 at Splink's own prior
    found, prior = baselines.match_probabilities(bits, 1e-4, 1000)
    assert prior == 0.001 and found == pytest.approx([0.5, 0.001])
    assert np.isfinite(baselines.match_probabilities(np.array([1e6, -1e6]), 1e-4, 0)[0]).all()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run of all scorers with a made-up model on two good sets and three that cannot be scored."""
    folder = tmp_path_factory.mktemp("transfer")
    write(folder / "sets/easy.jsonl", rows(60))
    write(folder / "sets/mirror.jsonl", rows(45, start=300))
    write(folder / "sets/graded.jsonl", rows(9, LABELS))
    write(folder / "sets/matches.jsonl", rows(5, ("DUPLICATE",)))
    write(folder / "sets/nothing.jsonl", [])
    write(folder / "synthetic.jsonl", rows(300, LABELS, start=600))
    (folder / "model").mkdir()
    (folder / "model/model.safetensors").write_bytes(b"weights")
    assert measure(folder) == 0
    return folder


def measure(folder, *more, engine=None):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constrained_decode, "load_engine", lambda name: engine or EngineModule())
        patch.setattr("common.quiet_libraries", lambda: None)  # it would import transformers
        return call(
            "--sets",
            folder / "sets",
            "--synthetic",
            folder / "synthetic.jsonl",
            "--model_path",
            folder / "model",
            "--config",
            ROOT / "configs/standin.yaml",
            "--out",
            folder / "reports/transfer.json",
            "--keep_scores",
            *more,
        )


class EngineModule:
    """Half sure of a match where the names agree, else sure of none; answers in reverse order, as engines may."""

    facts = {"precision": "float32", "device": "cpu"}

    def load(self, *args, **options):
        return self

    def verdicts(self, conversations):
        for at in reversed(range(len(conversations))):
            case = json.loads(conversations[at][-1]["content"])
            agree = len({str(record.get("name")).lower() for record in case.values()}) == 1
            yield (
                at,
                {"DUPLICATE": 0.5, "POSSIBLE": 0.4, "NO_MATCH": 0.1}
                if agree
                else {"DUPLICATE": 0.0, "POSSIBLE": 0.2, "NO_MATCH": 0.8},
            )


def report_of(folder):
    return json.loads((folder / "reports/transfer.json").read_text())


def test_every_scorer_answers_the_same_rows(measured):
    cells = report_of(measured)["sets"]["easy"]["scorers"]
    assert set(cells) == set(transfer.TITLES)
    assert {(found["n"], found["n_positive"]) for found in cells.values()} == {(60, 20)}
    assert all(found["metrics"]["average_precision"]["value"] > 0.9 for found in cells.values())
    assert all(found["seconds_per_pair"] > 0 and found["method"] for found in cells.values())
    assert (
        {"swapped", "shuffled", "field_removed"}
        == set(cells["model"]["robustness"])
        == set(cells["boosting"]["robustness"])
    )
    assert cells["boosting"]["robustness"]["swapped"]["changed_pct"] == 0
    assert cells["model"]["verdicts"] == {
        "match": {"matches": 20, "others": 0},
        "for_review": {"matches": 0, "others": 0},
        "no_match": {"matches": 0, "others": 40},
    }


def test_a_models_score_counts_review_as_half_and_the_blend_is_the_mean(measured):
    lines = [json.loads(line) for line in (measured / "reports/transfer_scores/easy.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"row-{at}" for at in range(60)]
    for line in lines:
        assert line["model"] == pytest.approx(0.7 if line["truth"] else 0.1)
        assert line["blend"] == pytest.approx((line["model"] + line["boosting"]) / 2)


def test_a_set_that_cannot_be_scored_says_why_and_the_others_go_on(measured):
    sets = report_of(measured)["sets"]
    reasons = {
        name: {found["reason"] for found in sets[name]["scorers"].values()} for name in ("graded", "matches", "nothing")
    }
    assert (
        "3 of 9 rows are POSSIBLE" in reasons["graded"].pop()
        and "all 5 rows are of one class" in reasons["matches"].pop()
    )
    assert reasons["nothing"].pop() == "the file is empty"
    assert "[1]" in transfer_table([measured / "reports/transfer.json"])


def test_the_report_says_where_it_came_from(measured):
    import hashlib

    report = report_of(measured)
    assert report["model"]["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert report["sets"]["easy"]["sha256"] == hashlib.sha256((measured / "sets/easy.jsonl").read_bytes()).hexdigest()
    assert {"git_commit", "versions", "hardware", "seed", "synthetic", "finished"} <= report.keys()


def test_another_model_pays_for_itself_only(measured, monkeypatch, capsys):
    before = report_of(measured)

    def no_refit(*args, **options):
        raise AssertionError("a baseline was fitted again")

    for name in ("fit_boosting", "splink_model", "jaro_winkler_scores"):
        monkeypatch.setattr(baselines, name, no_refit)
    (measured / "model/model.safetensors").write_bytes(b"other weights")
    assert measure(measured) == 0
    after = report_of(measured)
    assert after["model"]["sha256"] != before["model"]["sha256"] and "model: loading" in capsys.readouterr().out
    for name in ("jaro_winkler", "boosting", "splink"):
        assert after["sets"]["easy"]["scorers"][name] == before["sets"]["easy"]["scorers"][name]
    assert measure(measured, engine=Unloadable()) == 0, "the same model's scores are kept too"


class Unloadable:
    def load(self, *args, **options):
        raise AssertionError("the model was loaded again")


def test_other_synthetic_rows_refit_boosting_and_not_splink(tmp_path):
    write(tmp_path / "sets/easy.jsonl", rows(60))
    with pytest.MonkeyPatch.context() as patch:
        said = []
        for name in ("score_boosting", "score_splink"):
            patch.setattr(
                baselines,
                name,
                lambda cases, *rest, name=name: said.append(name) or Scored([0.5] * len(cases), name, 0.1),
            )
        for start in (0, 10, 10):
            synthetic = write(tmp_path / "synthetic.jsonl", rows(30, LABELS, start=start))
            assert (
                call(
                    "--sets",
                    tmp_path / "sets",
                    "--synthetic",
                    synthetic,
                    "--only",
                    "boosting",
                    "splink",
                    "--out",
                    tmp_path / "r/t.json",
                )
                == 0
            )
    assert said == ["score_boosting", "score_splink", "score_boosting"]


def test_limit_draws_rows_of_the_whole_set(tmp_path):
    write(tmp_path / "sets/sorted.jsonl", rows(30, ("DUPLICATE",)) + rows(30, ("NO_MATCH",), start=100))
    assert call("--sets", tmp_path / "sets", "--only", "jaro_winkler", "--limit", 20, "--out", tmp_path / "t.json") == 0
    found = json.loads((tmp_path / "t.json").read_text())["sets"]["sorted"]
    assert (found["rows"], found["n"]) == (60, 20) and 0 < found["n_positive"] < 20
    assert found["scorers"]["jaro_winkler"]["threshold"] is None, "nothing to fit it on"


# Wrong calls


@pytest.mark.parametrize(
    "words, says",
    [
        (["--out", "x.json"], "give --sets"),
        (["--sets", "nowhere"], "no such folder"),
        (["--sets", "{empty}"], "no <set>.jsonl"),
        (["--sets", "{sets}", "--synthetic", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--sets", "{sets}", "--only", "model"], "--model_path is missing"),
        (["--sets", "{sets}", "--model_path", "nowhere"], "no such model folder"),
        (
            ["--sets", "{sets}", "--model_path", "{empty}", "--config", f"{ROOT}/configs/standin.yaml"],
            "holds no weights",
        ),
        (
            [
                "--sets",
                "{sets}",
                "--backend",
                "hff",
                "--model_path",
                "{empty}",
                "--config",
                f"{ROOT}/configs/standin.yaml",
            ],
            "nearest: hf",
        ),
        (["--sets", "{sets}", "--limit", "0"], "--limit 0: at least 1"),
        (["--table", "nowhere.json"], "nowhere.json: no such file"),
        (["--table", "{wrong}"], "not a report"),
        (["--sets", "{sets}", "--more", "{wrong}"], "not a report"),
        (["--sets", "{sets}", "--into", "{wrong}"], "0 marker comment(s)"),
        (["--sets", "{bad}"], "set.jsonl:1: not valid JSON"),
    ],
)
def test_a_wrong_call_is_named(tmp_path, capsys, words, says):
    (tmp_path / "empty").mkdir()
    places = {
        "empty": tmp_path / "empty",
        "sets": write(tmp_path / "sets/a.jsonl", rows(9)).parent,
        "wrong": write(tmp_path / "wrong.json", [{"sets": 3}]),
        "bad": write(tmp_path / "bad/set.jsonl", []).parent,
    }
    (tmp_path / "bad/set.jsonl").write_text("{oh\n")
    assert (
        call(*(word.format(**places) for word in words), *([] if "--out" in words else ["--out", tmp_path / "t.json"]))
        == 2
    )
    assert says in capsys.readouterr().err
    assert not (tmp_path / "t.json").exists()


def test_when_nothing_could_be_scored_the_work_failed(tmp_path, capsys):
    write(tmp_path / "sets/graded.jsonl", rows(9, LABELS))
    assert call("--sets", tmp_path / "sets", "--out", tmp_path / "t.json") == 1
    assert "no set" in capsys.readouterr().err


def test_without_model_and_synthetic_rows_the_cells_say_so(tmp_path):
    write(tmp_path / "sets/easy.jsonl", rows(30))
    assert (
        call("--sets", tmp_path / "sets", "--only", "jaro_winkler", "boosting", "blend", "--out", tmp_path / "t.json")
        == 0
    )
    cells = json.loads((tmp_path / "t.json").read_text())["sets"]["easy"]["scorers"]
    assert "no --synthetic rows" in cells["boosting"]["reason"] and "both" in cells["blend"]["reason"]


def test_splink_that_stops_leaves_a_reason(tmp_path, monkeypatch):
    def stops(*args):
        raise ValueError("m sank to 0\nmore")

    monkeypatch.setattr(baselines, "splink_model", stops)
    write(tmp_path / "sets/easy.jsonl", rows(30))
    assert call("--sets", tmp_path / "sets", "--only", "jaro_winkler", "splink", "--out", tmp_path / "t.json") == 0
    reason = json.loads((tmp_path / "t.json").read_text())["sets"]["easy"]["scorers"]["splink"]["reason"]
    assert reason.endswith("ValueError: m sank to 0")


# Table


def a_cell(ap, f1=0.5, robust=False):
    found = {
        "n": 10,
        "metrics": {
            name: {"value": value, "ci95": [0, 1]}
            for name, value in (("average_precision", ap), ("f1", f1), ("best_f1", 0.75), ("ece_mass", 0.125))
        },
    }
    steady = {
        "swapped": {"changed_pct": 1.5, "flipped_pct": 0.5},
        "shuffled": {"changed_pct": 2.5, "flipped_pct": 0.25},
        "field_removed": {"lost_pct": None},
    }
    counts = {
        "match": {"matches": 4, "others": 1},
        "for_review": {"matches": 1, "others": 1},
        "no_match": {"matches": 0, "others": 3},
    }
    return found | ({"robustness": steady, "verdicts": counts} if robust else {})


def a_report(path, **sets):
    return write_report(
        path,
        {name: {"sha256": name, "n": 1234, "n_positive": 56, "scorers": scorers} for name, scorers in sets.items()},
    )


def write_report(path, sets, **more):
    report = {
        "sets": sets,
        "limit": None,
        "seed": 7,
        "model": {"title": "Mini", "sha256": path.stem * 20, "backend": "hf"},
        "git_commit": "c" * 40,
        "finished": "2026-11-20",
        "synthetic": {"path": "train.jsonl", "sha256": "5" * 64},
    } | more
    path.write_text(json.dumps(report))
    return path


def lines_of(table, start):
    return [line for line in table.splitlines() if line.startswith(f"| {start}")]


def test_one_run_in_the_table(tmp_path):
    path = a_report(
        tmp_path / "a.json",
        abt={"jaro_winkler": a_cell(0.9, None), "model": a_cell(0.95, robust=True)},
        buy={"jaro_winkler": a_cell(0.8), "model": a_cell(0.85)},
    )
    table = transfer_table([path])
    assert lines_of(table, "Set")[0] == "| Set | pairs | matches | Mean Jaro-Winkler | Model |"
    assert lines_of(table, "abt")[0] == "| abt | 1,234 | 56 | 0.900 / - / 0.750 | 0.950 / 0.500 / 0.750 |"
    assert lines_of(table, "**mean AP of 2 sets**") == ["| **mean AP of 2 sets** |  |  | **0.850** | **0.900** |"]
    assert lines_of(table, "abt")[1] == "| abt | Model | 0.125 | 20.0 | 1.50 | 0.50 | 2.50 | 0.25 | - |"


def test_the_mean_is_over_the_sets_that_all_answered(tmp_path):
    path = a_report(
        tmp_path / "a.json",
        abt={"splink": {"reason": "stopped | here"}, "model": a_cell(0.5)},
        buy={"splink": a_cell(0.8), "model": a_cell(0.9)},
    )
    table = transfer_table([path])
    assert lines_of(table, "**mean AP") == ["| **mean AP of 1 set** |  |  | **0.800** | **0.900** |"]
    assert "not run [1]" in lines_of(table, "abt")[0] and "- [1] Splink, abt: stopped \\| here" in table


def test_several_seeds_are_a_mean_with_its_spread(tmp_path):
    paths = [
        a_report(tmp_path / f"{seed}.json", abt={"boosting": a_cell(0.7), "model": a_cell(ap)})
        for seed, ap in enumerate((0.8, 0.9, 1.0))
    ]
    assert lines_of(transfer_table(paths), "abt") == [
        "| abt | 1,234 | 56 | 0.700 / 0.500 / 0.750 | 0.900 ± 0.100 / 0.500 / 0.750 |"
    ]
    only_model = a_report(tmp_path / "3.json", abt={"model": a_cell(0.6)})
    assert "0.825 ± 0.171" in transfer_table([*paths, only_model]), "a run of the model alone adds to its mean"


def test_runs_over_other_rows_do_not_share_a_table(tmp_path):
    first = a_report(tmp_path / "1.json", abt={"model": a_cell(0.8)})
    other = write_report(
        tmp_path / "2.json", {"abt": {"sha256": "other", "n": 5, "n_positive": 2, "scorers": {"model": a_cell(0.9)}}}
    )
    with pytest.raises(UserError, match="not those of"):
        transfer_table([first, other])


def test_into_keeps_every_byte_around_the_markers(tmp_path):
    path = a_report(tmp_path / "a.json", abt={"model": a_cell(0.9)})
    readme = tmp_path / "README.md"
    readme.write_text(f"# Mine\n\n{BEGIN}\nstale\n{END}\ntail  \r\n", encoding="utf-8", newline="")
    for _ in range(2):
        assert call("--table", path, "--into", readme) == 0
    text = readme.read_bytes().decode("utf-8")
    assert text.startswith(f"# Mine\n\n{BEGIN}\n") and text.endswith(f"{END}\ntail  \r\n") and "stale" not in text
    assert transfer_table([path]) in text and text.count(BEGIN) == text.count(END) == 1


def test_a_run_can_draw_its_table_with_earlier_ones(tmp_path, capsys):
    write(tmp_path / "sets/easy.jsonl", rows(30))
    earlier = a_report(tmp_path / "a.json", other={"model": a_cell(0.9)})
    assert (
        call("--sets", tmp_path / "sets", "--only", "jaro_winkler", "--out", tmp_path / "t.json", "--more", earlier)
        == 0
    )
    table = capsys.readouterr().out
    assert lines_of(table, "easy") and lines_of(table, "other")[0].endswith("| 0.900 / 0.500 / 0.750 |")


def test_a_scorers_name_holds_the_code_that_it_is_made_of(monkeypatch):
    import manifest

    code_hash = manifest.code_hash
    name = baselines.scorer_fingerprint(TASK, "boosting")
    for edited, matters in (
        ("tasks/crm/fields.py", True),
        ("tasks/crm/measuring.py", True),
        ("scoring/baselines.py", True),
        ("measurements/_robustness.py", True),
        ("measurements/_transfer_table.py", False),
        ("report/charts.py", False),
    ):
        path = ROOT / "src" / edited
        monkeypatch.setattr(manifest, "code_hash", lambda file, path=path: "new" if file == path else code_hash(file))
        assert (baselines.scorer_fingerprint(TASK, "boosting") != name) == matters, edited
