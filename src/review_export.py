"""Stewards' decisions as training data: python src/review_export.py --decisions reviews/decisions.jsonl --test
data/test.jsonl --out reviews

Leaves training_rows.jsonl (labelled rows, to be added to the task's all.jsonl), preference_pairs.jsonl (prompt, chosen,
rejected, of every correction) and a manifest with what was left out and why. Cases of the test rows never come out;
cases on which stewards disagree are listed and left out.
"""

import argparse
import json
from pathlib import Path

import locks
from common import UserError, WorkFailed, existing_file, run, sha256_file, written_whole
from manifest import Clock, write_manifest
from rows import load_rows
from service.review import chain, decisions, export
from service.settings import Limits
from service.task_contract import TaskContract
from tasks import DEFAULT, load_task

ACCEPTED_SHARE = 1.0
ROWS = "training_rows.jsonl"
PREFERENCES = "preference_pairs.jsonl"
MANIFEST = "export.manifest.json"
MOST_LISTED = 20


def main():
    args = parse_args()
    clock = Clock()
    task = load_task(args.task)
    if not task.verdict:
        raise UserError(f"--task {task.name}: a review accepts or corrects verdicts, and this task has none")
    path = existing_file(args.decisions, "the review page writes it; make serve REVIEW=pairs.jsonl starts it")
    entries = checked_entries(path, task)
    kept, left_out = export.sorted_out(entries, task, held_out(args, task), args.accepted_share)
    rows, kept = fitting_rows(kept, task, left_out)
    preferences = [
        export.preference_of(entry, row, task)
        for entry, row in zip(kept, rows, strict=True)
        if entry["action"] == "correct"
    ]
    with locks.only_writer(args.out / ROWS):
        write(args.out, rows, preferences)
        write_manifest(
            args.out / MANIFEST,
            clock,
            decisions={
                "sha256": sha256_file(path),
                "n": len(entries),
                "last_hash": entries[-1]["hash"] if entries else None,
            },
            rows=len(rows),
            preference_pairs=len(preferences),
            left_out=left_out,
        )
    report(args.out, rows, preferences, left_out)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--decisions",
        type=Path,
        help="what the review page wrote (default reviews/decisions.jsonl)",
    )
    parser.add_argument(
        "--test",
        type=Path,
        help="rows that must stay out of training (default data/test.jsonl)",
    )
    parser.add_argument("--no_test", action="store_true", help="there are no test rows")
    parser.add_argument(
        "--accepted_share",
        type=float,
        default=ACCEPTED_SHARE,
        help="share of the accepted cases to take, drawn by hash (default 1); corrections are always taken",
    )
    parser.add_argument("--out", type=Path, help="folder to write to (default reviews)")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    args = parser.parse_args()
    task = load_task(args.task)
    args.decisions = args.decisions or task.under("reviews") / "decisions.jsonl"
    args.test = args.test or task.under("data") / "test.jsonl"
    args.out = args.out or task.under("reviews")
    if not 0 <= args.accepted_share <= 1:
        raise UserError(f"--accepted_share {args.accepted_share}: a share from 0 to 1")
    return args


def checked_entries(path, task):
    """All decisions of a file that is as it was written, and of this task."""
    wrong = chain.problems(path)
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if wrong[1:] else ""
        raise WorkFailed(f"{wrong[0]}{more}; make review-verify lists what is wrong, nothing was exported")
    entries = list(chain.read(path))
    if wrong := decisions.other_tasks(entries, task):
        raise UserError(
            f"{path}:{wrong['n']}: a decision of another task than {task.name}; name its own with --task (make: TASK=)"
        )
    return entries


def held_out(args, task):
    """The hashes of the test rows' cases."""
    found = set()
    if args.test.is_file():
        found = {decisions.case_hash(task, row["input"]) for row in load_rows(args.test, task)}
    if not found and not args.no_test:
        raise UserError(
            f"{args.test}: no such file, so nobody knows which {task.case}s must stay out of training; name it with "
            "--test, or say --no_test"
        )
    return found


def fitting_rows(kept, task, left_out):
    """(the rows, the decisions behind them); what would be no row of the task is left out."""
    contract = TaskContract(task, Limits())
    rows = []
    behind = []
    for entry in kept:
        row = export.row_of(entry, contract)
        if task.answer_problems(row["output"]):
            left_out.setdefault("the answer does not fit the schema", []).append(entry["pair"])
        else:
            rows.append(row)
            behind.append(entry)
    return rows, behind


def write(out, rows, preferences):
    """Both files; the manifest of an earlier export goes before its rows do."""
    with written_whole(out / ROWS, out / PREFERENCES) as files:
        rows_file, preferences_file = files
        rows_file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        preferences_file.writelines(json.dumps(pair, ensure_ascii=False) + "\n" for pair in preferences)
        # What a full disk refuses, it refuses here: then the earlier export is still whole.
        for file in files:
            file.flush()
        (out / MANIFEST).unlink(missing_ok=True)


def report(out, rows, preferences, left_out):
    print(f"{len(rows):,} rows in {out / ROWS}, {len(preferences):,} pairs in {out / PREFERENCES}")
    for why, cases in left_out.items():
        print(f"left out, {why}: {len(cases):,}")
        for one in [case for case in cases if isinstance(case, dict)][:MOST_LISTED]:
            verdicts = ", ".join(f"{name} {verdict}" for name, verdict in one["verdicts"].items())
            print(f"  {one['id'] or one['pair'][:12]}: {verdicts}")


if __name__ == "__main__":
    run(main)
