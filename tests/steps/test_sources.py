"""Labelled rows in whatever file they come: with or without sentences, as a table, through a pipe, in another encoding;
and what is refused or warned of before an hour is lost.
"""

import datetime
import json
import os
import threading
import zipfile

import pytest

import build_prompts
import prepare_splits
from common import UserError
from rows import cases_from_file, load_rows
from support.pipeline import exit_code
from tasks import load_task
from tasks.crm import synthetic

ROWS = [
    {"id": row["id"], "input": row["input"], "output": {"result": row["output"]["result"]}}
    for row in synthetic.rows(40, seed=5)
]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


class Steps:
    """A folder in which the step is called, and what it left there."""

    def __init__(self, folder, capsys):
        self.folder = folder
        self.capsys = capsys
        self.said = ""

    def prep(self, *words, code=0):
        found = exit_code(prepare_splits, *words)
        said = self.capsys.readouterr()
        self.said = said.out + said.err
        assert found == code, self.said
        assert "Traceback" not in self.said
        return self.said

    def rows(self):
        paths = (self.folder / "data" / f"{name}.jsonl" for name in ("train", "val", "test"))
        return {row["id"]: row for path in paths for row in map(json.loads, path.read_text().splitlines())}

    def imported(self):
        return [json.loads(line) for line in (self.folder / "data" / "imported.jsonl").read_text().splitlines()]

    def manifest(self):
        return json.loads((self.folder / "data" / "manifest.json").read_text())

    def parts(self):
        return sorted(path.name for path in self.folder.rglob("*.part"))


@pytest.fixture
def steps(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    return Steps(tmp_path, capsys)


# ---- sentences that are not there


@pytest.mark.parametrize("how", ["keep", "make", "drop"])
def test_rows_without_a_sentence_get_one(steps, how):
    own = {0: "my own words", 1: "", 2: None, 3: "  "}
    rows = [
        row | {"output": row["output"] | {"reasoning": own[at]}} if at in own else row for at, row in enumerate(ROWS)
    ]
    (steps.folder / "mine.jsonl").write_text(lines(rows))
    said = steps.prep("--in", "mine.jsonl", "--reasons", how)
    sentences = {id: row["output"]["reasoning"] for id, row in steps.rows().items()}
    assert (sentences[rows[0]["id"]] == "my own words") == (how == "keep")
    n_made = 39 if how == "keep" else 40
    assert f"the reasoning of {n_made} of 40 rows was made" in said and steps.manifest()["reasons_made"] == n_made
    made = [sentence for sentence in sentences.values() if sentence != "my own words"]
    bare = {"Clear duplicate.", "Needs review.", "No match."}
    assert (set(made) == bare) == (how == "drop") and all(sentence.endswith(".") for sentence in made)
    assert len(load_rows("data/train.jsonl", load_task())) == 32
    if how == "make":
        drawn = {row["id"]: row["output"]["reasoning"] for row in synthetic.rows(40, seed=5)}
        assert sentences == drawn, "made as those of the project's own rows"
    assert "up to date" in steps.prep("--in", "mine.jsonl", "--reasons", how)
    assert "up to date" not in steps.prep("--in", "mine.jsonl", "--reasons", "keep" if how == "drop" else "drop")


def test_rows_that_lack_nothing_arrive_as_they_were(steps):
    whole = [json.loads(line) for line in lines(synthetic.rows(40, seed=6)).splitlines()]
    (steps.folder / "mine.jsonl").write_text("".join(json.dumps(row, indent=None) + " \n" for row in whole))
    assert "was made" not in steps.prep("--in", "mine.jsonl") and steps.manifest()["reasons_made"] == 0
    arrived = "".join((steps.folder / "data" / f"{name}.jsonl").read_text() for name in ("train", "val", "test"))
    assert sorted(arrived.splitlines()) == sorted((steps.folder / "mine.jsonl").read_text().splitlines())


def test_scoring_takes_rows_without_a_sentence(tmp_path):
    (tmp_path / "mine.jsonl").write_text(lines(ROWS))
    assert all(row["output"]["reasoning"] for row in load_rows(tmp_path / "mine.jsonl", load_task()))


def test_a_task_that_makes_nothing_refuses_to(steps, monkeypatch):
    from support import small_tasks

    small_tasks.loaded(monkeypatch, "notes")
    assert "completing.py" in steps.prep("--task", "notes", "--reasons", "make", code=2)


# ---- one table, in every form


TABLE = [
    ["id", "name_1", "zip_1", "phone_1", "born_1", "name_2", "zip_2", "phone_2", "born_2", "label"],
    *(
        [f"p{at}", f"Jürgen {at}", f"0106{at}", f"4917012345{at}", "1990-05-04", f"Jurgen\n{at}", "", "", "", at % 2]
        for at in range(6)
    ),
]


def as_csv(separator=",", encoding="utf-8"):
    text = "\n".join(separator.join(f'"{cell}"' if "\n" in str(cell) else str(cell) for cell in row) for row in TABLE)
    return text.encode(encoding)


def as_excel(path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(TABLE[0])
    for row in TABLE[1:]:
        numbers = {2: int(row[2]), 3: int(row[3]), 4: datetime.datetime(1990, 5, 4)}
        book.active.append([numbers.get(at, cell if cell != "" else None) for at, cell in enumerate(row)])
    for (cell,) in book.active["C2:C7"]:
        cell.number_format = "00000"
    book.save(path)


def as_parquet(path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {name: [row[at] for row in TABLE[1:]] for at, name in enumerate(TABLE[0])}
    columns["born_1"] = [datetime.date(1990, 5, 4)] * 6
    columns["zip_2"] = [None] * 6
    parquet.write_table(pyarrow.table(columns), path)


FORMS = {
    "pairs.csv": as_csv(),
    "semicolons.csv": as_csv(";"),
    "tabs.tsv": as_csv("\t"),
    "marked.csv": as_csv(encoding="utf-8-sig"),
    "utf16.csv": as_csv(";", encoding="utf-16"),
    "utf16_without_a_mark.csv": as_csv(encoding="utf-16-le"),
    "said_to_be.jsonl": as_csv(),
    "separator_line.csv": b"sep=|\n" + as_csv("|"),
    "crlf.csv": as_csv().replace(b"\n", b"\r\n"),
    "empty_columns.csv": as_csv().replace(b"label\n", b"label,,\n").replace(b",0\n", b",0,,\n"),
    "pairs.xlsx": as_excel,
    "pairs.parquet": as_parquet,
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_table_gives_the_same_rows(steps, name):
    if callable(FORMS[name]):
        FORMS[name](name)
    else:
        (steps.folder / name).write_bytes(FORMS[name])
    steps.prep("--in", name)
    assert steps.imported()[3] == {
        "id": "p3",
        "input": {
            "record1": {"name": "Jürgen 3", "zip": "01063", "phone": "49170123453", "born": "1990-05-04"},
            "record2": {"name": "Jurgen 3"},
        },
        "output": {"result": "DUPLICATE"},
    }
    assert steps.manifest()["columns"]["labels"] == {"0": "NO_MATCH", "1": "DUPLICATE"}
    assert list(steps.manifest()["files"]) == [name] and steps.parts() == []
    assert "up to date" in steps.prep("--in", name) and steps.parts() == []


def test_other_encodings_are_named_not_guessed(steps):
    (steps.folder / "pairs.csv").write_bytes(as_csv(encoding="cp1252"))
    said = steps.prep("--in", "pairs.csv", code=2)
    assert "pairs.csv:2: not UTF-8" in said and "'p0,Jürgen 0" in said and "--encoding cp1252" in said
    steps.prep("--in", "pairs.csv", "--encoding", "cp1252")
    assert steps.imported()[0]["input"]["record1"]["name"] == "Jürgen 0"


def test_json_lines_in_another_encoding(steps):
    (steps.folder / "mine.jsonl").write_bytes(lines(ROWS).encode("utf-16"))
    steps.prep("--in", "mine.jsonl")
    assert [row["id"] for row in steps.imported()] == [row["id"] for row in ROWS]


def test_a_workbook_of_several_sheets_asks_which(steps):
    openpyxl = pytest.importorskip("openpyxl")
    as_excel("pairs.xlsx")
    book = openpyxl.load_workbook("pairs.xlsx")
    book.create_sheet("Notes").append(["ask", "Kim"])
    book.save("pairs.xlsx")
    said = steps.prep("--in", "pairs.xlsx", code=2)
    assert "'Sheet', 'Notes'" in said and "--sheet" in said
    steps.prep("--in", "pairs.xlsx", "--sheet", "Sheet")
    assert len(steps.imported()) == 6


def test_no_row_is_lost_in_a_workbook_that_states_a_wrong_size(steps):
    as_excel("whole.xlsx")
    with zipfile.ZipFile("whole.xlsx") as whole, zipfile.ZipFile("pairs.xlsx", "w") as wrong:
        for name in whole.namelist():
            data = whole.read(name)
            if name.endswith("sheet1.xml"):
                assert b'<dimension ref="A1:J7"' in data
                data = data.replace(b'<dimension ref="A1:J7"', b'<dimension ref="A1:J3"')
            wrong.writestr(name, data)
    steps.prep("--in", "pairs.xlsx")
    assert [row["id"] for row in steps.imported()] == ["p0", "p1", "p2", "p3", "p4", "p5"]


REFUSED = {
    "old.xls": (b"\xd0\xcf\x11\xe0 old", "save it as .xlsx"),
    "pairs.csv.gz": (b"\x1f\x8b\x08 gzip", "zcat pairs.csv.gz"),
    "list.json": (b'[{"input": {}}]', "JSON Lines"),
    "broken.xlsx": (b"PK\x03\x04 not really", "not a readable Excel file"),
    "empty.csv": (b"name_1,name_2,label\n", "the table has no rows"),
    "one.csv": (b"a;b\n1;2\n", "no two columns belong together"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_no_reader_takes(steps, name):
    data, words = REFUSED[name]
    (steps.folder / name).write_bytes(data)
    assert words in steps.prep("--in", name, code=2)
    assert steps.parts() == [] and not (steps.folder / "data" / "train.jsonl").exists()


def test_a_wrong_answer_is_named_by_the_line_of_the_table(steps):
    text = (
        as_csv().decode().replace("label\n", "label,reasoning\n").replace(",0\n", ",0,ok\n").replace(",1\n", ",1,no\n")
    )
    (steps.folder / "pairs.csv").write_text(text + "," + "x" * 400)
    said = steps.prep("--in", "pairs.csv", code=2)
    # Every row takes two lines, as one of its cells does.
    assert (
        "pairs.csv:12: output.reasoning is 400 characters long" in said and "1 problem in 1 line of pairs.csv" in said
    )
    assert list((steps.folder / "data").glob("*")) == []


@pytest.mark.parametrize("line", ['"one, two"', "[1, 2]", "17", '{"a": 1}'])
def test_an_input_of_any_kind_is_no_table(tmp_path, line):
    (tmp_path / "cases.jsonl").write_text(f"{line}\n{line}\n")
    with pytest.raises(UserError, match="cases.jsonl:2: 'input'"):
        cases_from_file(tmp_path / "cases.jsonl", load_task())


# ---- where rows come from


def test_a_pipe_is_read_once_and_kept(steps):
    for data in (lines(ROWS).encode(), as_csv()):
        reading, writing = os.pipe()
        writer = threading.Thread(target=lambda fd=writing, data=data: os.write(fd, data) and os.close(fd))
        writer.start()
        steps.prep("--in", f"/dev/fd/{reading}")
        writer.join()
        os.close(reading)
        assert len(steps.imported()) == len(steps.rows()) and steps.parts() == []


def test_a_misspelt_name_makes_no_synthetic_rows(steps):
    assert "pears.csv: no such file" in steps.prep("--in", "pears.csv", code=2)
    assert [path for path in steps.folder.rglob("*") if path.is_file()] == []


def test_rows_that_were_read_once_stay_the_source(steps):
    (steps.folder / "pairs.csv").write_bytes(as_csv())
    steps.prep("--in", "pairs.csv")
    before = steps.rows()
    said = steps.prep()
    assert "data/all.jsonl is not there, data/imported.jsonl is" in said and "up to date" in said
    steps.prep("--force")
    assert steps.rows() == before and steps.manifest()["synthetic"] is False
    # A table in the place of the usual file comes first.
    (steps.folder / "data" / "all.csv").write_bytes(as_csv().replace(b"p3", b"q3"))
    assert "data/all.csv is: its rows are taken" in steps.prep() and "q3" in steps.rows()


@pytest.mark.parametrize("name", ["pairs.csv", "utf16.csv", "pairs.parquet"])
def test_a_table_given_as_json_lines_is_one_mistake(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    if callable(FORMS[name]):
        FORMS[name](name)
    else:
        (tmp_path / name).write_bytes(FORMS[name])
    with pytest.raises(UserError, match=f"make prep IN={name}") as found:
        load_rows(name, load_task())
    assert len(str(found.value).splitlines()) == 1
    # What is asked about needs no label, so the table itself will do.
    named, case = cases_from_file(name, load_task())[3]
    assert named == {"id": "p3"} and case["record1"]["zip"] == "01063" and case["record2"] == {"name": "Jurgen 3"}
    assert "not read: 'label'" in capsys.readouterr().err
    (tmp_path / "data").mkdir()
    os.rename(name, "data/train.jsonl")
    (tmp_path / "data" / "val.jsonl").write_text(lines(ROWS))
    assert exit_code(build_prompts) == 2 and "reads JSON Lines" in capsys.readouterr().err


# ---- what a task of its own reads


def test_other_tasks_read_columns_that_are_named_as_their_keys(steps, monkeypatch):
    from support import small_tasks

    small_tasks.loaded(monkeypatch, "booking")
    text = "request,city,nights,guest\n" + "".join(f"Ann {at} to Oslo,Oslo,{at},Ann {at}\n" for at in range(1, 7))
    (steps.folder / "rows.csv").write_text(text)
    steps.prep("--in", "rows.csv", "--task", "booking", "--out", "data")
    assert steps.imported()[1] == {
        "input": {"request": "Ann 2 to Oslo"},
        "output": {"city": "Oslo", "nights": 2, "guest": "Ann 2"},
    }
    (steps.folder / "rows.csv").write_text("request,town\nx,y\n")
    assert "columns input and output" in steps.prep("--in", "rows.csv", "--task", "booking", code=2)


def test_a_fault_in_a_table_that_is_asked_about_has_its_line(tmp_path, monkeypatch):
    from support import small_tasks

    task = small_tasks.loaded(monkeypatch, "booking")
    path = tmp_path / "asked.csv"
    path.write_text('request,id\n"Ann\nto Oslo",a\n' + ",b\n" * 30)
    with pytest.raises(UserError) as found:
        cases_from_file(path, task)
    head, first, *_, last = str(found.value).splitlines()
    assert (head, last) == (f"30 problems in {path}:", "  and 10 more") and first.startswith(f"  {path}:4: "), head


# ---- too little to learn from


def test_one_class_is_refused(steps):
    rows = [row | {"output": {"result": "DUPLICATE"}} for row in ROWS]
    (steps.folder / "mine.jsonl").write_text(lines(rows))
    said = steps.prep("--in", "mine.jsonl", code=2)
    assert "mine.jsonl: every row is DUPLICATE" in said and "POSSIBLE or NO_MATCH" in said
    assert list((steps.folder / "data").glob("*")) == []


def test_few_rows_and_a_missing_class_are_warned_of(steps):
    rows = [row for row in ROWS if row["output"]["result"] != "POSSIBLE"][:20]
    (steps.folder / "mine.jsonl").write_text(lines(rows))
    said = steps.prep("--in", "mine.jsonl")
    n_tested = sum(steps.manifest()["classes"]["test"].values())
    assert n_tested == 2 and "warning: 20 rows are too few to train on or to score: the test split has 2 rows (" in said
    assert "known to within 71 points at best" in said and "warning: no row is POSSIBLE" in said
    assert "test has no POSSIBLE row" not in said, "said once"


def test_numbers_have_their_nouns(steps):
    first = {"record1": {"name": "Ann Lee", "phone": "1"}, "record2": {"name": "Ann Lea"}}
    rows = [*ROWS[:12], {"input": first, "output": {"result": "DUPLICATE"}}]
    rows.append({"input": first, "output": {"result": "DUPLICATE"}})
    (steps.folder / "mine.jsonl").write_text(lines(rows))
    assert "1 repeated pair" in steps.prep("--in", "mine.jsonl")
    assert " 1 rows" not in steps.said and " 1 pairs" not in steps.said and " 1 groups" not in steps.said
