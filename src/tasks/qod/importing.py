"""The files of other projects -> rows of the task, and back:

python src/import_rows.py --task qod --from_sft sft.jsonl --out data/qod/all.jsonl
python src/import_rows.py --task qod --from_preferences preferences.jsonl --out data/qod/preferences.jsonl
python src/import_rows.py --task qod --to_sft data/qod/train.jsonl --out sft.jsonl
python src/import_rows.py --task qod --to_preferences data/qod/preferences.jsonl --out preferences.jsonl
"""

import argparse

import locks
from common import counted, sha256_file, written_whole
from manifest import Clock, write_manifest
from tasks import DEFAULT, load_task
from tasks.qod import seed_formats


def main():
    args = parse_args()
    with locks.only_writer(args.out):
        make(args, Clock())


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--from_sft", metavar="FILE", help="instruction, input, response -> labelled rows")
    which.add_argument("--from_preferences", metavar="FILE", help="prompt, chosen, rejected -> preference pairs")
    which.add_argument("--to_sft", metavar="FILE", help="labelled rows -> instruction, input, response; at least 50")
    which.add_argument(
        "--to_preferences", metavar="FILE", help="preference pairs -> prompt, chosen, rejected; at least 30"
    )
    parser.add_argument("--out", required=True, help="JSON Lines file to write; its manifest goes beside it")
    parser.add_argument("--task", default=DEFAULT, help="whose rows are made: qod")
    return parser.parse_args()


def make(args, clock):
    task = load_task("qod")
    direction, source = next((name, value) for name, value in vars(args).items() if name in MAKERS and value)
    lines = MAKERS[direction](source, task)
    with written_whole(args.out) as file:
        file.writelines(lines)
    print(f"{counted(len(lines), 'row')} in {args.out}")
    write_manifest(
        f"{args.out}.manifest.json",
        clock,
        task=task.name,
        direction=direction,
        rows=len(lines),
        source=sha256_file(source),
        sha256=sha256_file(args.out),
    )


def read_sft(source, task):
    return [seed_formats.line(**row) for row in seed_formats.from_sft(source, task)]


def read_preferences(source, task):
    return [seed_formats.line(**pair) for pair in seed_formats.from_preferences(source, task)]


def write_sft(source, task):
    rows = seed_formats.labelled_rows(source, task)
    seed_formats.refuse_few(len(rows), "sft", source)
    return seed_formats.to_sft(rows, task)


def write_preferences(source, task):
    pairs = seed_formats.pairs(source, task)
    seed_formats.refuse_few(len(pairs), "preferences", source)
    return seed_formats.to_preferences(pairs)


MAKERS = {
    "from_sft": read_sft,
    "from_preferences": read_preferences,
    "to_sft": write_sft,
    "to_preferences": write_preferences,
}
