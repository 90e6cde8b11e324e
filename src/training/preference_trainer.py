"""TRL's DPOTrainer with our settings, and the curves of a preference tuning.

Heavy to import (torch, trl): only preference_tuning.py does, once it trains.
"""

import sys

from trl import DPOConfig, DPOTrainer

from training import optimizer
from training import trainer as loop

# PEFT's names of the adapter that is trained and of the frozen copy that TRL makes of it.
POLICY = "default"
REFERENCE = "ref"
CURVES = (
    "loss",
    "logps/chosen",
    "logps/rejected",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
)
MOST_POINTS = 100  # of a curve in the manifest
# Nats of a whole answer: it became a tenth less likely.
CHOSEN_MAY_FALL = 0.1
ADVICE = "lower dpo.lr, raise dpo.beta, or set dpo.sft_weight=1"


def arguments(config, precision, n_steps, folder):
    """TRL's settings for a preference tuning."""
    dpo = config.dpo
    return DPOConfig(
        **loop.shared_arguments(dpo, config.train.gradient_ckpt, precision, folder),
        **loss_arguments(dpo),
        per_device_train_batch_size=dpo.batch_size,
        per_device_eval_batch_size=dpo.batch_size,
        gradient_accumulation_steps=dpo.grad_accum,
        optim=optimizer.IN_TRANSFORMERS[optimizer.ADAMW],
        weight_decay=0.0,
        max_length=None,  # what is too long was left out; None cuts nothing
        disable_dropout=True,
        precompute_ref_log_probs=False,
        logging_steps=max(1, n_steps // MOST_POINTS),
    )


def loss_arguments(dpo):
    losses = {dpo.loss: 1.0} | ({"sft": dpo.sft_weight} if dpo.sft_weight else {})
    return {
        "loss_type": list(losses),
        "loss_weights": list(losses.values()),
        "beta": dpo.beta,
        "label_smoothing": 0.0,
        "f_divergence_type": "reverse_kl",
        "use_weighting": False,
        "ld_alpha": None,
        "sync_ref_model": False,
    }


class PreferenceTrainer(DPOTrainer):
    """DPOTrainer on pairs that are token ids already, whose checkpoints hold the trained adapter alone."""

    def _prepare_dataset(self, dataset, *args):
        return dataset

    def _save(self, output_dir=None, state_dict=None):
        # A folder of the reference in a checkpoint would make the library resume from the reference alone: the trained
        # adapter would start again from where it began.
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model)
            model.save_pretrained(output_dir or self.args.output_dir, selected_adapters=[POLICY])


def begin_at_the_reference(model):
    """Give the trained adapter its copy's values and precision again.

    On 4-bit weights TRL rounds it to bfloat16 behind the copy. It would begin beside its reference, and most steps of
    AdamW at this learning rate are smaller than bfloat16 can add.
    """
    for name, weights in model.named_parameters():
        if f".{POLICY}." in name:
            weights.data = model.get_parameter(name.replace(f".{POLICY}.", f".{REFERENCE}.")).data.clone()


class Progress(loop.Progress):
    """The training's own line with margins and log-probabilities, and a warning as soon as the chosen answers fall."""

    warned = False

    def __init__(self):
        super().__init__(selection=None)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        if is_point(logs, ""):
            self.bar.set_postfix_str(words_of(logs, ""))
        if is_point(logs, "eval_"):
            self.say(f"step {state.global_step}/{state.max_steps}: validation {words_of(logs, 'eval_')}")
            fell = fall(logs, args.beta)
            if fell > CHOSEN_MAY_FALL and not self.warned:
                self.warned = True
                self.say(f"warning: {fall_words(logs, args.beta)}; {ADVICE}")

    def say(self, line):
        (self.bar.write if sys.stderr.isatty() else print)(line)
        sys.stdout.flush()

    def facts(self):
        # The reference's passes are no part of the count of operations.
        return {name: value for name, value in super().facts().items() if name != "model_tflops_per_s"}


def is_point(logs, prefix):
    """Whether a log's entry holds every curve; the one that sums a run up holds some."""
    return all(f"{prefix}{name}" in logs for name in CURVES)


def words_of(logs, prefix):
    """The curves' present values in one line."""
    found = {name: logs[f"{prefix}{name}"] for name in CURVES}
    return (
        f"loss {found['loss']:.4f}, margin {found['rewards/margins']:.3f}, accuracy {found['rewards/accuracies']:.3f}, "
        f"log-probability of chosen {found['logps/chosen']:.2f} and rejected {found['logps/rejected']:.2f}"
    )


def fall(logs, beta):
    """By how many nats the chosen validation answers are less likely than under the reference."""
    return -logs["eval_rewards/chosen"] / beta


def fall_words(logs, beta):
    now = logs["eval_logps/chosen"]
    fell = fall(logs, beta)
    return (
        "the chosen answers became less likely: their mean log-probability on validation pairs fell by "
        f"{fell:.2f}, from {now + fell:.2f} to {now:.2f}"
    )


def curves(history):
    """{train, val: {step: [...], curve: [...]}} of a trainer's log."""
    return {split: curve(history, prefix) for split, prefix in (("train", ""), ("val", "eval_"))}


def curve(history, prefix):
    entries = [entry for entry in history if is_point(entry, prefix)]
    return {"step": [entry["step"] for entry in entries]} | {
        name: [round(entry[f"{prefix}{name}"], 4) for entry in entries] for name in CURVES
    }


def last_judged(history):
    """The log's last entry about the validation pairs."""
    return next(entry for entry in reversed(history) if is_point(entry, "eval_"))
