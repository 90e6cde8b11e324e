"""A table of labelled pairs as somebody exported it becomes rows; what cannot be known is asked for by its option."""

import json
from pathlib import Path

import pytest

import prepare_splits
from support.pipeline import exit_code

LABELS = ("1", "0")


@pytest.fixture
def prep(tmp_path, monkeypatch, capsys):
    """Run the step on files written as {name: text}; (exit code, rows read, everything printed)."""
    monkeypatch.chdir(tmp_path)

    def run(files, *words):
        for name, text in files.items():
            (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        code = exit_code(prepare_splits, *words)
        said = capsys.readouterr()
        imported = tmp_path / "data" / "imported.jsonl"
        rows = [json.loads(line) for line in imported.read_text().splitlines()] if imported.is_file() else None
        return code, rows, said.out + said.err

    return run


def table(header, values, n=6, separator=","):
    """A header, and rows in which # is the row's number and ? its label."""
    rows = [values.replace("#", str(at)).replace("?", LABELS[at % 2]) for at in range(n)]
    return "\n".join(line.replace(",", separator) for line in [header, *rows]) + "\n"


LAYOUTS = {
    "numbers behind": "name_1,phone_1,name_2,phone_2",
    "letters behind": "name_a,phone_a,name_b,phone_b",
    "l and r behind": "name_l,phone_l,name_r,phone_r",
    "as pandas merges": "name_x,phone_x,name_y,phone_y",
    "a digit alone": "name1,phone1,name2,phone2",
    "a blank between": "name 1,phone 1,name 2,phone 2",
    "left and right": "left_name,left_phone,right_name,right_phone",
    "left and right behind": "name_left,phone_left,name_right,phone_right",
    "flattened JSON": "record1.name,record1.phone,record2.name,record2.phone",
    "Magellan": "ltable_name,ltable_phone,rtable_name,rtable_phone",
    "capitals": "LEFT_name,LEFT_phone,RIGHT_name,RIGHT_phone",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_two_records_in_one_line(prep, name):
    text = table(f"{LAYOUTS[name]},label", "Ann #,0049 #,Anne #,0049 #,?")
    code, rows, said = prep({"pairs.csv": text}, "--in", "pairs.csv")
    assert code == 0, said
    assert rows[1]["input"] == {
        "record1": {"name": "Ann 1", "phone": "0049 1"},
        "record2": {"name": "Anne 1", "phone": "0049 1"},
    }
    assert [row["output"] for row in rows[:2]] == [{"result": "DUPLICATE"}, {"result": "NO_MATCH"}]
    assert "fields of both records: name, phone" in said and "'1' is DUPLICATE (3)" in said


def test_numbers_that_belong_to_the_fields_name_no_side(prep):
    text = table("left_line_1,left_line_2,right_line_1,right_line_2,label", "Elm #,B #,Elm #,C #,?")
    code, rows, said = prep({"pairs.csv": text}, "--in", "pairs.csv")
    assert code == 0 and rows[0]["input"]["record2"] == {"line_1": "Elm 0", "line_2": "C 0"}, said


def test_what_stands_in_a_cell_stays_as_it_is(prep):
    header = "id,zip_1,born_1,nick_1,zip_2,born_2,nick_2,same"
    values = 'p#,01067,1990-05-04," Ann,  ""A#"" ",NULL,,Nan,?'
    code, rows, said = prep({"pairs.csv": table(header, values)}, "--in", "pairs.csv")
    assert code == 0, said
    assert rows[0] == {
        "id": "p0",
        "input": {
            "record1": {"zip": "01067", "born": "1990-05-04", "nick": 'Ann, "A0"'},
            "record2": {"nick": "Nan"},
        },
        "output": {"result": "DUPLICATE"},
    }


WORDS = {
    ("1", "0"),
    ("1.0", "0.0"),
    ("TRUE", "False"),
    ("yes", "no"),
    ("Y", "N"),
    ("match", "non-match"),
    ("Duplicate", "not a duplicate"),
    ("DUPLICATE", "NO_MATCH"),
    ("ja", "Nein"),
    ("oui", "non"),
}


@pytest.mark.parametrize("words", sorted(WORDS))
def test_the_words_of_a_label(prep, words):
    text = table("name_1,name_2,is_duplicate", "Ann #,Anne #,?")
    text = text.replace(",1\n", f",{words[0]}\n").replace(",0\n", f",{words[1]}\n") + "Eva,Eve,maybe\n"
    code, rows, said = prep({"pairs.csv": text}, "--in", "pairs.csv")
    assert code == 0, said
    assert [row["output"]["result"] for row in rows] == ["DUPLICATE", "NO_MATCH"] * 3 + ["POSSIBLE"]


def test_labels_sentences_and_groups_that_are_named(prep):
    text = table("name_1,name_2,kind,why,house,batch", "Ann #,Anne #,k?,name # is close,h?,7")
    options = "--label_column kind --labels k1=DUPLICATE k0=no_match q=SKIP --reason_column why --group_column house"
    text += "Eva,Eve,q,unsure,h9,7\n"
    code, rows, said = prep({"pairs.csv": text}, "--in", "pairs.csv", *options.split(), "--drop", "batch")
    assert code == 0, said
    assert len(rows) == 6 and "left out: 1 row" in said and "not read: 'batch'" in said
    assert rows[0]["group"] == "h1" and rows[0]["output"] == {"result": "DUPLICATE", "reasoning": "name 0 is close"}
    assert "was made" not in said


@pytest.mark.parametrize("given", ["1=NO_MATCH 0=DUPLICATE", "1.0=NO_MATCH 0.0=DUPLICATE"])
@pytest.mark.parametrize("values", [("1", "0"), ("1.0", "0.0")])
def test_a_meaning_that_is_given_comes_before_the_usual_one(prep, given, values):
    text = "name_1,name_2,label\n" + "".join(f"Ann {at},Anne {at},{values[at % 2]}\n" for at in range(6))
    code, rows, said = prep({"pairs.csv": text}, "--in", "pairs.csv", "--labels", *given.split())
    assert code == 0 and [row["output"]["result"] for row in rows[:2]] == ["NO_MATCH", "DUPLICATE"], said


@pytest.mark.parametrize("last, why", [("p0", "some repeat"), ("", "some are empty")])
def test_ids_that_were_only_recognised_are_left_out_aloud(prep, last, why):
    text = table("id,name_1,name_2,label", "p#,Ann #,Anne #,?") + f"{last},Eva,Eve,1\n"
    code, rows, said = prep({"pairs.csv": text}, "--in", "pairs.csv")
    assert code == 0 and not any("id" in row for row in rows), said
    assert f"not read: 'id' (as ids, {why})" in said and "also read" not in said
    facts = json.loads(Path("data/manifest.json").read_text())["columns"]
    assert facts["id"] is None and facts["not_read"] == {"id": f"as ids, {why}"}


def test_the_id_of_records_is_not_the_id_of_pairs(prep):
    pairs = "id,left_id,right_id,label\n" + "".join(f"7,{at},{at + 1},{at % 2}\n" for at in range(7))
    options = "--left a.csv --pairs p.csv --id_column id".split()
    code, rows, said = prep({"a.csv": RECORDS, "p.csv": pairs}, *options)
    assert code == 0 and "id" not in rows[0] and "not read: 'id' (as ids, some repeat)" in said, said


def test_a_pair_that_stands_twice_leaves_ids_out_aloud(prep):
    pairs = "left_id,right_id,label\n" + "".join(f"{at},{at + 1},{at % 2}\n" for at in range(7)) + "0,1,0\n"
    code, rows, said = prep({"a.csv": RECORDS, "p.csv": pairs}, "--left", "a.csv", "--pairs", "p.csv")
    assert code == 0 and not any("id" in row for row in rows), said
    assert "ids of the records name no row: some repeat" in said


RECORDS = "id,name,zip\n" + "".join(f"{at},Ann {at},0{at}\n" for at in range(8))


def test_two_files_of_records_and_a_file_of_pairs(prep):
    right = "key;name;street\n" + "".join(f"r{at};Anne {at};Elm {at}\n" for at in range(8))
    pairs = "left_id,right_id,label\n" + "".join(f"{at},r{at},{at % 2}\n" for at in range(8))
    files = {"a.csv": RECORDS, "b.csv": right, "p.csv": pairs}
    code, rows, said = prep(files, "--left", "a.csv", "--right", "b.csv", "--pairs", "p.csv")
    assert code == 0, said
    assert rows[3] == {
        "id": "3:r3",
        "input": {"record1": {"name": "Ann 3", "zip": "03"}, "record2": {"name": "Anne 3", "street": "Elm 3"}},
        "output": {"result": "DUPLICATE"},
    }


def test_one_file_of_records_and_a_file_of_pairs(prep):
    pairs = "a,b,same\n" + "".join(f"{at},{at + 1},{('no', 'yes')[at % 2]}\n" for at in range(7))
    options = "--left a.csv --pairs p.csv --pair_columns a b --drop zip".split()
    code, rows, said = prep({"a.csv": RECORDS, "p.csv": pairs}, *options)
    assert code == 0, said
    assert rows[0]["input"] == {"record1": {"name": "Ann 0"}, "record2": {"name": "Ann 1"}} and rows[0]["id"] == "0:1"
    lost = prep({"p.csv": pairs + "3,99,yes\n"}, *options)
    assert lost[0] == 2 and "p.csv:9: b '99' is not in a.csv" in lost[2]


# name -> (header, row, options, words of the message)
ASKED = {
    "no label": ("name_1,name_2,flag", "Ann,Anne,x?", "", ["--label_column", "'flag' holds 'x1' (3), 'x0' (3)"]),
    "two labels": (
        "name_1,name_2,label,match",
        "Ann,Anne,?,1",
        "",
        ["--label_column", "'label' holds", "'match'"],
    ),
    "odd values": ("name_1,name_2,label", "Ann,Anne,z?", "", ["pairs.csv:2: label 'z1', in 3 rows", "--labels"]),
    "no value": ("name_1,name_2,label", "Ann,Anne,", "", ["pairs.csv:2: label '', in 6 rows", '--labels "=SKIP"']),
    "minus one is no one": ("name_1,name_2,label", "Ann,Anne,-1", "", ["label '-1'"]),
    "a column of neither": ("name_1,name_2,label,score", "Ann,Anne,?,0.3", "", ["'score'", "--drop score"]),
    "a field of one side": ("name_1,name_2,line_2,label", "Ann,Anne,x,?", "", ["'line_2'", "--drop", "--one_sided"]),
    "nothing belongs together": ("name,other,label", "Ann,Anne,?", "", ["no two columns belong together", "--left"]),
    "wrong separator": ("name_1,name_2,label", "Ann,Anne,?", "--separator ;", ["--separator", "semicolons"]),
    "unknown column": ("name_1,name_2,label", "Ann,Anne,?", "--drop nmae", ["no column 'nmae'", "'name_1'"]),
    "unknown label column": ("name_1,name_2,x", "Ann,Anne,?", "--label_column y", ["--label_column y", "'x'"]),
    "a value that is not there": (
        "name_1,name_2,label",
        "Ann,Anne,?",
        "--labels 1=DUPLICATE Ja=NO_MATCH 2.0=SKIP",
        ["--labels Ja=NO_MATCH 2.0=SKIP: no such value in the column 'label'", "'1' (3), '0' (3)"],
    ),
    "a repeated id": (
        "pair_id,name_1,name_2,label",
        "p,Ann,Anne,?",
        "--id_column pair_id",
        ["pairs.csv:3: pair_id 'p' stands in line 2 too", ":7:", "5 ids", "--id_column"],
    ),
    "an empty id": ("key,name_1,name_2,label", ",Ann,Anne,?", "--id_column key", ["pairs.csv:2: key '' is empty"]),
    "odd option": ("name_1,name_2,label", "Ann,Anne,?", "--labels 1", ["--labels 1", "VALUE=LABEL", "NO_MATCH"]),
    "empty pairs": (
        "name_1,name_2,label",
        ",,?",
        "",
        ["pairs.csv:2: both records are empty", ":7:", "6 pairs"],
    ),
    "ids alone": ("ltable_id,rtable_id,label", "#,#,?", "", ["holds nothing of them", "--pairs pairs.csv --left"]),
    "half of the call": ("name_1,name_2,label", "Ann,Anne,?", "--left pairs.csv", ["--pairs, --left"]),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_cannot_be_known_is_asked_for(prep, tmp_path, name):
    header, values, options, words = ASKED[name]
    code, rows, said = prep({"pairs.csv": table(header, values)}, "--in", "pairs.csv", *options.split())
    assert code == 2 and rows is None and "Traceback" not in said
    assert [word for word in words if word not in said] == [], said
    assert [path.name for path in tmp_path.iterdir() if path.name != "data"] == ["pairs.csv"]
    assert not any((tmp_path / "data").glob("*"))


def test_a_field_of_one_side_may_be_kept(prep):
    text = table("name_1,name_2,line_2,label", "Ann #,Anne #,Elm,?")
    code, rows, said = prep({"pairs.csv": text}, "--in", "pairs.csv", "--one_sided", "line_2")
    assert code == 0 and rows[0]["input"]["record2"] == {"name": "Anne 0", "line": "Elm"}, said
