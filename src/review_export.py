"""Stewards' decisions as training data: python src/review_export.py --decisions reviews/decisions.jsonl --test
data/test.jsonl --out reviews

Leaves training_rows.jsonl (labelled rows, to be added to data/all.jsonl), preference_pairs.jsonl (prompt, chosen,
rejected, of every correction) and a manifest with what was left out and why. Pairs of the test rows never come out;
pairs on which stewards disagree are listed and left out.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

from common import UserError, WorkFailed, existing_file, run, sha256_file, written_whole
from manifest import Clock, write_manifest
from rows import load_rows
from service.review import decisions
from tasks import DEFAULT, load_task

ACCEPTED_SHARE = 1.0


def main():
    args = parse_args()
    clock = Clock()
    task = load_task(args.task)
    path = existing_file(args.decisions, "the review page writes it; make serve REVIEW=pairs.jsonl starts it")
    wrong = decisions.problems(path)
    if wrong:
        raise WorkFailed(
            f"{wrong[0]}{f' (and {len(wrong) - 1} more)' if wrong[1:] else ''}; make review-verify lists what is "
            "wrong, nothing was exported"
        )
    entries = list(decisions.read(path))
    held_out = (
        {decisions.pair_hash(task, row["input"]) for row in load_rows(args.test, task)}
        if args.test.is_file()
        else set()
    )
    if not held_out and not args.no_test:
        raise UserError(
            f"{args.test}: no such file, so nobody knows which pairs must stay out of training; name it with --test, "
            "or say --no_test"
        )
    kept, left_out = sorted_out(entries, held_out, args.accepted_share)
    rows = [row_of(entry, task) for entry in kept]
    preferences = [
        preference_of(entry, row, task) for entry, row in zip(kept, rows, strict=True) if entry["action"] == "correct"
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    manifest = args.out / "export.manifest.json"
    manifest.unlink(missing_ok=True)
    with written_whole(args.out / "training_rows.jsonl", args.out / "preference_pairs.jsonl") as (
        rows_file,
        preferences_file,
    ):
        rows_file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        preferences_file.writelines(json.dumps(pair, ensure_ascii=False) + "\n" for pair in preferences)
    write_manifest(
        manifest,
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
    tell(args.out, rows, preferences, left_out)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--decisions",
        type=Path,
        default=Path("reviews/decisions.jsonl"),
        help="what the review page wrote (default reviews/decisions.jsonl)",
    )
    parser.add_argument(
        "--test",
        type=Path,
        default=Path("data/test.jsonl"),
        help="rows that must stay out of training (default data/test.jsonl)",
    )
    parser.add_argument("--no_test", action="store_true", help="there are no test rows")
    parser.add_argument(
        "--accepted_share",
        type=float,
        default=ACCEPTED_SHARE,
        help="share of the accepted pairs to take, drawn by hash (default 1); corrections are always taken",
    )
    parser.add_argument("--out", type=Path, default=Path("reviews"), help="folder to write to (default reviews)")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    args = parser.parse_args()
    if not 0 <= args.accepted_share <= 1:
        raise UserError(f"--accepted_share {args.accepted_share}: a share from 0 to 1")
    return args


def sorted_out(entries, held_out, accepted_share):
    """(the decisions to export, {why: pairs that stay out})"""
    verdicts = by_reviewer(entries)
    kept = []
    left_out = defaultdict(list)
    for pair, entry in decisions.standing(entries).items():
        said = verdicts[pair]
        if pair in held_out:
            left_out["test rows"].append(pair)
        elif len(set(said.values())) > 1:
            left_out["stewards disagree"].append({"pair": pair, "id": entry["id"], "verdicts": said})
        elif entry["action"] == "accept" and int(pair[:8], 16) / 16**8 >= accepted_share:
            left_out["accepted, not drawn"].append(pair)
        else:
            kept.append(entry)
    return kept, dict(left_out)


def by_reviewer(entries):
    """{pair: {reviewer: the verdict that stands}}"""
    found = defaultdict(dict)
    for reviewer in dict.fromkeys(entry["reviewer"] for entry in entries):
        own = [entry for entry in entries if entry["reviewer"] == reviewer]
        for pair, entry in decisions.standing(own).items():
            found[pair][reviewer] = entry["result"]
    return found


def row_of(entry, task):
    """A labelled row; a corrected verdict's reasoning is the steward's, else made from the fields as the project's own
    rows are.
    """
    if entry["action"] == "accept":
        reasoning = entry["reasoning"] or entry["model_reasoning"]
    else:
        reasoning = entry["reasoning"] or task.module("reasons").reasoning(entry["result"], entry["input"])
    return {
        "id": f"review-{entry['pair'][:12]}",
        "input": entry["input"],
        "output": {task.verdict.key: entry["result"], "reasoning": reasoning},
    }


def preference_of(entry, row, task):
    refused = {task.verdict.key: entry["model_result"], "reasoning": entry["model_reasoning"]}
    return {
        "id": row["id"],
        "prompt": task.messages(entry["input"]),
        "chosen": task.completion(row["output"]),
        "rejected": task.completion(refused),
        "reason": entry["reason"],
    }


def tell(out, rows, preferences, left_out):
    print(
        f"{len(rows):,} rows in {out / 'training_rows.jsonl'}, {len(preferences):,} pairs in "
        f"{out / 'preference_pairs.jsonl'}"
    )
    for why, pairs in left_out.items():
        print(f"left out, {why}: {len(pairs):,}")
        for one in [pair for pair in pairs if isinstance(pair, dict)][:20]:
            said = ", ".join(f"{name} {verdict}" for name, verdict in one["verdicts"].items())
            print(f"  {one['id'] or one['pair'][:12]}: {said}")


if __name__ == "__main__":
    run(main)
