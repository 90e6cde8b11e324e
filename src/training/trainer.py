"""The training loop's own parts on top of TRL: verdict macro-F1 as the metric, a progress line, and the packing probe.

Heavy to import (torch, trl): only sft_train.py does, once it trains.
"""

import os
import sys
import time
from dataclasses import dataclass

import torch
from sklearn.metrics import accuracy_score, f1_score
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

import dataset
from common import UserError, progress
from constrained_decode.hf import verdict_probabilities
from language_model import chat_template, verdict_branch

PACKING_TOLERANCE = 1e-3
TIE_BREAK = 1e-4
LEAST_LOSS_GAIN = 0.01  # at equal verdicts, a loss that falls by less is no reason to go on


@dataclass
class Arguments(SFTConfig):
    """TRL's settings, and ours that it has no name for."""

    verdict_weight: float = 1.0


def arguments(config, plan, precision, folder):
    """TRL's settings for one run, each said: its defaults change between versions."""
    train = config.train
    every = min(
        0.5, 1 / (train.epochs * train.evals_per_epoch)
    )  # a share of all steps; 1.0 would mean every single step
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder.parent / "tensorboard")
    return Arguments(
        output_dir=str(folder),
        seed=train.seed,
        data_seed=train.seed,
        num_train_epochs=train.epochs,
        per_device_train_batch_size=plan.per_device,
        per_device_eval_batch_size=plan.per_device,
        gradient_accumulation_steps=plan.grad_accum,
        learning_rate=train.lr,
        weight_decay=train.weight_decay,
        verdict_weight=train.verdict_weight,
        warmup_steps=train.warmup_ratio,
        lr_scheduler_type=train.schedule,
        max_grad_norm=1.0,
        optim="adamw_torch",
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        use_cpu=precision == "float32",
        gradient_checkpointing=train.gradient_ckpt,
        gradient_checkpointing_kwargs={"use_reentrant": False} if train.gradient_ckpt else None,
        packing=plan.packing,
        packing_strategy="bfd",
        max_length=train.max_seq_len,
        shuffle_dataset=True,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_selection",
        greater_is_better=True,
        logging_strategy="steps",
        logging_steps=1 if not torch.cuda.is_available() else 5,
        report_to="tensorboard",
        restore_callback_states_from_checkpoint=True,  # early stopping's patience goes on where it was
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False if int(os.environ.get("WORLD_SIZE", 1)) > 1 else None,
    )


class StewardTrainer(SFTTrainer):
    """SFTTrainer that also asks for the verdict of every validation row, so that the best checkpoint is the one that
    decides best.
    """

    verdict_cases = None

    def compute_loss(self, model, inputs, *args, **kwargs):
        if self.args.verdict_weight != 1.0 and self.model.training:
            model = VerdictsWeighted(model, len(self.verdict_cases.branch.opening), self.args.verdict_weight)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        verdicts = self.verdict_cases.metrics(self)
        # Of equally right checkpoints the one that writes the likelier answers; verdicts are often right before JSON
        # and reasoning are.
        verdicts["selection"] = verdicts["macro_f1"] - TIE_BREAK * output.metrics[f"{metric_key_prefix}_loss"]
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in verdicts.items()})
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
        weights = token_weights(inputs["labels"], self.n_opening, self.weight)[
            :, 1:
        ]  # a token is predicted one place before it stands
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


class VerdictCases:
    """Validation prompts cut where the verdict is decided, and the right verdicts."""

    BATCH_TOKENS = 16_384

    def __init__(self, chat, task, examples, most):
        self.branch = verdict_branch.find_branch(chat, task)
        self.pad_id = chat.pad_id
        label_of = {token: label for label, token in self.branch.token_of.items()}
        at = len(self.branch.opening)
        examples = examples[:most]
        self.prompts = [example["input_ids"][: -dataset.n_answer_tokens(example)] for example in examples]
        self.gold = [
            label_of[example["input_ids"][len(prompt) + at]]
            for example, prompt in zip(examples, self.prompts, strict=True)
        ]

    def metrics(self, trainer):
        accelerator = trainer.accelerator
        model = trainer.model
        mine = list(range(accelerator.process_index, len(self.prompts), accelerator.num_processes))
        was_training = model.training
        model.eval()
        with trainer.compute_loss_context_manager():
            said = {at: max(shares, key=shares.get) for at, shares in self._probabilities(model, mine)}
        model.train(was_training)
        if accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            said = dict(gather_object(list(said.items())))
        said = [said[at] for at in range(len(self.gold))]
        labels = sorted(set(self.gold))
        return {
            "macro_f1": f1_score(self.gold, said, average="macro", labels=labels, zero_division=0),
            "accuracy": accuracy_score(self.gold, said),
        }

    def _probabilities(self, model, positions):
        positions = sorted(positions, key=lambda at: len(self.prompts[at]))
        while positions:
            n = max(1, self.BATCH_TOKENS // (len(self.prompts[positions[-1]]) + len(self.branch.opening)))
            batch = positions[-n:]
            positions = positions[:-n]
            yield from zip(
                batch,
                verdict_probabilities(model, [self.prompts[at] for at in batch], self.branch, self.pad_id),
                strict=True,
            )


class Progress(TrainerCallback):
    """A bar on a terminal, plain lines in a log: loss, tokens a second, and every validation result."""

    trainer = None
    WARM_UP_STEPS = 2

    def __init__(self):
        self.steps = []  # (seconds, tokens of all processes so far) of every step in this process

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar = progress(state.max_steps, "steps", "train")
            self.bar.update(state.global_step)

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
        if "eval_macro_f1" in logs:
            line = (
                f"step {state.global_step}/{state.max_steps}: validation macro-F1 {logs['eval_macro_f1']:.4f}, "
                f"accuracy {logs['eval_accuracy']:.4f}, loss {logs['eval_loss']:.4f}"
            )
            (self.bar.write if hasattr(self.bar, "write") else print)(line)
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
    first, second = sorted(examples, key=lambda example: len(example["input_ids"]))[:2]
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


def flops_per_token(model, recomputes):
    """2 forward and 2 backward operations a frozen linear weight (no weight gradient), 2 more where the forward pass is
    computed again.
    """
    frozen = sum(
        module.in_features * module.out_features
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lora_" not in name and "lm_head" not in name
    )
    return (6 if recomputes else 4) * frozen


def adapted_kinds(model):
    """Module kinds that carry an adapter, with their number: {'q_proj': 36, ...}."""
    kinds = {}
    for name in model.base_model.targeted_module_names:
        kind = name.rsplit(".", 1)[-1]
        kinds[kind] = kinds.get(kind, 0) + 1
    return kinds
