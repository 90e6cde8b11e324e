"""How many rows one pass of training takes, and what that is worth:

    python src/measure.py micro_batches --models qwen3_4b --train data/processed/train.jsonl --out micro_batches.json

Every model is loaded as training loads it, with LoRA and with QLoRA, and the probe that training runs chooses the
micro-batch. Passes of that size and of the size that the config's batch_size asks for are timed on the same rows.
Random weights may stand in for a model: memory and time are the same. --shapes names a folder with one
<model>/config.json and tokenizer each; their weights are made for the run, and removed after it.
"""

import argparse
import contextlib
import dataclasses
import shutil
import tempfile
import time
from pathlib import Path

import dataset
import locks
from common import UserError, existing_file, quiet_libraries, write_json
from config import load_config, model_names
from language_model import base_files, chat_template
from manifest import Clock, write_manifest
from tasks import DEFAULT, load_task

METHODS = ("lora", "qlora")


def main():
    args = parse_args()
    clock = Clock()
    quiet_libraries()
    task = load_task(args.task)
    rows = dataset.read_prompts(args.train)
    with locks.only_writer(args.out):
        found = {}
        for name in args.models:
            with base_of(name, args.shapes) as base:
                for method in args.methods:
                    found[f"{name} {method}"] = measured(name, method, base, rows, task, args)
                    # Each case is kept as it comes: the next one may be too large for the machine.
                    write_json(args.out, {"cases": found})
        write_manifest(args.out, clock, task=task.name, cases=found, starts=args.starts, passes=args.passes)
    for case, facts in found.items():
        print(f"{case}: {line_of(facts)}")
    print(f"in {args.out}")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, choices=model_names(), help="names of YAMLs in configs/")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="default both")
    parser.add_argument("--train", required=True, help="training prompts that src/build_prompts.py wrote")
    parser.add_argument("--shapes", type=Path, help="folder of <model>/ with config.json and tokenizer, no weights")
    parser.add_argument("--starts", type=int, default=10, help="times that the probe runs (default 10)")
    parser.add_argument("--passes", type=int, default=8, help="timed passes of each size (default 8)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of every model to override")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    args = parser.parse_args()
    for option in ("starts", "passes"):
        if getattr(args, option) < 1:
            raise UserError(f"--{option} {getattr(args, option)}: at least 1")
    args.train = existing_file(args.train, "run make prep first")
    return args


@contextlib.contextmanager
def base_of(name, shapes):
    """(folder or hub name, whether its weights are random) of a model, for the time of the block."""
    if not shapes or not (shapes / name).is_dir():
        config = load_config(f"configs/{name}.yaml")
        base_files.ensure(config)
        yield config.model_id, False
        return
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as place:
        yield str(with_random_weights(shapes / name, Path(place) / name)), True


def with_random_weights(shape, folder):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(shape, folder)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(shape), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    del model
    release()
    return folder


def measured(name, method, base, rows, task, args):
    """One model and method: the choices of all starts, memory, and tokens a second at both sizes; or why not."""
    from torch.cuda import OutOfMemoryError

    model_id, is_random = base
    overrides = [f"model_id={model_id}", f"peft.method={method}", *args.set]
    config = load_config(f"configs/{name}.yaml", overrides, task.overlay)
    print(f"{name}, {method}: loading {model_id}", flush=True)
    facts = {"model_id": model_id if not is_random else f"shape of {load_config(f'configs/{name}.yaml').model_id}"}
    facts["weights"] = "random" if is_random else "real"
    try:
        return facts | passes_of(config, rows, task, args)
    except OutOfMemoryError as error:
        return facts | {"failed": str(error).splitlines()[0]}
    finally:
        release()


def passes_of(config, rows, task, args):
    from training import encoding, fine_tuning, micro_batch

    chat = chat_template.load_chat(config)
    examples, _ = dataset.encode_rows(rows, chat, config)
    if not examples:
        raise UserError(f"{args.train}: no row fits {config.name}")
    with tempfile.TemporaryDirectory() as place:
        data = {"train": encoding.data_set(examples), "val": encoding.data_set(examples[:8])}
        trainer = fine_tuning.make_trainer(config, task, chat, data, Path(place))
        choices = []
        for start in range(args.starts):
            # A folder of its own each time: the choice of an earlier start would be kept.
            folder = Path(place) / str(start)
            folder.mkdir()
            choices.append(micro_batch.choose(trainer, "auto", folder))
        chosen = timed(trainer, choices[-1].chosen, args.passes)
        literal = timed(trainer, trainer.plan.literal, args.passes)
        plan = trainer.plan
    return {
        "packing": plan.packing,
        "rows_a_step": plan.rows_a_step,
        "a_step": plan.a_step,
        "choice": dataclasses.asdict(choices[-1]),
        "chosen_in_all_starts": sorted({choice.chosen for choice in choices}),
        "chosen": chosen,
        "literal": literal,
    }


def timed(trainer, size, n_passes):
    """Tokens a second of passes over rows as they lie, and the memory that they took."""
    from training import micro_batch

    passes = [
        [trainer.train_dataset[at % len(trainer.train_dataset)] for at in range(start, start + size)]
        for start in range(0, size * (n_passes + 1), size)
    ]
    with micro_batch.undisturbed(trainer):
        # The first one only warms up.
        micro_batch.forward_and_backward(trainer, passes[0])
        micro_batch.reset_peak()
        start = time.perf_counter()
        for some in passes[1:]:
            micro_batch.forward_and_backward(trainer, some)
        seconds = time.perf_counter() - start
        trainer.model.zero_grad(set_to_none=True)
    tokens = sum(len(row["input_ids"]) for some in passes[1:] for row in some)
    return {
        "size": size,
        "tokens_per_s": round(tokens / seconds, 1),
        "used_gb": round((micro_batch.peak_bytes() + micro_batch.optimizer_bytes(trainer)) / 1e9, 2),
    }


def release():
    from training import micro_batch

    micro_batch.release()


def line_of(facts):
    if "failed" in facts:
        return facts["failed"]
    choice = facts["choice"]
    chosen = facts["chosen"]
    literal = facts["literal"]
    return (
        f"{chosen['size']} of {facts['a_step']} at once ({facts['chosen_in_all_starts']} in all starts), "
        f"{choice['predicted_gb']} GB predicted, {chosen['used_gb']} used; {chosen['tokens_per_s']:,.0f} tokens/s, "
        f"{literal['size']} at once {literal['tokens_per_s']:,.0f}"
    )
