"""Adaptation: no record in two parts, and the table holds nothing that no report holds."""

import json
import random
from collections import Counter

import pytest

from common import UserError, write_json
from measurements import adaptation
from measurements.adaptation import adaptation_table, draw, entities_of, grown_region, records_of
from support.pipeline import exit_code
from tasks import load_task

TASK = load_task()
BEGIN = "<!-- adaptation:begin -->"
END = "<!-- adaptation:end -->"


def row(left, right, label):
    case = {"record1": {"name": left}, "record2": {"name": right}}
    return {"id": f"{left}|{right}", "input": case, "output": {"result": label, "reasoning": "Names compared."}}


def chained(n):
    """Entity k is written as k and k'; k is also compared with k + 1 and k + 7, so that one chain ties all records
    together.
    """
    return [
        row(*pair)
        for k in range(n)
        for pair in (
            (f"{k}", f"{k}'", "DUPLICATE"),
            (f"{k}'", f"{(k + 1) % n}", "NO_MATCH"),
            (f"{k}", f"{(k + 7) % n}'", "NO_MATCH"),
        )
    ]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def call(*words):
    return exit_code(adaptation, *words)


# Drawing


def test_no_record_and_no_entity_is_in_both_parts():
    rows = chained(500)
    train, val = draw(rows, 1000, 1, TASK)
    assert (len(train), len(val)) == (800, 200)
    assert not records_of(train) & records_of(val)
    entities = dict(zip((each["id"] for each in rows), entities_of(rows, TASK), strict=True))
    of_train, of_val = ({entity for each in part for entity in entities[each["id"]]} for part in (train, val))
    assert not of_train & of_val


def test_classes_keep_their_shares():
    for part in draw(chained(500), 1000, 1, TASK):
        counts = Counter(each["output"]["result"] for each in part)
        assert counts["DUPLICATE"] == pytest.approx(len(part) / 3, abs=1)


def test_the_seed_draws():
    first, again, other = (draw(chained(500), 1000, seed, TASK) for seed in (1, 1, 2))
    assert first == again and first != other


def test_a_region_that_cannot_be_filled_takes_all_and_ends():
    assert grown_region({"a": [0], "b": [0]}, [("a", "b")], ["NO_MATCH"], {"NO_MATCH": 5}, random.Random(1)) == {
        "a",
        "b",
    }


# The call and its table


@pytest.fixture
def folds(tmp_path):
    for fold in (1, 2):
        write(tmp_path / "folds" / f"small.{fold}.jsonl", chained(60))
    return tmp_path / "folds"


def model_folder(folder):
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "manifest.json").write_text(json.dumps({"config": CONFIG}))
    return folder


CONFIG = {
    "name": "Tiny",
    "model_id": "models/tiny",
    "peft": {"method": "lora", "r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"},
    "train": {
        "lr": 1e-3,
        "epochs": 1.0,
        "batch_size": 8,
        "grad_accum": 1,
        "max_seq_len": 512,
        "bf16": False,
        "gradient_ckpt": False,
    },
    "gen": {"max_new_tokens": 64, "temperature": 0.0, "top_p": 1.0},
}


def test_small_sets_are_listed_as_not_run(folds, tmp_path, capsys):
    out = tmp_path / "adaptation.json"
    assert call("--model_path", model_folder(tmp_path / "model"), "--folds", folds, "--out", out) == 1
    assert "small: not run: too few: 180 pairs with 60 matches" in capsys.readouterr().out
    assert "too few" in json.loads(out.read_text())["sets"]["small"]["reason"]


def test_what_is_missing_is_said(folds, tmp_path, capsys):
    model = model_folder(tmp_path / "model")
    for words, said in (
        (["--folds", folds], "--model_path"),
        (["--model_path", model, "--folds", tmp_path / "none"], "no such folder"),
        (["--model_path", model, "--folds", folds, "--sets", "other"], "no other.1.jsonl"),
        (["--model_path", model, "--folds", folds, "--pairs", 3], "at least 50"),
    ):
        assert call(*words) == 2
        assert said in capsys.readouterr().err


def report(f1_after, f1_boosting, seconds=100.0):
    scorers = {
        name: {"metrics": {metric: {"value": value} for metric in ("f1", "best_f1", "average_precision", "ece_mass")}}
        for name, value in (("before", 0.5), ("after", f1_after), ("boosting", f1_boosting))
    }
    return {
        "model": {"title": "Tiny", "sha256": "ab" * 32},
        "pairs": 1000,
        "seed": 1,
        "hardware": {"cpu_cores": 2},
        "sets": {
            "big": {"scored": {"n": 3000}, "training": {"seconds": seconds, "threads": "2"}, "scorers": scorers},
            "small": {"reason": "too few: 9 pairs"},
        },
    }


def test_table_of_one_run_and_of_two(tmp_path):
    for name, facts in (("a", report(0.9, 0.8)), ("b", report(0.8, 0.85, 110.0))):
        write_json(tmp_path / f"{name}.json", facts)
    one = adaptation_table([tmp_path / "a.json"])
    two = adaptation_table([tmp_path / "a.json", tmp_path / "b.json"])
    assert (
        "| big | 3,000 | 0.500 / 0.500 / 0.500 / 0.500 | 0.900 / 0.900 / 0.900 / 0.900 | 0.800 / 0.800 / 0.800 / 0.800 "
        "| 100 |" in one
    )
    assert "at least boosting's on 1 of 1 sets" in one and "- small: not run: too few: 9 pairs" in one
    assert "0.850 ± 0.071" in two and "105 ± 7" in two and "on 0 of 1 sets" in two


def test_table_goes_between_the_markers(tmp_path):
    write_json(tmp_path / "a.json", report(0.9, 0.8))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nanother table\n{END}\nafter\n")
    assert call("--table", tmp_path / "a.json", "--into", page) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n\nF1 at") and text.endswith(f"{END}\nafter\n") and "another" not in text
    page.write_text("no markers")
    assert call("--table", tmp_path / "a.json", "--into", page) == 2


def test_a_damaged_report_is_named(tmp_path):
    write_json(tmp_path / "bad.json", {"sets": {}})
    with pytest.raises(UserError, match=r"bad.json: not a report of src/measure.py adaptation"):
        adaptation_table([tmp_path / "bad.json"])


# The whole way, with the stand-in


@pytest.mark.slow
def test_adapts_the_stand_in_and_scores_it(tmp_path):
    from support.pipeline import done, prepared

    project = prepared(tmp_path / "project")
    for fold in (1, 2):
        write(project / "folds" / f"made.{fold}.jsonl", [each | {"id": f"{fold}{each['id']}"} for each in chained(400)])
    done(
        "src/measure.py",
        "adaptation",
        "--model_path",
        "models/standin",
        "--config",
        "configs/standin.yaml",
        "--folds",
        "folds",
        "--pairs",
        60,
        "--test_rows",
        40,
        "--set",
        "train.epochs=1",
        "train.verdict_weight=4",
        cwd=project,
    )
    found = json.loads((project / "reports" / "adaptation.json").read_text())
    facts = found["sets"]["made"]
    assert facts["drawn"]["train"]["rows"] + facts["drawn"]["val"]["rows"] == pytest.approx(60, abs=2)
    assert (
        set(facts["scorers"]) == {"before", "after", "boosting"} and facts["training"]["train"]["verdict_weight"] == 4.0
    )
    assert facts["training"]["seconds"] > 0 and facts["training"]["calibration"] is None
