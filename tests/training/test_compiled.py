"""Batches of one shape, layers compiled where that pays and works, and training as it was where it does not."""

import contextlib
import dataclasses
import functools
import signal

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

import dataset
from build_prompts import prompt_row
from common import ROOT
from config import load_config
from language_model import chat_template
from measurements import _training_run
from tasks import load_task
from tasks.qod.synthetic import rows as qod_rows
from training import compiled, duration, encoding, fine_tuning, micro_batch


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A trainer of the shipped model on packed rows, its adapter not zero any more."""
    task = load_task("qod")
    settings = ["train.packing=on", "train.max_seq_len=1024", "train.batch_size=4", "train.grad_accum=1"]
    config = load_config(ROOT / "configs" / "steward_mini.yaml", [*settings, "peft.dropout=0"], task.overlay)
    chat = chat_template.load_chat(config)
    rows = [prompt_row(row, task) for row in qod_rows(12, 1)]
    examples, _ = dataset.encode_rows(rows, chat, config)
    rows = {"train": encoding.data_set(examples[:10]), "val": encoding.data_set(examples[10:])}
    trainer = fine_tuning.make_trainer(config, task, chat, rows, tmp_path_factory.mktemp("compiled") / "checkpoints")
    for weights in trainer.model.parameters():
        if weights.requires_grad:
            torch.nn.init.normal_(weights, std=0.02)
    trainer.take_plan(trainer.plan.in_micro_batches(trainer.plan.a_step))
    trainer.micro_batch = micro_batch.MicroBatch(2, 2, "as said")
    return trainer


@pytest.fixture
def trainer(made, monkeypatch):
    """The same, everything that a test changes put back after it."""
    for name in ("data_collator", "padding", "plan", "precision", "compiled_layers", "is_recorded"):
        monkeypatch.setattr(made, name, getattr(made, name))
    monkeypatch.setattr(made.args, "dataloader_num_workers", 0)
    yield made
    for layer in layers_of(made):
        layer._compiled_call_impl = None


def layers_of(trainer):
    return [one for one in trainer.model.modules() if isinstance(one, GradientCheckpointingLayer)]


def gradients(trainer):
    with micro_batch.undisturbed(trainer):
        micro_batch.forward_and_backward(trainer, compiled.spread_rows(trainer))
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
        assert (batch["labels"][0, 2 * 1024 - batch[shape.PADDING][0] :] == -100).all()
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


def test_what_validation_may_have_and_training_has_not_stays_as_it_is(trainer):
    shape = compiled.FixedShape(trainer)
    rows = [trainer.train_dataset[0], trainer.train_dataset[1]]
    shape.longest = 100
    assert compiled.FixedShape.PADDING not in shape(rows), "a row is longer than every training row"
    shape = compiled.FixedShape(trainer)
    shape.rows = 2
    assert compiled.FixedShape.PADDING not in shape(rows), "more rows than training packs"


def test_the_loaders_process_leaves_signals_to_the_training(trainer, monkeypatch):
    ignored = []
    monkeypatch.setattr(compiled.signal, "signal", lambda number, handler: ignored.append((number, handler)))
    shape = compiled.FixedShape(trainer)
    shape([trainer.train_dataset[0]])
    assert ignored == [], "not in the training's own process"
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: "a worker")
    for _ in range(2):
        shape([trainer.train_dataset[0]])
    assert ignored == [(number, signal.SIG_IGN) for number in compiled.SIGNALS]


def test_compiled_layers_teach_the_same(trainer, monkeypatch):
    compile_module = torch.nn.Module.compile
    with_eager = functools.partialmethod(compile_module, backend="eager")
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: with_eager.__get__(self)(**how))
    plain = gradients(trainer)
    said = compiled.speed_up(trainer)
    n_layers = len(layers_of(trainer)) - 1
    assert said.startswith(f"{n_layers} layers compiled, the pass not recorded (no CUDA GPU)")
    assert trainer.compiled_layers == n_layers and isinstance(trainer.data_collator, compiled.FixedShape)
    assert torch.allclose(gradients(trainer), plain, rtol=1e-4, atol=1e-6)


def test_training_goes_on_where_the_compiler_fails(trainer, monkeypatch):
    def no_compiler(*args, **how):
        raise RuntimeError("no C compiler\nlong details")

    def compiling_later(work, **how):
        return no_compiler

    monkeypatch.setattr(torch, "compile", compiling_later)
    plain = gradients(trainer)
    collate = trainer.data_collator
    said = compiled.speed_up(trainer)
    assert "compile_layers failed (RuntimeError: no C compiler)" in said and "details" not in said
    assert (trainer.compiled_layers, trainer.is_recorded, trainer.args.dataloader_num_workers) == (0, False, 0)
    assert trainer.data_collator is collate
    assert {layer._compiled_call_impl for layer in layers_of(trainer)} == {None}
    assert torch.allclose(gradients(trainer), plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"processes": 2}, "several GPUs"),
        ({"passes": 2}, "a step of several passes"),
        ({"window": 100}, "attention with a window or dropout"),
        ({"peak": 60}, "too little memory"),
        ({"peak": None}, "too little memory"),
    ],
)
def test_what_stands_against_recording(trainer, monkeypatch, change, why):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(compiled, "n_processes", lambda: change.get("processes", 1))
    monkeypatch.setattr(compiled.micro_batch, "undisturbed", lambda trainer: contextlib.nullcontext())
    monkeypatch.setattr(compiled.micro_batch, "tried", lambda trainer, rows: change.get("peak", 50))
    monkeypatch.setattr(compiled.micro_batch, "free_bytes", lambda: 100)
    trainer.plan = dataclasses.replace(trainer.plan, grad_accum=change.get("passes", 1))
    trainer.data_collator = compiled.FixedShape(trainer)
    monkeypatch.setattr(trainer.model.config, "sliding_window", change.get("window"))
    assert compiled.why_not_recorded(trainer) == why


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_recorded_pass_teaches_the_same(trainer):
    plain = gradients(trainer)
    assert compiled.speed_up(trainer).count("failed") == 0 and trainer.is_recorded
    assert (gradients(trainer) - plain).norm() < 0.05 * plain.norm()


def test_compiled_layers_are_set_aside_as_long_as_validation_lasts(trainer, monkeypatch):
    state = []

    @contextlib.contextmanager
    def set_aside():
        state.append("aside")
        yield
        state.append("back")

    monkeypatch.setattr(compiled, "set_aside", set_aside)
    monkeypatch.setattr(trainer.selection, "metrics", lambda trainer: state.append("looked") or {"exact_pct": 0.0})
    trainer.evaluate()
    assert state == ["aside", "looked", "back"]


@pytest.mark.parametrize(
    ("setting", "seconds", "done"), [("auto", 400, True), ("auto", 60, False), ("on", 60, True), ("off", 400, False)]
)
def test_it_is_done_where_it_pays_or_is_asked_for(trainer, monkeypatch, tmp_path, capsys, setting, seconds, done):
    monkeypatch.setattr(trainer, "precision", "bfloat16")
    monkeypatch.setattr(duration, "of_steps", lambda trainer, steps_done: seconds)
    monkeypatch.setattr(duration, "estimated", lambda trainer, steps: "a while")
    monkeypatch.setattr(compiled, "speed_up", lambda trainer: "made faster")
    config = load_config(ROOT / "configs" / "steward_mini.yaml", [f"train.compile={setting}"])
    fine_tuning.use(trainer, micro_batch.MicroBatch(2, 2, "as said"), config, tmp_path)
    assert ("made faster" in capsys.readouterr().out) is done


def test_unpacked_rows_leave_the_layers_as_they_are(trainer, monkeypatch):
    collate = trainer.data_collator
    monkeypatch.setattr(trainer, "plan", dataclasses.replace(trainer.plan, packing=False))
    assert "not packed" in compiled.speed_up(trainer) and trainer.data_collator is collate


def test_the_measurement_counts_no_padding(trainer):
    trainer.data_collator = compiled.FixedShape(trainer)
    hooks = set(trainer.model._forward_pre_hooks)
    steps = _training_run.Steps(trainer, 0)
    micro_batch.forward_and_backward(trainer, [trainer.train_dataset[0]])
    trainer.model.zero_grad(set_to_none=True)
    trainer.remove_callback(steps)
    for hook in set(trainer.model._forward_pre_hooks) - hooks:
        del trainer.model._forward_pre_hooks[hook]
        trainer.model._forward_pre_hooks_with_kwargs.pop(hook, None)
    row = trainer.train_dataset[0]
    assert steps.real() == (len(row["input_ids"]), len(row["seq_lengths"]))


@pytest.mark.parametrize("change", [{"precision": "float32"}, {"packing": False}, {"checkpointing": True}, {}])
def test_it_pays_only_on_a_gpu_with_packed_rows_that_are_kept(trainer, monkeypatch, change):
    monkeypatch.setattr(duration, "of_steps", lambda trainer, steps_done: 400 - steps_done)
    trainer.precision = change.get("precision", "bfloat16")
    trainer.plan = dataclasses.replace(trainer.plan, packing=change.get("packing", True))
    monkeypatch.setattr(trainer.args, "gradient_checkpointing", change.get("checkpointing", False))
    assert fine_tuning.compiling_pays(trainer, 0) is (change == {})
    assert not fine_tuning.compiling_pays(trainer, 300), "what is done already does not count"
