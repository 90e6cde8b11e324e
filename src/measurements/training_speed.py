"""TRL's trainer as it comes beside our training, on the same rows: tokens a second, time of an epoch, memory.

    python src/measure.py training_speed --config configs/smollm2_135m.yaml --task qod \\
        --prompts data/qod/processed/train.jsonl --out training_speed.json

Each run is a process of its own, and the order of the ways changes from one repeat to the next. After --warm_up steps
a run reads as many rows as --rows says, in optimizer steps of batch_size x grad_accum rows, or as nearly as bins of
max_seq_len tokens divide them. Tokens are counted without padding; validation and checkpoints are left out.
--random_weights names a folder with config.json and tokenizer; its weights are made for this measurement and removed
after it: speed and memory are the same.
"""

import argparse
import contextlib
import multiprocessing
import tempfile
import threading
from pathlib import Path
from statistics import median

import interruption
import locks
from common import UserError, WorkFailed, existing_file, quiet_libraries, sha256_file, shown_path, write_json
from config import load_config
from load_test.clients import end_with_parent
from manifest import Clock, write_manifest
from measurements.speed import spread
from tasks import DEFAULT, load_task

WAYS = {
    "trl": "TRL as it comes",
    "trl_checkpointing": "TRL, gradient checkpointing as our config says",
    "ours_literal": "ours, micro-batch as written",
    "ours": "ours",
    "ours_compiled": "ours, compiled and recorded",
}
METHODS = ("lora", "qlora")
SETTINGS = ("rows_a_step", "at_once", "packing", "gradient_ckpt", "file")
ENDING_S = 10  # for a process whose result is there to put its things away


def main():
    args = parse_args()
    clock = Clock()
    quiet_libraries()
    task = load_task(args.task)
    config = load_config(args.config, args.set, task.overlay)
    methods = args.methods or [config.peft.method]
    with locks.only_writer(args.out), base_of(config, args) as base:
        runs = measured([(way, method) for method in methods for way in args.ways], base, args)
        every = [run for found in runs.values() for run in found]
        whole = [run for run in every if "failed" not in run]
        if not whole:
            raise WorkFailed(f"{args.config}: no run came to its end; the first: {every[0]['failed']}")
        write_manifest(
            args.out,
            clock,
            task=task.name,
            model=config.name,
            weights="random" if args.random_weights else "real",
            data={"path": shown_path(args.prompts), "sha256": sha256_file(args.prompts)},
            trained_on=whole[0]["machine"],  # this process itself has loaded no PyTorch
            repeats=args.repeats,
            warm_up=args.warm_up,
            cases=cases_of(runs),
            runs=runs,
        )
        args.out.with_suffix(".partial.json").unlink(missing_ok=True)
    print(f"in {args.out}")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the model's YAML, for example configs/smollm2_135m.yaml")
    parser.add_argument("--prompts", required=True, help="training prompts that src/build_prompts.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--random_weights", type=Path, metavar="FOLDER", help="config.json and tokenizer, no weights")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="default all")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default the config's")
    parser.add_argument("--rows", type=int, default=240, help="rows that a run reads after its warm-up (default 240)")
    parser.add_argument("--warm_up", type=int, default=3, help="steps before the clock starts (default 3)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way (default 3)")
    parser.add_argument("--limit_s", type=float, default=300, help="seconds after which a run is ended (default 300)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings to override")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    args = parser.parse_args()
    for option in ("rows", "warm_up", "repeats", "limit_s"):
        if not getattr(args, option) >= 1:
            raise UserError(f"--{option} {getattr(args, option)}: at least 1")
    args.prompts = existing_file(args.prompts, "run make prep first")
    if args.random_weights:
        existing_file(args.random_weights / "config.json", "a model's shape is its config.json and tokenizer")
    return args


@contextlib.contextmanager
def base_of(config, args):
    """Folder or hub name of the base, for the time of the block."""
    if not args.random_weights:
        from language_model import base_files

        base_files.ensure(config)
        yield config.model_id
        return
    with tempfile.TemporaryDirectory(prefix=f"{args.random_weights.name}-") as place:
        folder = Path(place) / args.random_weights.name
        # A process of its own gives the GPU's memory back.
        found = apart(made_weights, (args.random_weights, folder), args.limit_s)
        if "failed" in found:
            raise WorkFailed(f"{args.random_weights}: no weights could be made: {found['failed']}")
        yield found["folder"]


def made_weights(places):
    from measurements.micro_batches import with_random_weights

    return {"folder": str(with_random_weights(*places))}


def measured(cases, base, args):
    """{(way and method): one run a repeat}; what is there so far lies beside the result."""
    so_far = args.out.with_suffix(".partial.json")
    runs = {f"{way} {method}": [] for way, method in cases}
    for repeat in range(args.repeats):
        # Nobody is always the first on a cold machine.
        first = repeat % len(cases)
        for way, method in [*cases[first:], *cases[:first]]:
            # Of this process: one that is killed at its limit leaves its files behind.
            with tempfile.TemporaryDirectory() as place:
                run = apart(run_of, (way, base, method, args, place), args.limit_s)
            runs[f"{way} {method}"].append(run)
            write_json(so_far, {"runs": runs})
            print(f"repeat {repeat + 1} of {args.repeats}, {WAYS[way]}, {method}: {words_of(run)}", flush=True)
    return runs


def run_of(asked):
    """One run, in the process that was started for it."""
    from measurements import _training_run

    way, base, method, args, place = asked
    overrides = [*args.set, f"model_id={base}", f"peft.method={method}"]
    config = load_config(args.config, overrides, load_task(args.task).overlay)
    return _training_run.measured(way, config, args, Path(place))


def words_of(run):
    if "failed" in run:
        return run["failed"]
    return f"{run['tokens_per_s']:,.0f} tokens/s, {run['used_gb']:.2f} GB, {run['at_once']} at once"


def apart(work, argument, limit_s):
    """What `work(argument)` returns in a process of its own; {"failed": why} where it does not come to that."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=sent, args=(work, argument, theirs), daemon=True)
    child.start()
    theirs.close()  # or its death would never be seen
    try:
        if not ours.poll(limit_s):
            return {"failed": f"not done after {limit_s:g} s"}
        found = ours.recv()
        child.join(ENDING_S)
        return found
    except EOFError:
        child.join()
        return {"failed": f"its process ended with exit code {child.exitcode}"}
    finally:
        child.kill()
        child.join()
        ours.close()


def sent(work, argument, pipe):
    interruption.leave_to_parent()
    threading.Thread(target=end_with_parent, daemon=True).start()
    quiet_libraries()
    try:
        found = work(argument)
    except Exception as error:
        # Out of memory is a result; the other runs go on.
        found = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    pipe.send(found)


def ratios_to(others, runs):
    """How many times as fast as the other run of its repeat each run was, where both came to their end."""
    return [
        run["tokens_per_s"] / other["tokens_per_s"]
        for run, other in zip(runs, others, strict=False)
        if "failed" not in run and "failed" not in other
    ]


def cases_of(runs):
    """Median, least and most of each case; the ratio to TRL as it comes is taken within a repeat."""
    cases = {}
    for case, found in runs.items():
        way, method = case.split()
        whole = [run for run in found if "failed" not in run]
        if not whole:
            cases[case] = {"failed": found[0]["failed"]}
            continue
        ratios = ratios_to(runs.get(f"trl {method}", []), found)
        rates = [run["tokens_per_s"] for run in whole]
        cases[case] = {
            "way": way,
            "method": method,
            "n": len(whole),
            "tokens_per_s": spread(rates),
            "epoch_s": spread([run["file"]["tokens"] / rate for run, rate in zip(whole, rates, strict=True)]),
            "times_of_trl": spread(ratios) if ratios else None,
            "used_gb": max(run["used_gb"] for run in whole),
            "padding_pct": round(median(run["padding_pct"] for run in whole), 2),
            **{key: whole[0][key] for key in SETTINGS},
        }
    return cases
