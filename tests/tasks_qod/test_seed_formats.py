"""The files that other projects read: the way in and out loses nothing, and every wrong line is named."""

import json
import sys

import pytest

import import_rows
from common import UserError, read_jsonl
from tasks import load_task
from tasks.qod import seed_formats, synthetic

TASK = load_task("qod")
ROWS = list(synthetic.rows(60, 3))
CALL = next(row for row in ROWS if "error" not in row["output"])


def written(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def imported(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["import_rows.py", "--task", "qod", *words])
    import_rows.main()


def test_labelled_rows_go_out_and_come_back(tmp_path, monkeypatch):
    source = written(tmp_path / "rows.jsonl", ROWS)
    imported(monkeypatch, "--to_sft", source, "--out", str(tmp_path / "sft.jsonl"))
    sft = read_jsonl(tmp_path / "sft.jsonl")
    assert [set(row) for row in sft] == [{"instruction", "input", "response"}] * 60
    assert all(json.loads(row["response"]) and row["instruction"] == TASK.system_text for row in sft)
    imported(monkeypatch, "--from_sft", str(tmp_path / "sft.jsonl"), "--out", str(tmp_path / "back.jsonl"))
    back = read_jsonl(tmp_path / "back.jsonl")
    assert [(row["input"], row["output"]) for row in back] == [(row["input"], row["output"]) for row in ROWS]
    assert (tmp_path / "back.jsonl.manifest.json").is_file()


def test_preferences_come_in_and_go_out(tmp_path, monkeypatch):
    rows = [
        {"prompt": row["input"]["request"], "chosen": TASK.completion(row["output"]), "rejected": "I cannot."}
        for row in ROWS[:30]
    ]
    source = written(tmp_path / "preferences.jsonl", rows)
    imported(monkeypatch, "--from_preferences", source, "--out", str(tmp_path / "pairs.jsonl"))
    pairs = read_jsonl(tmp_path / "pairs.jsonl")
    assert [set(pair) for pair in pairs] == [{"id", "input", "chosen", "rejected", "violation"}] * 30
    imported(monkeypatch, "--to_preferences", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "out.jsonl"))
    assert read_jsonl(tmp_path / "out.jsonl") == rows


@pytest.mark.parametrize(("option", "n", "fewest"), [("--to_sft", 49, 50), ("--to_preferences", 29, 30)])
def test_too_few_rows_are_not_written(tmp_path, monkeypatch, option, n, fewest):
    pairs = [row | {"chosen": TASK.completion(row["output"]), "rejected": "no"} for row in ROWS[:n]]
    source = written(tmp_path / "few.jsonl", ROWS[:n] if option == "--to_sft" else pairs)
    with pytest.raises(UserError, match=f"few.jsonl: {n} rows, and .* at least {fewest}"):
        imported(monkeypatch, option, source, "--out", str(tmp_path / "out.jsonl"))
    assert not (tmp_path / "out.jsonl").exists()


def sft(**changes):
    row = {"instruction": "", "input": CALL["input"]["request"], "response": TASK.completion(CALL["output"])}
    return row | changes


WRONG_SFT = {
    "keys": ({"prompt": "x"}, "must be an object with exactly"),
    "object": (sft(response=CALL["output"]), '"response" must be text'),
    "json": (sft(response="Sure!"), '"response" is no JSON text'),
    "schema": (sft(response=json.dumps(CALL["output"] | {"duration": "7200"})), '"response": '),
    "strict": (sft(response=json.dumps(CALL["output"] | {"sink": "http://a.example/b"})), '"response": $.sink'),
    "request": (sft(input=" "), "'request' is empty"),
}


@pytest.mark.parametrize(("row", "said"), WRONG_SFT.values(), ids=WRONG_SFT)
def test_a_wrong_sft_line_is_named(tmp_path, row, said):
    source = written(tmp_path / "sft.jsonl", [sft(), row])
    with pytest.raises(UserError) as error:
        seed_formats.from_sft(source, TASK)
    assert f"{source}:2: " in str(error.value) and said in str(error.value)
    assert f"{source}:1: " not in str(error.value)


def preference(**changes):
    chosen = TASK.completion(CALL["output"])
    return {"prompt": CALL["input"]["request"], "chosen": chosen, "rejected": chosen + "!"} | changes


WRONG_PREFERENCES = {
    "chosen": (preference(chosen='{"error": {}}'), '"chosen": '),
    "same": (preference(rejected=json.dumps(CALL["output"], indent=1)), "the same answer"),
    "empty": (preference(rejected=" "), '"rejected" is empty'),
    "text": (preference(rejected=None), '"rejected" must be text'),
    "prompt": (preference(prompt="x" * 5_000), "5,000 characters"),
}


@pytest.mark.parametrize(("row", "said"), WRONG_PREFERENCES.values(), ids=WRONG_PREFERENCES)
def test_a_wrong_preference_is_named(tmp_path, row, said):
    source = written(tmp_path / "preferences.jsonl", [preference(), row])
    with pytest.raises(UserError) as error:
        seed_formats.from_preferences(source, TASK)
    assert f"{source}:2: " in str(error.value) and said in str(error.value)


def test_a_wrong_pair_is_named_on_export(tmp_path):
    pair = {"input": CALL["input"], "chosen": TASK.completion(CALL["output"]), "rejected": "no"}
    source = written(tmp_path / "pairs.jsonl", [pair, pair | {"input": "text"}, pair | {"chosen": 1}, {"chosen": "x"}])
    with pytest.raises(UserError) as error:
        seed_formats.pairs(source, TASK)
    assert [f"{source}:{number}: " in str(error.value) for number in (1, 2, 3, 4)] == [False, True, True, True]


def test_a_wrong_row_is_named_on_export(tmp_path):
    wrong = {"input": CALL["input"], "output": CALL["output"] | {"admin": True}}
    source = written(tmp_path / "rows.jsonl", [CALL, wrong, {"input": CALL["input"]}, CALL | {"input": {}}])
    with pytest.raises(UserError) as error:
        seed_formats.labelled_rows(source, TASK)
    assert [f"{source}:{number}: " in str(error.value) for number in (1, 2, 3, 4)] == [False, True, True, True]


def test_what_is_no_line_of_json_is_named(tmp_path):
    path = tmp_path / "sft.jsonl"
    path.write_bytes(b"{}\n[1]\nno\n\xff\xfe\n")
    with pytest.raises(UserError) as error:
        seed_formats.from_sft(str(path), TASK)
    assert all(f"{path}:{number}: " in str(error.value) for number in (1, 2, 3, 4))
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match="the file is empty"):
        seed_formats.from_sft(str(path), TASK)


def test_an_alpaca_row_without_input_takes_the_instruction():
    row = seed_formats.labelled_row(sft(instruction=CALL["input"]["request"], input=""), TASK)
    assert row == {"input": CALL["input"], "output": CALL["output"]}
