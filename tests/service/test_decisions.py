"""What stewards decided stays as it was written: chained, on the disk before it is acknowledged, and whole after any
end of the process.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import review_export
import review_verify
from common import ROOT
from service.review import decisions
from support.pipeline import exit_code
from support.reviewing import corrected, decision
from tasks import load_task
from tasks.crm.synthetic import rows as synthetic_rows

TASK = load_task()


@pytest.fixture
def book(tmp_path):
    return decisions.Decisions(tmp_path / "reviews" / "decisions.jsonl")


def test_every_decision_names_the_one_before(book):
    written = [book.add(decision(at)) for at in range(5)]
    assert [entry["n"] for entry in written] == [1, 2, 3, 4, 5] and written[0]["previous"] == decisions.FIRST
    assert all(later["previous"] == sooner["hash"] for sooner, later in zip(written, written[1:], strict=False))
    assert list(decisions.read(book.path)) == written and decisions.problems(book.path) == []
    assert book.since(0) == (written, book.path.stat().st_size) and book.since(book.path.stat().st_size)[0] == []


def changed(lines):
    lines[2] = lines[2].replace(b'"POSSIBLE"', b'"DUPLICATE"', 1)


def removed(lines):
    del lines[2]


def swapped(lines):
    lines[1], lines[2] = lines[2], lines[1]


def inserted(lines):
    lines.insert(2, decisions.line_of(decisions.chained(decision(9), json.loads(lines[1]))))


def rehashed(lines):
    """Changed by somebody who knows how the hash is made, but not the lines behind it."""
    entry = json.loads(lines[2]) | {"result": "DUPLICATE"}
    lines[2] = decisions.line_of(entry | {"hash": decisions.hash_of(entry)})


@pytest.mark.parametrize(("harm", "line"), [(changed, 3), (removed, 3), (swapped, 2), (inserted, 4), (rehashed, 4)])
def test_whatever_is_done_to_a_line_shows(book, harm, line, capsys):
    for at in range(5):
        book.add(decision(at))
    assert exit_code(review_verify, "--decisions", book.path) == 0 and "5 decisions" in capsys.readouterr().out
    lines = book.path.read_bytes().splitlines(keepends=True)
    harm(lines)
    book.path.write_bytes(b"".join(lines))
    assert exit_code(review_verify, "--decisions", book.path) == 1
    assert f"{book.path}:{line}: " in capsys.readouterr().err


def test_a_cut_end_shows_by_the_hash_that_was_kept(book, capsys):
    last = [book.add(decision(at)) for at in range(3)][-1]["hash"]
    assert exit_code(review_verify, "--decisions", book.path, "--last_hash", last) == 0
    book.path.write_bytes(b"".join(book.path.read_bytes().splitlines(keepends=True)[:2]))
    assert exit_code(review_verify, "--decisions", book.path) == 0, "the chain alone does not show it"
    assert (
        exit_code(review_verify, "--decisions", book.path, "--last_hash", last) == 1
        and "cut off at the end" in capsys.readouterr().err
    )


def test_half_a_line_is_told_and_cut_off_by_the_next_start(book, capsys):
    book.add(decision(1))
    whole = book.path.read_bytes()
    book.path.write_bytes(whole + b'{"n":2,"ti')
    assert exit_code(review_verify, "--decisions", book.path) == 1 and "half a line" in capsys.readouterr().err
    again = decisions.Decisions(book.path)
    assert again.n_cut_off == 10 and book.path.read_bytes() == whole and again.add(decision(2))["n"] == 2
    assert decisions.problems(book.path) == []


def test_a_full_disk_leaves_the_file_as_it_was(book, monkeypatch):
    book.add(decision(1))
    before = book.path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "fsync", full)
        book.add(decision(2))
    assert book.path.read_bytes() == before and book.add(decision(3))["n"] == 2 and decisions.problems(book.path) == []


def test_threads_and_processes_write_one_chain(book):
    script = (
        "import sys; sys.path[:0] = ['src', 'tests']\n"
        "from service.review import decisions; from support.reviewing import decision\n"
        f"book = decisions.Decisions({str(book.path)!r})\nfor at in range(40): book.add(decision(at))"
    )
    others = [subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) for _ in range(2)]
    threads = [threading.Thread(target=lambda: [book.add(decision(at)) for at in range(20)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert [other.wait(60) for other in others] == [0, 0]
    for thread in threads:
        thread.join()
    assert decisions.problems(book.path) == [] and len(list(decisions.read(book.path))) == 120


def test_a_killed_writer_loses_at_most_what_it_had_not_acknowledged(tmp_path):
    path = tmp_path / "decisions.jsonl"
    script = (
        "import sys; sys.path[:0] = ['src', 'tests']\n"
        "from service.review import decisions; from support.reviewing import decision\n"
        f"book = decisions.Decisions({str(path)!r})\nfor at in range(100000): print(book.add(decision(at))['n'], "
        "flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
        first = writer.stdout.readline()
        time.sleep(1)
        writer.send_signal(signal.SIGKILL)
        acknowledged = [int(line) for line in [first, *writer.stdout.read().split()]]
    assert len(acknowledged) > 5
    book = decisions.Decisions(path)
    assert decisions.problems(path) == []
    assert len(acknowledged) <= len(list(decisions.read(path))) <= len(acknowledged) + 1 and book.add(decision(0))


def test_the_latest_decision_that_nobody_took_back_stands(book):
    book.add(decision(1))
    book.add(corrected(1))
    second = book.add(decision(2))
    book.add(decision(3, action="skip", result=None))
    book.add({"action": "undo", "of": second["n"], "pair": second["pair"], "reviewer": "kim"})
    standing = decisions.standing(list(decisions.read(book.path)))
    assert [entry["result"] for entry in standing.values()] == ["NO_MATCH"]


def test_a_pairs_name_does_not_depend_on_order():
    a = {"name": "Ann", "city": "Rome"}
    b = {"city": "Bonn", "name": "Bea"}
    one = decisions.case_hash(TASK, {"record1": a, "record2": b})
    assert (
        one
        == decisions.case_hash(TASK, {"record2": dict(reversed(a.items())), "record1": b})
        != decisions.case_hash(TASK, {"record1": a, "record2": a})
    )


# ---- export


@pytest.fixture
def exported(book, tmp_path, capsys):
    def export(*words, test=()):
        (tmp_path / "test.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in [*test, *synthetic_rows(2, 8)]), encoding="utf-8"
        )
        code = exit_code(
            review_export,
            "--decisions",
            book.path,
            "--test",
            tmp_path / "test.jsonl",
            "--out",
            tmp_path / "out",
            *words,
        )
        told = capsys.readouterr()
        names = ("training_rows.jsonl", "preference_pairs.jsonl")
        rows = [
            [json.loads(line) for line in (tmp_path / "out" / name).read_text(encoding="utf-8").splitlines()]
            if code == 0
            else []
            for name in names
        ]
        return code, *rows, told.out + told.err

    return export


def test_decisions_become_rows_and_corrections_preference_pairs(book, exported):
    book.add(decision(1))
    book.add(corrected(2))
    book.add(corrected(3, reasoning="Other person: birth date differs."))
    book.add(decision(4, action="skip", result=None))
    code, rows, preferences, told = exported()
    assert code == 0 and [row["output"]["result"] for row in rows] == ["POSSIBLE", "NO_MATCH", "NO_MATCH"]
    assert rows[0]["output"]["reasoning"] == "Needs review: name is similar." and rows[1]["output"][
        "reasoning"
    ].startswith("No match: ")
    assert rows[2]["output"]["reasoning"] == "Other person: birth date differs." and "3 rows" in told
    assert [json.loads(pair["chosen"])["result"] for pair in preferences] == ["NO_MATCH"] * 2
    assert all(
        json.loads(pair["rejected"]) == {"result": "POSSIBLE", "reasoning": "Needs review: name is similar."}
        for pair in preferences
    )
    assert preferences[0]["prompt"] == TASK.messages(rows[1]["input"])


def test_rows_of_the_export_are_rows_of_the_pipeline(book, exported, tmp_path):
    from rows import load_rows

    book.add(corrected(1))
    exported()
    assert len(load_rows(tmp_path / "out" / "training_rows.jsonl", TASK)) == 1


def test_pairs_of_the_test_rows_never_come_out(book, exported):
    row = next(synthetic_rows(1, 5))
    book.add(corrected(1, case={"record1": row["input"]["record2"], "record2": row["input"]["record1"]}))
    book.add(corrected(2))
    code, rows, preferences, told = exported(test=[row])
    assert code == 0 and len(rows) == len(preferences) == 1 and "left out, test rows: 1" in told


def test_without_test_rows_nothing_is_exported_unless_there_are_none(book, tmp_path, capsys):
    book.add(decision(1))
    words = ("--decisions", book.path, "--test", tmp_path / "nowhere.jsonl", "--out", tmp_path / "out")
    assert exit_code(review_export, *words) == 2 and "which pairs must stay out" in capsys.readouterr().err
    assert exit_code(review_export, *words, "--no_test") == 0


def test_pairs_on_which_stewards_disagree_are_listed_and_stay_out(book, exported):
    book.add(corrected(1))
    book.add(decision(1, reviewer="lee"))
    book.add(decision(2))
    book.add(decision(2, reviewer="lee"))
    code, rows, _, told = exported()
    assert (
        code == 0
        and len(rows) == 1
        and "left out, stewards disagree: 1" in told
        and "kim NO_MATCH, lee POSSIBLE" in told
    )


def test_of_accepted_pairs_a_share_can_be_taken_and_corrections_always_are(book, exported):
    for at in range(40):
        book.add(decision(at))
    book.add(corrected(99))
    code, rows, preferences, told = exported("--accepted_share", "0.3")
    assert code == 0 and 4 <= len(rows) - 1 <= 22 and len(preferences) == 1 and "accepted, not drawn" in told


def test_a_file_that_was_changed_is_not_exported(book, exported):
    book.add(decision(1))
    book.path.write_bytes(book.path.read_bytes().replace(b"kim", b"lee"))
    code, *_, told = exported()
    assert code == 1 and "changed after it was written" in told and "nothing was exported" in told
