"""Turn a public record set, or your own, into labelled rows: python src/import_rows.py --set febrl4 --from folder --out
pairs.jsonl

A set says which of its records are one entity. True pairs are drawn evenly over the entities; of the others most look
alike.
"""

import argparse
import hashlib
import itertools
import json
import math
import random
import re
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path

from common import UserError, progress, sha256_file, written_whole
from manifest import Clock, write_manifest
from tasks import load_task
from tasks.crm.public_formats import FALSE_TO, PRESETS, TRUE_FROM, load, named_set, own_set

# Mostly look-alikes, for the easy ones teach nothing; a few easy ones, or a model learns that every pair looks alike.
SHARES = {"hard": 0.7, "middle": 0.2, "random": 0.1}
FALSE_PER_TRUE = 2
MOST_PAIRS = 15_000  # by default
HARD_RANKS = 3  # a record's three nearest strangers are hard, those after them middle
N_CANDIDATES = 12  # compared field by field for each record
MOST_IN_BLOCK = 40  # a larger block is cut into runs of look-alikes, so that a common surname does not cost its square
PREFIX = 4  # letters: catches a slip further on in the word
LEAST_DIGITS = 6  # of a phone number or date, however it is written; shorter numbers are words already
# or one a pair; all 50,578 of the largest set: 26 s for 7 s, the false pairs' median likeness 0.464 for 0.462
MOST_RECORDS = 12_000
MOST_OF_ENTITY = 30  # records of one entity that are paired with one another
ONE_SIDED = 0.3  # what a field that only one record fills counts as similarity
LEAST_PER_RECORD = 3  # strangers of one record, at most; more where there are few records for many pairs
# A column that is equal so often in true pairs and so rarely in others is nearly the answer itself.
EQUAL_IN_TRUE = 0.9
EQUAL_IN_FALSE = 0.02
LEAST_COMPARED = 20
LEFT_OUT = {"DUPLICATE": "true pairs in which no field agrees", "NO_MATCH": "false pairs in which no field differs"}


def main():
    args = parse_args()
    clock = Clock()
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
        help="one or two CSV or Parquet tables; of two, each pair takes one record each",
    )
    parser.add_argument("--truth", help="the file of id pairs")
    parser.add_argument("--id_column", default="", help="names a record (default: rows are counted)")
    parser.add_argument("--cluster_column", default="", help="names the entity")
    parser.add_argument(
        "--pair_columns", nargs=2, metavar=("LEFT", "RIGHT"), help="of --truth (default: well-known names)"
    )
    parser.add_argument("--label_column", help="of --truth: 1 is the same entity, 0 is not (default: well-known names)")
    parser.add_argument("--drop", nargs="+", default=[], help="columns of your tables that the model must not see")
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
    args = parser.parse_args()
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


def share(*names):
    """A number from 0 to 1, always the same for the same names."""
    return (
        int.from_bytes(
            hashlib.blake2b("\0".join(map(str, names)).encode("utf-8", "backslashreplace"), digest_size=8).digest(),
            "big",
        )
        / 2**64
    )


def in_fold(entity, fold):
    """Not by seed: folds of runs with other seeds must not overlap either."""
    k, n = map(int, fold.split("/")) if fold else (1, 1)
    return int(share("fold", entity) * n) == k - 1


def blank_fields(record, blank, seed):
    for column, lost in blank.items():
        if share(seed, column, record.side, record.key) < lost:
            record.fields.pop(column, None)


def sample_records(records, most, seed):
    """Two records of every entity, then a third, up to `most`: many entities give closer look-alikes than many records
    of a few.
    """
    n_of = Counter()
    ranked = []
    for record in sorted(records, key=lambda record: share(seed, "sample", record.side, record.key)):
        n_of[record.entity] += 1
        # A record that is alone in its entity is no true pair, but a stranger as good as any.
        ranked.append((max(n_of[record.entity], 2), share(seed, "entity", record.entity), record))
    ranked.sort(key=lambda item: item[:2])
    return [record for _, _, record in ranked[:most]]


class Draw:
    """Pairs of a set's records with their verdicts, none twice."""

    def __init__(self, records, two_sided, args):
        self.records = records
        self.two_sided = two_sided
        self.most = args.pairs
        self.rng = random.Random(args.seed)
        self.group = [int(share("group", record.entity) * args.groups) if args.groups else 0 for record in records]
        self.contents = [json.dumps(record.fields, sort_keys=True) for record in records]
        self.evidence = load_task().module("fields").evidence
        self.pairs = []
        self.seen = set()
        self.left_out = Counter()
        self.kinds = Counter()

    def draw(self, n, exact):
        """True pairs first; if they are few, false ones take their places only where so many pairs are wanted."""
        self.draw_true(round(n / (1 + FALSE_PER_TRUE)))
        n_false = n - len(self.pairs) if exact else FALSE_PER_TRUE * len(self.pairs)
        self.draw_false(n_false, self.most_strangers(n_false))

    def most_strangers(self, n):
        """How many false pairs one record may stand in, so that a few do not stand in all: half as many again as an
        even share.
        """
        n_of_side = Counter(record.side for record in self.records).values()
        places = n if self.two_sided else 2 * n
        return max(LEAST_PER_RECORD, math.ceil(1.5 * places / min(n_of_side, default=1)))

    def draw_true(self, n):
        """One pair of every entity, then a second of those that have one, until there are enough."""
        members = defaultdict(list)
        rounds = []
        for at, record in enumerate(self.records):
            members[record.entity].append(at)
        for entity in members.values():
            pairs = [pair for pair in itertools.combinations(entity[:MOST_OF_ENTITY], 2) if self.may_meet(*pair)]
            self.rng.shuffle(pairs)
            rounds += [(number, self.rng.random(), pair) for number, pair in enumerate(pairs)]
        self.take_some((pair for _, _, pair in sorted(rounds)), n, "DUPLICATE", "true")

    def draw_false(self, n, limit):
        used = Counter()
        start = len(self.pairs)
        wanted = 0.0
        pools = self.look_alikes() | {"random": self.strangers(20 * n)}
        for kind, part in SHARES.items():
            # What one kind lacks, the next one gives.
            wanted += part * n
            unused = (pair for pair in pools[kind] if all(used[at] < limit for at in pair))
            self.take_some(unused, round(wanted) - (len(self.pairs) - start), "NO_MATCH", kind, used)

    def take_some(self, pairs, n, label, kind, used=None):
        before = len(self.pairs)
        while len(self.pairs) - before < n and (pair := next(pairs, None)):
            if self.take(pair, label) and used is not None:
                used.update(pair)
        self.kinds[kind] += len(self.pairs) - before

    def take(self, pair, label, judged=False):
        """Whether the pair is new and, where nobody looked at it, its fields can bear the verdict: a model reads
        nothing else.
        """
        contents = frozenset(self.contents[at] for at in pair)
        if contents in self.seen:
            self.left_out["pairs that read like another"] += 1
            return False
        relations = {item.relation for item in self.evidence(self.case(pair))}
        if not judged and not relations & ({"same", "similar"} if label == "DUPLICATE" else {"different"}):
            self.left_out[LEFT_OUT[label]] += 1
            return False
        self.seen.add(contents)
        self.pairs.append((pair, label))
        return True

    def take_judged(self, judged):
        """The set's own verdicts, where they do not contradict the entities and both records are in the fold."""
        place = {id(record): at for at, record in enumerate(self.records)}
        known = [
            (place[id(left)], place[id(right)], score)
            for left, right, score in judged
            if id(left) in place and id(right) in place
        ]
        self.rng.shuffle(known)
        for a, b, score in known:
            if len(self.pairs) == self.most:
                break
            label = "DUPLICATE" if score >= TRUE_FROM else "NO_MATCH"
            if FALSE_TO < score < TRUE_FROM:
                self.left_out["judged pairs without a clear verdict"] += 1
            elif a == b or (self.records[a].entity == self.records[b].entity) != (label == "DUPLICATE"):
                self.left_out["judged pairs that contradict the entities"] += 1
            elif not self.may_meet(a, b):
                self.left_out["judged pairs between two groups"] += 1
            else:
                self.kinds["judged"] += self.take((a, b), label, judged=True)

    def case(self, pair):
        return {f"record{number}": self.records[at].fields for number, at in enumerate(pair, 1)}

    def may_meet(self, a, b):
        return self.group[a] == self.group[b] and (not self.two_sided or self.records[a].side != self.records[b].side)

    def are_strangers(self, a, b):
        return self.records[a].entity != self.records[b].entity and self.may_meet(a, b)

    def strangers(self, n):
        """Up to n random pairs of two entities."""
        by_group = defaultdict(list)
        for at, group in enumerate(self.group):
            by_group[group].append(at)
        for _ in range(n if self.records else 0):
            a = self.rng.randrange(len(self.records))
            b = self.rng.choice(by_group[self.group[a]])
            if self.are_strangers(a, b):
                yield min(a, b), max(a, b)

    def look_alikes(self):
        """Strangers that share a word: hard ones, nearest first, and middle ones, in no order."""
        weight = self.column_weights()
        blocks_of = self.blocks()
        rank_of = {}
        with progress(len(self.records), "records", "look for look-alikes") as bar:
            for at, blocks in enumerate(blocks_of):
                shared = Counter()
                for members, rarity in blocks:
                    for other in members:
                        shared[other] += rarity
                near = [other for other, _ in shared.most_common(5 * N_CANDIDATES) if self.are_strangers(at, other)][
                    :N_CANDIDATES
                ]
                near.sort(
                    key=lambda other: (-similarity(self.records[at].fields, self.records[other].fields, weight), other)
                )
                for rank, other in enumerate(near):
                    pair = min(at, other), max(at, other)
                    rank_of[pair] = min(rank, rank_of.get(pair, rank))
                bar.update(1)
        order = sorted(
            rank_of, key=lambda pair: (rank_of[pair] if rank_of[pair] < HARD_RANKS else HARD_RANKS, share(*pair))
        )
        n_hard = sum(rank < HARD_RANKS for rank in rank_of.values())
        return {"hard": iter(order[:n_hard]), "middle": iter(order[n_hard:])}

    def column_weights(self):
        """Two values of a column that has many say more than two of one that has few."""
        values = defaultdict(set)
        for record in self.records:
            for column, value in record.fields.items():
                values[column].add(value)
        return {column: math.log(1 + len(found)) for column, found in values.items()}

    def blocks(self):
        """For every record the others that share a word, the start of a word or a number with it, and how rare that is."""
        members = defaultdict(list)
        for at, record in enumerate(self.records):
            for key in dict.fromkeys(key for value in record.fields.values() for key in block_keys(value)):
                members[self.group[at], key].append(at)
        texts = [" ".join(record.fields.values()).casefold() for record in self.records]
        blocks_of = [[] for _ in self.records]
        for block in members.values():
            rarity = math.log(1 + len(self.records) / len(block))
            if len(block) > MOST_IN_BLOCK:
                block.sort(key=texts.__getitem__)
            for start in range(0, len(block), MOST_IN_BLOCK):
                part = block[start : start + MOST_IN_BLOCK]
                for at in part:
                    blocks_of[at].append((part, rarity))
        return blocks_of


def block_keys(value):
    words = re.findall(r"\w+", value.casefold())
    digits = re.sub(r"\D", "", value)
    return [
        *words,
        *(f"{word[:PREFIX]}*" for word in words if len(word) > PREFIX),
        *([digits] if len(digits) >= LEAST_DIGITS else []),
    ]


def similarity(left, right, weight):
    """0 to 1: how alike two records look, field by field."""
    alike = sum(
        weight[column] * (likeness(left[column], right[column]) if column in left and column in right else ONE_SIDED)
        for column in left | right
    )
    return alike / sum(weight[column] for column in left | right)


@lru_cache(maxsize=200_000)
def likeness(a, b):
    from rapidfuzz import fuzz
    from rapidfuzz.distance import JaroWinkler

    a = a.casefold()
    b = b.casefold()
    # Any two dates or numbers have half of their characters in common; squared, that counts as little.
    return ((fuzz.token_set_ratio(a, b) / 100 + JaroWinkler.similarity(a, b)) / 2) ** 2


def write(drawn, args):
    """The rows in random order, each pair either way round."""
    reasoning = load_task().module("reasons").reasoning
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
        f"{args.out}: {len(drawn.pairs):,} pairs ({labels['DUPLICATE']:,} DUPLICATE, {labels['NO_MATCH']:,} NO_MATCH) "
        f"of {len(drawn.records):,} records and {entities:,} entities"
    )
    for why, n in sorted(drawn.left_out.items()):
        print(f"  left out: {n:,} {why}")
    for column, (in_true, in_false) in equal.items() if args.format else ():
        if in_true is not None and in_false is not None and in_true >= EQUAL_IN_TRUE and in_false <= EQUAL_IN_FALSE:
            print(
                f"warning: {column!r} is equal in {in_true:.0%} of the true pairs and in {in_false:.0%} of the others; "
                "if it is an identifier, --drop it"
            )
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
