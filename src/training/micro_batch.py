"""The micro-batch: the most rows whose forward and backward pass fits into memory, found by trying them.

Heavy to import (torch): only fine_tuning.py does, once it trains.
"""

import contextlib
import dataclasses
import gc
import json
import math
import os
from pathlib import Path

import pyarrow.compute
import torch

from common import write_json
from training import optimizer
from training.processes import is_main, n_processes

FILE = "micro_batch.json"
SHARE_OF_FREE = 0.9  # the rest is for what the allocator cannot use between its blocks
SIZES_TRIED = (1, 2, 4)  # a line needs two points; the third lies where the fixed part weighs less
# Hidden values of all layers that a micro-batch holds on a CPU. More rows at once are slower there, for they leave the
# caches and pay for padding: on two cores that had other work too, a row took SmolLM2-135M 4.6-4.9 s of CPU time alone,
# 4.3-5.5 in twos and 6.4-7.5 in fours, and Steward mini 0.19 s alone, 0.13-0.17 in fours and 0.17 in sixteens.
VALUES_ON_A_CPU = 2_500_000
ADAM_STATES = 2  # values that the optimizer keeps for each that it trains


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """Rows (packed: bins) that one forward and backward pass takes, and why."""

    chosen: int
    literal: int
    why: str
    predicted_gb: float | None = None
    free_gb: float | None = None

    @property
    def words(self):
        line = f"micro-batch: {self.chosen} (batch_size as written: {self.literal})"
        if self.predicted_gb is not None and self.free_gb is not None:
            line += f", {self.predicted_gb:.1f} GB predicted of {self.free_gb:.1f} GB free"
        return f"{line}: {self.why}"


def choose(trainer, setting, folder):
    """The micro-batch of a run; all its processes get the smallest that any of them found."""
    plan = trainer.plan
    if setting != "auto":
        return MicroBatch(plan.per_device, plan.literal, "as the config says")
    with undisturbed(trainer):
        found = kept(trainer, folder / FILE) or probed(trainer)
    chosen = least_of_all(found.chosen)
    if chosen != found.chosen:
        found = dataclasses.replace(found, chosen=chosen, why="the most that fits into every GPU of this run")
    keep(folder, found, plan)
    return found


def keep(folder, choice, plan):
    """Note the choice beside the checkpoints, for the run that goes on from them."""
    if is_main():
        write_json(folder / FILE, dataclasses.asdict(choice) | {"a_step": plan.a_step, "processes": n_processes()})


def kept(trainer, path):
    """The choice of the run that left these checkpoints, where it fits this run and its memory; else None."""
    try:
        found = json.loads(path.read_text())
        same_run = (found.pop("a_step"), found.pop("processes")) == (trainer.plan.a_step, n_processes())
        choice = MicroBatch(**found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    if not same_run or choice.chosen not in divisors(trainer.plan.a_step):
        return None
    peak = tried(trainer, longest_rows(trainer, choice.chosen))
    if peak is None or peak + optimizer_bytes(trainer) > SHARE_OF_FREE * free_bytes():
        return None
    return dataclasses.replace(choice, why="as this run had it before")


def probed(trainer):
    """The largest divisor of a step's rows whose predicted peak is below the limit, and that one real pass confirms."""
    plan = trainer.plan
    on_gpu = torch.cuda.is_available()
    most = plan.a_step if on_gpu else rows_that_pay_on_a_cpu(trainer)
    sizes = [size for size in divisors(plan.a_step) if size <= most]
    rows = longest_rows(trainer, sizes[-1])
    later = optimizer_bytes(trainer)
    free = free_bytes()
    fixed, per_row = line(peaks_of(trainer, rows, sizes[-1]))
    for size in reversed(sizes):
        peak = predicted = fixed + per_row * size + later
        if predicted > SHARE_OF_FREE * free and size > 1:
            continue
        if on_gpu and size > 1:
            measured = tried(trainer, rows[:size])
            peak = math.inf if measured is None else measured + later
        if peak <= SHARE_OF_FREE * free or size == 1:
            break
    known = math.isfinite(predicted) and predicted > 0 and math.isfinite(free)
    return MicroBatch(
        size,
        plan.literal,
        reason(size, sizes[-1], on_gpu),
        round(predicted / 1e9, 2) if known else None,
        round(free / 1e9, 2) if known else None,
    )


def rows_that_pay_on_a_cpu(trainer):
    shape = trainer.model.config.get_text_config()
    values_a_row = shape.hidden_size * shape.num_hidden_layers * len(longest_rows(trainer, 1)[0]["input_ids"])
    return max(1, VALUES_ON_A_CPU // values_a_row)


def reason(size, most, on_gpu):
    if size < most:
        return f"the most whose peak stays below {SHARE_OF_FREE:.0%} of it"
    return "all rows of a step fit" if on_gpu else "more at once are not faster on a CPU"


def peaks_of(trainer, rows, most):
    """{size: peak bytes} of the small sizes that memory suffices for."""
    peaks = {}
    for size in SIZES_TRIED:
        if size > most or (peak := tried(trainer, rows[:size])) is None:
            break
        peaks[size] = peak
    return peaks


def line(peaks):
    """(fixed, a row) of the line through measured peaks, with the steepest of its parts: the last rows are shorter."""
    if not peaks:
        return 0.0, math.inf
    points = sorted(peaks.items())
    if len(points) == 1:
        return 0.0, float(points[0][1])
    slopes = [(top - low) / (more - few) for (few, low), (more, top) in zip(points, points[1:], strict=False)]
    per_row = max(0.0, *slopes)
    size, peak = points[-1]
    return peak - per_row * size, per_row


def divisors(n):
    return [size for size in range(1, n + 1) if n % size == 0]


def largest_divisor(n, most):
    return max(size for size in divisors(n) if size <= max(1, most))


def longest_rows(trainer, n):
    """The n longest training rows (packed: the fullest bins), longest first."""
    return [trainer.train_dataset[at] for at in by_length(trainer.train_dataset)[::-1][:n]]


def by_length(examples):
    """Positions of a data set's rows, shortest first."""
    n_tokens = lengths(examples)
    return sorted(range(len(n_tokens)), key=n_tokens.__getitem__)


def lengths(examples):
    """Tokens of each row; the token ids themselves are not turned into Python's."""
    found = []
    for table in examples.with_format("arrow").iter(batch_size=10_000):
        found += pyarrow.compute.list_value_length(table["input_ids"]).to_pylist()
    return found


@contextlib.contextmanager
def undisturbed(trainer):
    """Passes inside the block leave no trace: random numbers, gradients, token counts and metrics are as before.

    Each process tries on its own, so nothing is gathered meanwhile: one that runs out of memory would leave the others
    waiting.
    """
    from peft.helpers import disable_input_dtype_casting

    accelerator = trainer.accelerator
    tokens = trainer._total_train_tokens
    if trainer.args.gradient_checkpointing:
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    trainer.current_gradient_accumulation_steps = 1
    accelerator.gather_for_metrics = lambda values: values
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    unlifted = disable_input_dtype_casting(trainer.model, active=trainer.precision != "float32")
    was_training = trainer.model.training
    try:
        # The trainer prepares its model only when it trains; until then autocast is not part of it.
        with torch.random.fork_rng(devices), unlifted, accelerator.autocast():
            yield
    finally:
        del accelerator.gather_for_metrics
        trainer._total_train_tokens = tokens
        for metrics in trainer._metrics.values():
            metrics.clear()
        trainer.model.train(was_training)
        release()


def tried(trainer, rows):
    """Peak bytes of one forward and backward pass of the trainer's own; None where memory does not suffice."""
    release()
    reset_peak()
    try:
        forward_and_backward(trainer, rows)
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        trainer.model.zero_grad(set_to_none=True)
    return peak_bytes()


def forward_and_backward(trainer, rows):
    batch = trainer.data_collator(rows)
    n_answer = int((batch["labels"] >= 0).sum())
    trainer.training_step(trainer.model, batch, n_answer)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def optimizer_bytes(trainer):
    """What AdamW will keep, from its first step on."""
    trained = (weights for weights in trainer.model.parameters() if weights.requires_grad)
    one_byte = trainer.args.optim == optimizer.IN_TRANSFORMERS[optimizer.EIGHT_BIT]
    return ADAM_STATES * sum(weights.numel() * (1 if one_byte else weights.element_size()) for weights in trained)


def release():
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_bytes():
    """Memory that this process has or can get; infinite where the system does not say."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    return min(available_bytes(), left_in_the_group()) + status_bytes("VmRSS")


def available_bytes():
    with contextlib.suppress(OSError, ValueError):
        for entry in Path("/proc/meminfo").read_text().splitlines():
            if entry.startswith("MemAvailable:"):
                return 1024 * int(entry.split()[1])
    return math.inf


def left_in_the_group():
    """What a container's limit leaves; infinite without one."""
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        return int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    return math.inf


def reset_peak():
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM


def peak_bytes():
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else status_bytes("VmHWM")


def status_bytes(name):
    """A figure of this process's memory; 0 where the system does not say."""
    with contextlib.suppress(OSError, ValueError):
        for entry in Path(f"/proc/{os.getpid()}/status").read_text().splitlines():
            if entry.startswith(f"{name}:"):
                return 1024 * int(entry.split()[1])
    return 0


def least_of_all(n):
    """The smallest of all processes' numbers."""
    if n_processes() == 1:
        return n
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = torch.tensor([n], dtype=torch.int64, device=device)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MIN)
    return int(found.item())
