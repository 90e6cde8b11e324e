"""Several answers to each row: drawn anew, the same in every run, and pairs of the wrong ones by one command."""

import dataclasses
import json
import os
import re
import subprocess

import pytest

import build_preferences
import evaluate_kpis
import make_standin
import predict
from common import ROOT, read_json, read_jsonl, write_json
from config import load_config
from constrained_decode import hf
from scoring import predictions
from support.pipeline import exit_code
from support.warm_python import QUIET, warm_python
from tasks import load_task
from tasks.qod import synthetic

QOD = load_task("qod")
ROWS = list(synthetic.rows(12, 3))
HOT = ("--set", "gen.temperature=1", "gen.top_p=1")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of random weights in a folder as training leaves it, which answers greedily unless it is told."""
    folder = tmp_path_factory.mktemp("sampling") / "outputs" / "qod" / "standin-merged"
    texts = [message["content"] for row in ROWS for message in QOD.messages(row["input"])]
    tokenizer, random_model = make_standin.make(texts + [QOD.completion(row["output"]) for row in ROWS], 1)
    tokenizer.save_pretrained(folder)
    random_model.save_pretrained(folder)
    settings = ["gen.max_new_tokens=12", "gen.temperature=0", "train.max_seq_len=2048"]
    config = dataclasses.asdict(load_config(ROOT / "configs" / "standin.yaml", settings))
    write_json(folder / "manifest.json", {"config": config})
    return folder


def written(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def ask(model, tmp_path, capsys):
    """src/predict.py on four rows, two at a time; the lines that it writes."""
    data = written(tmp_path / "rows.jsonl", ROWS[:4])

    def asked(*words, out="p.jsonl", code=0, step=predict):
        given = ["--task", "qod", "--model_path", model, "--data", data, "--batch_size", 2, "--out", tmp_path / out]
        assert exit_code(step, *given, *words) == code
        asked.said = capsys.readouterr()
        return read_jsonl(tmp_path / out) if code == 0 and step is predict else None

    asked.folder = tmp_path
    return asked


def texts(lines):
    return [line["raw"] for line in lines]


@pytest.mark.parametrize("how", [(), ("--unconstrained",)], ids=["constrained", "unconstrained"])
def test_every_row_is_answered_so_many_times_and_each_time_otherwise(ask, how):
    budget = ("gen.max_new_tokens=120",) if not how else ()
    lines = ask(*how, "--samples", 3, "--limit", 2, *HOT, *budget)
    assert [(line["id"], line["sample"]) for line in lines] == [
        (row["id"], number) for row in ROWS[:2] for number in (1, 2, 3)
    ]
    # Held to the grammar, two draws may well be the same short refusal.
    alike = 6 - len(set(texts(lines)))
    assert alike == 0 if how else alike <= 2
    assert how or all(line["answer"] for line in lines)
    facts = read_json(ask.folder / "p.manifest.json")
    assert facts["samples"] == 3 and facts["data"]["rows"] == 2
    assert facts["gen"] == {"max_new_tokens": 12 if how else 120, "temperature": 1.0, "top_p": 1.0}


def test_a_stopped_run_goes_on_with_the_very_same_samples(ask, monkeypatch):
    words = ("--unconstrained", "--samples", 3, *HOT)
    whole = texts(ask(*words, out="whole.jsonl"))
    answers = hf.Engine.answers

    def stopped_in_the_third_batch(engine, conversations, done=()):
        for n, found in enumerate(answers(engine, conversations, done)):
            if n == 5:
                raise KeyboardInterrupt
            yield found

    with monkeypatch.context() as patch:
        patch.setattr(hf.Engine, "answers", stopped_in_the_third_batch)
        ask(*words, code=130)
    assert texts(ask(*words)) == whole
    assert read_json(ask.folder / "p.manifest.json")["rows_resumed"] == 5


def test_other_settings_are_other_answers(ask):
    first = ask("--unconstrained")
    assert "sample" not in first[0] and read_json(ask.folder / "p.manifest.json")["samples"] == 1
    assert texts(ask("--unconstrained", *HOT)) != texts(first)
    ask("--unconstrained", *HOT)
    assert "is up to date" in ask.said.out
    assert len(ask("--unconstrained", *HOT, "--samples", 2)) == 8
    shorter = ask("--unconstrained", *HOT, "gen.max_new_tokens=5")
    assert {line["completion_tokens"] for line in shorter} == {5}


WRONG = {
    "section": (["--set", "train.lr=1"], "--set train.lr=1: the model is trained, so only how it answers may be set"),
    "key": (["--set", "gen.temprature=1"], "unknown key 'gen.temprature' (value 1), did you mean 'gen.temperature'?"),
    "value": (["--set", "gen.top_p=2"], "gen.top_p: 2.0 must be at most 1.0"),
    "no value": (["--set", "gen.top_p"], "--set gen.top_p: write it as section.key=value"),
    "none": (["--samples", "0"], "--samples 0: at least 1"),
    "greedy": (["--samples", "2"], "--samples 2: at temperature 0 every answer to a row is the same; add --set gen."),
}


@pytest.mark.parametrize(("words", "said"), WRONG.values(), ids=WRONG)
def test_what_a_user_gets_wrong_is_said_in_one_sentence(ask, words, said):
    ask(*words, code=2)
    assert said in ask.said.err and ask.said.err.count("\n") == 1


def test_kpis_take_settings_and_one_answer_to_each_row(ask):
    ask("--unconstrained", *HOT, out="x_metrics.json", step=evaluate_kpis)
    assert read_json(ask.folder / "x_metrics.json")["gen"]["temperature"] == 1.0
    ask("--unconstrained", *HOT, "--samples", 2)
    scored = ["--task", "qod", "--predictions", ask.folder / "p.jsonl", "--out", ask.folder / "m.json"]
    assert exit_code(evaluate_kpis, *scored) == 2
    assert exit_code(evaluate_kpis, *scored, *HOT) == 2


def test_a_row_that_is_too_long_takes_the_samples_of_no_other(ask):
    long = ROWS[1] | {"input": {"request": "ж" * 3_900}}
    written(ask.folder / "rows.jsonl", [ROWS[0], long, ROWS[2]])
    words = ("--unconstrained", *HOT)
    ask(*words, code=1)
    for said in ("4 answers in", "is up to date"):
        lines = ask(*words, "--samples", 2)
        assert [bool(line.get("error")) for line in lines] == [False, False, True, True, False, False]
        assert "warning: 2 rows have no answer" in ask.said.out, said


def test_verdicts_with_swapped_sides_are_asked_for_kpis_alone():
    rows = [{"sample": 1}, {"sample": 2}]
    assert predictions.swapped_verdicts(None, load_task("crm"), rows, [], None) == [None, None]


# ---- pairs


def pairs_of(folder):
    return [pair for name in ("preferences.jsonl", "preferences_val.jsonl") for pair in read_jsonl(folder / name)]


def test_a_second_wrong_answer_of_an_input_waits_for_the_first_of_all_others(ask):
    """Twelve inputs, one of them with eight wrong answers."""
    wrong = [
        QOD.completion({"error": {"missing": ["sink"], "conflicting": [], "invalid": []}}) + " " * n for n in range(8)
    ]
    lines = [(row, text) for row in ROWS for text in (wrong if row is ROWS[0] else wrong[:2])]
    answers = [{"id": row["id"], "input": row["input"], "gold": row["output"], "raw": text} for row, text in lines]
    path = written(ask.folder / "p.jsonl", answers)
    train = written(ask.folder / "train.jsonl", ROWS)
    words = ["--task", "qod", "--in", train, "--no_test", "--predictions", path, "--on_policy_share", 1]
    for n, most in ((12, 1), (24, 2), (26, 4)):
        assert exit_code(build_preferences, *words, "--n_pairs", n, "--out", ask.folder) == 0
        requests = [pair["input"]["request"] for pair in pairs_of(ask.folder)]
        assert len(requests) == n and max(map(requests.count, requests)) == most
    facts = read_json(ask.folder / "preferences.manifest.json")
    assert (facts["answers_read"], facts["answers_wrong"]) == (30, 30)


def make(*words, good=True):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")} | QUIET
    call = ["make", f"PY={warm_python()}", "TASK=qod", *map(str, words)]
    result = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert (result.returncode == 0) == good, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout + result.stderr


@pytest.mark.slow
def test_one_command_samples_a_trained_model_on_training_rows_and_makes_pairs(model):
    work = model.parents[2]
    words = (f"WORK={work}/", "preferences", "MODEL=standin", "ROWS=60", "LIMIT=3", "SAMPLES=2", "N_PAIRS=8")
    settings = "SET=gen.max_new_tokens=9"
    said = make(*words, settings)
    data = work / "data" / "qod"
    lines = read_jsonl(data / "standin_sampled.jsonl")
    assert [line["input"] for line in lines[::2]] == [row["input"] for row in read_jsonl(data / "train.jsonl")[:3]]
    facts = read_json(data / "standin_sampled.manifest.json")
    assert (
        facts["gen"] == {"max_new_tokens": 9, "temperature": 1.0, "top_p": 1.0} and facts["decoding"] == "unconstrained"
    )
    assert "of the model's 6 answers: 6 different wrong ones" in said
    # Random weights write no JSON, of which a pair is made only beside others: here beside those of a second file.
    other = [line | {"raw": QOD.completion(line["gold"]).replace("{", '{"admin":1,', 1)} for line in lines]
    path = written(work / "other.jsonl", other)
    assert "standin_sampled.jsonl is up to date" in make(*words, settings, f"PREDICTIONS={path}")
    reasons = [pair["reason"] for pair in pairs_of(data) if pair["violation"] == "on_policy"]
    assert len(pairs_of(data)) == 8 and len(reasons) == 4 and reasons.count("json") == 1
    make(f"WORK={work}/", "clean")
    assert list(data.iterdir()) == []


def test_the_model_is_what_was_trained_under_its_name_else_what_ships(tmp_path):
    def sampled(model, *trained):
        for folder in trained:
            write_json(tmp_path / "outputs" / folder / "manifest.json", {})
        said = make("-n", "TASK=crm", f"WORK={tmp_path}/", "preferences", *([f"MODEL={model}"] if model else []))
        return re.findall(r"predict.py --model_path (\S+)", said)

    outputs = tmp_path / "outputs"
    assert sampled(None) == []
    assert sampled("smollm2_135m") == ["models/crm-smollm2_135m"] and sampled("steward_mini") == ["models/steward-mini"]
    assert sampled("smollm2_135m", "smollm2_135m-lora") == [f"{outputs}/smollm2_135m-lora"]
    assert sampled("smollm2_135m", "smollm2_135m-merged") == [f"{outputs}/smollm2_135m-merged"]
    assert sampled("smollm2_135m-dpo", "smollm2_135m-dpo") == [f"{outputs}/smollm2_135m-dpo"]
    said = make("-n", f"WORK={tmp_path}/", "preferences", "MODEL=phi4mini", good=False)
    assert "no model 'phi4mini' of the task qod: " in said and "make train-<model>" in said
