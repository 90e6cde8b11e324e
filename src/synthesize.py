"""Make labelled synthetic pairs: python src/synthesize.py --rows 2000 --out data/synthetic.jsonl"""

import argparse
import json
import multiprocessing
import os

from common import Clock, UserError, progress, run, sha256_file, write_manifest, written_whole
from tasks import DEFAULT, load_task

BLOCK = 2_000


def main():
    args = parse_args()
    if args.rows < 1:
        raise UserError(f"--rows {args.rows}: at least 1 row")
    make(args.task, args.rows, args.seed, args.out)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, required=True, help="how many pairs")
    parser.add_argument("--out", required=True, help="JSON Lines file to write")
    parser.add_argument("--seed", type=int, default=1, help="another seed gives other pairs (default 1)")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    return parser.parse_args()


def make(task_name, n_rows, seed, out):
    """Write n_rows pairs; the same task, seed and row number always give the same pair, on any number of cores."""
    load_task(task_name)
    clock = Clock()
    blocks = [(task_name, min(BLOCK, n_rows - start), seed, start) for start in range(0, n_rows, BLOCK)]
    # spawn: fork would copy the threads of whatever the caller has loaded.
    with written_whole(out) as file, progress(n_rows, "pairs", "synthesize") as bar:
        if len(blocks) == 1:
            file.write(block_text(blocks[0]))
            bar.update(n_rows)
        else:
            with multiprocessing.get_context("spawn").Pool(min(len(blocks), os.cpu_count() or 1)) as pool:
                for text in pool.imap(block_text, blocks):
                    file.write(text)
                    bar.update(text.count("\n"))
    write_manifest(f"{out}.manifest.json", clock, task=task_name, rows=n_rows, seed=seed, sha256=sha256_file(out))


def block_text(block):
    task_name, n, seed, start = block
    rows = load_task(task_name).module("synthetic").rows(n, seed, start)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    run(main)
