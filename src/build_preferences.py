"""Preference pairs for src/dpo_train.py: python src/build_preferences.py --task qod

A chosen text is the gold answer of a training row. The rejected one is made from it with a named fault, as the task's
violations.py says, or is what a model answered to the row (--predictions) where that fails a check. No input of the
test rows comes out, and none that nearly is one. Leaves preferences.jsonl, preferences_val.jsonl and a manifest.
"""

import argparse
import itertools
import json
import random
from collections import Counter
from pathlib import Path

import json_lines
import locks
from common import UserError, counted, existing_file, run, sha256_file, to_json, written_whole
from manifest import Clock, write_manifest
from rows import answer_problem, checked_rows, keeping, load_rows
from tasks import DEFAULT, load_task
from tasks.preferences import ON_POLICY, Constructed, failed_checks, is_broken, key_of, on_policy, with_few_broken

TRAIN = "preferences.jsonl"
VALIDATION = "preferences_val.jsonl"
MANIFEST = "preferences.manifest.json"
PREDICTION_KEYS = ("input", "gold", "raw")
N_PAIRS = 1_000
MIXED_SHARE = 0.5  # of the pairs, a model's own answers, where both kinds can be had


def main():
    args = parse_args()
    clock = Clock()
    task = load_task(args.task)
    with locks.only_writer(args.out / TRAIN):
        build(args, task, clock)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in", dest="source", type=Path, help="labelled training rows (default data/train.jsonl)")
    parser.add_argument(
        "--test",
        type=Path,
        nargs="+",
        help="rows whose inputs must stay out of training (default data/test.jsonl)",
    )
    parser.add_argument("--no_test", action="store_true", help="there are no test rows")
    parser.add_argument(
        "--predictions",
        type=Path,
        nargs="+",
        default=[],
        help="what src/predict.py wrote for training rows; the answers that fail a check become rejected ones",
    )
    parser.add_argument("--n_pairs", type=int, default=N_PAIRS, help=f"pairs in both files (default {N_PAIRS:,})")
    parser.add_argument(
        "--on_policy_share",
        type=float,
        help=f"of the pairs, those of --predictions (default {MIXED_SHARE}, without it 0; 1 where the task makes none)",
    )
    parser.add_argument("--val_share", type=float, default=0.1, help="share for preferences_val.jsonl (default 0.1)")
    parser.add_argument("--seed", type=int, default=42, help="another seed gives other pairs (default 42)")
    parser.add_argument("--out", type=Path, help="folder to write to (default data)")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    return checked_args(parser.parse_args())


def checked_args(args):
    task = load_task(args.task)
    folder = task.under("data")
    args.source = args.source or folder / "train.jsonl"
    args.test = args.test or [folder / "test.jsonl"]
    args.out = args.out or folder
    makes_its_own = task.module("violations") is not None
    if not args.predictions and not makes_its_own:
        raise UserError(
            f"--task {task.name}: it makes no wrong answers (it has no src/tasks/{task.name}/violations.py); name "
            "those of a model with --predictions"
        )
    if args.on_policy_share is None:
        args.on_policy_share = MIXED_SHARE if args.predictions and makes_its_own else float(bool(args.predictions))
    check_numbers(args)
    if args.on_policy_share and not args.predictions:
        raise UserError(
            f"--on_policy_share {args.on_policy_share}: no answers of a model are named; name them with --predictions"
        )
    if args.on_policy_share < 1 and not makes_its_own:
        raise UserError(
            f"--on_policy_share {args.on_policy_share}: the task {task.name} makes no wrong answers itself (it has no "
            f"src/tasks/{task.name}/violations.py); leave the option out"
        )
    return args


def check_numbers(args):
    if args.n_pairs < 2:
        raise UserError(f"--n_pairs {args.n_pairs}: at least 2, one to train on and one to validate")
    if not 0 <= args.on_policy_share <= 1:
        raise UserError(f"--on_policy_share {args.on_policy_share}: a share from 0 to 1")
    if not 0 < args.val_share < 1:
        raise UserError(f"--val_share {args.val_share}: a share between 0 and 1")


def build(args, task, clock):
    """Both files and, last, their manifest."""
    rows = training_rows(args.source, task)
    sampled = list(itertools.chain.from_iterable(predictions(path, task) for path in args.predictions))
    # A training row says of which group it is, a prediction does not.
    inputs = {key_of(row["input"], task): row for row in [*sampled, *rows]}
    groups = groups_of(inputs, test_rows(args, task), task)
    wrong = on_policy([row for row in sampled if key_of(row["input"], task) in groups], task, args.seed)
    sources = {
        "constructed": Constructed([row for row in rows if key_of(row["input"], task) in groups], task, args.seed),
        ON_POLICY: wrong,
    }
    wanted = {ON_POLICY: round(args.n_pairs * args.on_policy_share)}
    wanted["constructed"] = args.n_pairs - wanted[ON_POLICY]
    pairs = []
    for name, source in sources.items():
        pairs += itertools.islice(with_few_broken(source, task), wanted[name])
    parts = split(pairs, groups, args, task)
    write(args.out, parts)
    facts = facts_of(parts, args, task) | {
        "inputs_left_out_for_test": len(inputs) - len(groups),
        "answers_read": len(sampled),
        "answers_wrong": len(wrong),
    }
    report(facts, args)
    write_manifest(args.out / MANIFEST, clock, **facts)


# ---- what is read


def training_rows(path, task):
    """The rows of a file, each input once; a gold answer that fails a check of its own is a wrong line."""
    problems = json_lines.Problems()
    found = {}
    for number, row in checked_rows(path, task, problems, keeping(task)):
        if failed := failed_checks(task, task.completion(row["output"]), row["output"]):
            problems.note(f"{path}:{number}", f"'output' fails {', '.join(failed)}, so it cannot be a chosen answer")
        found.setdefault(key_of(row["input"], task), row)
    problems.stop_if_any(path)
    if not found:
        raise UserError(f"{path}: the file is empty; it needs one labelled row a line")
    return list(found.values())


def test_rows(args, task):
    """The rows whose inputs may not come out."""
    if args.no_test:
        return []
    for path in args.test:
        if not path.is_file():
            raise UserError(
                f"{path}: no such file, so nobody knows which {task.case}s must stay out of training; name it with "
                "--test, or say --no_test"
            )
    return [row for path in args.test for row in load_rows(path, task)]


def predictions(path, task):
    """The answers in a file of predictions, as {input, output, raw}; what has no text is left out."""
    existing_file(path, "src/predict.py writes it for the training rows")
    found = json_lines.all_checked(path, lambda row: prediction_of(row, task))
    return [row for row in found if row["raw"].strip()]


def prediction_of(row, task):
    """The answer that a line's value is; ValueError with what is wrong."""
    if not isinstance(row, dict) or any(key not in row for key in PREDICTION_KEYS) or not isinstance(row["raw"], str):
        raise ValueError("no prediction with 'input', 'gold' and the text 'raw', as src/predict.py writes it")
    wrong = [*task.check_case(row["input"]), *map(answer_problem, task.answer_problems(row["gold"]))]
    if not wrong and (failed := failed_checks(task, task.completion(row["gold"]), row["gold"])):
        wrong = [f"'gold' fails {', '.join(failed)}, so it cannot be a chosen answer"]
    if wrong:
        raise ValueError(*wrong)
    named = {"id": row["id"]} if "id" in row else {}
    return named | {"input": row["input"], "output": row["gold"], "raw": row["raw"]}


def groups_of(inputs, test, task):
    """{key of an input: number of its group of near duplicates}, without the groups that hold a test row."""
    from entity_resolution import near_duplicates  # numpy: not for --help

    index = near_duplicates.Index(len(inputs) + len(test), task)
    for at, row in enumerate([*inputs.values(), *test]):
        index.add(at, row, 0)
    index.close()
    numbers = near_duplicates.groups(index).tolist()
    of_test = set(numbers[len(inputs) :])
    return {key: number for key, number in zip(inputs, numbers, strict=False) if number not in of_test}


# ---- what is written


def split(pairs, groups, args, task):
    """{file: its pairs} in random order; inputs that are near duplicates stay together."""
    rng = random.Random(args.seed)
    numbers = [groups[key_of(pair["input"], task)] for pair in pairs]
    sizes = Counter(numbers)
    if len(sizes) < 2:
        raise UserError(
            f"{args.source}: {counted(len(pairs), 'pair')} of {counted(len(sizes), 'input')} came out, near duplicates "
            "counted once, and training and validation need one each; name more rows or answers"
        )
    room = args.val_share * len(pairs)
    held = set()
    for number in rng.sample(sorted(sizes), len(sizes)):
        if sizes[number] <= room:
            held.add(number)
            room -= sizes[number]
    held = held or {min(sizes, key=sizes.get)}
    mixed = rng.sample(list(zip(numbers, pairs, strict=True)), len(pairs))
    return {
        TRAIN: [pair for number, pair in mixed if number not in held],
        VALIDATION: [pair for number, pair in mixed if number in held],
    }


def write(out, parts):
    """Both files; the manifest of earlier pairs goes before they do."""
    with written_whole(*(out / name for name in parts)) as files:
        for file, pairs in zip(files, parts.values(), strict=True):
            file.writelines(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
            # What a full disk refuses, it refuses here: then the earlier pairs are still whole.
            file.flush()
        (out / MANIFEST).unlink(missing_ok=True)


def facts_of(parts, args, task):
    """What the manifest says of the pairs."""
    everything = [pair for pairs in parts.values() for pair in pairs]
    n_broken = sum(is_broken(pair["rejected"], task) for pair in everything)
    failed = [one["reason"].split(", ") for one in everything if one["violation"] == ON_POLICY]
    return {
        "task": task.name,
        "seed": args.seed,
        "n_pairs": args.n_pairs,
        "on_policy_share": args.on_policy_share,
        "val_share": args.val_share,
        "pairs": {name: len(pairs) for name, pairs in parts.items()},
        "inputs": {name: len({to_json(pair["input"]) for pair in pairs}) for name, pairs in parts.items()},
        "violations": {name: counts(pair["violation"] for pair in pairs) for name, pairs in parts.items()},
        "on_policy_failed": counts(itertools.chain.from_iterable(failed)),
        "rejected_no_json_pct": round(100 * n_broken / len(everything), 2),
        "source_sha256": sha256_file(args.source),
        "test_sha256": [] if args.no_test else [sha256_file(path) for path in args.test],
        "predictions_sha256": [sha256_file(path) for path in args.predictions],
        "sha256": {name: sha256_file(args.out / name) for name in parts},
    }


def counts(names):
    """{name: how often}, the most frequent first."""
    return dict(Counter(sorted(names)).most_common())


def report(facts, args):
    total = Counter()
    for found in facts["violations"].values():
        total.update(found)
    n_pairs = ", ".join(f"{n:,} in {args.out / name}" for name, n in facts["pairs"].items())
    print(f"{counted(total.total(), 'preference pair')}: {n_pairs}")
    for name, n in total.most_common():
        print(f"  {name:<20} {n:>6,}")
    if args.predictions:
        n_wrong = counted(facts["answers_wrong"], "different wrong one")
        print(f"of the model's {counted(facts['answers_read'], 'answer')}: {n_wrong}")
    if total.total() < facts["n_pairs"]:
        print(f"warning: the rows and answers gave no more; {facts['n_pairs']:,} pairs were asked for")
    if left_out := facts.get("inputs_left_out_for_test"):
        print(f"left out, in the test rows or nearly: {counted(left_out, 'input')}")


if __name__ == "__main__":
    run(main)
