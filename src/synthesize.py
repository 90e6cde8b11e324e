"""Make labelled synthetic pairs: python src/synthesize.py --rows 2000 --out data/synthetic.jsonl

--pool test draws from names, towns and words that the training pool never shows.
"""

import argparse
import gc
import json
import multiprocessing
import os
import time
from pathlib import Path

from common import Clock, UserError, progress, run, sha256_file, shown_path, write_manifest, written_whole
from tasks import DEFAULT, load_task

BLOCK = 2_000


def main():
    args = parse_args()
    if args.rows < 1:
        raise UserError(f"--rows {args.rows}: at least 1 row")
    make(args.task, args.rows, args.seed, args.out, args.pool, args.reference)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, required=True, help="how many pairs")
    parser.add_argument("--out", required=True, help="JSON Lines file to write")
    parser.add_argument("--seed", type=int, default=1, help="another seed gives other pairs (default 1)")
    parser.add_argument("--pool", default="train", help="train, test (values that train never shows) or all (default train)")
    parser.add_argument("--reference", metavar="FOLDER", help="folder with lists of more names, anywhere in it; the task's pools.py names the files")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    return parser.parse_args()


def make(task_name, n_rows, seed, out, pool="train", reference=None):
    """Write n_rows pairs; the same task, pool, lists, seed and row number always give the same pair, on any number of cores."""
    recipe = checked_recipe(load_task(task_name), pool, reference)
    clock, start = Clock(), time.perf_counter()
    blocks = [(task_name, min(BLOCK, n_rows - at), seed, at, recipe) for at in range(0, n_rows, BLOCK)]
    n_workers = min(len(blocks), usable_cores())
    # spawn: fork would copy the threads of whatever the caller has loaded.
    with written_whole(out) as file, progress(n_rows, "pairs", "synthesize") as bar:
        if len(blocks) == 1:
            file.write(block_text(blocks[0]))
            bar.update(n_rows)
        else:
            with multiprocessing.get_context("spawn").Pool(n_workers) as workers:
                for text in workers.imap(block_text, blocks):
                    file.write(text)
                    bar.update(text.count("\n"))
    rate = n_rows / (time.perf_counter() - start)
    print(f"{n_rows:,} pairs in {out}: {rate:,.0f} pairs/s on {n_workers} {'core' if n_workers == 1 else 'cores'}, {rate / n_workers:,.0f} a core", flush=True)
    write_manifest(f"{out}.manifest.json", clock, task=task_name, rows=n_rows, seed=seed, pool=pool, reference=reference and shown_path(reference),
                   lists=list_hashes(load_task(task_name), reference), pairs_per_s=round(rate), workers=n_workers, sha256=sha256_file(out))


def checked_recipe(task, pool, reference):
    """What the rows are drawn from, after one trial row: what is wrong with it is said before any process starts."""
    synthetic = task.module("synthetic")
    recipe = synthetic.Recipe(pool=pool, reference=str(reference) if reference else None)
    next(iter(synthetic.rows(1, 1, 0, recipe)))
    if reference and not found_lists(task, reference):
        raise UserError(f"--reference {reference}: none of the lists that are looked for is in it or below it: {', '.join(reference_lists(task))}")
    return recipe


def reference_lists(task):
    return list(task.module("pools").REFERENCE_LISTS.values())


def found_lists(task, folder):
    return sorted(path for name in reference_lists(task) for path in Path(folder).rglob(name))


def list_hashes(task, folder):
    """The lists shape every row, so the manifest names their contents."""
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in found_lists(task, folder)} if folder else {}


def usable_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def block_text(block):
    task_name, n, seed, start, recipe = block
    gc.disable()    # rows hold no cycles; looking for some takes a twentieth of the time
    rows = load_task(task_name).module("synthetic").rows(n, seed, start, recipe)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    run(main)
