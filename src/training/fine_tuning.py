"""One fine-tuning run: rows to steps, checkpoints that a killed run goes on from, the adapter and its record."""

import contextlib
import dataclasses
import functools
import shutil
import time

import dataset
import interruption
from common import UserError, WorkFailed, counted, sha256_file, shown_path, write_json
from language_model import base_model, chat_template, model_folder, packed_attention
from manifest import Clock, write_manifest
from training import checkpoints, optimizer
from training.processes import is_main, n_processes, say, use_every_core

SHOWN_LEFT_OUT = 5
ROOM_IN_BINS = 0.1  # how far a step's bins may lie from the number asked; a bin more or less is as much in most runs


def train(args, config, task, lora, fingerprint, clock):
    from training import encoding

    use_every_core()
    if words := optimizer.replaced_words(config.train.optimizer):
        say(words)
    chat = chat_template.load_chat(config)
    examples, left_out = encoded(args, lambda path: encoding.encode_file(path, chat, config), lora, "row")
    kept = checkpoints.prepare_folder(lora, fingerprint)
    make = functools.partial(make_trainer, config, task, chat, examples, kept)
    with interruption.keeping(functools.partial(checkpoints.kept_words, kept)):
        trainer = run_within_memory(make, config, kept, args.config)
    trainer.accelerator.wait_for_everyone()
    if is_main():
        save_adapter(trainer, chat, lora)
        write_manifest(
            lora / "manifest.json",
            clock,
            config=dataclasses.asdict(config),
            fingerprint=fingerprint,
            weights_sha256=model_folder.weights_sha256(lora),
            task=task.name,
            training=training_facts(trainer, config, examples, left_out),
            data={
                split: {"path": shown_path(path), "sha256": sha256_file(path)}
                for split, path in (("train", args.train), ("val", args.val))
            },
        )
        shutil.rmtree(kept)
    trainer.accelerator.end_training()


def run_within_memory(make, config, kept, config_path):
    """A trainer that has trained: from the last checkpoint or from the start, with smaller micro-batches where memory
    turns out too small; where even one row is too much, say what to change.
    """
    import torch

    from training import micro_batch

    trainer = make()
    trainer.accelerator.wait_for_everyone()  # stale checkpoints are gone before any process looks for the last one
    choice = micro_batch.choose(trainer, config.train.micro_batch, kept)
    while True:
        try:
            use(trainer, choice, config, kept)
            run_from_the_last(trainer, kept)
            return trainer
        except torch.cuda.OutOfMemoryError as error:
            plan = trainer.plan
            if plan.per_device == 1 or n_processes() > 1:
                raise WorkFailed(no_memory_words(config_path, error, plan)) from error
            save_what_is_done(trainer)
        choice = dataclasses.replace(
            choice,
            chosen=micro_batch.largest_divisor(plan.a_step, plan.per_device // 2),
            why=f"out of memory with {plan.per_device}; training goes on from the last checkpoint",
        )
        # A new trainer: the old one's optimizer, graph and half a step's gradients hold the memory that is missing.
        del trainer
        micro_batch.release()
        trainer = make()


def use(trainer, choice, config, kept):
    """Put a micro-batch to work and say so, with what is ahead and how long it takes."""
    from training import compiled, duration, micro_batch

    last = checkpoints.last_whole_checkpoint(kept)
    done = checkpoints.step_of(last) if last else 0
    begun = f"training {config.name}: {trainer.n_rows:,} rows, {trainer.plan.words}"
    say(f"going on from step {done}, kept in {last}" if last else begun)
    trainer.take_plan(trainer.plan.in_micro_batches(choice.chosen))
    trainer.micro_batch = choice
    micro_batch.keep(kept, choice, trainer.plan)
    say(choice.words)
    if config.train.compile == "on" or (config.train.compile == "auto" and compiling_pays(trainer, done)):
        say(compiled.speed_up(trainer))
    say(f"time, estimated: {duration.estimated(trainer, done)}")


def compiling_pays(trainer, steps_done):
    """Whether the steps ahead would take longer than PAYS_FROM_S, and have one shape."""
    from training import compiled, duration

    if trainer.precision == "float32" or not trainer.plan.packing or trainer.args.gradient_checkpointing:
        return False
    return duration.of_steps(trainer, steps_done) > compiled.PAYS_FROM_S


def run_from_the_last(trainer, kept):
    from peft.helpers import disable_input_dtype_casting

    last = checkpoints.last_whole_checkpoint(kept)
    # Under autocast PEFT would lift every input of an adapter to float32 only for autocast to lower it again.
    unlifted = disable_input_dtype_casting(trainer.model, active=trainer.precision != "float32")
    with interruption.until_asked(), unlifted:
        trainer.train(resume_from_checkpoint=str(last) if last else None)


def no_memory_words(config_path, error, plan):
    smaller = "a smaller train.micro_batch, " if plan.per_device > 1 else ""
    return (
        f"{config_path}: the GPU's memory does not suffice for {counted(plan.per_device, 'row')} at once "
        f"({str(error).split('.')[0]}); try --set train.gradient_ckpt=true, {smaller}a smaller train.max_seq_len, or "
        "peft.method=qlora; checkpoints are kept"
    )


def save_what_is_done(trainer):
    """A checkpoint of the last whole step, where memory suffices for that; else the last kept one has to do."""
    import torch

    if trainer.state.global_step:
        with contextlib.suppress(torch.cuda.OutOfMemoryError):
            trainer._save_checkpoint(trainer.model, None)


def encoded(args, encode, folder, unit):
    """Token ids of both files, as `encode(path)` makes them with what does not fit: that is listed in left_out.json and
    reported, never cut.
    """
    examples = {}
    left_out = {}
    for split, path in (("train", args.train), ("val", args.val)):
        examples[split], left_out[split] = encode(path)
        if is_main():
            dataset.print_left_out(left_out[split], str(path), SHOWN_LEFT_OUT)
        if not examples[split]:
            first = left_out[split][0]
            raise UserError(
                f"{path}: no {unit} fits this model ({first['id']}: {first['reason']}); raise train.max_seq_len, or "
                f"make shorter {unit}s"
            )
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "left_out.json", left_out)
    return examples, {split: len(rows) for split, rows in left_out.items()}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How rows become optimizer steps: batch_size x grad_accum rows each, as nearly as bins and GPUs divide them."""

    packing: bool
    per_device: int
    grad_accum: int
    literal: int  # per_device as the config's batch_size asks
    rows_a_step: int
    words: str

    @property
    def a_step(self):
        """Rows (packed: bins) of one process in one step."""
        return self.per_device * self.grad_accum

    def in_micro_batches(self, n):
        return dataclasses.replace(self, per_device=n, grad_accum=self.a_step // n)


def make_plan(config, examples, packing):
    from training import micro_batch

    wanted = config.train.batch_size * config.train.grad_accum
    total = sum(micro_batch.lengths(examples))
    per_bin = max(1.0, len(examples) / max(1, -(-total // config.train.max_seq_len))) if packing else 1.0
    bins_each = wanted / per_bin / n_processes()
    a_step = divisible(bins_each)
    per_device = micro_batch.largest_divisor(a_step, round(config.train.batch_size / per_bin))
    accum = a_step // per_device
    rows_a_step = round(per_device * accum * n_processes() * per_bin)
    words = (
        f"about {per_bin:.1f} rows packed into each {config.train.max_seq_len} tokens" if packing else "not packed"
    ) + f", {rows_a_step} rows a step (the config asks for {wanted})"
    plan = Plan(packing, per_device, accum, per_device, rows_a_step, words)
    if isinstance(config.train.micro_batch, int):
        # Rows a step stay, so only what divides them will do.
        plan = plan.in_micro_batches(micro_batch.largest_divisor(plan.a_step, config.train.micro_batch))
    return plan


def divisible(bins):
    """Bins a step: the nearest number that can be cut into halves or thirds, for memory may run out; 29 could not."""
    from training import micro_batch

    nearest = max(1, round(bins))
    if nearest == bins:
        return nearest
    near = [n for n in range(1, 2 * nearest + 1) if abs(n - bins) <= ROOM_IN_BINS * bins]
    good = [n for n in near if n < 4 or micro_batch.largest_divisor(n, n // 2) * 3 >= n]
    return min(good, key=lambda n: abs(n - bins), default=nearest)


def make_trainer(config, task, chat, examples, folder):
    from training import start
    from training import trainer as loop
    from training.selection import selection_for

    began = time.perf_counter()
    model, precision = base_model.load_base(config, attention=packed_attention.register())
    load_s = time.perf_counter() - began
    if precision == "float16" and config.train.bf16:
        say("this GPU has no bfloat16: training in float16")
    packing = loop.packing_is_correct(model, examples["train"], config.train)
    plan = make_plan(config, examples["train"], packing)
    selection = selection_for(task, chat, config, examples["val"])
    if config.train.verdict_weight != 1.0 and not selection.branch:
        raise UserError(
            "train.verdict_weight: only a task whose checkpoint is picked by its verdicts can weight them; leave the "
            "setting out"
        )
    trainer = loop.StewardTrainer(
        model=model,
        args=loop.arguments(config, plan, precision, folder),
        train_dataset=examples["train"],
        eval_dataset=examples["val"],
        processing_class=chat.tokenizer,
        peft_config=adapter_settings(config),
        callbacks=loop.callbacks(config, selection),
    )
    start.load(config, trainer.model)
    loop.keep_own_callbacks(trainer)
    trainer.plan = plan
    trainer.load_s = load_s
    trainer.n_rows = len(examples["train"])
    trainer.precision = precision
    trainer.selection = selection
    return trainer


def adapter_settings(config):
    from peft import LoraConfig

    return LoraConfig(
        r=config.peft.r,
        lora_alpha=config.peft.alpha,
        lora_dropout=config.peft.dropout,
        task_type="CAUSAL_LM",
        target_modules=config.peft.target_modules,
        bias="none",
    )


def save_adapter(trainer, chat, lora, lr_key="train.lr"):
    import torch

    broken = [
        name
        for name, weights in trainer.model.named_parameters()
        if weights.requires_grad and not torch.isfinite(weights).all()
    ]
    if broken:
        raise WorkFailed(
            f"training diverged: {len(broken)} adapter matrices hold NaN or infinity (first {broken[0]}); "
            f"lower {lr_key} and run again with --force"
        )
    trainer.save_model(lora)
    chat.tokenizer.save_pretrained(lora)
    for extra in ("training_args.bin", "README.md"):
        (lora / extra).unlink(missing_ok=True)


def training_facts(trainer, config, examples, left_out):
    """What the report and the model card say about the training."""
    state = trainer.state
    return {
        "method": config.peft.method,
        "quantization": "NF4, double" if config.peft.method == "qlora" else "none",
        "precision": trainer.precision,
        "optimizer": optimizer.taken(config.train.optimizer),
        "rows": len(examples["train"]),
        "left_out": left_out,
        "steps": state.global_step,
        "epochs": round(state.epoch or 0, 3),
        "packing": trainer.plan.packing,
        "per_device_batch": trainer.plan.per_device,
        "grad_accum": trainer.plan.grad_accum,
        "micro_batch": micro_batch_facts(trainer),
        "compiled_layers": trainer.compiled_layers,
        "recorded": trainer.is_recorded,
        "processes": n_processes(),
        "base_revision": getattr(trainer.model.config, "_commit_hash", None),
        "best_step": state.best_global_step,
        **validation_facts(trainer),
        "adapted": base_model.adapted_kinds(trainer.model),
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        **trainer.speed.facts(),
        **{key: value for key, value in Clock().facts().items() if key.startswith("peak")},
    }


def micro_batch_facts(trainer):
    """What was chosen and why, and how much memory it took in the end."""
    from training import micro_batch

    return dataclasses.asdict(trainer.micro_batch) | {"used_gb": round(micro_batch.peak_bytes() / 1e9, 2)}


def validation_facts(trainer):
    """The score that picked the checkpoint, at the best step and by step."""
    metric = trainer.selection.select_by
    key = f"eval_{metric}"
    by_step = {entry["step"]: entry[key] for entry in trainer.state.log_history if key in entry}
    return {
        "selected_by": metric,
        f"best_val_{metric}": by_step.get(trainer.state.best_global_step),
        f"val_{metric}_by_step": {step: round(value, 4) for step, value in by_step.items()},
    }
