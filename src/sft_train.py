"""Fine-tune one model with LoRA or QLoRA and merge it: accelerate launch src/sft_train.py --config
configs/phi4mini.yaml

Writes outputs/<model>-lora/ and outputs/<model>-merged/. A killed run goes on from its last checkpoint.
"""

import argparse
import dataclasses
import json
import os
import shutil
from pathlib import Path

from common import (
    UserError,
    WorkFailed,
    existing_file,
    quiet_libraries,
    read_json,
    run,
    sha256_file,
    sha256_text,
    shown_path,
    write_json,
    write_text,
)
from config import load_config
from manifest import Clock, write_manifest
from tasks import DEFAULT, load_task

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


def main():
    args = parse_args()
    clock = Clock()
    task = load_task(args.task)
    config = load_config(args.config, args.set)
    name = Path(args.config).stem
    lora, merged = (Path(args.out or task.under("outputs")) / f"{name}-{kind}" for kind in ("lora", "merged"))
    trained_from = training_fingerprint(args, config, task)
    fingerprint = sha256_text(trained_from + json.dumps(dataclasses.asdict(config.merge), sort_keys=True))
    if not args.force and finished(merged, fingerprint):
        say(f"{merged} is up to date: same config, prompts and base model (--force trains again)")
        os.utime(merged / "manifest.json")
        return
    quiet_libraries()
    if args.force and is_main():
        shutil.rmtree(lora, ignore_errors=True)
    if args.force or not finished(lora, trained_from):
        train(args, config, task, lora, trained_from, clock)
    else:
        say(f"{lora} is up to date: only the merge runs")
    if is_main():
        import dataset
        from training import merge_adapter

        merge_adapter.merge(config, task, lora, merged, dataset.read_prompts(args.val), fingerprint)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the model's YAML, for example configs/phi4mini.yaml")
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="override settings, for example train.lr=1e-4 peft.r=16",
    )
    parser.add_argument("--train", help="training prompts (default data/processed/train.jsonl)")
    parser.add_argument("--val", help="validation prompts (default data/processed/val.jsonl)")
    parser.add_argument("--out", help="folder for <model>-lora and <model>-merged (default outputs)")
    parser.add_argument("--force", action="store_true", help="train again from the start, even if nothing changed")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    args = parser.parse_args()
    processed = load_task(args.task).under("data") / "processed"
    args.train, args.val = (
        existing_file(given or processed / f"{split}.jsonl", "run make prep first")
        for given, split in ((args.train, "train"), (args.val, "val"))
    )
    return args


def is_main():
    return int(os.environ.get("RANK", 0)) == 0


def n_processes():
    return int(os.environ.get("WORLD_SIZE", 1))


def say(text):
    if is_main():
        print(text, flush=True)


def training_fingerprint(args, config, task):
    """What the adapter depends on: settings other than the merge's, prompts, base model."""
    from language_model import hub, model_folder

    settings = {key: value for key, value in dataclasses.asdict(config).items() if key != "merge"}
    base = model_folder.model_identity(hub.local_or_hub(config.model_id))
    return sha256_text(
        json.dumps([settings, task.name, sha256_file(args.train), sha256_file(args.val), base], sort_keys=True)
    )


def finished(folder, fingerprint):
    manifest = folder / "manifest.json"
    return manifest.is_file() and read_json(manifest).get("fingerprint") == fingerprint


def train(args, config, task, lora, fingerprint, clock):
    import torch
    from peft.helpers import disable_input_dtype_casting

    from language_model import chat_template

    chat = chat_template.load_chat(config)
    examples, left_out = encoded(args, chat, config, lora)
    checkpoints = prepare_folder(lora, fingerprint, config)
    trainer = make_trainer(config, task, chat, examples, checkpoints)
    trainer.accelerator.wait_for_everyone()  # stale checkpoints are gone before any process looks for the last one
    last = last_whole_checkpoint(checkpoints)
    say(
        f"going on from {last.name}"
        if last
        else f"training {config.name}: {len(examples['train']):,} rows, {trainer.plan.words}"
    )
    # Under autocast PEFT would lift every input of an adapter to float32 only for autocast to lower it again.
    casting = disable_input_dtype_casting(trainer.model, active=trainer.precision != "float32")
    try:
        with casting:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
    except torch.cuda.OutOfMemoryError as error:
        raise WorkFailed(
            f"{args.config}: the GPU's memory does not suffice ({str(error).split('.')[0]}); try --set "
            "train.gradient_ckpt=true, "
            "a smaller train.batch_size with a larger train.grad_accum, or peft.method=qlora"
        ) from error
    trainer.accelerator.wait_for_everyone()
    if is_main():
        save_adapter(trainer, chat, lora)
        write_manifest(
            lora / "manifest.json",
            clock,
            config=dataclasses.asdict(config),
            fingerprint=fingerprint,
            task=task.name,
            training=training_facts(trainer, config, examples, left_out),
            data={
                split: {"path": shown_path(path), "sha256": sha256_file(path)}
                for split, path in (("train", args.train), ("val", args.val))
            },
        )
        shutil.rmtree(checkpoints)
    trainer.accelerator.end_training()


def encoded(args, chat, config, lora):
    """Token ids of both splits. Rows that do not fit are listed in left_out.json and said, never cut."""
    import dataset

    examples = {}
    left_out = {}
    for split, path in (("train", args.train), ("val", args.val)):
        examples[split], left_out[split] = dataset.encode_rows(dataset.read_prompts(path), chat, config)
        if is_main():
            dataset.print_left_out(left_out[split], str(path), 5)
        if not examples[split]:
            raise UserError(
                f"{path}: no row fits this model ({len(left_out[split]):,} left out); raise train.max_seq_len or "
                "shorten the answers"
            )
    if is_main():
        lora.mkdir(parents=True, exist_ok=True)
        write_json(lora / "left_out.json", left_out)
    return examples, {split: len(rows) for split, rows in left_out.items()}


def prepare_folder(lora, fingerprint, config):
    """The checkpoint folder; checkpoints of other settings or other data are thrown away."""
    checkpoints = lora / "checkpoints"
    mark = checkpoints / "fingerprint.txt"
    if is_main():
        (lora / "manifest.json").unlink(missing_ok=True)
        if checkpoints.exists() and (not mark.is_file() or mark.read_text() != fingerprint):
            print(f"{checkpoints}: these checkpoints are of other settings or data; starting anew", flush=True)
            shutil.rmtree(checkpoints)
        checkpoints.mkdir(parents=True, exist_ok=True)
        write_text(mark, fingerprint)
    return checkpoints


def last_whole_checkpoint(checkpoints):
    """The newest checkpoint that was written to its end; a run killed while saving leaves one that is not."""
    found = sorted(checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    for path in reversed(found):
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError):
            if is_main():
                print(f"{path}: half-written, left aside", flush=True)
                shutil.rmtree(path)
            continue
        return path
    return None


@dataclasses.dataclass(frozen=True)
class Plan:
    """How rows become optimizer steps: batch_size x grad_accum rows each, as nearly as bins and GPUs divide them."""

    packing: bool
    per_device: int
    grad_accum: int
    words: str


def make_plan(config, examples, packing):
    wanted = config.train.batch_size * config.train.grad_accum
    total = sum(len(example["input_ids"]) for example in examples)
    per_bin = max(1.0, len(examples) / max(1, -(-total // config.train.max_seq_len))) if packing else 1.0
    bins_each = wanted / per_bin / n_processes()
    per_device = max(1, min(round(config.train.batch_size / per_bin), round(bins_each)))
    accum = max(1, round(bins_each / per_device))
    words = (
        f"about {per_bin:.1f} rows packed into each {config.train.max_seq_len} tokens" if packing else "not packed"
    ) + f", {per_device * accum * n_processes() * per_bin:.0f} rows a step (the config asks for {wanted})"
    return Plan(packing, per_device, accum, words)


def make_trainer(config, task, chat, examples, folder):
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback

    from language_model import base_model, packed_attention
    from training import trainer as ours

    model, precision = base_model.load_base(config, attention=packed_attention.register())
    if precision == "float16" and config.train.bf16:
        say("this GPU has no bfloat16: training in float16")
    packing = ours.packing_is_correct(model, examples["train"], config.train)
    plan = make_plan(config, examples["train"], packing)
    data = {
        split: Dataset.from_list([{key: row[key] for key in ("input_ids", "labels")} for row in rows])
        for split, rows in examples.items()
    }
    lora = LoraConfig(
        r=config.peft.r,
        lora_alpha=config.peft.alpha,
        lora_dropout=config.peft.dropout,
        task_type="CAUSAL_LM",
        target_modules=config.peft.target_modules,
        bias="none",
    )
    speed = ours.Progress()
    trainer = ours.StewardTrainer(
        model=model,
        args=ours.arguments(config, plan, precision, folder),
        train_dataset=data["train"],
        eval_dataset=data["val"],
        processing_class=chat.tokenizer,
        peft_config=lora,
        callbacks=[
            speed,
            EarlyStoppingCallback(
                early_stopping_patience=config.train.patience,
                early_stopping_threshold=ours.TIE_BREAK * ours.LEAST_LOSS_GAIN,
            ),
        ],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.plan = plan
    trainer.precision = precision
    trainer.speed = speed
    speed.trainer = trainer
    trainer.verdict_cases = ours.VerdictCases(chat, task, examples["val"], config.train.eval_rows)
    return trainer


def save_adapter(trainer, chat, lora):
    import torch

    broken = [
        name
        for name, weights in trainer.model.named_parameters()
        if weights.requires_grad and not torch.isfinite(weights).all()
    ]
    if broken:
        raise WorkFailed(
            f"training diverged: {len(broken)} adapter matrices hold NaN or infinity (first {broken[0]}); "
            "lower train.lr and run again with --force"
        )
    trainer.save_model(lora)
    chat.tokenizer.save_pretrained(lora)
    for extra in ("training_args.bin", "README.md"):
        (lora / extra).unlink(missing_ok=True)


def training_facts(trainer, config, examples, left_out):
    """What the report and the model card say about the training."""
    from training import trainer as ours

    state = trainer.state
    evals = [entry for entry in state.log_history if "eval_macro_f1" in entry]
    targets = ours.adapted_kinds(trainer.model)
    best_macro_f1 = next((entry["eval_macro_f1"] for entry in evals if entry["step"] == state.best_global_step), None)
    return {
        "method": config.peft.method,
        "quantization": "NF4, double" if config.peft.method == "qlora" else "none",
        "precision": trainer.precision,
        "rows": len(examples["train"]),
        "left_out": left_out,
        "steps": state.global_step,
        "epochs": round(state.epoch or 0, 3),
        "packing": trainer.plan.packing,
        "per_device_batch": trainer.plan.per_device,
        "grad_accum": trainer.plan.grad_accum,
        "processes": n_processes(),
        "base_revision": getattr(trainer.model.config, "_commit_hash", None),
        "best_step": state.best_global_step,
        "best_val_macro_f1": best_macro_f1,
        "adapted": targets,
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "val_macro_f1_by_step": {entry["step"]: round(entry["eval_macro_f1"], 4) for entry in evals},
        **trainer.speed.facts(),
        **{key: value for key, value in Clock().facts().items() if key.startswith("peak")},
    }


if __name__ == "__main__":
    run(main)
