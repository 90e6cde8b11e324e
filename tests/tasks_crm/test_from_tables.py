"""A table of labelled pairs as somebody exported it becomes rows; what cannot be known is asked for by its option."""

import json

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
