"""Tune a fine-tuned adapter on preference pairs (DPO) and merge it.

    accelerate launch src/dpo_train.py --config configs/phi4mini.yaml

Begins with outputs/<model>-lora/, whose frozen copy is the reference, and writes outputs/<model>-dpo/ and
outputs/<model>-dpo-merged/. A killed run goes on from its last checkpoint.
"""

import argparse
import contextlib
import dataclasses
from pathlib import Path

import locks
from common import existing_file, run, sha256_file
from config import load_config
from language_model import base_files, model_folder
from manifest import SRC, fingerprint
from tasks import DEFAULT, load_task
from tasks import facts as task_facts
from training import folders, phase_before, shipping
from training.processes import is_main

TUNING = SRC / "training" / "preference_tuning.py"


def main():
    args = parse_args()
    task = load_task(args.task)
    model = Path(args.out or task.under("outputs")) / Path(args.config).stem
    adapter = Path(args.adapter) if args.adapter else folders.folder_of(model, "lora")
    begun_with = phase_before.facts(adapter, how_to_make(args, task))
    config = load_config(args.config, args.set, task.overlay)
    config = phase_before.settings(config, args.set, adapter, begun_with)
    base_files.ensure(config)
    if args.ship:
        shipping.check(config, Path(args.ship))
    tuned = folders.folder_of(model, "dpo")
    # Of several processes the first one writes.
    with locks.only_writer(tuned) if is_main() else contextlib.nullcontext():
        phase = phase_of(args, config, task, adapter, tuned)
        folders.make_both(phase, config, task, args.force)
        if args.ship and is_main():
            shipping.ship(config, phase.adapter, phase.merged, Path(args.ship))


def how_to_make(args, task):
    return f"make train-{Path(args.config).stem}{task.for_make} (src/sft_train.py)"


def how_to_make_pairs(task):
    if task.hook("violations", "VIOLATIONS"):
        return f"make preferences{task.for_make} (src/build_preferences.py) makes pairs from training rows"
    return (
        f"make preferences{task.for_make} PREDICTIONS=<answers.jsonl> (src/build_preferences.py) makes pairs of a "
        "model's wrong answers; docs/training.md says how a line looks"
    )


def phase_of(args, config, task, adapter, tuned):
    def tune(tuned, made_from, clock):
        from training import preference_tuning

        preference_tuning.tune(args, config, task, adapter, tuned, made_from, clock)

    merged = folders.folder_of(tuned, "merged")
    return folders.Phase(tuned, merged, tuning_fingerprint(args, config, task, adapter), tune, args.prompts)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the model's YAML, for example configs/phi4mini.yaml")
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="override settings, for example dpo.lr=1e-5 dpo.beta=0.3",
    )
    parser.add_argument("--train", help="preference pairs (default data/preferences.jsonl)")
    parser.add_argument("--val", help="pairs for validation (default data/preferences_val.jsonl)")
    parser.add_argument(
        "--prompts", help="validation prompts that the merge is checked on (default data/processed/val.jsonl)"
    )
    parser.add_argument("--adapter", help="the fine-tuned adapter (default <model>-lora in the folder of --out)")
    parser.add_argument("--out", help="folder for <model>-dpo and <model>-dpo-merged (default outputs)")
    parser.add_argument("--ship", help="folder for the adapter with card and manifest, small enough to pass on")
    parser.add_argument("--force", action="store_true", help="tune again from the start, even if nothing changed")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    args = parser.parse_args()
    task = load_task(args.task)
    data = task.under("data")
    makes = how_to_make_pairs(task)
    args.train = existing_file(args.train or data / "preferences.jsonl", makes)
    args.val = existing_file(args.val or data / "preferences_val.jsonl", makes)
    args.prompts = existing_file(args.prompts or data / "processed" / "val.jsonl", "run make prep first")
    return args


def tuning_fingerprint(args, config, task, adapter):
    """The name of what the tuned adapter depends on: settings of this phase, pairs, adapter, base model, and code."""
    facts = {
        "settings": {name: dataclasses.asdict(config)[name] for name in ("model_id", "peft", "chat", "dpo")},
        "train": [config.train.max_seq_len, config.train.bf16, config.train.gradient_ckpt, config.gen.max_new_tokens],
        "task": [task.name, task_facts(task)],
        "data": [sha256_file(path) for path in (args.train, args.val, args.prompts)],
        "base": model_folder.base_identity(config.model_id),
        "adapter": model_folder.weights_sha256(adapter),
    }
    # The task says what a prompt is.
    return fingerprint(facts, TUNING, SRC / "tasks" / "answers.py", task.folder / "data.py")


if __name__ == "__main__":
    run(main)
