"""What every step leans on: one serialisation, files whole or not at all, names that stay, and scripts that start at
once.
"""

import hashlib
import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import common
import interruption
from common import UserError, parse_json, read_json, read_jsonl, row_id, to_json, write_json, write_text, written_whole

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").glob("*.py"))
SUBCLASSES = ("trainer", "muon")  # of a model library's own class; imported by steps that have loaded it
SCRIPTS = [path for path in SOURCES if "argparse" in path.read_text(encoding="utf-8")]
CONTROL = [
    "<|im_end|>",
    "<|eot_id|>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "</s>",
    "<s>",
    "<0x0A>",
    "<|im_\u0073tart|>",
    "<<SYS>>",
    "[[x]]",
]
NASTY = [
    *CONTROL,
    '"',
    "\\",
    '\\"',
    '"<"',
    '\\\\"[',
    "\n\r\t\x00\x1f\x7f",
    "\ud800",
    "\udfff<",
    "a\ud83d",
    "😀é\u2028\u2029",
    "\\u003c",
    "",
    "]",
    ">",
]


# ---- one serialisation


@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_a_string_round_trips_and_opens_no_control_token(text):
    for value in (text, {text: text}, [[text, {"a": {text: [text]}}], 1, None, True, -1.5]):
        written = to_json(value)
        assert json.loads(written) == value
        written.encode("utf-8")
        inside = "".join(
            part for at, part in enumerate(written.replace("\\\\", "").replace('\\"', "").split('"')) if at % 2
        )
        assert "<" not in inside and "[" not in inside


def test_random_strings_round_trip():
    rng = random.Random(1)
    for _ in range(2_000):
        text = "".join(rng.choice('<[|]>"\\/{}:, ab\n\ud800é') for _ in range(rng.randint(0, 30)))
        value = {text: [text, {text[::-1]: text}]}
        written = to_json(value)
        assert json.loads(written) == value and "<" not in written
        assert written.count("[") == 1  # the list's own


def test_the_serialisation_is_compact_and_keeps_letters_readable():
    assert to_json({"b": "Jürgen 健", "a": [1, 2.5]}) == '{"b":"Jürgen 健","a":[1,2.5]}'
    assert to_json({"a<": "[x"}) == '{"a\\u003c":"\\u005bx"}'


# ---- strict reading


@pytest.mark.parametrize(
    "text",
    [
        "",
        "NaN",
        '{"a": Infinity}',
        "[-Infinity]",
        "1e999",
        '[{"a": -1e400}]',
        '{"a": 1, "a": 1}',
        '{"x": {"a": 1, "b": 2, "a": 3}}',
        "{'a': 1}",
        '{"a": 1,}',
        "1 2",
        '"\n"',
        "01",
        "[" * 3 + "]" * 2,
    ],
)
def test_parse_json_refuses(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_parse_json_takes_what_is_json():
    text = '{"a": [1, -0.5, 1e3, true, null, "\\ud800"], "b": {"a": {}}}'
    assert parse_json(text) == json.loads(text)
    assert parse_json('{"a": 1, "b": {"a": 2}}') == {"a": 1, "b": {"a": 2}}


def test_broken_files_are_named(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n\xff\n')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for read, name, words in (
        (read_jsonl, "x.jsonl", "x.jsonl:2: "),
        (read_json, "deep.json", "deep.json"),
        (read_json, "x.jsonl", "not JSON"),
        (read_json, "none", "no such file"),
    ):
        with pytest.raises(UserError, match=words):
            read(tmp_path / name)


# ---- files whole or not at all


def test_written_whole_leaves_nothing_and_keeps_the_old_file(tmp_path):
    old = tmp_path / "old.txt"
    new = tmp_path / "sub" / "new.txt"
    old.write_text("old")
    for error in (ValueError, KeyboardInterrupt, SystemExit, OSError):
        with pytest.raises(error), written_whole(old, new) as (first, second):
            first.write("half" * 10_000)
            second.write("half")
            raise error
        assert old.read_text() == "old" and [path for path in tmp_path.rglob("*") if path.is_file()] == [old]


def test_files_appear_only_at_the_end_and_together(tmp_path):
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    with written_whole(*paths) as files:
        for file in files:
            file.write("x")
            file.flush()
        assert not any(path.exists() for path in paths)
    assert [path.read_text() for path in paths] == ["x", "x"] and sorted(tmp_path.iterdir()) == paths


def test_a_file_that_cannot_be_opened_takes_the_others_with_it(tmp_path):
    (tmp_path / "b.txt.part").mkdir()
    with pytest.raises(OSError), written_whole(tmp_path / "a.txt", tmp_path / "b.txt"):
        pytest.fail("the block must not run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.txt.part"]


def test_lone_surrogates_are_written_as_json_escapes(tmp_path):
    write_json(tmp_path / "x.json", {"\ud800": "a\udfff"})
    assert read_json(tmp_path / "x.json") == {"\ud800": "a\udfff"}
    write_text(tmp_path / "y.txt", "é")
    assert (tmp_path / "y.txt").read_bytes() == "é".encode()


# ---- names that stay


def test_row_id_is_the_same_in_every_process_and_version():
    case = {"record1": {"name": "Jo <b>"}, "record2": {"name": "Jö"}}
    assert row_id({"id": 7, "input": case}) == "7" and row_id({"id": "a", "input": case}) == "a"
    named = hashlib.sha256('{"record1":{"name":"Jo \\u003cb>"},"record2":{"name":"Jö"}}'.encode()).hexdigest()[:12]
    assert row_id({"input": case}) == row_id({"output": 1, "input": dict(case)}) == f"row-{named}"
    assert row_id({"input": {"record1": {}, "record2": {}}}) != row_id({"input": {"record2": {}, "record1": {}}})
    assert row_id({"input": "\ud800"}).startswith("row-")


def test_manifest_paths_say_nothing_about_the_machine():
    assert common.shown_path(ROOT / "data" / "x.jsonl") == "data/x.jsonl"
    assert common.shown_path("data/x.jsonl") == "data/x.jsonl"
    assert common.shown_path("/home/someone/x.jsonl") == "x.jsonl"


def test_peak_memory_is_the_process_s_own():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); import manifest; print(manifest.peak_memory_bytes())"
    )
    ballast = b"x" * 300_000_000
    found = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 2e6 < found < 1e8 < len(ballast)


@pytest.mark.parametrize(
    "error, code, words",
    [
        (UserError("x: wrong"), 2, "error: x: wrong"),
        (common.WorkFailed("no"), 1, "failed: no"),
        (KeyboardInterrupt(), 130, "stopped"),
        (OSError(28, "No space left on device", "f"), 1, "failed: f: no space left"),
        (OSError(30, "Read-only file system", "f"), 1, "failed: f: Read-only"),
        (RuntimeError("native: No space left on device"), 1, "failed: no space left"),
        (FileNotFoundError(2, "No such file", "f"), 2, "error: f: no such file"),
        (PermissionError(13, "Permission denied", "f"), 1, "failed: f: Permission denied"),
    ],
)
def test_exit_codes(error, code, words, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        common.run(main)
    assert stop.value.code == code and capsys.readouterr().err.startswith(words)


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError("a bug"), OSError(5, "Input/output error")])
def test_a_bug_keeps_its_traceback(error):
    def main():
        raise error

    with pytest.raises(type(error)):
        common.run(main)


# ---- light to import, quick to help


def test_there_are_scripts_to_test():
    assert len(SCRIPTS) >= 8 and len(SOURCES) > len(SCRIPTS)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_help_answers_at_once(path, tmp_path):
    """In processor time, which a busy machine does not stretch."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, path, "--help"], cwd=tmp_path, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and "usage:" in done.stdout and f"src/{path.name}" in done.stdout, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [path for path in SOURCES if path.stem not in SUBCLASSES], ids=lambda path: path.stem)
def test_importing_a_step_loads_no_model_library(path):
    heavy = {"torch", "transformers", "peft", "trl", "datasets", "sklearn", "splink"}
    code = f"import sys, {path.stem}; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}
    )
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_message_speaks_of_what_was_typed(monkeypatch):
    words = "--port 99999: at most 65535; choose another --port, or --force; see --sheet"
    assert common.as_typed(words) == words
    monkeypatch.setenv(interruption.TYPED, "make serve PORT=99999")
    assert common.as_typed(words) == "PORT=99999: at most 65535; choose another PORT=, or FORCE=1; see --sheet"


def test_usage_is_not_reported_unless_the_user_wants_it(monkeypatch):
    for given, found in ((None, "1"), ("0", "0")):
        monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
        if given:
            monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", given)
        with pytest.raises(SystemExit):
            common.run(lambda: 0)
        assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == found


def test_a_log_says_how_fast_it_goes_and_how_long_it_takes(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(common.time, "monotonic", lambda: now[0])
    bar = common.PlainProgress(100, "steps", "train")
    bar.skip(10)
    for _ in range(2):
        now[0] += 20.0
        bar.update(1)
    assert capsys.readouterr().err.splitlines() == [
        "train: 11 of 100 steps (11 %)",
        "train: 12 of 100 steps (12 %), 20.0 s/step, 30 min left",
    ]
    bar.set_postfix_str("loss 1.0")
    now[0] += 20.0
    bar.update(40)
    assert capsys.readouterr().err == "train: 52 of 100 steps (52 %), 20.0 s/step, 29 min left, loss 1.0\n"
    now[0] += 20.0
    bar.update(2)
    assert capsys.readouterr().err.startswith("train: 54 of 100 steps (54 %), 1.4 s/step, 69 s left")


def test_a_folder_is_whole_or_as_it_was(tmp_path):
    folder = tmp_path / "model"
    with common.folder_written_whole(folder) as part:
        (part / "weights").write_text("old")
    with pytest.raises(KeyboardInterrupt), common.folder_written_whole(folder) as part:
        (part / "weights").write_text("new")
        raise KeyboardInterrupt
    assert (folder / "weights").read_text() == "old"
    with common.folder_written_whole(folder) as part:
        (part / "other").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "other"]
