"""Micro-batches: chosen by what fits, the same rows a step whatever their size, halved where memory runs out."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from common import WorkFailed
from training import fine_tuning, micro_batch
from training.fine_tuning import Plan

MEGABYTE = 1_000_000


def plan(per_device=8, grad_accum=8):
    return Plan(False, per_device, grad_accum, per_device, per_device * grad_accum, "not packed")


class Machine:
    """A GPU of so many megabytes on which a pass takes 100 and so many a row."""

    def __init__(self, monkeypatch, total, a_row, jump_at=math.inf):
        self.total = total * MEGABYTE
        self.a_row = a_row * MEGABYTE
        self.jump_at = jump_at
        self.passes = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(micro_batch, "free_bytes", lambda: self.total)
        monkeypatch.setattr(micro_batch, "optimizer_bytes", lambda trainer: 0)
        monkeypatch.setattr(micro_batch, "longest_rows", lambda trainer, n: list(range(n)))
        monkeypatch.setattr(micro_batch, "tried", self.tried)

    def tried(self, trainer, rows):
        self.passes.append(len(rows))
        extra = self.total if len(rows) >= self.jump_at else 0
        peak = 100 * MEGABYTE + self.a_row * len(rows) + extra
        return peak if peak <= self.total else None


@pytest.mark.parametrize(
    ("total", "a_row", "chosen"),
    [(10_000, 10, 64), (1_000, 50, 16), (400, 50, 4), (120, 50, 1)],
    ids=["all", "a divisor below 90 %", "few", "not even one"],
)
def test_the_largest_divisor_whose_peak_fits(monkeypatch, total, a_row, chosen):
    machine = Machine(monkeypatch, total, a_row)
    found = micro_batch.probed(SimpleNamespace(plan=plan()))
    assert (found.chosen, found.literal) == (chosen, 8)
    assert chosen == 1 or machine.passes[-1] == chosen, "one real pass of that size confirms it"
    assert chosen == 1 or found.predicted_gb == pytest.approx((100 + a_row * chosen) / 1000, abs=0.01)


@pytest.mark.parametrize(
    ("asked", "bins"), [(29.1, 30), (7.3, 8), (21.8, 22), (12.8, 12), (4.8, 5), (0.4, 1), (2.6, 3), (64, 64), (29, 29)]
)
def test_bins_of_a_step_can_be_halved_where_memory_runs_out(asked, bins):
    assert fine_tuning.divisible(asked) == bins, "5 and 29: no other number is near, or asked for as it is"


def test_a_size_that_runs_out_after_all_gives_way_to_the_next_divisor(monkeypatch):
    machine = Machine(monkeypatch, 10_000, 10, jump_at=32)
    assert micro_batch.probed(SimpleNamespace(plan=plan())).chosen == 16
    assert machine.passes == [1, 2, 4, 64, 32, 16]


def test_a_run_that_goes_on_keeps_its_size_unless_memory_became_too_small(monkeypatch, tmp_path):
    trainer = SimpleNamespace(plan=plan())
    micro_batch.keep(tmp_path, micro_batch.MicroBatch(16, 8, "w"), trainer.plan)
    Machine(monkeypatch, 10_000, 10)
    assert micro_batch.kept(trainer, tmp_path / micro_batch.FILE).chosen == 16
    assert micro_batch.kept(SimpleNamespace(plan=plan(8, 4)), tmp_path / micro_batch.FILE) is None, "other rows a step"
    Machine(monkeypatch, 200, 10)
    assert micro_batch.kept(trainer, tmp_path / micro_batch.FILE) is None
    (tmp_path / micro_batch.FILE).write_text("{")
    assert micro_batch.kept(trainer, tmp_path / micro_batch.FILE) is None


class Loop:
    """A trainer that runs out of memory above so many rows, at its third step."""

    most = 4
    made = []

    def __init__(self):
        self.plan = plan()
        self.state = SimpleNamespace(global_step=0)
        self.accelerator = SimpleNamespace(wait_for_everyone=lambda: None)
        self.saved = 0
        Loop.made.append(self)

    def _save_checkpoint(self, model, trial):
        self.saved += 1

    model = None


@pytest.fixture
def loop(monkeypatch):
    Loop.made = []

    def run(trainer, checkpoints):
        if trainer.plan.per_device > Loop.most:
            trainer.state.global_step = 2
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def use(trainer, choice, config, checkpoints):
        trainer.plan = trainer.plan.in_micro_batches(choice.chosen)
        trainer.micro_batch = choice

    monkeypatch.setattr(fine_tuning, "run_from_the_last", run)
    monkeypatch.setattr(fine_tuning, "use", use)
    monkeypatch.setattr(micro_batch, "choose", lambda *_: micro_batch.MicroBatch(64, 8, "all rows of a step fit"))


CONFIG = SimpleNamespace(train=SimpleNamespace(micro_batch="auto"))


def test_out_of_memory_halves_the_micro_batch_and_goes_on(loop, monkeypatch, tmp_path):
    monkeypatch.setattr(Loop, "most", 16)
    trained = fine_tuning.run_within_memory(Loop, CONFIG, tmp_path, "x.yaml")
    assert (trained.plan.per_device, trained.plan.grad_accum) == (16, 4), "rows a step stay"
    assert [one.saved for one in Loop.made] == [1, 1, 0], "what was done was saved first"
    assert trained.micro_batch.why.startswith("out of memory with 32")


@pytest.mark.parametrize(("most", "processes"), [(0, 1), (4, 2)], ids=["one row", "one of several GPUs"])
def test_where_no_smaller_one_helps_the_run_ends_with_advice(loop, monkeypatch, tmp_path, most, processes):
    monkeypatch.setattr(Loop, "most", most)
    monkeypatch.setattr(fine_tuning, "n_processes", lambda: processes)
    with pytest.raises(WorkFailed, match=r"x\.yaml: the GPU's memory does not suffice for .*gradient_ckpt=true"):
        fine_tuning.run_within_memory(Loop, CONFIG, tmp_path, "x.yaml")


def test_the_plan_is_written_beside_the_checkpoints(tmp_path):
    micro_batch.keep(tmp_path, micro_batch.MicroBatch(16, 8, "w", 1.5, 2.0), plan())
    kept = json.loads((tmp_path / micro_batch.FILE).read_text())
    assert kept["chosen"] == 16 and kept["a_step"] == 64 and kept["predicted_gb"] == 1.5
