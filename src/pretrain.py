"""Train steward_mini from nothing: python src/pretrain.py --out models/steward-mini

Synthetic pairs are made while a GPU trains on them; tokenizer, weights, calibration and model card are left in --out.
About six minutes on one H200. On a CPU only a tiny model is sensible: --set pairs=2000 layers=2 width=96
step_tokens=4096
"""

import argparse
import dataclasses
import os
from pathlib import Path

import locks
from common import UserError, quiet_libraries, read_json, run, sha256_file, write_text
from config import load_config
from manifest import Clock, write_manifest
from steward_mini import model_card, vocabulary
from steward_mini.plan import CONFIG, plan_with
from tasks import DEFAULT, load_task


def main():
    args = parse_args()
    plan = plan_with(args.set)
    task = load_task(args.task)
    check_task(task)
    quiet_libraries()
    with locks.only_writer(args.out):
        pretrain(plan, task, args.out, args.workers or max(1, (os.cpu_count() or 2) - 1))


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("models/steward-mini"), help="folder to write (default models/steward-mini)"
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="override a setting, for example seed=2 pairs=1000000"
    )
    parser.add_argument("--workers", type=int, help="processes that make pairs (default: all cores but one)")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    return parser.parse_args()


def check_task(task):
    """A model from nothing needs rows without end, a verdict to weigh, and words for its card."""
    missing = [
        what
        for what, there in (
            ("verdict", task.verdict),
            ("synthetic.py", task.module("synthetic")),
            ("model_card.md", model_card.template_path(task).is_file()),
        )
        if not there
    ]
    if missing:
        raise UserError(f"--task {task.name}: no model can be trained from nothing for it, it has no {missing[0]}")


def pretrain(plan, task, out, n_workers):
    """Tokenizer, weights, temperature, manifest and card, in this order."""
    import torch

    from steward_mini.held_out import held_out_scores
    from steward_mini.model import WEIGHTS, make_model, save
    from steward_mini.training_loop import fit

    clock = Clock()
    torch.manual_seed(plan.seed)
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)
    tokenizer = vocabulary.fitted(plan, task, out)
    model = make_model(plan, tokenizer)
    n_parameters = sum(p.numel() for p in model.parameters())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = f"{n_parameters:,} parameters, {len(tokenizer):,} tokens, {plan.pairs:,} pairs"
    print(f"{sizes} on {device}, {n_workers} workers", flush=True)
    speed = fit(plan, task, model.to(device), out, n_workers)
    save(model, out)
    config = load_config(CONFIG, overlay=task.overlay)
    scores = held_out_scores(task, out, plan.held_out, config)
    weights = sha256_file(out / WEIGHTS)
    write_manifest(
        out / "manifest.json",
        clock,
        config=dataclasses.asdict(config),
        fingerprint=weights,
        task=task.name,
        plan=dataclasses.asdict(plan),
        parameters=n_parameters,
        training={"method": "from scratch on synthetic pairs", "rows": plan.pairs, **speed},
        held_out=scores,
        weights_sha256=weights,
    )
    write_text(out / "README.md", model_card.card(read_json(out / "manifest.json"), task))
    print(f"{out}: {score_words(scores)}")


def score_words(scores):
    return (
        f"held-out accuracy {scores['accuracy']:.4f}, calibration error {scores['ece']:.4f}, "
        f"temperature {scores['temperature']:.3f}"
    )


if __name__ == "__main__":
    run(main)
