"""Turn a public record set, or your own, into labelled rows: python src/import_rows.py --set febrl4 --from folder --out
pairs.jsonl

A set says which of its records are one entity. True pairs are drawn evenly over the entities; of the others most look
alike.
"""

import argparse
import json
import math
import re
from collections import Counter
from pathlib import Path

import locks
import tables
from common import UserError, counted, sha256_file, written_whole
from manifest import Clock, write_manifest
from tasks import DEFAULT
from tasks.class_mix import FEWEST_TO_TRAIN
from tasks.crm.pair_drawing import HARD_RANKS, N_CANDIDATES, SHARES, Draw, sample_records, share
from tasks.crm.public_formats import FALSE_TO, PRESETS, TRUE_FROM, load, named_set, own_set
from tasks.crm.reasons import reasoning

MOST_PAIRS = 15_000  # by default
# or one a pair; all 50,578 of the largest set: 26 s for 7 s, the false pairs' median likeness 0.464 for 0.462
MOST_RECORDS = 12_000
# A column that is equal so often in true pairs and so rarely in others is nearly the answer itself.
EQUAL_IN_TRUE = 0.9
EQUAL_IN_FALSE = 0.02
LEAST_COMPARED = 20


def main():
    args = parse_args()
    with locks.only_writer(args.out):
        make(args, Clock())


def make(args, clock):
    source = own_set(args) if args.format else named_set(args.preset)
    labelled = is_labelled(args, source)
    found = load(source, Path(args.folder), labelled)
    for record in found.records:
        blank_fields(record, source.blank, args.seed)
    records = [record for record in found.records if record.fields and in_fold(record.entity, args.fold)]
    n_pairs = args.pairs or default_pairs(source, args.fold)
    two_sided = len({record.side for record in found.records}) > 1
    drawn = Draw(
        records if labelled else sample_records(records, max(MOST_RECORDS, n_pairs), args.seed), two_sided, args
    )
    if labelled:
        drawn.take_judged(found.judged)
    else:
        drawn.draw(n_pairs, exact=bool(args.pairs or source.pairs))
    if not drawn.pairs:
        raise UserError(
            f"{', '.join(source.tables)}: {len(records):,} records{f' in fold {args.fold}' if args.fold else ''}, but "
            "no pair came out of them; "
            "check the id, cluster and pair columns"
        )
    refuse_one_class(drawn, args)
    write(drawn, args)
    facts = report(drawn, args)
    write_manifest(
        f"{args.out}.manifest.json",
        clock,
        set=set_name(args),
        **found.facts,
        **facts,
        negatives_found=how_found(labelled),
        fold=args.fold,
        groups=args.groups,
        seed=args.seed,
        sha256=sha256_file(args.out),
    )


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source_options(parser)
    tables.add_options(parser)
    parser.add_argument("--out", required=True, help="JSON Lines file to write; its manifest goes beside it")
    parser.add_argument(
        "--pairs",
        type=int,
        help="how many, a third of them true if there are so many (default: a number that suits the set)",
    )
    parser.add_argument(
        "--negatives",
        choices=("hard", "labelled"),
        help="false pairs: found among look-alikes, or as the file of judged pairs has them",
    )
    parser.add_argument("--fold", help="K/N: only the entities of the K-th of N parts; no entity is in two parts")
    parser.add_argument(
        "--groups",
        type=int,
        help="deal the entities into so many groups, say 50, and pair only inside one: make prep can split such rows",
    )
    parser.add_argument("--seed", type=int, default=1, help="another seed draws other pairs (default 1)")
    parser.add_argument(
        "--task", default=DEFAULT, help=f"whose rows are made: a folder of src/tasks (default {DEFAULT})"
    )
    return checked_args(parser.parse_args())


def add_source_options(parser):
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--set", dest="preset", help=f"a public set: {', '.join(PRESETS)}")
    which.add_argument(
        "--format",
        choices=("clusters", "links", "labels", "magellan"),
        help="your own files: a column that names the entity; "
        "a file of all true id pairs; a file of judged id pairs of one table; the same of two tables",
    )
    parser.add_argument("--from", dest="folder", default="", help="folder of the set's files")
    parser.add_argument(
        "--in",
        dest="tables",
        nargs="+",
        help="one or two tables, CSV, Excel or Parquet; of two, each pair takes one record each",
    )
    parser.add_argument("--truth", help="the file of id pairs")
    parser.add_argument("--id_column", default="", help="names a record (default: rows are counted)")
    parser.add_argument("--cluster_column", default="", help="names the entity")
    parser.add_argument(
        "--pair_columns", nargs=2, metavar=("LEFT", "RIGHT"), help="of --truth (default: well-known names)"
    )
    parser.add_argument("--label_column", help="of --truth: 1 is the same entity, 0 is not (default: well-known names)")
    parser.add_argument("--drop", nargs="+", default=[], help="columns of your tables that the model must not see")


def checked_args(args):
    if args.fold and not (
        re.fullmatch(r"\d+/\d+", args.fold) and 1 <= int(args.fold.split("/")[0]) <= int(args.fold.split("/")[1])
    ):
        raise UserError(f"--fold {args.fold}: K/N such as 1/2, with K from 1 to N")
    for name in ("pairs", "groups"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: at least 1")
    return args


def set_name(args):
    return args.preset or Path(args.tables[0]).stem


def is_labelled(args, source):
    """Whether the judged pairs are all that is known, or all that is wanted."""
    if args.negatives == "labelled" and not source.labels:
        raise UserError(
            f"--negatives labelled: {set_name(args)} has no judged pairs; those that have: "
            f"{', '.join(name for name, preset in PRESETS.items() if preset.labels)}"
        )
    unknown_truth = bool(source.labels) and not source.links and not source.cluster_column
    if args.negatives == "hard" and unknown_truth:
        raise UserError(
            f"--negatives hard: {source.labels[0]} judges some pairs only, so any other pair may be true; use "
            "--negatives labelled"
        )
    return args.negatives == "labelled" or unknown_truth


def default_pairs(source, fold):
    return math.ceil((source.pairs or MOST_PAIRS) / int(fold.split("/")[1] if fold else 1))


def how_found(labelled):
    if labelled:
        return f"judged pairs of the set; a score from {TRUE_FROM} is true, up to {FALSE_TO} false"
    return (
        f"two entities; {SHARES['hard']:.0%} among the {HARD_RANKS} nearest of a record, {SHARES['middle']:.0%} among "
        f"its {N_CANDIDATES} nearest, the rest "
        "at random; nearest by shared words, word starts and numbers, then field by field"
    )


def in_fold(entity, fold):
    """Not by seed: folds of runs with other seeds must not overlap either."""
    k, n = map(int, fold.split("/")) if fold else (1, 1)
    return int(share("fold", entity) * n) == k - 1


def blank_fields(record, blank, seed):
    for column, lost in blank.items():
        if share(seed, column, record.side, record.key) < lost:
            record.fields.pop(column, None)


def refuse_one_class(drawn, args):
    """Pairs of one verdict mean a wrong column more often than such a set."""
    counts = Counter(label for _, label in drawn.pairs)
    if len(counts) == 1:
        entities = len({record.entity for record in drawn.records})
        raise UserError(
            f"{set_name(args)}: {counted(len(drawn.records), 'record')} of {entities:,} entities, and each of the "
            f"{counted(len(drawn.pairs), 'pair')} is {next(iter(counts))}: nothing can be learnt from them; check the "
            "columns that say which records are one entity. Nothing was written"
        )


def write(drawn, args):
    """The rows in random order, each pair either way round."""
    drawn.rng.shuffle(drawn.pairs)
    with written_whole(args.out) as file:
        for pair, label in drawn.pairs:
            left, right = sorted((drawn.records[at] for at in pair), key=lambda record: (record.side, record.key))
            row = {"id": f"{set_name(args)}:{left.key}:{right.key}"}
            if args.groups or label == "DUPLICATE":
                row["group"] = drawn.group[pair[0]] if args.groups else left.entity
            case = drawn.case(pair if drawn.rng.random() < 0.5 else pair[::-1])
            row |= {"input": case, "output": {"result": label, "reasoning": reasoning(label, case)}}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def report(drawn, args):
    """Say what came out, and which column may give the answer away; the same facts for the manifest."""
    labels = Counter(label for _, label in drawn.pairs)
    equal = equal_shares(drawn)
    entities = len({record.entity for record in drawn.records})
    print(
        f"{args.out}: {counted(len(drawn.pairs), 'pair')} ({labels['DUPLICATE']:,} DUPLICATE, {labels['NO_MATCH']:,} "
        "NO_MATCH) "
        f"of {counted(len(drawn.records), 'record')} and {entities:,} entities"
    )
    for why, n in sorted(drawn.left_out.items()):
        print(f"  left out: {n:,} {why}")
    for column, (in_true, in_false) in equal.items() if args.format else ():
        if in_true is not None and in_false is not None and in_true >= EQUAL_IN_TRUE and in_false <= EQUAL_IN_FALSE:
            print(
                f"warning: {column!r} is equal in {in_true:.0%} of the true pairs and in {in_false:.0%} of the others; "
                "if it is an identifier, --drop it"
            )
    if len(drawn.pairs) < FEWEST_TO_TRAIN:
        print(f"warning: {counted(len(drawn.pairs), 'pair')} are too few to train on or to score")
    if args.pairs and len(drawn.pairs) < args.pairs:
        print(f"warning: {args.pairs:,} pairs were asked for; the set gives no more")
    return {
        "pairs": len(drawn.pairs),
        "positives": labels["DUPLICATE"],
        "negatives": labels["NO_MATCH"],
        "kinds": dict(drawn.kinds),
        "left_out": dict(drawn.left_out),
        "records": len(drawn.records),
        "entities": entities,
        "equal_in_true_and_false_pairs": equal,
    }


def equal_shares(drawn):
    """Of the pairs in which both records fill a column, the share with equal values: true pairs, false pairs."""
    n_equal = Counter()
    n_both = Counter()
    for pair, label in drawn.pairs:
        left, right = (drawn.records[at].fields for at in pair)
        for column in left.keys() & right.keys():
            n_both[column, label] += 1
            n_equal[column, label] += left[column].casefold() == right[column].casefold()
    return {
        column: [
            round(n_equal[column, label] / n_both[column, label], 3)
            if n_both[column, label] >= LEAST_COMPARED
            else None
            for label in ("DUPLICATE", "NO_MATCH")
        ]
        for column in sorted({column for column, _ in n_both})
    }
