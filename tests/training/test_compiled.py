"""Batches of one shape, layers compiled where that pays and works, and training as it was where it does not."""

import dataclasses

import pytest
import torch

import dataset
from common import ROOT
from config import load_config
from language_model import chat_template
from measurements import _training_run
from tasks import load_task
from tasks.qod.synthetic import rows as qod_rows
from training import compiled, duration, fine_tuning, micro_batch


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A trainer of the shipped model on packed rows, its adapter not zero any more."""
    task = load_task("qod")
    settings = ["train.packing=on", "train.max_seq_len=1024", "train.batch_size=4", "train.grad_accum=1"]
    config = load_config(ROOT / "configs" / "steward_mini.yaml", [*settings, "peft.dropout=0"], task.overlay)
    chat = chat_template.load_chat(config)
    rows = [
        {
            "id": row["id"],
            "prompt": task.messages(row["input"]),
            "completion": [{"role": "assistant", "content": task.completion(row["output"])}],
        }
        for row in qod_rows(12, 1)
    ]
    examples, _ = dataset.encode_rows(rows, chat, config)
    rows = {"train": examples[:10], "val": examples[10:]}
    trainer = fine_tuning.make_trainer(config, task, chat, rows, tmp_path_factory.mktemp("compiled") / "checkpoints")
    for weights in trainer.model.parameters():
        if weights.requires_grad:
            torch.nn.init.normal_(weights, std=0.02)
    trainer.take_plan(trainer.plan.in_micro_batches(trainer.plan.a_step))
    trainer.micro_batch = micro_batch.MicroBatch(2, 2, "as said")
    return trainer


@pytest.fixture
def trainer(made, monkeypatch):
    """The same, with its own collator and layers back after the test."""
    monkeypatch.setattr(made, "data_collator", made.data_collator)
    monkeypatch.setattr(made, "compiled_layers", 0)
    monkeypatch.setattr(made.args, "dataloader_num_workers", 0)
    return made


def gradients(trainer):
    with micro_batch.undisturbed(trainer):
        micro_batch.forward_and_backward(trainer, compiled.some_rows(trainer))
        found = torch.cat([weights.grad.flatten() for weights in trainer.model.parameters() if weights.requires_grad])
    trainer.model.zero_grad(set_to_none=True)
    return found


def test_filled_up_batches_have_one_shape_and_teach_the_same(trainer):
    plain = gradients(trainer)
    trainer.data_collator = shape = compiled.FixedShape(trainer)
    full, small = (shape([trainer.train_dataset[at] for at in some]) for some in (range(2), range(1)))
    assert full["input_ids"].shape == small["input_ids"].shape == (1, 2 * 1024)
    assert len(full["cu_seq_lens_q"]) == len(small["cu_seq_lens_q"]) == shape.rows + 1
    for batch in (full, small):
        bounds = batch["cu_seq_lens_q"]
        assert bounds[-1] == 2 * 1024 and bounds.diff().min() >= 0 and bounds.diff().max() <= shape.longest
        assert (batch["labels"][0, batch[shape.REAL][0] :] == -100).all()
    assert torch.allclose(gradients(trainer), plain, rtol=1e-4, atol=1e-6)


def test_what_fills_a_batch_up_is_not_counted(trainer):
    trainer.data_collator = shape = compiled.FixedShape(trainer)
    batch = shape([trainer.train_dataset[0]])
    before = trainer._total_train_tokens
    trainer.model.train()
    trainer.compute_loss(trainer.model, batch)
    assert trainer._total_train_tokens - before == len(trainer.train_dataset[0]["input_ids"]) < 1024


def test_a_batch_that_is_too_large_stays_as_it_is(trainer):
    shape = compiled.FixedShape(trainer)
    rows = [trainer.train_dataset[0]] * 5
    assert shape(rows)["input_ids"].shape == shape.collate(rows)["input_ids"].shape


def test_training_goes_on_where_the_compiler_fails(trainer, monkeypatch):
    def no_compiler(*args, **settings):
        raise RuntimeError("no C compiler\nlong details")

    monkeypatch.setattr(torch, "compile", no_compiler)
    plain = gradients(trainer)
    monkeypatch.setattr(compiled, "has_room", lambda choice: True)
    said = compiled.speed_up(trainer)
    assert "compile_layers failed (RuntimeError: no C compiler)" in said and "details" not in said
    assert "record failed" in said, "a CPU has no CUDA graphs"
    assert (trainer.compiled_layers, trainer.is_recorded) == (0, False)
    assert torch.allclose(gradients(trainer), plain, rtol=1e-4, atol=1e-6)


def test_compiled_layers_are_set_aside_for_validation(trainer, monkeypatch):
    entered = []
    real = compiled.set_aside
    monkeypatch.setattr(compiled, "set_aside", lambda: entered.append(True) or real())
    monkeypatch.setattr(trainer.selection, "metrics", lambda trainer: {"exact_pct": 0.0})
    trainer.evaluate()
    assert entered


@pytest.mark.parametrize(
    ("setting", "seconds", "done"), [("auto", 400, True), ("auto", 60, False), ("on", 60, True), ("off", 400, False)]
)
def test_it_is_done_where_it_pays_or_is_asked_for(trainer, monkeypatch, tmp_path, capsys, setting, seconds, done):
    monkeypatch.setattr(trainer, "precision", "bfloat16")
    monkeypatch.setattr(duration, "of_steps", lambda trainer: seconds)
    monkeypatch.setattr(duration, "estimated", lambda trainer, steps: "a while")
    monkeypatch.setattr(compiled, "speed_up", lambda trainer: "made faster")
    config = load_config(ROOT / "configs" / "steward_mini.yaml", [f"train.compile={setting}"])
    fine_tuning.use(trainer, micro_batch.MicroBatch(2, 2, "as said"), config, tmp_path)
    assert ("made faster" in capsys.readouterr().out) is done


def test_unpacked_rows_leave_the_layers_as_they_are(trainer, monkeypatch):
    collate = trainer.data_collator
    monkeypatch.setattr(trainer, "plan", dataclasses.replace(trainer.plan, packing=False))
    assert "not packed" in compiled.speed_up(trainer) and trainer.data_collator is collate


def test_the_measurement_counts_no_filling(trainer):
    trainer.data_collator = compiled.FixedShape(trainer)
    compute = trainer.compute_loss
    steps = _training_run.Steps(trainer, 0)
    try:
        micro_batch.forward_and_backward(trainer, [trainer.train_dataset[0]])
    finally:
        trainer.compute_loss = compute
        trainer.model.zero_grad(set_to_none=True)
    row = trainer.train_dataset[0]
    assert (int(steps.tokens), int(steps.rows)) == (len(row["input_ids"]), len(row["seq_lengths"]))
