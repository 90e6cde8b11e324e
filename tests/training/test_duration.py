"""The time of a training: the sum of its parts, each from the seconds of a token; no measuring ends a training."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from training import duration, merge_adapter, micro_batch, parity, selection
from training.duration import Costs, Work

COSTS = Costs(trained=1.0, judged=0.1, alone=0.2, selection=30.0, load=5.0)


def test_each_part_is_its_tokens_times_their_seconds():
    work = Work(steps=9, validations=2, trained=1000, validation=200, gate=64, calibration=100)
    found = duration.parts(COSTS, work)
    assert found["steps"] == pytest.approx(1000)
    assert found["validations"] == pytest.approx(2 * (20 + 30))
    # Two models read 64 tokens one by one, in batches and with answers.
    assert found["merge"] == pytest.approx(2 * 64 * (0.2 + 0.1 + 0.2) + 100 * 0.1 + 3 * 5)


def rows(n, length):
    return Dataset.from_list([{"input_ids": [1] * length}] * n)


def trainer(n_val=30, branch=True, at_once=4):
    """What duration.py asks of a trainer whose model learns one number."""
    plan = SimpleNamespace(a_step=8, rows_a_step=8, per_device=4)
    args = SimpleNamespace(num_train_epochs=2, eval_steps=0.25, per_device_eval_batch_size=at_once)
    return SimpleNamespace(
        plan=plan,
        args=args,
        selection=SimpleNamespace(branch=branch, seconds=lambda trainer: 1.0),
        train_dataset=rows(40, 10),
        eval_dataset=rows(n_val, 7),
        model=torch.nn.Linear(1, 1),
        load_s=1.0,
    )


@pytest.mark.parametrize(("done", "left", "looks"), [(0, 10, 4), (6, 4, 2)])
def test_what_is_done_is_not_counted_again(done, left, looks):
    work = duration.ahead(trainer(), done)
    assert (work.steps, work.validations) == (left, looks)
    assert work.trained == pytest.approx(800 * left / 10)


@pytest.mark.parametrize(("n_val", "branch", "calibrated"), [(30, True, 0), (100, True, 100), (100, False, 0)])
def test_calibration_reads_rows_that_the_gate_has_not(n_val, branch, calibrated):
    work = duration.ahead(trainer(n_val, branch), 0)
    assert work.gate == 7 * min(parity.N_PROMPTS, n_val)
    assert work.calibration == 7 * min(merge_adapter.N_CALIBRATION, calibrated)


@pytest.fixture
def passes(monkeypatch):
    """Rows of every pass that is timed; a training pass leaves gradients, and a pass named in `full` runs out."""
    seen = SimpleNamespace(trained=[], read=[], full=None, released=0)

    def trained(trainer, batch):
        seen.trained.append(len(batch))
        trainer.model(torch.ones(1, 1)).sum().backward()
        out_of_memory("trained")

    def read(trainer, batch):
        seen.read.append(len(batch))
        out_of_memory("read")

    def out_of_memory(name):
        if seen.full == name:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def release():
        seen.released += 1

    monkeypatch.setattr(duration, "LEAST_S", 0)
    monkeypatch.setattr(micro_batch, "forward_and_backward", trained)
    monkeypatch.setattr(duration, "read", read)
    monkeypatch.setattr(micro_batch, "undisturbed", lambda trainer: contextlib.nullcontext())
    monkeypatch.setattr(micro_batch, "release", release)
    seen.trainer = trainer()
    return seen


@pytest.mark.parametrize(("at_once", "most"), [(2, 2), (64, duration.ROWS_TIMED)])
def test_no_more_rows_at_once_are_timed_than_will_be_read(passes, at_once, most):
    passes.trainer.args.per_device_eval_batch_size = at_once
    assert "4 validations" in duration.estimated(passes.trainer)
    assert (max(passes.trained), max(passes.read)) == (passes.trainer.plan.per_device, most)
    assert passes.trainer.model.weight.grad is None


@pytest.mark.parametrize("full", ["trained", "read"])
def test_too_little_memory_to_measure_leaves_the_time_out(passes, full):
    passes.full = full
    assert duration.estimated(passes.trainer).startswith("not known")
    assert passes.trainer.model.weight.grad is None, "what half a pass left would be learned"
    assert passes.released


def test_a_process_that_times_its_selection_waits_for_no_other(monkeypatch):
    import accelerate.utils

    def gathered(found):
        raise AssertionError("one that ran out of memory would never come")

    monkeypatch.setattr(accelerate.utils, "gather_object", gathered)
    one = trainer()
    one.accelerator = SimpleNamespace(process_index=1, num_processes=2, autocast=contextlib.nullcontext)
    seen = []
    selection.seconds_of_all(
        one, [[1, 2]] * 8, [[1, 2]] * 8, lambda model, prompts: [seen.append(prompt) for prompt in prompts]
    )
    assert len(seen) == 4
