"""The training loop's own parts on top of TRL: selection of the best checkpoint, a progress line, the packing probe.

Heavy to import (torch, trl): only fine_tuning.py does, once it trains.
"""

import os
import sys
import time
from dataclasses import dataclass

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

import interruption
from common import UserError, progress
from language_model import chat_template
from language_model.base_model import flops_per_token
from training import compiled, micro_batch, optimizer
from training.processes import n_processes

PACKING_TOLERANCE = 1e-3
FIRST_SAVED_AFTER_S = 60
SAVED_EVERY_S = 300


@dataclass
class Arguments(SFTConfig):
    """TRL's settings, and ours that it has no name for."""

    verdict_weight: float = 1.0


def arguments(config, plan, precision, folder):
    """TRL's settings for a fine-tuning."""
    train = config.train
    return Arguments(
        **shared_arguments(train, train.gradient_ckpt, precision, folder),
        per_device_train_batch_size=plan.per_device,
        per_device_eval_batch_size=plan.per_device,
        gradient_accumulation_steps=plan.grad_accum,
        optim=optimizer.IN_TRANSFORMERS[optimizer.taken(train.optimizer)],
        weight_decay=train.weight_decay,
        verdict_weight=train.verdict_weight,
        packing=plan.packing,
        packing_strategy="bfd",
        max_length=train.max_seq_len,
        shuffle_dataset=True,
        load_best_model_at_end=True,
        metric_for_best_model="eval_selection",
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,  # early stopping's patience goes on where it was
        logging_steps=1 if not torch.cuda.is_available() else 5,
    )


def shared_arguments(phase, gradient_ckpt, precision, folder):
    """What fine-tuning and preference tuning set alike, each written out: TRL's defaults change between versions."""
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder.parent / "tensorboard")
    # A share of all steps; 1.0 would mean every single step.
    every = min(0.5, 1 / (phase.epochs * phase.evals_per_epoch))
    return {
        "output_dir": str(folder),
        "seed": phase.seed,
        "data_seed": phase.seed,
        "num_train_epochs": phase.epochs,
        "learning_rate": phase.lr,
        "warmup_steps": phase.warmup_ratio,
        "lr_scheduler_type": phase.schedule,
        "max_grad_norm": 1.0,
        "bf16": precision == "bfloat16",
        "fp16": precision == "float16",
        "use_cpu": precision == "float32",
        "gradient_checkpointing": gradient_ckpt,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if gradient_ckpt else None,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 2,
        "logging_strategy": "steps",
        "report_to": "tensorboard",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False if n_processes() > 1 else None,
    }


def callbacks(config, selection):
    """A line of progress, and an end where validation no longer gains."""
    return [
        Progress(selection),
        Saving(),
        EarlyStoppingCallback(
            early_stopping_patience=config.train.patience, early_stopping_threshold=selection.least_gain
        ),
    ]


def keep_own_callbacks(trainer):
    """Our progress line instead of the library's, and the trainer where the line reads its speed."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.speed = next(one for one in trainer.callback_handler.callbacks if isinstance(one, Progress))
    trainer.speed.trainer = trainer


class StewardTrainer(SFTTrainer):
    """SFTTrainer whose best checkpoint is the one that the task's selection puts first."""

    selection = None
    compiled_layers = 0
    is_recorded = False
    padding = (0, 0)  # tokens and rows so far that only fill batches up

    def take_plan(self, plan):
        """Train in micro-batches of this plan; rows a step stay."""
        self.plan = plan
        self.args.per_device_train_batch_size = plan.per_device
        if torch.cuda.is_available():
            # There the size follows from memory, and validation has no more of it.
            self.args.per_device_eval_batch_size = min(self.args.per_device_eval_batch_size, plan.per_device)
        self.args.gradient_accumulation_steps = plan.grad_accum
        self._train_batch_size = self.args.train_batch_size

    def compute_loss(self, model, inputs, *args, **kwargs):
        if self.args.verdict_weight != 1.0 and self.model.training:
            model = VerdictsWeighted(model, len(self.selection.branch.opening), self.args.verdict_weight)
        tokens, rows = inputs.pop(compiled.FixedShape.PADDING, (0, 0))
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.model.training:
            # Padding is not counted; other processes have about as much of it as this one.
            self._total_train_tokens -= n_processes() * tokens
            self.padding = (self.padding[0] + tokens, self.padding[1] + rows)
        return loss

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        with compiled.set_aside():
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            scores = self.selection.metrics(self)
        scores["selection"] = self.selection.score(scores, output.metrics[f"{metric_key_prefix}_loss"])
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in scores.items()})
        return output


class VerdictsWeighted:
    """A model whose log-probabilities count more where the verdict is decided: one of some 25 answer tokens, it drowns
    in their mean.
    """

    def __init__(self, model, n_opening, weight):
        self.model = model
        self.n_opening = n_opening
        self.weight = weight

    def __call__(self, **inputs):
        outputs = self.model(**inputs)
        # A token is predicted one place before it stands.
        weights = token_weights(inputs["labels"], self.n_opening, self.weight)[:, 1:]
        outputs.log_probs = outputs.log_probs * weights.to(outputs.log_probs.dtype)
        return outputs


def token_weights(labels, n_opening, weight):
    """A weight a label: `weight` on each answer's verdict, 1 on its other tokens, scaled to a mean of 1 over the batch;
    answers may be packed.
    """
    answer = labels != chat_template.IGNORED
    starts = answer.clone()
    starts[:, 1:] &= ~answer[:, :-1]
    verdicts = starts.roll(n_opening, dims=1)
    verdicts[:, :n_opening] = False
    weights = torch.where(verdicts, weight, 1.0) * answer
    return weights * answer.sum() / weights.sum().clamp(min=1e-9)


class Saving(TrainerCallback):
    """Checkpoints between the judged ones, by the clock, and one when the run is asked to stop.

    Several processes agree at every step: each gets the signal at its own moment, and one that went on alone would
    wait for the others for ever.
    """

    is_stopping = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.saved_at = time.monotonic()
        self.wait_s = FIRST_SAVED_AFTER_S

    def on_step_end(self, args, state, control, **kwargs):
        is_due = time.monotonic() - self.saved_at > self.wait_s
        is_due, self.is_stopping = agreed([is_due, interruption.is_asked()])
        if is_due or self.is_stopping:
            control.should_save = True
        return control

    def on_save(self, args, state, control, **kwargs):
        self.saved_at = time.monotonic()
        self.wait_s = SAVED_EVERY_S
        if self.is_stopping:
            interruption.stop_now()


def agreed(flags):
    """Each flag, set where it is set in any of this run's processes."""
    if n_processes() == 1:
        return flags
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = torch.tensor(flags, dtype=torch.int32, device=device)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in found.tolist()]


class Progress(TrainerCallback):
    """A bar on a terminal, plain lines in a log: loss, tokens a second, and every validation result."""

    trainer = None
    WARM_UP_STEPS = 2

    def __init__(self, selection):
        self.selection = selection
        self.steps = []  # (seconds, tokens of all processes so far) of every step in this process

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar = progress(state.max_steps, "steps", "train")
            self.bar.skip(state.global_step)

    def on_step_begin(self, args, state, control, **kwargs):
        self.step_start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.steps.append((time.perf_counter() - self.step_start, self.trainer._total_train_tokens))
        if state.is_world_process_zero:
            self.bar.update(1)
        if state.global_step >= state.max_steps:
            # The last step is judged too; steps that are not a multiple of eval_steps would go unseen.
            control.should_evaluate = control.should_save = True
        return control

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        if "loss" in logs:
            rate = self.facts().get("tokens_per_s")
            self.bar.set_postfix_str(f"loss {logs['loss']:.4f}" + (f", {rate:,.0f} tokens/s" if rate else ""))
        if "eval_selection" in logs:
            scores = [f"{name} {logs[f'eval_{name}']:.4f}" for name in (*self.selection.shown, "loss")]
            line = f"step {state.global_step}/{state.max_steps}: validation {', '.join(scores)}"
            (self.bar.write if sys.stderr.isatty() else print)(line)
            sys.stdout.flush()

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar.close()

    def facts(self):
        """Speed of the steps alone, validation and saving left out; the first two steps only warm up."""
        measured = self.steps[self.WARM_UP_STEPS :]
        if not measured:
            return {}
        seconds = sum(step[0] for step in measured)
        rate = (measured[-1][1] - self.steps[self.WARM_UP_STEPS - 1][1]) / seconds
        return {
            "tokens_per_s": round(rate, 1),
            "step_s": round(seconds / len(measured), 4),
            "steps_timed": len(measured),
            "model_tflops_per_s": round(
                rate * flops_per_token(self.trainer.model, self.trainer.args.gradient_checkpointing) / 1e12, 3
            ),
        }


def packing_is_correct(model, examples, train):
    """Whether packed rows are computed as if each stood alone, measured on real rows; `packing: on` insists, `auto`
    follows.

    On a CPU `auto` stays unpacked: attention over a whole bin costs more there than padding does (LOG.md).
    """
    if train.packing == "off" or len(examples) < 2 or (train.packing == "auto" and model.device.type == "cpu"):
        return False
    first, second = (examples[at] for at in micro_batch.by_length(examples)[:2])
    gap = packing_gap(model, first["input_ids"], second["input_ids"])
    if gap <= PACKING_TOLERANCE:
        return True
    if train.packing == "on":
        raise UserError(
            "train.packing: on, but packed rows see one another in this model (log-probabilities differ by "
            f"{gap:.3g}); set train.packing: auto"
        )
    return False


def packing_gap(model, first, second):
    """Largest change of the second row's log-probabilities when the row packed before it is another of the same length.

    Same shapes, so the same kernels: what differs is what the second row sees of the first, and it should see nothing.
    """
    places = torch.tensor([[*range(len(first)), *range(len(second))]], device=model.device)
    orders = [torch.tensor([before + second], device=model.device) for before in (first, first[::-1])]
    with torch.no_grad():
        behind_one, behind_other = (
            model(input_ids=ids, position_ids=places, use_cache=False).logits[0, len(first) :].float().log_softmax(-1)
            for ids in orders
        )
    return (behind_one - behind_other).abs().max().item()
