"""Turn split rows into chat prompts and gold answers: python src/build_prompts.py

Writes data/processed/{train,val}.jsonl. With --config, the rows that a model cannot take are counted and listed too.
"""

import argparse
import json
from pathlib import Path

import dataset
import json_lines
import locks
from common import UserError, counted, existing_file, read_json, row_id, run, sha256_file, written_whole
from config import load_config
from language_model import chat_template
from manifest import Clock, fingerprint, write_manifest
from rows import checked_rows
from tasks import DEFAULT, load_task
from tasks import facts as task_facts

SPLITS = ("train", "val")
MOST_LISTED = 20


def main():
    args = parse_args()
    task = load_task(args.task)
    folder = Path(args.data or task.under("data"))
    out = Path(args.out or folder / "processed")
    with locks.only_writer(out):
        build(args, task, folder, out)


def build(args, task, folder, out):
    """Write both files of prompts, unless these very ones are there."""
    clock = Clock()
    name = prompts_fingerprint(folder, task)
    if not args.config and not args.force and is_done(out, name):
        print(f"the prompts in {out} are up to date: same rows, task and code (--force makes them again)")
        (out / "manifest.json").touch()
        return
    gauges = [LengthGauge(path, task) for path in args.config]
    n_rows = write_prompts(folder, out, task, gauges)
    (out / "manifest.json").unlink(missing_ok=True)
    print(", ".join(counted(n, f"{split} prompt") for split, n in n_rows.items()) + f" in {out}")
    for gauge in gauges:
        gauge.report()
    if not gauges:
        print("lengths depend on a model's tokenizer: make check-<model> counts and lists the rows that do not fit it")
    write_manifest(
        out / "manifest.json",
        clock,
        task=task.name,
        fingerprint=name,
        system_text=task.system_text,
        rows=n_rows,
        left_out={gauge.path: gauge.left_out for gauge in gauges},
        sha256={split: sha256_file(out / f"{split}.jsonl") for split in SPLITS},
    )


def prompts_fingerprint(folder, task):
    """The name of what the prompts depend on: both splits, what the task says of prompts and answers, and the code."""
    rows = {split: sha256_file(split_file(folder, split)) for split in SPLITS}
    return fingerprint({"rows": rows, "task": task_facts(task)}, __file__, task.folder / "data.py")


def split_file(folder, split):
    return existing_file(folder / f"{split}.jsonl", "run make prep, or src/prepare_splits.py first")


def is_done(out, name):
    """Whether these very prompts are there already, byte for byte."""
    manifest = out / "manifest.json"
    if not manifest.is_file():
        return False
    facts = read_json(manifest)
    files = {split: out / f"{split}.jsonl" for split in SPLITS}
    return facts.get("fingerprint") == name and all(
        path.is_file() and sha256_file(path) == facts["sha256"].get(split) for split, path in files.items()
    )


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with train.jsonl and val.jsonl (default data)")
    parser.add_argument("--out", help="folder to write (default <data>/processed)")
    parser.add_argument(
        "--config",
        nargs="*",
        default=[],
        help="count token lengths for these models' configs, for example configs/qwen3_4b.yaml",
    )
    parser.add_argument("--force", action="store_true", help="make them again even if nothing changed")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    return parser.parse_args()


def write_prompts(folder, out, task, gauges):
    """Stream both splits into their prompt files; the number of rows of each."""
    sources = {split: split_file(folder, split) for split in SPLITS}
    problems = json_lines.Problems()
    n_rows = dict.fromkeys(SPLITS, 0)
    n_sides = 0
    sides = task.hook("data", "SIDES")
    with written_whole(*(out / f"{split}.jsonl" for split in SPLITS)) as files:
        for (split, source), file in zip(sources.items(), files, strict=True):
            for _, row in checked_rows(source, task, problems):
                prompt = prompt_row(row, task)
                file.write(json.dumps(prompt, ensure_ascii=False) + "\n")
                n_rows[split] += 1
                n_sides += bool(sides and sides.search(json.dumps(row["output"], ensure_ascii=False)))
                for gauge in gauges:
                    gauge.measure(split, prompt)
            problems.stop_if_any(source)
        if not n_rows["train"]:
            raise UserError(f"{sources['train']}: there is no row in it; make it again with src/prepare_splits.py")
    if n_sides:
        print(f"note: {n_sides:,} of {sum(n_rows.values()):,} answers {task.hook('data', 'SIDES_NOTE')}")
    return n_rows


def prompt_row(row, task):
    return {
        "id": row_id(row),
        "prompt": task.messages(row["input"]),
        "completion": [{"role": "assistant", "content": task.completion(row["output"])}],
    }


class LengthGauge:
    """Which rows one model cannot take whole."""

    def __init__(self, path, task):
        self.path = path
        self.config = load_config(path, overlay=task.overlay)
        self.left_out = {}
        self.chat = chat_template.load_chat(self.config)

    def measure(self, split, prompt):
        _, left_out = dataset.encode_rows([prompt], self.chat, self.config)
        self.left_out.setdefault(split, []).extend(left_out)

    def report(self):
        for split, left_out in self.left_out.items():
            print(f"{self.path}: {counted(len(left_out), f'{split} row')} too long")
            dataset.print_left_out(left_out, f"{self.path}, {split}", MOST_LISTED)


if __name__ == "__main__":
    run(main)
