"""How long a training will take, from passes measured before its first step.

Heavy to import (torch): only fine_tuning.py does, once it trains.
"""

import dataclasses
import math
import time

import torch

from common import in_words
from training import compiled, merge_adapter, micro_batch, parity
from training.processes import n_processes

LEAST_S = 0.3  # a small model's pass takes some 20 ms, and one alone may meet whatever else the machine does
ROWS_TIMED = 8  # validation rows
MODELS_LOADED = 3  # with the adapter, to fold, and merged


@dataclasses.dataclass(frozen=True)
class Costs:
    """Measured seconds: a token of each kind of pass, a look at the selection's rows, and one loading of the model."""

    trained: float
    judged: float  # in micro-batches
    alone: float  # one row at a time
    selection: float
    load: float


@dataclasses.dataclass(frozen=True)
class Work:
    """What is ahead: steps, validations, and tokens of each kind of pass."""

    steps: int
    validations: int
    trained: float
    validation: float
    gate: float
    calibration: float


def estimated(trainer, steps_done=0):
    """The time from now to the merged model in words; memory that does not suffice to measure it ends no training."""
    costs = None
    try:
        with micro_batch.undisturbed(trainer):
            costs = measured(trainer)
    except torch.cuda.OutOfMemoryError:
        pass
    if costs is None:
        # Only now does no traceback hold the failed pass's tensors any more.
        micro_batch.release()
        return "not known, there is too little memory to measure it"
    work = ahead(trainer, steps_done)
    spent = parts(costs, work)
    looks = f"{work.validations} validation{'' if work.validations == 1 else 's'}"
    return (
        f"{in_words(sum(spent.values()))} from here to the merged model ({work.steps:,} steps of "
        f"{trainer.plan.rows_a_step} rows {in_words(spent['steps'])}, {looks} {in_words(spent['validations'])}, "
        f"merge and its checks {in_words(spent['merge'])})"
    )


def parts(costs, work):
    """{part of the run: seconds}."""
    # The gate reads its prompts one by one, in batches, and with their answers, by two models.
    gate = 2 * work.gate * (2 * costs.alone + costs.judged)
    return {
        "steps": work.trained * costs.trained,
        "validations": work.validations * (work.validation * costs.judged + costs.selection),
        "merge": gate + work.calibration * costs.judged + MODELS_LOADED * costs.load,
    }


def measured(trainer):
    # More rows at once than validation takes could want more memory than it does.
    rows = typical(trainer.eval_dataset, min(ROWS_TIMED, trainer.args.per_device_eval_batch_size))
    trained = seconds_of_a_trained_token(trainer)
    with compiled.set_aside():
        return Costs(
            trained,
            seconds_of_a_read_token(trainer, [rows]),
            seconds_of_a_read_token(trainer, [[row] for row in rows]),
            trainer.selection.seconds(trainer),
            trainer.load_s,
        )


def ahead(trainer, steps_done):
    """The Work that is left."""
    plan = trainer.plan
    epochs = trainer.args.num_train_epochs
    all_steps = math.ceil(math.ceil(len(trainer.train_dataset) / (plan.a_step * n_processes())) * epochs)
    steps = max(0, all_steps - steps_done)
    every = max(1, math.ceil(all_steps * trainer.args.eval_steps))
    n_val = len(trainer.eval_dataset)
    of_validation = sum(micro_batch.lengths(trainer.eval_dataset))
    # A gate that has read all rows leaves none for the calibration.
    calibrated = n_val if n_val > parity.N_PROMPTS and trainer.selection.branch else 0
    return Work(
        steps=steps,
        validations=math.ceil(all_steps / every) - steps_done // every,
        trained=sum(micro_batch.lengths(trainer.train_dataset)) * epochs / n_processes() * steps / max(1, all_steps),
        validation=of_validation / n_processes(),
        gate=of_validation * min(parity.N_PROMPTS, n_val) / n_val,
        calibration=of_validation * min(merge_adapter.N_CALIBRATION, calibrated) / n_val,
    )


def of_steps(trainer, steps_done):
    """Seconds of the steps ahead, as the model is now."""
    with micro_batch.undisturbed(trainer):
        return ahead(trainer, steps_done).trained * seconds_of_a_trained_token(trainer)


def seconds_of_a_trained_token(trainer):
    """Forward and backward of one micro-batch of typical lengths."""
    rows = typical(trainer.train_dataset, trainer.plan.per_device)
    return seconds_of(lambda: learn(trainer, rows)) / n_tokens(rows)


def seconds_of_a_read_token(trainer, batches):
    """The loss of these batches."""
    trainer.model.eval()
    with torch.no_grad():
        seconds = seconds_of(lambda: [read(trainer, batch) for batch in batches])
    return seconds / sum(map(n_tokens, batches))


def seconds_of(work):
    """The mean time of a piece of work; on a GPU, the first pass of a shape only warms up."""
    if torch.cuda.is_available():
        work()
    n = 0
    start = time.perf_counter()
    while n == 0 or time.perf_counter() - start < LEAST_S:
        work()
        n += 1
    return (time.perf_counter() - start) / n


def learn(trainer, rows):
    try:
        micro_batch.forward_and_backward(trainer, rows)
    finally:
        # A pass's gradients would become part of the first step.
        trainer.model.zero_grad(set_to_none=True)


def read(trainer, rows):
    trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.data_collator(rows)))
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def n_tokens(rows):
    return sum(len(row["input_ids"]) for row in rows)


def typical(examples, n):
    """n rows evenly spaced by length."""
    order = micro_batch.by_length(examples)
    n = min(n, len(order))
    return [examples[order[int((at + 0.5) * len(order) / n)]] for at in range(n)]
