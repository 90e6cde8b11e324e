"""How long a training will take, from passes measured before its first step.

Heavy to import (torch): only fine_tuning.py does, once it trains.
"""

import dataclasses
import math
import time

import torch

from common import in_words
from training import merge_adapter, micro_batch, parity
from training.processes import n_processes

PASSES = 2
# Passes over a parity prompt: alone, in a batch, and its answer, by the adapter and by the merged model.
PASSES_OF_THE_GATE = 6
MODELS_LOADED = 3  # with the adapter, to fold, and merged
ROWS_TIMED = 8  # validation rows


@dataclasses.dataclass(frozen=True)
class Duration:
    seconds: float
    words: str


def estimated(trainer, steps_done=0):
    """The time of the steps that are left, of the validations and of the merge."""
    plan = trainer.plan
    with micro_batch.undisturbed(trainer):
        micro_s = seconds_of_a_pass(trainer, plan.per_device)
        row_s = seconds_of_a_validation_row(trainer)
        judging_s = trainer.selection.seconds(trainer)
    n_rows = len(trainer.train_dataset)
    per_epoch = math.ceil(n_rows / (plan.a_step * n_processes()))
    steps = max(0, math.ceil(per_epoch * trainer.args.num_train_epochs) - steps_done)
    # The last step of an epoch is short where the rows do not fill it.
    passes = n_rows * trainer.args.num_train_epochs / n_processes() / plan.per_device
    passes *= steps / max(1, steps + steps_done)
    every = max(1, math.ceil((steps + steps_done) * trainer.args.eval_steps))
    validations = math.ceil((steps + steps_done) / every) - steps_done // every
    n_val = len(trainer.eval_dataset) / n_processes()
    seconds = passes * micro_s + validations * (n_val * row_s + judging_s) + merge_seconds(trainer, row_s)
    looks = f"{validations} validation{'' if validations == 1 else 's'}"
    return Duration(seconds, f"{in_words(seconds)} ({steps:,} steps of {plan.rows_a_step} rows, {looks}, merge)")


def seconds_of_a_pass(trainer, n):
    """Forward and backward of n rows of typical lengths; the first pass of a shape only warms up on a GPU."""
    rows = typical(trainer.train_dataset, n)
    seconds = []
    for _ in range(PASSES if torch.cuda.is_available() else 1):
        start = time.perf_counter()
        micro_batch.forward_and_backward(trainer, rows)
        seconds.append(time.perf_counter() - start)
        trainer.model.zero_grad(set_to_none=True)
    return seconds[-1]


def seconds_of_a_validation_row(trainer):
    """The loss of one validation row."""
    rows = typical(trainer.eval_dataset, min(ROWS_TIMED, trainer.args.per_device_eval_batch_size))
    start = time.perf_counter()
    trainer.model.eval()
    with torch.no_grad():
        trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.data_collator(rows)))
    return (time.perf_counter() - start) / len(rows)


def merge_seconds(trainer, row_s):
    """The gate's passes over its prompts, the temperature's over validation rows, and each model loaded."""
    n_val = len(trainer.eval_dataset)
    passes = PASSES_OF_THE_GATE * min(parity.N_PROMPTS, n_val)
    if n_val > parity.N_PROMPTS and trainer.selection.branch:
        passes += min(merge_adapter.N_CALIBRATION, n_val)
    return passes * row_s + MODELS_LOADED * trainer.load_s


def typical(examples, n):
    """n rows evenly spaced by length."""
    order = micro_batch.by_length(examples)
    n = min(n, len(order))
    return [examples[order[int((at + 0.5) * len(order) / n)]] for at in range(n)]
