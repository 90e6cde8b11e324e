"""Which rows must stay together: rows that share a part (a record), a near-identical part, or a group.

A part's signature is 64 MinHashes of its letter 4-grams, cut to 8 bits. Sixteen bands of four values are sixteen
32-bit keys; parts that meet in a band and agree in at least NEAR of their values are near-identical. At a true
similarity of 0.92 (one typing slip in a hundred characters) a pair is missed once in 100,000, at 0.9 once in 7,000;
at 0.6 one in a hundred is tied. Memory is 64 bytes a part.
"""

import hashlib
import json

import numpy as np

from common import read_lines

N_HASHES = 64
BAND = 4
NEAR = 0.75
GRAM = 4
# compared with each part of a bucket; 50,000 records with one long note in common took 108 s when all were, 4 s so
NEIGHBOURS = 16
BLOCK = 4_000
NO_KEY = np.uint64(0)
_rng = np.random.default_rng(20_201)
MULTIPLIERS = _rng.integers(0, 2**32, N_HASHES, dtype=np.uint32) | np.uint32(1)
OFFSETS = _rng.integers(0, 2**32, N_HASHES, dtype=np.uint32)


class Index:
    """The few numbers that are kept of every row: 26 bytes, and 76 for each of its parts."""

    def __init__(self, capacity, task):
        self.task = task
        self.n = 0
        self.lines = np.zeros(capacity, np.int64)
        self.labels = np.zeros(capacity, np.int8)
        self.verdicts = np.zeros(capacity, np.int8)
        self.ids = np.zeros(capacity, np.uint64)
        self.group_keys = np.zeros(capacity, np.uint64)
        self.cases = np.zeros(capacity, np.uint64)
        self.exact = []  # of each part, of all rows in their order; an array from `close` on
        self.signatures = []
        self.row_of_part = []
        self.waiting = []

    def add(self, line, row, label, verdict=0):
        """Keep a row's numbers: its class among the strata, and its verdict among the task's labels."""
        at = self.n
        self.lines[at] = line
        self.labels[at] = label
        self.verdicts[at] = verdict
        self.ids[at] = hash64(str(row["id"])) if "id" in row else NO_KEY
        self.group_keys[at] = hash64(str(row["group"])) if "group" in row else NO_KEY
        self.cases[at] = hash64(json.dumps(self.task.canonical(row["input"]), sort_keys=True))
        self.waiting.append([self.task.plain_text(part) for part in self.task.parts(row["input"])])
        self.n += 1
        if len(self.waiting) == BLOCK:
            self._sign()

    def close(self):
        self._sign()
        for name in ("lines", "labels", "verdicts", "ids", "group_keys", "cases"):
            setattr(self, name, getattr(self, name)[: self.n])
        for name in ("exact", "signatures", "row_of_part"):
            blocks = getattr(self, name)
            setattr(self, name, np.concatenate(blocks) if blocks else np.empty(0, np.int64))

    def _sign(self):
        if not self.waiting:
            return
        texts = [text for parts in self.waiting for text in parts]
        # An empty part says nothing, so it ties nothing together.
        self.exact.append(np.array([hash64(text) if text else 0 for text in texts], np.uint64))
        self.signatures.append(signatures(texts))
        first = self.n - len(self.waiting)
        lengths = [len(parts) for parts in self.waiting]
        self.row_of_part.append(np.repeat(np.arange(first, self.n, dtype=np.int32), lengths))
        self.waiting = []

    @property
    def identical_pairs(self):
        return int(self.n - len(np.unique(self.cases)))

    def conflicts(self, source):
        """(line, message) of ids used twice, and where the task has a verdict of one case with two of them."""
        found = []
        for first, second in repeats(self.ids):
            line = self.lines[second]
            twice = id_in(source.path, line)
            before = source.line(self.lines[first])
            found.append((line, f"id {twice!r} stands already in line {before}; ids must differ"))
        labels = self.task.verdict.labels if self.task.verdict else ()
        for first, second in repeats(self.cases) if labels else ():
            if self.verdicts[first] != self.verdicts[second]:
                before = source.line(self.lines[first])
                message = (
                    f"labelled {labels[self.verdicts[second]]}, but line {before} holds the same {self.task.case} as "
                    f"{labels[self.verdicts[first]]}; decide which is right"
                )
                found.append((self.lines[second], message))
        return found


def id_in(source, line):
    """The id in one line that was found good before; only its hash is kept."""
    return next(json.loads(text)["id"] for number, text in read_lines(source) if number == line)


def hash64(text):
    key = int.from_bytes(hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).digest(), "little")
    return key or 1  # 0 means no key


def repeats(keys):
    """(first, later) positions of every key that stands more than once."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    leader = order[np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))]
    later = ~first & (ordered != NO_KEY)
    return list(zip(leader[later].tolist(), order[later].tolist(), strict=True))


def signatures(texts):
    """MinHash signatures of many texts at once, as (N_HASHES / BAND) keys each; an empty text has none."""
    # Three blanks between words: no gram spans two of them, so a slip that changes their order changes no other word's
    # grams.
    encoded = [
        f"   {text.replace(' ', '   ')}   ".encode("utf-8", "backslashreplace") if text else b"" for text in texts
    ]
    lengths = np.array([max(len(text) - GRAM + 1, 0) for text in encoded])
    result = np.zeros((len(texts), N_HASHES // BAND), np.uint32)
    kept = np.flatnonzero(lengths)
    if not len(kept):
        return result
    letters = np.frombuffer(b"".join(encoded[i] for i in kept), np.uint8).astype(np.uint64)
    grams = letters[:-3] | letters[1:-2] << np.uint64(8) | letters[2:-1] << np.uint64(16) | letters[3:] << np.uint64(24)
    # The last three positions of each text would reach into the next one.
    starts = np.concatenate([[0], np.cumsum(lengths[kept] + GRAM - 1)])
    inside = np.ones(len(letters), bool)
    for back in range(1, GRAM):
        inside[starts[1:] - back] = False
    grams = scramble(grams[inside[: len(grams)]]).astype(np.uint32)
    begins = np.concatenate([[0], np.cumsum(lengths[kept])[:-1]])
    minima = np.empty((len(kept), N_HASHES), np.uint8)
    for h in range(N_HASHES):
        mixed = grams * MULTIPLIERS[h] + OFFSETS[h]
        minima[:, h] = scramble(np.minimum.reduceat(mixed, begins).astype(np.uint64)) & np.uint64(0xFF)
    result[kept] = minima.view(np.uint32)
    return result


def scramble(x):
    """A 64-bit mixer, so that neighbouring grams get unrelated numbers."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def groups(index):
    """A group number for every row; rows with the same number must share a split."""
    parent = np.arange(index.n, dtype=np.int64)
    join(parent, *leaders(index.group_keys, np.arange(index.n)))
    join(parent, *leaders(index.exact, index.row_of_part))
    # Of parts that are the same, one is enough to look for near-identical ones.
    _, one_of_each = np.unique(index.exact, return_index=True)
    one_of_each = one_of_each[index.exact[one_of_each] != NO_KEY]
    bands = index.signatures[one_of_each]
    values = bands.view(np.uint8)
    rows = index.row_of_part[one_of_each]
    for band in range(bands.shape[1]):
        join_near(parent, bands[:, band], values, rows)
    return np.unique(roots(parent), return_inverse=True)[1]


def leaders(keys, rows):
    """For every key that stands more than once: its rows, and beside each the first row with that key."""
    pairs = repeats(keys)
    if not pairs:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    first, later = np.array(pairs).T
    return rows[first], rows[later]


def join_near(parent, keys, values, rows):
    """Join what meets in one band and agrees enough, looking at the next few only: a bucket of look-alikes must not
    cost its square.
    """
    order = np.argsort(keys, kind="stable")
    order = order[keys[order] != NO_KEY]
    ordered = keys[order]
    places = np.arange(len(order))
    for step in range(1, NEIGHBOURS + 1):
        # Whoever did not meet the part `step - 1` places on meets none further on.
        places = places[places < len(order) - step]
        places = places[ordered[places] == ordered[places + step]]
        if not len(places):
            return
        left = order[places]
        right = order[places + step]
        near = agree(values, left, right)
        join(parent, rows[left[near]], rows[right[near]])


def agree(values, lefts, rights):
    """Which pairs of signatures have at least NEAR of their values in common, a part at a time to bound the memory."""
    near = np.empty(len(lefts), bool)
    for start in range(0, len(lefts), 100_000):
        part = slice(start, start + 100_000)
        near[part] = np.count_nonzero(values[lefts[part]] == values[rights[part]], axis=1) >= NEAR * N_HASHES
    return near


def join(parent, lefts, rights):
    """Union by the smaller root, with path halving."""
    for a, b in zip(lefts.tolist(), rights.tolist(), strict=True):
        a = find(parent, a)
        b = find(parent, b)
        if a != b:
            parent[max(a, b)] = min(a, b)


def find(parent, x):
    while parent[x] != x:
        parent[x] = parent[parent[x]]
        x = parent[x]
    return x


def roots(parent):
    while True:
        higher = parent[parent]
        if (higher == parent).all():
            return parent
        parent = higher
