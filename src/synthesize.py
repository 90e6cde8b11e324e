"""Make labelled synthetic pairs: python src/synthesize.py --rows 2000 --out data/synthetic.jsonl

--pool test draws from names, towns and words that the training pool never shows.
"""

import argparse

from common import UserError, run
from tasks import DEFAULT, synthesis


def main():
    args = parse_args()
    if args.rows < 1:
        raise UserError(f"--rows {args.rows}: at least 1 row")
    synthesis.make(args.task, args.rows, args.seed, args.out, args.pool, args.reference)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, required=True, help="how many pairs")
    parser.add_argument("--out", required=True, help="JSON Lines file to write")
    parser.add_argument("--seed", type=int, default=1, help="another seed gives other pairs (default 1)")
    parser.add_argument(
        "--pool",
        default="train",
        help="train, test (values that train never shows), all, or another one that the task has (default train)",
    )
    parser.add_argument(
        "--reference",
        metavar="FOLDER",
        help="folder with lists of more names, anywhere in it; the task's synthetic.py names the files",
    )
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
