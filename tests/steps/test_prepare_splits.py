"""No record stands in two splits, by an oracle of its own; the class mix holds; every line arrives as it was."""

import hashlib
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

import prepare_splits
from entity_resolution import near_duplicates
from support.pipeline import exit_code
from tasks import load_task
from tasks.crm import synthetic
from tasks.qod import synthetic as requests

ROOT = Path(__file__).resolve().parents[2]
SPLITS = {"train": 0.8, "val": 0.1, "test": 0.1}
LABELS = ("DUPLICATE", "POSSIBLE", "NO_MATCH")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def word(rng, low=5, high=9):
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(low, high)))


def person(rng):
    """A record of about 100 characters that is like no other."""
    name = f"{word(rng)} {word(rng)}"
    firm = f"{word(rng)} {word(rng)} {word(rng)}"
    return {
        "name": name,
        "email": f"{word(rng)}.{word(rng)}@{word(rng)}.com",
        "company": firm,
        "street": f"{rng.randint(1, 999)} {word(rng)} {word(rng)}",
        "phone": f"+{rng.randint(10**10, 10**11)}",
    }


def row(left, right, label="NO_MATCH", **more):
    return {**more, "input": {"record1": left, "record2": right}, "output": {"result": label, "reasoning": "x"}}


def random_rows(n, seed):
    rng = random.Random(seed)
    return [row(person(rng), person(rng), rng.choices(LABELS, (35, 20, 45))[0]) for _ in range(n)]


def slip(record, rng):
    """The record with one character of one value changed, left out or put in."""
    key = rng.choice([key for key, value in record.items() if isinstance(value, str) and len(value) > 3])
    text = record[key]
    at = rng.randrange(len(record[key]))
    new = rng.choice(LETTERS)
    return record | {
        key: rng.choice([text[:at] + new + text[at + 1 :], text[:at] + text[at + 1 :], text[:at] + new + text[at:]])
    }


class Prepared:
    """One run of the step: its manifest, its files, and the split of every row."""

    def __init__(self, folder):
        self.folder = folder
        self.manifest = json.loads((folder / "manifest.json").read_text())
        self.lines = {split: (folder / f"{split}.jsonl").read_bytes().splitlines(keepends=True) for split in SPLITS}
        self.rows = [(split, json.loads(line)) for split, lines in self.lines.items() for line in lines]

    def split_of(self):
        return {row["id"]: split for split, row in self.rows}


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    runs = itertools.count()

    def run(rows, *options):
        text = (
            rows
            if isinstance(rows, bytes)
            else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        )
        source = tmp_path / "in.jsonl"
        out = tmp_path / f"out{next(runs)}"
        source.write_bytes(text)
        monkeypatch.setattr(sys, "argv", ["src/prepare_splits.py", "--in", str(source), "--out", str(out), *options])
        prepare_splits.main()
        return Prepared(out)

    return run


def class_counts(prepared):
    return {
        split: Counter(json.loads(line)["output"]["result"] for line in lines)
        for split, lines in prepared.lines.items()
    }


# ---- shares, seeds and what the manifest says


@pytest.mark.parametrize("n", [10, 101, 1_003])
@pytest.mark.parametrize(
    "make", [random_rows, lambda n, seed: list(synthetic.rows(n, seed))], ids=["no_repeats", "some_repeats"]
)
def test_shares_within_one_row_of_the_quota(n, make, prepare):
    rows = make(n, 3)
    prepared = prepare(rows)
    total = Counter(row["output"]["result"] for row in rows)
    for split, counts in class_counts(prepared).items():
        assert abs(len(prepared.lines[split]) - SPLITS[split] * n) <= 1, split
        for label in LABELS:
            assert abs(counts[label] - SPLITS[split] * total[label]) <= 1, (split, label)
    assert prepared.manifest["classes"] == {
        split: {label: counts[label] for label in LABELS} for split, counts in class_counts(prepared).items()
    }


def test_groups_of_all_sizes_keep_the_shares_as_far_as_they_can():
    rng = np.random.default_rng(0)
    for _ in range(100):
        n = int(rng.integers(200, 600))
        labels = rng.integers(0, 3, n).astype(np.int8)
        groups = np.unique(rng.integers(0, n // 3, n), return_inverse=True)[1]
        split_of, _ = prepare_splits.assign(labels, groups, 1)
        assert all(len(set(split_of[groups == group])) == 1 for group in range(groups.max() + 1))
        for at, share in enumerate(SPLITS.values()):
            assert abs((split_of == at).sum() - share * n) <= 3
            assert all(
                abs(((split_of == at) & (labels == c)).sum() - share * (labels == c).sum()) <= 3 for c in range(3)
            )


def test_same_seed_same_split_other_seed_other_split(prepare):
    rows = list(synthetic.rows(300, 4))
    first = prepare(rows)
    again = prepare(rows)
    other = prepare(rows, "--seed", "7")
    assert first.lines == again.lines
    assert {split: len(lines) for split, lines in first.lines.items()} == {
        split: len(lines) for split, lines in other.lines.items()
    }
    moved = sum(first.split_of()[name] != split for name, split in other.split_of().items())
    assert moved > 50


def test_manifest_hashes_and_counts(prepare):
    prepared = prepare([*random_rows(60, 5), *random_rows(1, 5)])
    facts = prepared.manifest
    assert facts["sha256"] == {
        split: hashlib.sha256((prepared.folder / f"{split}.jsonl").read_bytes()).hexdigest() for split in SPLITS
    }
    assert facts["source_sha256"] == hashlib.sha256((prepared.folder.parent / "in.jsonl").read_bytes()).hexdigest()
    assert (facts["rows"], facts["groups"], facts["largest_group"], facts["identical_pairs"], facts["synthetic"]) == (
        61,
        60,
        2,
        1,
        False,
    )


def test_nothing_moves_where_nothing_repeats(prepare):
    assert prepare(random_rows(500, 6)).manifest["pairs_moved"] == 0
    rows = random_rows(500, 6)
    hub = person(random.Random(1))
    assert (
        prepare(
            [row(hub, other["input"]["record2"], other["output"]["result"]) for other in rows[:40]] + rows[40:]
        ).manifest["pairs_moved"]
        > 0
    )


# ---- no leak, by brute force


def plain_values(record):
    """The values in their order without case, accents and punctuation; written apart from the code under test."""
    values = [
        inner
        for value in record.values()
        for inner in (value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value])
    ]
    values = [inner for value in values for inner in (value if isinstance(value, list) else [value])]
    letters = [unicodedata.normalize("NFD", str(value)).casefold() for value in values]
    return [
        "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c)[0] in "LN") for text in letters
    ]


def alike_pairs(texts, least):
    """Pairs (i, j) of texts whose sets of 4-grams have at least this Jaccard similarity."""
    grams = [{text[at : at + 4] for at in range(len(text) - 3)} for text in texts]
    number = {gram: at for at, gram in enumerate(set().union(*grams))}
    indices = [number[gram] for some in grams for gram in some]
    sizes = np.array([len(some) for some in grams])
    matrix = scipy.sparse.csr_matrix(
        (np.ones(len(indices), np.float32), indices, np.concatenate([[0], np.cumsum(sizes)]))
    )
    for start in range(0, len(texts), 500):
        common = (matrix[start : start + 500] @ matrix.T).toarray()
        union = sizes[start : start + 500, None] + sizes[None, :] - common
        yield from (
            (i + start, j)
            for i, j in zip(*np.nonzero((common >= least * union) & (union > 0)), strict=True)
            if i + start < j
        )


def one_slip_pairs(texts):
    """Pairs of texts of 90 characters or more that one edit turns into one another."""
    long = [at for at, text in enumerate(texts) if len(text) >= 90]
    distances = process.cdist(
        [texts[at] for at in long],
        [texts[at] for at in long],
        scorer=Levenshtein.distance,
        score_cutoff=1,
        dtype=np.uint8,
    )
    return [(long[i], long[j]) for i, j in zip(*np.nonzero(distances <= 1), strict=True) if i < j]


def variant(record, rng):
    """The same record as another system writes it: other key names and order, capitals, no accents, punctuation."""

    def strip(text):
        return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))

    def loud(value):
        if isinstance(value, dict):
            return {f"y_{key}": loud(inner) for key, inner in value.items()}
        return [loud(inner) for inner in value] if isinstance(value, list) else strip(value).upper().replace(" ", "-")

    fields = [(f"x_{key}", loud(value)) for key, value in record.items()]
    rng.shuffle(fields)
    return dict(fields)


def test_no_record_its_variant_or_its_near_copy_in_two_splits(prepare):
    rng = random.Random(8)
    base = list(synthetic.rows(1_500, 8))
    fillers = [record for other in random_rows(400, 9) for record in other["input"].values()]
    records = [record for other in base for record in other["input"].values()]
    long = [
        record
        for record in records
        if len(" ".join(plain_values(record))) >= 90 and not any(isinstance(v, dict) for v in record.values())
    ][:250]
    copies = (
        [slip(record, rng) for record in long[:200]] + long[200:] + [variant(record, rng) for record in records[-100:]]
    )
    assert len(copies) == 350
    rows = base + [
        row(copy, filler, rng.choice(LABELS), id=f"copy-{at}")
        for at, (copy, filler) in enumerate(zip(copies, fillers, strict=False))
    ]
    rng.shuffle(rows)
    prepared = prepare(rows)
    placed = [(split, record) for split, some in prepared.rows for record in some["input"].values()]
    texts = [" ".join(plain_values(record)) for _, record in placed]
    exact = {}
    for (split, _), text in zip(placed, texts, strict=True):
        exact.setdefault(" ".join(sorted(text.split())), set()).add(split)
    near = set(one_slip_pairs(texts)) | set(alike_pairs(texts, 0.9))
    assert len(near) > 300 and len(exact) < len(texts) - 150  # the oracle sees what was planted
    assert [text for text, splits in exact.items() if text and len(splits) > 1] == [], "an empty record ties nothing"
    assert [(texts[i], texts[j]) for i, j in near if placed[i][0] != placed[j][0]] == []


def test_most_planted_slips_would_leak_without_grouping():
    """The test above can fail: dealt out at random, a third of the pairs cross."""
    labels = np.zeros(3_000, np.int8)
    groups = np.arange(3_000)
    split_of, _ = prepare_splits.assign(labels, groups, 1)
    assert 0.25 < (split_of[:1_500] != split_of[1_500:]).mean() < 0.45


def index_of(cases):
    index = near_duplicates.Index(len(cases), load_task())
    for at, case in enumerate(cases):
        index.add(at, case, 0)
    index.close()
    return near_duplicates.groups(index)


def test_slips_are_found_wherever_they_stand():
    """3,000 slips, many of them in a first letter, which changes the order of the words."""
    rng = random.Random(10)
    records = [person(rng) for _ in range(3_000)]
    groups = index_of([row(record, {}) for record in records] + [row(slip(record, rng), {}) for record in records])
    assert (groups[:3_000] != groups[3_000:]).sum() <= 2
    assert len(set(groups)) >= 3_000


def test_chains_stay_together():
    rng = random.Random(11)
    chains = [
        list(itertools.accumulate(range(5), lambda record, _: slip(record, rng), initial=person(rng)))
        for _ in range(200)
    ]
    places = [(at, record) for at, chain in enumerate(chains) for record in chain]
    rng.shuffle(places)
    groups = index_of([row(record, {}) for _, record in places])
    found = {at: {groups[i] for i, (chain, _) in enumerate(places) if chain == at} for at in range(200)}
    assert all(len(numbers) == 1 for numbers in found.values()) and len(set(groups)) == 200


def test_near_copies_are_found_among_thousands_that_share_a_long_note():
    """Look-alikes fill whole buckets; that must neither hide the copies nor take the square of their number."""
    rng = random.Random(12)
    note = " ".join(word(rng) for _ in range(8))
    records = [person(rng) | {"note": note} for _ in range(8_000)]
    groups = index_of([row(record, {}) for record in records] + [row(slip(records[at], rng), {}) for at in range(300)])
    assert (groups[:300] == groups[8_000:]).mean() > 0.99
    assert np.bincount(groups).max() <= 4


def test_merely_alike_records_are_not_tied():
    rng = random.Random(13)
    namesakes = [person(rng) | {"name": "Jonathan Smithson", "city": "Springfield"} for _ in range(500)]
    assert len(set(index_of([row(record, {}) for record in namesakes]))) == 500
    assert np.bincount(index_of(list(synthetic.rows(5_000, 14)))).max() <= 6


def test_empty_records_tie_nothing():
    rng = random.Random(15)
    groups = index_of(
        [row({}, person(rng)) for _ in range(50)] + [row({"a": "", "b": None, "c": []}, person(rng)) for _ in range(50)]
    )
    assert len(set(groups)) == 100


def test_group_never_crosses(prepare):
    rng = random.Random(16)
    rows = [other | {"group": rng.choice([at % 120, str(at % 120)])} for at, other in enumerate(random_rows(600, 16))]
    places = {}
    for split, some in prepare(rows).rows:
        places.setdefault(str(some["group"]), set()).add(split)
    assert len(places) == 120 and all(len(splits) == 1 for splits in places.values())


def naive_groups(rows):
    """Connected rows, by comparing every two of them."""
    keys = [[" ".join(sorted(plain_values(record))) for record in other["input"].values()] for other in rows]
    number = list(range(len(rows)))
    for i, j in itertools.combinations(range(len(rows)), 2):
        tied = "group" in rows[i] and rows[i].get("group") == rows[j].get("group")
        tied = tied or any(a and b and Levenshtein.distance(a, b) <= 1 for a in keys[i] for b in keys[j])
        if tied and number[i] != number[j]:
            number = [number[i] if n == number[j] else n for n in number]
    return number


@pytest.mark.parametrize("seed", range(25))
def test_groups_are_those_of_a_naive_search(seed):
    rng = random.Random(seed)
    pool = [person(rng) for _ in range(rng.randint(10, 60))]
    for record in pool[:5]:
        pool.append(record | {"phone": record["phone"][:5] + "7" + record["phone"][6:]})
    pool += [{key.upper(): value.title() for key, value in pool[-6].items()}, {}]
    rows = [row(rng.choice(pool), rng.choice(pool)) for _ in range(rng.randint(5, 45))]
    rows = [other | {"group": rng.randint(1, 15)} if rng.random() < 0.3 else other for other in rows]
    found = index_of(rows).tolist()
    wanted = naive_groups(rows)
    assert [[a == b for b in found] for a in found] == [[a == b for b in wanted] for a in wanted]


# ---- files as people have them


def lines_of(rows, end="\n"):
    return [json.dumps(other, ensure_ascii=False) + end for other in rows]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lines: "".join(lines),
        lambda lines: "".join(lines).rstrip("\n"),
        lambda lines: "\n\n" + "\n  \n".join(lines) + "\n\n",
        lambda lines: "\ufeff" + "".join(lines),
        lambda lines: "".join(line.replace("\n", "\r\n") for line in lines),
        lambda lines: "".join(line.replace("{", "{ ", 1).replace("x", "\\u0078\u2028é", 1) for line in lines),
    ],
    ids=["plain", "no_last_newline", "blank_lines", "byte_order_mark", "crlf", "own_spacing_and_escapes"],
)
def test_every_line_arrives_once_as_it_was(spoil, prepare):
    text = spoil(lines_of(random_rows(40, 17)))
    prepared = prepare(text.encode("utf-8"))
    wanted = [line.encode() for line in text.removeprefix("\ufeff").split("\n") if line.strip()]
    arrived = [line.removesuffix(b"\n") for lines in prepared.lines.values() for line in lines]
    assert sorted(arrived) == sorted(wanted) and len(arrived) == 40


def test_line_numbers_count_blank_lines(prepare):
    good = lines_of(random_rows(5, 18))
    with pytest.raises(Exception, match=r"in\.jsonl:6: .*NaN"):
        prepare((good[0] + "\n" + good[1] + "\r\n" + good[2] + '{"input": NaN}\n' + good[3]).encode())


def test_missing_file_means_synthetic_rows_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["src/prepare_splits.py"])
    prepare_splits.main()
    prepared = Prepared(tmp_path / "data")
    said = capsys.readouterr().out
    assert (
        "data/all.jsonl is not there" in said
        and "2,000 synthetic pairs" in said
        and "put your own labelled pairs into data/all.jsonl" in said
    )
    assert prepared.manifest["synthetic"] is True and prepared.manifest["rows"] == 2_000
    assert not (tmp_path / "data" / "all.jsonl").exists()


def test_of_many_classes_the_most_frequent_are_shown_and_the_others_counted(tmp_path, capsys):
    rows = [row | {"meta": {"kind": "mail"}} if n < 20 else row for n, row in enumerate(requests.rows(60, 1))]
    kinds = {row["meta"]["kind"] for row in rows}
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--task", "qod", "--in", tmp_path / "in.jsonl", "--out", tmp_path)
    assert exit_code(prepare_splits, *words) == 0
    classes = json.loads((tmp_path / "manifest.json").read_text())["classes"]
    lines = capsys.readouterr().out.splitlines()
    assert len(kinds) > 20 and max(map(len, lines)) < 250
    [train] = [line for line in lines if line.startswith("  train")]
    n = sum(count > 0 for count in classes["train"].values())
    assert f": mail {classes['train']['mail']} (" in train and classes["train"]["mail"] > 10
    assert train.count(" %), ") == 5 and train.endswith(f" and {n - 6} more")
    [lacking] = [line for line in lines if line.startswith("warning: test has no row")]
    n = sum(count == 0 for count in classes["test"].values())
    assert f" and {n - 6} more; scores there cannot be measured" in lacking


def test_a_split_without_a_class_is_warned_of(prepare, capsys):
    rng = random.Random(5)
    prepare([row(person(rng), person(rng), "POSSIBLE" if n == 0 else "NO_MATCH") for n in range(30)])
    said = capsys.readouterr().out
    assert "warning: test has no row of the class POSSIBLE; scores there cannot be measured" in said
    assert "warning: train has no row" not in said


def test_an_interrupted_run_leaves_no_manifest_of_an_older_one(prepare, monkeypatch):
    prepared = prepare(random_rows(30, 19))
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "src/prepare_splits.py",
            "--in",
            str(prepared.folder.parent / "in.jsonl"),
            "--out",
            str(prepared.folder),
            "--force",
        ],
    )
    monkeypatch.setattr(
        prepare_splits, "write_manifest", lambda *args, **facts: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        prepare_splits.main()
    assert not (prepared.folder / "manifest.json").exists()


def cpu_seconds_of_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
def test_memory_and_time_grow_with_the_index_alone(tmp_path):
    facts = {}
    cpu_s = {}
    for n in (20_000, 60_000):
        source = tmp_path / f"{n}.jsonl"
        source.write_text("".join(lines_of(random_rows(n, 20))))
        before_s = cpu_seconds_of_children()
        subprocess.run(
            [sys.executable, ROOT / "src" / "prepare_splits.py", "--in", source, "--out", tmp_path / str(n)],
            check=True,
            capture_output=True,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        )
        # Not the time on the wall, which other work on the machine changes.
        cpu_s[n] = cpu_seconds_of_children() - before_s
        facts[n] = json.loads((tmp_path / str(n) / "manifest.json").read_text())
    growth = (facts[60_000]["peak_memory_mib"] - facts[20_000]["peak_memory_mib"]) * 2**20 / 40_000
    assert growth < 1_024
    assert cpu_s[60_000] <= 4 * cpu_s[20_000]
