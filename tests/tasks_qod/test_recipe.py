"""The recipe of the task's overlay with the Alpaca layout, on the stand-in; what cannot run here is replaced."""

import json

import pytest

import dpo_train
import make_standin
import sft_train
from build_prompts import prompt_row
from common import ROOT, read_json, read_jsonl
from language_model import hub
from support.pipeline import exit_code
from tasks import load_task
from training import fine_tuning

TASK = load_task("qod")
REPLACED = "train.optimizer: paged_adamw_8bit needs a CUDA GPU, which is not here; training with adamw"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A stand-in base, and prompts of the task's sample."""
    place = tmp_path_factory.mktemp("recipe")
    rows = [prompt_row(row, TASK) for row in read_jsonl(TASK.folder / "sample.jsonl")]
    texts = [message["content"] for row in rows for message in row["prompt"] + row["completion"]]
    tokenizer, model = make_standin.make(texts, 1)
    model.save_pretrained(place / "base")
    tokenizer.save_pretrained(place / "base")
    for name, some in (("train", rows[2:10]), ("val", rows[:2])):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return place


@pytest.mark.slow
def test_it_trains_on_a_cpu_and_the_merged_model_carries_the_layout(place, monkeypatch, capfd):
    # Two test workers share the cores, so each keeps to its one thread.
    monkeypatch.setattr(fine_tuning, "use_every_core", lambda: None)
    files = ["--train", place / "train.jsonl", "--val", place / "val.jsonl", "--out", place / "out"]
    settings = [f"model_id={place}/base", "chat.template=alpaca", "train.epochs=1", "train.evals_per_epoch=1"]
    # Random weights write up to the budget wherever the checkpoint is picked by answers.
    settings += ["gen.max_new_tokens=120", "train.eval_rows=1"]
    words = ["--config", ROOT / "configs" / "standin.yaml", "--task", "qod", *files, "--set", *settings]
    assert exit_code(sft_train, *words) == 0
    said = capfd.readouterr().out
    assert said.count(REPLACED) == 1 and said.index(REPLACED) < said.index("rows a step")
    facts = read_json(place / "out" / "standin-lora" / "manifest.json")
    assert facts["training"]["optimizer"] == "adamw" and facts["config"]["train"]["optimizer"] == "paged_adamw_8bit"
    merged = hub.load_tokenizer(str(place / "out" / "standin-merged"))
    messages = TASK.messages({"request": "An hour."})
    text = merged.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == f"### Instruction:\n{TASK.system_text}\n\n### Input:\nAn hour.\n\n### Response:\n"


def test_missing_pairs_are_made_by_the_task(tmp_path, capfd):
    words = ["--config", ROOT / "configs" / "standin.yaml", "--task", "qod", "--train", tmp_path / "none.jsonl"]
    assert exit_code(dpo_train, *words) == 2
    assert (
        "none.jsonl: no such file; make preferences TASK=qod (src/build_preferences.py) makes" in capfd.readouterr().err
    )
