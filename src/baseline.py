"""The classical answers to the same question on the same rows: python src/baseline.py

Majority class, gradient boosting on string similarities, and Splink: fitted on --train and --val, answered and scored
on --data in the same formats as a language model. What a baseline knows of the task's fields is in
src/tasks/<task>/baseline.py; all of them answer with a verdict, so that a task without one has none.
"""

import argparse
from pathlib import Path
from time import perf_counter

import locks
from common import UserError, existing_file, read_json, row_id, run, sha256_file, shown_path, to_json, written_whole
from manifest import Clock, write_manifest
from rows import load_rows
from scoring.baselines import TITLES, NotPossible, fit_boosting, fit_majority, fit_splink, print_table
from tasks import DEFAULT, load_task

FIT = {"majority": fit_majority, "boosting": fit_boosting, "splink": fit_splink}
NO_VERDICT = "a baseline answers with a verdict, and this task's answers have none"


def main():
    args = parse_args()
    with locks.only_writer(Path(args.out) / "baselines"):
        make(args)


def make(args):
    """Fit, answer and score each baseline; the list of all is written last."""
    clock = Clock()
    task = load_task(args.task)
    whole = Path(args.out) / "baselines.json" if len(set(args.only)) == len(TITLES) else None
    if whole:
        whole.unlink(missing_ok=True)
    if task.verdict:
        made, skipped, data = run_baselines(args, task)
        print_table(made, skipped, args.out)
    else:
        made = {}
        data = None
        skipped = dict.fromkeys(args.only, NO_VERDICT)
        print(f"the task {task.name} has no baseline: {NO_VERDICT}")
    if whole:
        write_manifest(whole, clock, task=task.name, data=data, seed=args.seed, made=list(made), skipped=skipped)


def run_baselines(args, task):
    """(KPIs and speed of each that was made, why each other was not, which rows they answered)"""
    paths = (args.train, args.val, args.data)
    splits = [load_rows(existing_file(path, "run make prep, or src/prepare_splits.py first"), task) for path in paths]
    data = {
        "path": shown_path(args.data),
        "sha256": sha256_file(args.data),
        "rows": len(splits[-1]),
        "synthetic": is_synthetic(args.data),
    }
    made = {}
    skipped = {}
    for name in args.only:
        files = Files(Path(args.out), name)
        files.remove()
        try:
            made[name] = run_baseline(name, splits, data, files, task, args.seed)
        except NotPossible as reason:
            skipped[name] = str(reason)
        except ModuleNotFoundError as error:
            skipped[name] = f"the package {error.name} is not installed; make setup brings it"
    return made, skipped, data


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", help="rows to fit on (default data/train.jsonl)")
    parser.add_argument("--val", help="rows to tune and calibrate on (default data/val.jsonl)")
    parser.add_argument("--data", help="rows to answer and score (default data/test.jsonl)")
    parser.add_argument("--out", help="folder for baseline_<name>_metrics.json and the predictions (default reports)")
    parser.add_argument(
        "--only", nargs="+", choices=list(TITLES), default=list(TITLES), help="some of the baselines (default all)"
    )
    parser.add_argument(
        "--seed", type=int, default=42, help="another seed draws other random pairs for Splink (default 42)"
    )
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    args = parser.parse_args()
    if not 0 <= args.seed < 2**31:
        raise UserError(f"--seed {args.seed}: a whole number from 0 to {2**31 - 1:,}")
    folder = load_task(args.task).under("data")
    args.train, args.val, args.data = (
        getattr(args, key) or folder / f"{split}.jsonl"
        for key, split in (("train", "train"), ("val", "val"), ("data", "test"))
    )
    args.out = args.out or load_task(args.task).under("reports")
    return args


class Files:
    """The three files of one baseline."""

    def __init__(self, folder, name):
        self.predictions = folder / f"baseline_{name}_predictions.jsonl"
        self.manifest = folder / f"baseline_{name}_predictions.manifest.json"
        self.metrics = folder / f"baseline_{name}_metrics.json"

    def remove(self):
        for path in (self.metrics, self.manifest, self.predictions):
            path.unlink(missing_ok=True)


def is_synthetic(data):
    """Whether the manifest beside the rows says that a generator made them."""
    manifest = Path(data).with_name("manifest.json")
    return bool(manifest.is_file() and read_json(manifest).get("synthetic"))


def run_baseline(name, splits, data, files, task, seed):
    """Fit, answer, write and score one baseline; its KPIs and its answers per second."""
    from scoring.kpis import identity, score

    train, val, test = splits
    clock = Clock()
    print(f"{name}: fitting on {len(train):,} rows ...", flush=True)
    fitted = FIT[name](train, val, task, seed)
    training = {"method": fitted.method, "rows": len(train), "wall_s": clock.facts()["wall_s"]}
    predictions, rows_per_s = answers(fitted, test, task)
    with written_whole(files.predictions) as out:
        out.writelines(to_json(row) + "\n" for row in predictions)
    write_manifest(
        files.manifest,
        clock,
        task=task.name,
        model=f"baseline_{name}",
        title=TITLES[name],
        checkpoint=fitted.checkpoint,
        kind="baseline",
        data=data,
        backend="cpu",
        training=training,
        sha256=sha256_file(files.predictions),
        seed=seed,
        rows_per_s=rows_per_s,
    )
    metrics = score(predictions, task)
    write_manifest(files.metrics, clock, **identity(read_json(files.manifest), files.predictions), **metrics)
    return metrics["kpis"], rows_per_s


def answers(fitted, rows, task):
    """The predictions of all rows, in the format of a language model's, and how many a second."""
    cases = [row["input"] for row in rows]
    start = perf_counter()
    probabilities = fitted.predict(cases)
    seconds = perf_counter() - start
    swap = task.hook("data", "swap")
    swapped = named(fitted.predict([swap(case) for case in cases]), task) if swap else [None] * len(rows)
    predictions = []
    for row, p, p_swapped in zip(rows, named(probabilities, task), swapped, strict=True):
        label = max(p, key=p.get)
        predictions.append(
            {
                "id": row_id(row),
                "input": row["input"],
                "gold": row["output"],
                "raw": None,
                "answer": {task.verdict.key: label},
                "label": label,
                "probabilities": p,
                "swapped_probabilities": p_swapped,
                "finish_reason": None,
                "prompt_tokens": None,
                "completion_tokens": None,
                "seconds": seconds / len(rows),
            }
        )
    return predictions, round(len(rows) / seconds, 1)


def named(probabilities, task):
    return [dict(zip(task.verdict.labels, (round(float(p), 6) for p in row), strict=True)) for row in probabilities]


if __name__ == "__main__":
    run(main)
