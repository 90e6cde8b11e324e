"""Record sets of every format become rows: the answer is not in the columns, entities stay in their fold, false pairs
are hard.
"""

import csv
import itertools
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import UserError
from rows import load_rows
from tasks import load_task
from tasks.crm import importing, pair_drawing, public_formats
from tasks.crm.fields import evidence

ROOT = Path(__file__).resolve().parents[2]
FIRST = "anna ben carla david emma felix greta hugo ida jonas karin liam mona nils olga paul".split()
LAST = (
    "adler brandt cramer drexler engel fuchs gruber hansen iversen jung keller lorenz maurer neumann otto peters"
).split()
CITIES = "berlin hamburg kassel leipzig".split()


def people(n_entities, seed=3, copies=(1, 2, 3)):
    """Persons with one to three copies, each with a slip in one field: (entity, copy number, fields)."""
    rng = random.Random(seed)
    for entity in range(n_entities):
        person = {
            "given_name": rng.choice(FIRST),
            "surname": rng.choice(LAST),
            "city": rng.choice(CITIES),
            "date_of_birth": f"19{rng.randint(30, 99)}{rng.randint(10, 12)}{rng.randint(10, 28)}",
            "phone": f"0{rng.randint(10**8, 10**9)}",
        }
        for number in range(rng.choice(copies)):
            fields = dict(person)
            if number:
                key = rng.choice(["given_name", "surname", "city"])
                fields[key] = "" if rng.random() < 0.3 else fields[key][:-1] + "x"
            yield entity, number, fields


def save(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def clusters(tmp_path):
    """A table with a cluster column; its file name, and the entity of each id."""
    rows = [
        {"unique_id": f"r{at}", "cluster": f"c{entity}", **fields} for at, (entity, _, fields) in enumerate(people(120))
    ]
    save(tmp_path / "people.csv", rows)
    return tmp_path / "people.csv", {row["unique_id"]: row["cluster"] for row in rows}


class Made:
    def __init__(self, out):
        self.text = out.read_text(encoding="utf-8")
        self.rows = [json.loads(line) for line in self.text.splitlines()]
        self.manifest = json.loads(Path(f"{out}.manifest.json").read_text(encoding="utf-8"))
        load_rows(out, load_task())

    def ids(self, label=None):
        """(left id, right id) of the rows with a verdict."""
        return [tuple(row["id"].split(":")[1:]) for row in self.rows if label in (None, row["output"]["result"])]

    def keys(self):
        return {key for row in self.rows for record in row["input"].values() for key in record}


@pytest.fixture
def make(tmp_path, monkeypatch):
    runs = itertools.count()

    def run(*options):
        out = tmp_path / f"out{next(runs)}.jsonl"
        monkeypatch.setattr(sys, "argv", ["src/import_rows.py", "--out", str(out), *map(str, options)])
        importing.main()
        return Made(out)

    return run


@pytest.fixture
def own(make, clusters):
    return lambda *options: make(
        "--format", "clusters", "--in", clusters[0], "--id_column", "unique_id", "--cluster_column", "cluster", *options
    )


def test_clusters_become_rows(own, clusters):
    made = own("--pairs", 150)
    entity_of = clusters[1]
    assert len(made.ids("DUPLICATE")) == 50 and len(made.ids("NO_MATCH")) == 100
    assert all(entity_of[a] == entity_of[b] and a != b for a, b in made.ids("DUPLICATE"))
    assert all(entity_of[a] != entity_of[b] for a, b in made.ids("NO_MATCH"))
    assert len({frozenset(pair) for pair in made.ids()}) == 150
    assert made.keys() == {"given_name", "surname", "city", "date_of_birth", "phone"}
    assert all(value.strip() for row in made.rows for record in row["input"].values() for value in record.values())
    assert all(
        row.get("group") == (entity_of[pair[0]] if row["output"]["result"] == "DUPLICATE" else None)
        for row, pair in zip(made.rows, made.ids(), strict=True)
    )


def test_twice_as_many_false_pairs_unless_a_number_is_asked_for(own, clusters):
    made = own()
    assert len(made.ids("NO_MATCH")) == 2 * len(made.ids("DUPLICATE")) > 100
    assert len(own("--pairs", 500).rows) == 500


def test_every_verdict_can_be_read_from_the_fields(own):
    for row in own("--pairs", 300).rows:
        relations = {item.relation for item in evidence(row["input"])}
        assert relations & ({"same", "similar"} if row["output"]["result"] == "DUPLICATE" else {"different"})


def test_the_manifest_says_what_was_done_without_foreign_paths(own, clusters, tmp_path):
    manifest = own("--pairs", 90, "--drop", "phone").manifest
    assert (
        manifest["set"] == "people" and manifest["format"] == "clusters" and list(manifest["files"]) == ["people.csv"]
    )
    assert manifest["columns_dropped"] == {
        "phone": public_formats.BY_CALL,
        "unique_id": public_formats.ID,
        "cluster": public_formats.ID,
    }
    assert (manifest["pairs"], manifest["positives"], manifest["negatives"], manifest["seed"]) == (90, 30, 60, 1)
    assert manifest["records"] == len(clusters[1]) and manifest["entities"] == len(set(clusters[1].values()))
    assert str(tmp_path) not in json.dumps(manifest)


def test_same_seed_same_bytes_in_any_process(own, clusters, tmp_path):
    first = own("--pairs", 90)
    assert own("--pairs", 90).text == first.text
    assert own("--pairs", 90, "--seed", 2).text != first.text
    columns = "--id_column unique_id --cluster_column cluster"
    more = f"--pairs 90 --out {tmp_path}/other.jsonl"
    command = f"src/import_rows.py --format clusters --in {clusters[0]} {columns} {more}"
    subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, check=True, env={"PYTHONHASHSEED": "77"}, capture_output=True
    )
    assert (tmp_path / "other.jsonl").read_text(encoding="utf-8") == first.text


def test_folds_share_no_entity_and_need_no_seed(own, clusters):
    entities = [
        {clusters[1][key] for pair in own("--fold", fold, "--seed", seed).ids() for key in pair}
        for fold, seed in (("1/2", 1), ("2/2", 5))
    ]
    assert all(len(found) > 30 for found in entities) and not entities[0] & entities[1]


def test_groups_keep_every_pair_inside_one(own, clusters):
    made = own("--groups", 6, "--pairs", 240)
    group_of = {}
    for row, pair in zip(made.rows, made.ids(), strict=True):
        for key in pair:
            assert group_of.setdefault(clusters[1][key], row["group"]) == row["group"]
    assert len(set(group_of.values())) == 6


def test_large_entities_do_not_dominate(make, tmp_path):
    rows = [
        {"cluster": f"c{at}", "name": name}
        for at, name in enumerate(f"{a} {b}" for a in FIRST for b in LAST[:4])
        for _ in range(1)
    ]
    rows += [{"cluster": f"c{at}", "name": rows[at]["name"] + " ", "note": "x"} for at in range(40)]
    rows += [{"cluster": "c0", "name": rows[0]["name"], "note": f"copy {at}"} for at in range(20)]
    save(
        tmp_path / "t.csv",
        [{"cluster": row["cluster"], "name": row["name"], "note": row.get("note", "")} for row in rows],
    )
    made = make("--format", "clusters", "--in", tmp_path / "t.csv", "--cluster_column", "cluster", "--pairs", 120)
    groups = [row["group"] for row in made.rows if row["output"]["result"] == "DUPLICATE"]
    assert len(groups) == 40 and groups.count("c0") == 1


def test_false_pairs_are_harder_than_random_and_bounded(own, clusters):
    made = own("--pairs", 300)
    records = [record for row in made.rows for record in row["input"].values()]
    weight = dict.fromkeys(made.keys(), 1.0)
    likeness = [
        pair_drawing.similarity(row["input"]["record1"], row["input"]["record2"], weight)
        for row in made.rows
        if row["output"]["result"] == "NO_MATCH"
    ]
    rng = random.Random(1)
    by_chance = [pair_drawing.similarity(rng.choice(records), rng.choice(records), weight) for _ in likeness]
    assert sorted(likeness)[100] > sorted(by_chance)[100] + 0.1
    assert {kind: made.manifest["kinds"][kind] for kind in ("hard", "middle", "random")} == {
        "hard": 140,
        "middle": 40,
        "random": 20,
    }
    uses = [key for pair in made.ids("NO_MATCH") for key in pair]
    assert max(map(uses.count, uses)) <= 1.5 * 2 * 200 / len(clusters[1]) + 1


def test_a_pair_of_two_files_takes_one_record_each(make, tmp_path):
    found = list(people(80, copies=(2,)))
    for number, name in enumerate(("a.csv", "b.csv")):
        # Both tables count from 1, in other orders.
        table = [(entity, fields) for entity, copy, fields in found if copy == number][:: 1 - 2 * number]
        save(tmp_path / name, [{"id": at, **fields} for at, (_, fields) in enumerate(table, 1)])
    save(tmp_path / "links.csv", [{"left_id": at, "right_id": 81 - at} for at in range(1, 81)])
    made = make(
        "--format",
        "links",
        "--in",
        tmp_path / "a.csv",
        tmp_path / "b.csv",
        "--truth",
        tmp_path / "links.csv",
        "--id_column",
        "id",
        "--pairs",
        240,
    )
    assert len(made.ids("DUPLICATE")) == 80 and all(int(a) + int(b) == 81 for a, b in made.ids("DUPLICATE"))
    assert all(int(a) + int(b) != 81 for a, b in made.ids("NO_MATCH"))
    assert len({row["id"] for row in made.rows}) == 240


def test_two_tables_stay_two_when_a_fold_empties_one(make, tmp_path):
    clubs = ["b", *(f"a{at}" for at in range(1, len(FIRST)))]
    rows = [{"id": at, "club": clubs[at], "name": f"{name} miller"} for at, name in enumerate(FIRST)]
    save(tmp_path / "a.csv", rows)
    save(tmp_path / "b.csv", [{"id": 99, "club": "b", "name": "anna muller"}])
    empty = 0
    for fold in ("1/2", "2/2"):
        try:
            made = make(
                "--format",
                "clusters",
                "--in",
                tmp_path / "a.csv",
                tmp_path / "b.csv",
                "--cluster_column",
                "club",
                "--id_column",
                "id",
                "--fold",
                fold,
                "--pairs",
                20,
            )
            assert all(b == "99" for _, b in made.ids())
        except UserError as error:
            empty += f"in fold {fold}" in str(error)
    assert empty == 1


def test_links_that_meet_are_one_entity(make, tmp_path):
    names = ["anna smith", "anna smyth", *(f"{first} smith" for first in FIRST[2:6])]
    save(tmp_path / "t.csv", [{"id": id, "name": name} for id, name in zip("abcdef", names, strict=True)])
    save(tmp_path / "links.csv", [{"id1": "a", "id2": "b"}, {"id1": "c", "id2": "b"}])
    made = make(
        "--format",
        "links",
        "--in",
        tmp_path / "t.csv",
        "--truth",
        tmp_path / "links.csv",
        "--id_column",
        "id",
        "--pairs",
        20,
    )
    assert not {("a", "c"), ("a", "b"), ("b", "c")} & set(made.ids("NO_MATCH"))
    assert made.manifest["entities"] == 4


def judged_table(tmp_path, scores):
    save(
        tmp_path / "t.csv",
        [{"unique_id": name, "name": f"{first} miller"} for name, first in zip("abcdef", FIRST, strict=False)],
    )
    save(
        tmp_path / "labels.csv",
        [{"unique_id_l": a, "unique_id_r": b, "clerical_match_score": score} for (a, b), score in scores.items()],
    )
    return ["--in", tmp_path / "t.csv", "--truth", tmp_path / "labels.csv", "--id_column", "unique_id"]


def test_judged_pairs_are_taken_as_they_are(make, tmp_path):
    made = make("--format", "labels", *judged_table(tmp_path, {"ab": 1.0, "bc": 0.97, "ac": 0.0, "de": 0.0, "ef": 0.5}))
    assert sorted(made.ids("DUPLICATE")) == [("a", "b"), ("b", "c")] and made.ids("NO_MATCH") == [("d", "e")]
    assert made.manifest["left_out"] == {
        "judged pairs that contradict the entities": 1,
        "judged pairs without a clear verdict": 1,
    }


def test_magellan_tables(make, tmp_path):
    for name, offset in (("tableA.csv", 0), ("tableB.csv", 1)):
        save(
            tmp_path / name, [{"id": at, "title": f"{FIRST[at + offset]} {LAST[at + offset]} store"} for at in range(8)]
        )
    save(
        tmp_path / "test.csv",
        [{"ltable_id": at + 1, "rtable_id": at, "label": 1} for at in range(4)]
        + [{"ltable_id": 6, "rtable_id": 1, "label": 0}],
    )
    made = make(
        "--format",
        "magellan",
        "--in",
        tmp_path / "tableA.csv",
        tmp_path / "tableB.csv",
        "--truth",
        tmp_path / "test.csv",
        "--id_column",
        "id",
    )
    assert len(made.ids("DUPLICATE")) == 4 and made.ids("NO_MATCH") == [("6", "1")]
    assert all(
        a["title"] == b["title"]
        for a, b in (row["input"].values() for row in made.rows if row["output"]["result"] == "DUPLICATE")
    )


def test_febrl_loses_its_number_and_half_of_the_birth_dates(make, tmp_path):
    for number, name in enumerate(("dataset4a.csv", "dataset4b.csv")):
        rows = [
            {"rec_id": f"rec-{entity}-{'dup-0' if number else 'org'}", **fields, "soc_sec_id": f"{entity}77"}
            for entity, copy, fields in people(200, copies=(2,))
            if copy == number
        ]
        # As the set has them: a blank after each comma, in the header too.
        lines = [", ".join(map(str, line)) for line in [list(rows[0]), *(row.values() for row in rows)]]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    made = make("--set", "febrl4", "--from", tmp_path, "--pairs", 300)
    assert not made.keys() & {"soc_sec_id", "rec_id"}
    assert not any(a.endswith("org") == b.endswith("org") for a, b in made.ids())
    records = [record for row in made.rows for record in row["input"].values()]
    assert 0.4 < sum("date_of_birth" in record for record in records) / len(records) < 0.6


def test_uganda_pairs_an_original_with_a_copy_without_its_numbers(make, tmp_path):
    rows = [
        {
            "rec_id": f"rec-{entity}-{'dup-0' if number else 'org'}",
            **fields,
            "uganda_nin": f" N{entity}",
            "art_number": f" A{entity}",
        }
        for entity, number, fields in people(90, copies=(1, 2))
    ]
    save(tmp_path / "uganda_data_v21_20201501.csv", rows)
    save(
        tmp_path / "uganda_data_v21_20201501_true_links.csv",
        [
            {"rec_id_1": row["rec_id"], "rec_id_2": row["rec_id"].replace("dup-0", "org")}
            for row in rows
            if "dup" in row["rec_id"]
        ],
    )
    made = make("--set", "opencr_uganda", "--from", tmp_path, "--pairs", 90)
    assert all(a.endswith("org") != b.endswith("org") for a, b in made.ids())
    assert not made.keys() & {"uganda_nin", "art_number", "rec_id"}


def test_chicago_finds_what_stands_in_shifted_columns(make, tmp_path):
    names = [f"{first} {last} school" for first, last in zip(FIRST, LAST, strict=True)]
    rows = [
        {
            "True Id": at,
            "Id": f"{at}{copy}",
            "Site name": name,
            "Address": f"{at} main\n street",
            "Zip": f"6060{at}.0",
            "Phone": f"555{at:04}",
            "Agency": "",
            "Website": "No",
            "Center Director": f"www.s{at}.org",
            "Email Address": "01/31/13",
            "Type": f"info@s{at}.org",
        }
        for at, name in enumerate(names)
        for copy in (0, 1)
    ]
    for at, row in enumerate(rows):
        row["Site name"] += " inc" * (at % 2)
    save(tmp_path / "csv_example_input_with_true_ids.csv", rows)
    made = make("--set", "dedupe_chicago_sites", "--from", tmp_path, "--pairs", 30)
    record = made.rows[0]["input"]["record1"]
    assert made.keys() == {"Site name", "Address", "Zip", "Phone", "Website", "Email Address"}
    assert (
        record["Website"].startswith("www.")
        and "@" in record["Email Address"]
        and record["Zip"].isdigit()
        and "\n" not in record["Address"]
    )


def test_parquet_dates_numbers_and_gaps(tmp_path):
    import datetime

    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.table(
            {
                "zip": [60302.0, None],
                "born": [datetime.datetime(1990, 5, 4), None],
                "name": [" Ann  Lee", "nan"],
                "__index_level_0__": [1, 2],
            }
        ),
        tmp_path / "t.parquet",
    )
    columns, rows = public_formats.read_table(tmp_path / "t.parquet")
    assert columns == ["zip", "born", "name"] and rows[0] == {"zip": "60302", "born": "1990-05-04", "name": "Ann Lee"}
    assert rows[1]["zip"] == rows[1]["born"] == "" and rows[1]["name"] in public_formats.MISSING


def test_presets_name_real_columns():
    for name, preset in public_formats.PRESETS.items():
        assert preset.tables and preset.pairs and (preset.links or preset.cluster_column), name
        assert all(column not in preset.drop for column in preset.keep), name


ERRORS = {
    "missing file": ("--set febrl4 --from {folder}", "dataset4a.csv: no such file", "--from"),
    "unknown set": ("--set febrl", "--set febrl: no such set", "nearest: febrl"),
    "no cluster column": ("--format clusters --in {folder}/t.csv", "--cluster_column"),
    "wrong column": (
        "--format clusters --in {folder}/t.csv --cluster_column club",
        "t.csv: no column 'club'",
        "'cluster'",
    ),
    "wrong drop": (
        "--format clusters --in {folder}/t.csv --cluster_column cluster --drop nmae",
        "--drop nmae",
        "t.csv",
    ),
    "ids twice": (
        "--format clusters --in {folder}/t.csv --cluster_column cluster --id_column name",
        "t.csv: column 'name'",
        "'ann'",
        "--id_column",
    ),
    "no pairs": ("--format clusters --in {folder}/one.csv --cluster_column cluster", "one.csv", "no pair", "check"),
    "unknown ids": (
        "--format links --in {folder}/t.csv --id_column id --truth {folder}/links.csv",
        "links.csv: 1 pair(s)",
        "'99'",
    ),
    "no pair columns": ("--format links --in {folder}/t.csv --id_column id --truth {folder}/t.csv", "--pair_columns"),
    "no truth": ("--format labels --in {folder}/t.csv", "--truth", "--id_column"),
    "hard without truth": (
        "--format labels --in {folder}/t.csv --id_column id --truth {folder}/labels.csv --negatives hard",
        "--negatives labelled",
    ),
    "no judged pairs": ("--set febrl4 --negatives labelled", "no judged pairs", "fodors_zagats"),
    "odd label": (
        "--format labels --in {folder}/t.csv --id_column id --truth {folder}/odd.csv",
        "odd.csv: column 'label' holds 'maybe'",
    ),
    "fold": ("--set febrl4 --fold 3/2", "--fold 3/2"),
    "pairs": ("--set febrl4 --pairs 0", "--pairs 0: at least 1"),
    "broken parquet": (
        "--format clusters --in {folder}/bad.parquet --cluster_column c",
        "bad.parquet: not a readable Parquet file",
        "CSV",
    ),
    "not utf-8": (
        "--format clusters --in {folder}/latin.csv --cluster_column c",
        "latin.csv:2: not UTF-8",
        "'1,Jürgen'",
        "--encoding cp1252",
        "save",
    ),
    "too many values": (
        "--format clusters --in {folder}/wide.csv --cluster_column a",
        "wide.csv:3: 3 values for 2 columns",
        "quotes",
    ),
    "open quote": ("--format clusters --in {folder}/quote.csv --cluster_column a", "quote.csv", "quotes"),
    "one table": ("--format magellan --in {folder}/t.csv --truth {folder}/links.csv --id_column id", "two tables"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_where_and_what_next(name, tmp_path, monkeypatch):
    save(tmp_path / "t.csv", [{"id": at, "cluster": at // 2, "name": ("ann", "bob")[at // 2]} for at in range(4)])
    save(tmp_path / "one.csv", [{"cluster": 1, "name": "ann"}])
    save(tmp_path / "links.csv", [{"id1": 1, "id2": 99}])
    save(tmp_path / "labels.csv", [{"id1": 1, "id2": 2, "label": 1}])
    save(tmp_path / "odd.csv", [{"id1": 1, "id2": 2, "label": "maybe"}])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "latin.csv").write_bytes("c,name\n1,Jürgen\n".encode("latin-1"))
    (tmp_path / "wide.csv").write_text("a,b\n1,2\n1,2,3\n")
    (tmp_path / "quote.csv").write_text('a,b\n1,"open\n2,3\n')
    command, *words = ERRORS[name]
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr(
        sys, "argv", ["src/import_rows.py", "--out", str(out), *command.format(folder=tmp_path).split()]
    )
    with pytest.raises(UserError) as error:
        importing.main()
    assert all(word in str(error.value) for word in words), error.value
    assert not list(tmp_path.glob("out*"))


def test_an_identifier_left_in_is_pointed_out(make, tmp_path, capsys):
    rows = [{"cluster": entity, **fields, "member": f"M{entity}"} for entity, _, fields in people(80, copies=(2,))]
    save(tmp_path / "t.csv", rows)
    make("--format", "clusters", "--in", tmp_path / "t.csv", "--cluster_column", "cluster", "--pairs", 150)
    said = capsys.readouterr().out
    assert "'member' is equal in 100% of the true pairs" in said and "'city'" not in said


def test_an_import_without_a_true_pair_is_refused_and_a_small_one_warned_of(make, tmp_path, capsys):
    table = [{"id": at, "club": f"c{at}", "name": f"{FIRST[at % 16]} {LAST[at // 2]}"} for at in range(30)]
    save(tmp_path / "t.csv", table)
    options = ["--format", "clusters", "--in", tmp_path / "t.csv", "--id_column", "id", "--cluster_column", "club"]
    with pytest.raises(UserError, match="30 records of 30 entities, and each of the 20 pairs is NO_MATCH"):
        make(*options, "--pairs", 20)
    assert not list(tmp_path.glob("out*"))
    save(tmp_path / "t.csv", [*table, {"id": 30, "club": "c0", "name": f"{FIRST[0]} {LAST[0]}e"}])
    make(*options, "--pairs", 20)
    assert "warning: 20 pairs are too few to train on or to score" in capsys.readouterr().out


def test_help_is_quick_and_a_wrong_call_has_no_traceback():
    start = time.perf_counter()
    assert (
        subprocess.run([sys.executable, "src/import_rows.py", "--help"], cwd=ROOT, capture_output=True).returncode == 0
    )
    assert time.perf_counter() - start < 1.5
    wrong = subprocess.run(
        [sys.executable, "src/import_rows.py", "--set", "nothing", "--out", "x.jsonl"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: ") and "Traceback" not in wrong.stderr
