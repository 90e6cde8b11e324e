"""Pairs drawn from a set's records: true ones evenly over the entities, false ones mostly among look-alikes."""

import hashlib
import itertools
import json
import math
import random
import re
from collections import Counter, defaultdict
from functools import lru_cache

from common import progress
from tasks.crm.fields import evidence
from tasks.crm.public_formats import FALSE_TO, TRUE_FROM

# Mostly look-alikes, for the easy ones teach nothing; a few easy ones, or a model learns that every pair looks alike.
SHARES = {"hard": 0.7, "middle": 0.2, "random": 0.1}
FALSE_PER_TRUE = 2
HARD_RANKS = 3  # a record's three nearest strangers are hard, those after them middle
N_CANDIDATES = 12  # compared field by field for each record
MOST_IN_BLOCK = 40  # a larger block is cut into runs of look-alikes, so that a common surname does not cost its square
PREFIX = 4  # letters: catches a slip further on in the word
LEAST_DIGITS = 6  # of a phone number or date, however it is written; shorter numbers are words already
MOST_OF_ENTITY = 30  # records of one entity that are paired with one another
ONE_SIDED = 0.3  # what a field that only one record fills counts as similarity
LEAST_PER_RECORD = 3  # strangers of one record, at most; more where there are few records for many pairs
LEFT_OUT = {"DUPLICATE": "true pairs in which no field agrees", "NO_MATCH": "false pairs in which no field differs"}


def share(*names):
    """A number from 0 to 1, always the same for the same names."""
    return (
        int.from_bytes(
            hashlib.blake2b("\0".join(map(str, names)).encode("utf-8", "backslashreplace"), digest_size=8).digest(),
            "big",
        )
        / 2**64
    )


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
        relations = {item.relation for item in evidence(self.case(pair))}
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
        """For every record the others that share a word, a word's start or a number with it, and how rare that is."""
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
