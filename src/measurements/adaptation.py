"""What a model gains from 1,000 labelled pairs of one's own, beside gradient boosting fitted on the same rows.

    python src/measure.py adaptation --model_path models/steward-mini --folds data/folds --out reports/adaptation.json
    python src/measure.py adaptation --table reports/adaptation*.json --into docs/results.md

--folds holds <set>.1.jsonl to draw the pairs from and <set>.2.jsonl to score, made by src/import_rows.py --fold 1/2 and
2/2: no entity is in both. Each set is prompts, training and merge as `make train-steward_mini` runs them, and nothing
else, timed, in a folder that is thrown away.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from time import perf_counter

import interruption
import locks
from common import (
    ROOT,
    UserError,
    WorkFailed,
    existing_file,
    quiet_libraries,
    read_json,
    sha256_file,
    shown_path,
    written_whole,
)
from entity_resolution.near_duplicates import find
from language_model import hub
from manifest import SRC, Clock, fingerprint, write_manifest
from measurements import _reports, verdict_task
from measurements._match_metrics import cell, cell_line, measured
from measurements._record_sets import engine_words, is_match, model_facts, read_set, verdict_probabilities
from measurements._transfer_table import spread
from report import marked_text
from report.marked_text import md, md_table
from tasks import DEFAULT
from tasks import facts as task_facts

TITLES = {"before": "model as it was", "after": "model, adapted", "boosting": "boosting"}
TRAIN_SHARE = 0.8
LEAST_MATCHES = 200  # in the first fold; a fifth of them validates, and fewer than 40 say little about a threshold
# of the entities dealt to validation come from beside those already there, so that few pairs stand between the parts
FRONTIER = 0.9
COLUMNS = ("f1", "best_f1", "average_precision", "ece_mass")
MARK = "adaptation"
# Of the training's facts those that the report keeps.
KEPT_FACTS = (
    "rows",
    "steps",
    "epochs",
    "best_step",
    "best_val_macro_f1",
    "val_macro_f1_by_step",
    "tokens_per_s",
    "left_out",
)


def main():
    args = parse_args()
    if args.table:
        marked_text.show(adaptation_table(args.table), args.into, MARK)
        return
    quiet_libraries()
    clock = Clock()
    task = verdict_task(args.task)
    model = model_facts(args, task)
    folds = find_folds(args)
    name = name_of_the_work(args, task, model)
    with locks.only_writer(args.out), interruption.Journal(args.out, name, "sets") as journal:
        found = dict(journal.entries)
        for set_name, pair in folds.items():
            if set_name not in found:
                found[set_name] = measure(set_name, pair, args, task)
                journal.add([set_name, found[set_name]])
        write_manifest(
            args.out,
            clock,
            task=task.name,
            model=model,
            sets={set_name: found[set_name] for set_name in folds},
            pairs=args.pairs,
            seed=args.seed,
            test_rows=args.test_rows,
            config=shown_path(args.config),
            settings=args.set,
        )
    marked_text.show(adaptation_table([args.out]), args.into, MARK)
    print(f"all numbers in {args.out}")
    if not any(measured(facts) for facts in found.values()):
        raise WorkFailed(f"no set in {args.folds} could be adapted to; {args.out} says why")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", help="folder of the model to adapt")
    add_row_options(parser)
    parser.add_argument(
        "--config",
        type=Path,
        default=ROOT / "configs" / "steward_mini.yaml",
        help="the model's YAML (default configs/steward_mini.yaml)",
    )
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="override settings of the YAML, as src/sft_train.py does",
    )
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    parser.add_argument("--table", nargs="+", type=Path, help="measure nothing; draw the table of these reports")
    parser.add_argument(
        "--into", type=Path, help=f"file whose part between the comments {MARK}:begin and {MARK}:end becomes the table"
    )
    args = parser.parse_args()
    args.backend = "hf"
    args.batch_size = None
    return checked_args(args)


def add_row_options(parser):
    parser.add_argument("--folds", type=Path, help="folder with <set>.1.jsonl and <set>.2.jsonl")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("reports/adaptation.json"),
        help="JSON to write (default reports/adaptation.json)",
    )
    parser.add_argument("--sets", nargs="+", help="some of the sets (default all)")
    parser.add_argument(
        "--pairs",
        type=int,
        default=1000,
        help="labelled pairs to adapt with, a fifth of them to validate (default 1000)",
    )
    parser.add_argument(
        "--test_rows", type=int, help="score only so many rows of each second fold, drawn with the seed"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="another seed draws other pairs and trains in another order (default 1)"
    )


def checked_args(args):
    if not args.table and not (args.folds and args.model_path):
        raise UserError("give --model_path and --folds to measure, or --table with reports to draw")
    for option, least in (("pairs", 50), ("test_rows", 1), ("seed", 0)):
        if (given := getattr(args, option)) is not None and given < least:
            raise UserError(f"--{option} {given}: at least {least}")
    for report in args.table or []:
        read_report(report)
    if args.into:
        marked_text.around(args.into, MARK)
    return args


def name_of_the_work(args, task, model):
    """The name of what is measured: an interrupted run with the same name goes on."""
    facts = {
        "model": model,
        "task": task_facts(task),
        "folds": {path.name: sha256_file(path) for path in sorted(args.folds.glob("*.jsonl"))},
        "config": sha256_file(args.config),
        "options": [args.pairs, args.test_rows, args.seed, args.set],
    }
    steps = [SRC / name for name in ("build_prompts.py", "sft_train.py", "training/fine_tuning.py")]
    return fingerprint(facts, __file__, *steps, SRC / "training" / "merge_adapter.py", task.folder / "data.py")


def find_folds(args):
    """{set: (first fold, second fold)}"""
    if not args.folds.is_dir():
        raise UserError(
            f"{args.folds}: no such folder; --folds names the folder with <set>.1.jsonl and <set>.2.jsonl, see "
            "src/import_rows.py --fold"
        )
    there = sorted(path.name.removesuffix(".1.jsonl") for path in args.folds.glob("*.1.jsonl"))
    unknown = [name for name in args.sets or [] if name not in there]
    if unknown or not there:
        raise UserError(
            f"{args.folds}: there is no {unknown[0] if unknown else '<set>'}.1.jsonl in it; sets there: "
            f"{', '.join(there) or 'none'}"
        )
    return {
        name: tuple(
            existing_file(args.folds / f"{name}.{fold}.jsonl", "make it with src/import_rows.py --fold")
            for fold in (1, 2)
        )
        for name in args.sets or there
    }


def measure(name, folds, args, task):
    """What adaptation gave on one set, or why it was not tried."""
    (first, facts, reason) = read_set(folds[0], task, None, args.seed)
    (test, test_facts, test_reason) = read_set(folds[1], task, args.test_rows, args.seed)
    found = {"drawn_from": facts, "scored": test_facts}
    if reason := reason or test_reason or too_few(facts, args.pairs):
        print(f"{name}: not run: {reason}", flush=True)
        return found | {"reason": reason}
    train, val = draw(first, args.pairs, args.seed, task)
    found["drawn"] = {
        split: {"rows": len(rows), "matches": sum(is_match(row, task) for row in rows)}
        for split, rows in (("train", train), ("val", val))
    }
    found["records_in_both_folds"] = len(records_of(train + val) & records_of(test))
    print(f"{name}: {len(train)} + {len(val)} pairs to adapt with, {len(test):,} to score", flush=True)
    with tempfile.TemporaryDirectory(prefix="adaptation-") as folder:
        merged, found["training"] = adapted(train, val, Path(folder), args)
        answers = {
            "before": model_answers(args.model_path, test, args, task),
            "after": model_answers(merged, test, args, task),
            "boosting": boosting_answers(train, val, test, args, task),
        }
    truth = [is_match(row, task) for row in test]
    found["scorers"] = {scorer: cell(truth, answer, task) for scorer, answer in answers.items()}
    for scorer, facts in found["scorers"].items():
        print(f"  {TITLES[scorer]:<16} {cell_line(facts)}", flush=True)
    return found


def too_few(facts, n_pairs):
    n = facts["n"]
    n_matches = facts["n_positive"]
    if n < n_pairs or n_matches < LEAST_MATCHES:
        return (
            f"too few: {n:,} pairs with {n_matches:,} matches in the first fold, needed {n_pairs:,} and {LEAST_MATCHES}"
        )
    return None


def records_of(rows):
    return {json.dumps(record, sort_keys=True) for row in rows for record in row["input"].values()}


def adapted(train, val, folder, args):
    """(the merged model's folder, facts of the training): the ordinary steps, each its own process."""
    for split, rows in (("train", train), ("val", val)):
        with written_whole(folder / f"{split}.jsonl") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    load = os.getloadavg()[0]
    prompts_s = step("build_prompts.py", "--task", args.task, "--data", folder)
    train_s = trained(folder, args)
    merged = folder / f"{args.config.stem}-merged"
    return merged, {
        "seconds": round(prompts_s + train_s, 1),
        "prompts_s": round(prompts_s, 1),
        "train_and_merge_s": round(train_s, 1),
        "load_before": round(load, 2),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        **training_facts(merged),
    }


def trained(folder, args):
    """Seconds that training and merge took."""
    return step(
        "sft_train.py",
        "--task",
        args.task,
        "--config",
        args.config.resolve(),
        "--train",
        folder / "processed" / "train.jsonl",
        "--val",
        folder / "processed" / "val.jsonl",
        "--out",
        folder,
        "--set",
        begins_with(args.model_path),
        f"train.seed={args.seed}",
        *args.set,
    )


def begins_with(model_path):
    """The setting that makes training go on from a model: from a whole one as its base, from an adapter on its own."""
    key = "peft.start_from" if hub.is_adapter(model_path) else "model_id"
    return f"{key}={Path(model_path).resolve()}"


def training_facts(merged):
    """What the merged model's manifest says of its training."""
    facts = read_json(merged / "manifest.json")
    calibration = merged / "calibration.json"
    begun_from = facts["config"]["peft"]["start_from"]
    return {
        "train": facts["config"]["train"],
        "peft": facts["config"]["peft"] | {"start_from": begun_from and shown_path(begun_from)},
        "calibration": read_json(calibration) if calibration.is_file() else None,
        "versions": facts["versions"],
        **{key: facts["training"].get(key) for key in KEPT_FACTS},
    }


def step(script, *words):
    """Seconds that one step took."""
    start = perf_counter()
    result = subprocess.run(
        [sys.executable, str(ROOT / "src" / script), *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
    )
    if result.returncode:
        raise WorkFailed(f"src/{script} failed: {' '.join(result.stdout.strip().splitlines()[-1:])}")
    return perf_counter() - start


def model_answers(folder, rows, args, task):
    from config import load_config
    from constrained_decode import load_engine
    from measurements._transfer_baselines import from_verdicts

    engine = load_engine(args.backend).load(str(folder), task, load_config(args.config, overlay=task.overlay))
    cases = [row["input"] for row in rows]
    return from_verdicts(
        lambda cases: verdict_probabilities(engine, task, cases),
        engine_words(args.backend, engine),
        cases,
        task,
        0,
        args.seed,
    )


def boosting_answers(train, val, rows, args, task):
    """Boosting as src/baseline.py fits it, on exactly the rows that the model had."""
    from measurements._transfer_baselines import from_verdicts
    from scoring.baselines import fit_boosting

    start = perf_counter()
    fitted = fit_boosting(train, val, task, args.seed)
    method = f"{fitted.checkpoint}: {fitted.method}; fitted in {perf_counter() - start:.1f} s"
    return from_verdicts(fitted.predict, method, [row["input"] for row in rows], task, 0, args.seed)


def draw(rows, n, seed, task):
    """(train rows, validation rows), 80 to 20, classes as in `rows`, no record and no entity in both.

    Pairs of look-alikes tie nearly all records of a set together, so validation is grown as a region of entities: each
    next one is the one that has the largest part of its pairs in the region already. Pairs that cross its border are in
    neither part.
    """
    rng = random.Random(seed)
    places = entities_of(rows, task)
    pairs_of = defaultdict(list)
    for at, pair in enumerate(places):
        for entity in set(pair):
            pairs_of[entity].append(at)
    label_of = [row["output"][task.verdict.key] for row in rows]
    quotas = [class_quotas(label_of, size) for size in (n - round((1 - TRAIN_SHARE) * n), round((1 - TRAIN_SHARE) * n))]
    region = grown_region(pairs_of, places, label_of, quotas[1], rng)
    sides = (
        [at for at, pair in enumerate(places) if not region & set(pair)],
        [at for at, pair in enumerate(places) if region >= set(pair)],
    )
    return tuple(
        [rows[at] for at in some_of_each(side, label_of, quota, rng)] for side, quota in zip(sides, quotas, strict=True)
    )


def entities_of(rows, task):
    """For each row its two entities: records that a match names are one."""
    names = [[json.dumps(record, sort_keys=True) for record in row["input"].values()] for row in rows]
    leader = {name: name for pair in names for name in pair}
    for row, (left, right) in zip(rows, names, strict=True):
        if is_match(row, task):
            leader[find(leader, left)] = find(leader, right)
    return [(find(leader, left), find(leader, right)) for left, right in names]


def class_quotas(label_of, n):
    return {label: round(n * count / len(label_of)) for label, count in sorted(Counter(label_of).items())}


def grown_region(pairs_of, places, label_of, quota, rng):
    """Entities that hold at least the wanted pairs of each class among themselves."""
    region = set()
    seen = Counter()
    held = Counter()
    fresh = rng.sample(sorted(pairs_of), len(pairs_of))
    while fresh and any(held[label] < wanted for label, wanted in quota.items()):
        beside = [entity for entity in seen if entity not in region] if rng.random() < FRONTIER else []
        entity = (
            max(beside, key=lambda entity: (seen[entity] / len(pairs_of[entity]), entity)) if beside else fresh.pop()
        )
        if entity in region:
            continue
        region.add(entity)
        for at in pairs_of[entity]:
            other = next((other for other in places[at] if other != entity), entity)
            if other in region:
                held[label_of[at]] += 1
            else:
                seen[other] += 1
    return region


def some_of_each(side, label_of, quota, rng):
    """Up to the wanted number of rows of each class, in no order."""
    chosen = []
    for label, wanted in quota.items():
        of_class = [at for at in side if label_of[at] == label]
        chosen += rng.sample(of_class, min(wanted, len(of_class)))
    return rng.sample(chosen, len(chosen))


def adaptation_table(paths):
    """Markdown of one run, or of several as mean ± standard deviation over them."""
    return table_of([read_report(path) for path in paths])


def read_report(path):
    return _reports.read_report(path, "adaptation", table_of)


def table_of(reports):
    names = list(dict.fromkeys(name for report in reports for name in report["sets"]))
    head = ["Set", "pairs scored", *(TITLES[scorer] for scorer in TITLES), "seconds to adapt"]
    rows = []
    notes = []
    for name in names:
        found = [report["sets"][name] for report in reports if name in report["sets"]]
        ran = [facts for facts in found if measured(facts)]
        if ran:
            seconds = spread([facts["training"]["seconds"] for facts in ran], 0)
            rows.append([name, f"{ran[0]['scored']['n']:,}", *(values(ran, scorer) for scorer in TITLES), seconds])
        else:
            notes.append(f"- {md(name)}: not run: {md(found[0]['reason'])}")
    return "\n\n".join(
        part
        for part in (
            "F1 at the default threshold / F1 at the best threshold / average precision / ECE:",
            md_table(head, rows, n_text=1),
            "\n".join(notes),
            "\n".join(f"- {md(run_line(report))}" for report in reports),
        )
        if part
    )


def values(ran, scorer):
    return " / ".join(
        spread([facts["scorers"][scorer]["metrics"][metric]["value"] for facts in ran]) for metric in COLUMNS
    )


def run_line(report):
    """Where one run's numbers come from, and on how many sets the adapted model is not behind."""
    ran = [facts for facts in report["sets"].values() if measured(facts)]
    f1 = [[facts["scorers"][scorer]["metrics"]["f1"]["value"] for scorer in ("after", "boosting")] for facts in ran]
    threads = {facts["training"]["threads"] or "all" for facts in ran}
    return (
        f"{report['model']['title']} ({_reports.weights(report['model'])}); {report['pairs']:,} pairs of each "
        f"set, seed {report['seed']}; "
        f"F1 at the default threshold at least boosting's on {sum(after >= boosting for after, boosting in f1)} of "
        f"{len(f1)} sets; "
        f"{report['hardware']['cpu_cores']} CPU cores, {'/'.join(sorted(threads)) or 'no'} threads; "
        f"{_reports.commit_and_time(report)}"
    )
