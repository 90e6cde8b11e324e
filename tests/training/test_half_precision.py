"""A model in bfloat16 with an adapter in float32, as every GPU trains it."""

import pytest
import torch

import dataset
from build_prompts import prompt_row
from common import ROOT
from config import load_config
from language_model import base_model, chat_template
from tasks import load_task
from tasks.crm.synthetic import rows as crm_rows
from tasks.qod.synthetic import rows as qod_rows
from training import encoding, fine_tuning, micro_batch, trainer


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Weights in bfloat16 and autocast, which a CPU has too."""
    load = base_model.load_base

    def in_half(config, attention=None):
        return load(config, attention)[0].to(torch.bfloat16), "bfloat16"

    monkeypatch.setattr(base_model, "load_base", in_half)
    arguments = trainer.Arguments
    monkeypatch.setattr(trainer, "Arguments", lambda **values: arguments(**values | {"use_cpu": True}))


@pytest.mark.parametrize(("name", "synthetic_rows"), [("crm", crm_rows), ("qod", qod_rows)])
def test_every_pass_before_the_first_step_runs_as_training_does(as_on_a_gpu, tmp_path, name, synthetic_rows):
    task = load_task(name)
    config = load_config(ROOT / "configs" / "steward_mini.yaml", ["train.bf16=true", "train.eval_rows=1"], task.overlay)
    chat = chat_template.load_chat(config)
    rows = [prompt_row(row, task) for row in synthetic_rows(6, 1)]
    examples, _ = dataset.encode_rows(rows, chat, config)
    data = {"train": encoding.data_set(examples[:4]), "val": encoding.data_set(examples[4:])}
    made = fine_tuning.make_trainer(config, task, chat, data, tmp_path)
    assert {weights.dtype for weights in made.model.parameters()} == {torch.bfloat16, torch.float32}
    fine_tuning.use(made, micro_batch.MicroBatch(2, 2, "as said"), config, tmp_path)
    assert made.model.training
    assert made.selection.metrics(made).keys() == set(made.selection.METRICS if task.verdict else ["exact_pct"])
