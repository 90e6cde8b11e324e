"""One run of the training speed: so many optimizer steps of TRL's trainer or of ours, timed after the warm-up.

Heavy to import (torch, trl): only the process that trains does.
"""

import time

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

import dataset
from common import UserError
from language_model import base_model, chat_template
from manifest import hardware, versions
from tasks import load_task
from training import compiled, encoding, fine_tuning, micro_batch
from training import trainer as loop
from training.processes import use_every_core

VALIDATED = 8  # rows that our trainer holds for a validation that never comes


def measured(way, config, args, place):
    """Speed, memory and settings of one way on the first rows that fit; its checkpoints lie in the folder `place`."""
    use_every_core()
    chat = chat_template.load_chat(config)
    whole, left_out = dataset.encode_rows(dataset.read_prompts(args.prompts), chat, config)
    if not whole:
        raise UserError(f"{args.prompts}: no row fits {config.name} ({left_out[0]['reason']})")
    examples = whole[: args.rows]
    folder = place / "checkpoints"
    folder.mkdir()
    if way.startswith("trl"):
        trainer = trl_trainer(way, config, chat, examples, folder)
        steps = Steps(trainer, args.warm_up)
        trainer.train()
    else:
        trainer = our_trainer(way, config, load_task(args.task), chat, examples, folder)
        steps = Steps(trainer, args.warm_up)
        fine_tuning.run_from_the_last(trainer, folder)
    return steps.facts() | {
        "at_once": trainer.args.per_device_train_batch_size,
        "grad_accum": trainer.args.gradient_accumulation_steps,
        "packing": trainer.args.packing,
        "gradient_ckpt": trainer.args.gradient_checkpointing,
        "sped_up": getattr(trainer, "sped_up", None),
        "optimizer": str(trainer.args.optim.value),
        "trainable_parameters": sum(one.numel() for one in trainer.model.parameters() if one.requires_grad),
        "file": {"rows": len(whole), "tokens": sum(len(one["input_ids"]) for one in whole), "left_out": len(left_out)},
        "machine": {"hardware": hardware(), "versions": versions()},
    }


def trl_trainer(way, config, chat, examples, folder):
    """TRL's own trainer, collator and defaults; only what makes it the same work is set."""
    model, precision = base_model.load_base(config)
    own = {"gradient_checkpointing": config.train.gradient_ckpt} if way == "trl_checkpointing" else {}
    settings = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=config.train.batch_size,
        gradient_accumulation_steps=config.train.grad_accum,
        learning_rate=config.train.lr,
        max_length=config.train.max_seq_len,
        seed=config.train.seed,
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        use_cpu=precision == "float32",
        dataloader_pin_memory=torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **own,
    )
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=encoding.data_set(examples),
        processing_class=chat.tokenizer,
        peft_config=fine_tuning.adapter_settings(config),
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def our_trainer(way, config, task, chat, examples, folder):
    """Our trainer with the micro-batch that training would choose, without validation and checkpoints."""
    rows = {"train": encoding.data_set(examples), "val": encoding.data_set(examples[:VALIDATED])}
    trainer = fine_tuning.make_trainer(config, task, chat, rows, folder)
    setting = "literal" if way == "ours_literal" else config.train.micro_batch
    choice = micro_batch.choose(trainer, setting, folder)
    trainer.take_plan(trainer.plan.in_micro_batches(choice.chosen))
    trainer.micro_batch = choice
    if way == "ours_compiled":
        trainer.sped_up = compiled.speed_up(trainer)
    trainer.args.eval_strategy = "no"
    trainer.args.save_strategy = "no"
    trainer.args.load_best_model_at_end = False
    for callback in (loop.Progress, loop.Saving, EarlyStoppingCallback):
        trainer.remove_callback(callback)
    return trainer


class Steps(TrainerCallback):
    """What the model reads in the steps behind the warm-up, how long they take, and the memory that they need."""

    def __init__(self, trainer, warm_up):
        self.warm_up = warm_up
        # As many steps as an epoch has, so that each way reads as many rows.
        a_step = trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps
        self.n_steps = -(-len(trainer.train_dataset) // a_step)
        trainer.args.max_steps = warm_up + self.n_steps
        trainer.add_callback(self)
        trainer.model.register_forward_pre_hook(self.count, with_kwargs=True)
        self.trainer = trainer
        self.clear()

    def clear(self):
        # Tensors where the model is: reading them at every pass would make the GPU wait.
        self.tokens = self.places = self.rows = 0
        self.padding_before = self.padding()

    def padding(self):
        """Tokens and rows of padding to one shape so far; TRL's own trainer has none."""
        return getattr(self.trainer, "padding", (0, 0))

    def count(self, model, words, inputs):
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask")
        self.places = self.places + ids.numel()
        self.tokens = self.tokens + (ids.numel() if mask is None else mask.sum())
        # Packed rows lie in one line, and each begins at place 0.
        self.rows = self.rows + (len(ids) if mask is not None else (inputs["position_ids"] == 0).sum())

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.warm_up:
            wait_for_the_gpu()
            micro_batch.reset_peak()
            self.clear()
            self.start = time.perf_counter()
        elif state.global_step == state.max_steps:
            wait_for_the_gpu()
            self.seconds = time.perf_counter() - self.start
            self.peak = micro_batch.peak_bytes()

    def real(self):
        """Tokens and rows that were read, without those that only fill batches up."""
        tokens, rows = (now - before for now, before in zip(self.padding(), self.padding_before, strict=True))
        return int(self.tokens) - tokens, int(self.rows) - rows

    def facts(self):
        tokens, rows = self.real()
        return {
            "steps": self.n_steps,
            "rows": rows,
            "rows_a_step": round(rows / self.n_steps, 2),
            "tokens": tokens,
            "padding_pct": round(100 * (1 - tokens / self.places), 2),
            "seconds": round(self.seconds, 3),
            "tokens_per_s": round(tokens / self.seconds, 1),
            "rows_per_s": round(rows / self.seconds, 3),
            "used_gb": round(self.peak / 1e9, 3),
        }


def wait_for_the_gpu():
    if torch.cuda.is_available():
        torch.cuda.synchronize()
