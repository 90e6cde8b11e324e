"""The measurement of micro-batches goes the way of training, on a model as small as a test wants."""

import json

import pytest

import make_standin
from common import read_json
from config import load_config
from measurements import micro_batches
from support.pipeline import exit_code
from tasks import load_task
from tasks.crm.synthetic import rows as synthetic_rows

TASK = load_task()


@pytest.fixture
def prompts(tmp_path):
    rows = [
        {
            "id": str(at),
            "prompt": TASK.messages(row["input"]),
            "completion": [{"role": "assistant", "content": TASK.completion(row["output"])}],
        }
        for at, row in enumerate(synthetic_rows(12, 1))
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_both_sizes_are_timed_and_every_start_is_told(prompts, tmp_path):
    texts = [message["content"] for line in prompts.read_text().splitlines() for message in json.loads(line)["prompt"]]
    tokenizer, model = make_standin.make(texts, 1)
    shape = tmp_path / "shapes" / "standin"
    tokenizer.save_pretrained(shape)
    model.config.save_pretrained(shape)
    out = tmp_path / "micro.json"
    words = ["--models", "standin", "--methods", "lora", "--shapes", tmp_path / "shapes", "--train", prompts]
    assert exit_code(micro_batches, *words, "--starts", 2, "--passes", 1, "--out", out) == 0
    facts = read_json(out)["cases"]["standin lora"]
    literal = load_config("configs/standin.yaml").train.batch_size
    assert facts["weights"] == "random" and facts["literal"]["size"] == literal
    assert facts["chosen_in_all_starts"] == [facts["choice"]["chosen"]] == [facts["chosen"]["size"]]
    assert facts["chosen"]["tokens_per_s"] > 0 and facts["literal"]["tokens_per_s"] > 0
    assert facts["a_step"] % facts["chosen"]["size"] == 0
