"""Fine-tune one model with LoRA or QLoRA and merge it.

    accelerate launch src/sft_train.py --config configs/phi4mini.yaml

Writes outputs/<model>-lora/ and outputs/<model>-merged/. A killed run goes on from its last checkpoint.
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
from training import folders, shipping, start
from training.processes import is_main

TRAINING = SRC / "training" / "fine_tuning.py"
OF_OTHER_STEPS = ("merge", "package", "about", "dpo")  # settings that the adapter does not depend on


def main():
    args = parse_args()
    task = load_task(args.task)
    config = load_config(args.config, args.set, task.overlay)
    model = Path(args.out or task.under("outputs")) / Path(args.config).stem
    start.check(config)
    base_files.ensure(config)
    start.check_base(config)
    if args.ship:
        shipping.check(config, Path(args.ship))
    # Of several processes the first one writes.
    with locks.only_writer(model) if is_main() else contextlib.nullcontext():
        phase = phase_of(args, config, task, model)
        folders.make_both(phase, config, task, args.force)
        if args.ship and is_main():
            shipping.ship(config, phase.adapter, phase.merged, Path(args.ship))


def phase_of(args, config, task, model):
    def train(adapter, made_from, clock):
        from training import fine_tuning

        fine_tuning.train(args, config, task, adapter, made_from, clock)

    lora = folders.folder_of(model, "lora")
    merged = folders.folder_of(model, "merged")
    return folders.Phase(lora, merged, training_fingerprint(args, config, task), train, args.val)


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
    parser.add_argument("--ship", help="folder for the adapter with card and manifest, small enough to pass on")
    parser.add_argument("--force", action="store_true", help="train again from the start, even if nothing changed")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    args = parser.parse_args()
    processed = load_task(args.task).under("data") / "processed"
    args.train = existing_file(args.train or processed / "train.jsonl", "run make prep first")
    args.val = existing_file(args.val or processed / "val.jsonl", "run make prep first")
    return args


def training_fingerprint(args, config, task):
    """The name of what the adapter depends on: settings of this phase, prompts, base model, and the code."""
    facts = {
        "settings": {key: value for key, value in dataclasses.asdict(config).items() if key not in OF_OTHER_STEPS},
        "task": [task.name, task.select_by],
        "prompts": [sha256_file(args.train), sha256_file(args.val)],
        "base": model_folder.base_identity(config.model_id),
    }
    if begun_from := start.folder_of(config):
        facts["start"] = model_folder.weights_sha256(begun_from)
    # The task says what a right answer is where answers pick the checkpoint.
    return fingerprint(facts, TRAINING, SRC / "tasks" / "answers.py", task.folder / "data.py")


if __name__ == "__main__":
    run(main)
