"""What stewards decided stays as it was written: chained, on the disk before it is acknowledged, and whole after any
end of the process.
"""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import locks
import review_export
import review_verify
from common import ROOT, WorkFailed
from service.review import chain, decisions
from support import disks, tampering
from support.pipeline import exit_code
from support.reviewing import corrected, decision
from support.tampering import HARMS, tamper
from tasks import load_task
from tasks.crm.synthetic import rows as synthetic_rows

TASK = load_task()
WITH_SOURCES = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT / "tests")))}


@pytest.fixture
def book(tmp_path):
    return decisions.Decisions(tmp_path / "reviews" / "decisions.jsonl")


def test_every_decision_names_the_one_before(book):
    written = [book.add(decision(at)) for at in range(5)]
    assert [entry["n"] for entry in written] == [1, 2, 3, 4, 5] and written[0]["previous"] == chain.FIRST
    assert all(later["previous"] == sooner["hash"] for sooner, later in zip(written, written[1:], strict=False))
    assert list(chain.read(book.path)) == written and chain.problems(book.path) == []
    assert book.entries == written == decisions.Decisions(book.path).entries


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_whatever_is_done_to_a_line_shows(book, harm, capsys):
    for at in range(6):
        book.add(decision(at))
    assert exit_code(review_verify, "--decisions", book.path) == 0 and "6 decisions" in capsys.readouterr().out
    line = tamper(book.path, harm, 2)
    assert exit_code(review_verify, "--decisions", book.path) == 1
    told = capsys.readouterr().err
    assert f"{book.path}:{line}: " in told and "Traceback" not in told


def rehashed_as(value):
    """A first line whose hash is right, for what it is."""
    entry = value | {"previous": chain.FIRST}
    return chain.line_of(entry | {"hash": chain.hash_of(entry)})


ODD_LINES = {
    "null": b"null\n",
    "a number": b"3\n",
    "text": b'"previous hash n"\n',
    "a list": b"[]\n",
    "no JSON": b"{\n",
    "NaN": b'{"n":NaN}\n',
    "not UTF-8": b"\xff\n",
    "deep": b"[" * 30_000 + b"]" * 30_000 + b"\n",
    "deep inside": b'{"n":1,"x":' + b"[" * 900 + b"]" * 900 + b"}\n",
    "empty": b"\n",
    "n is text": rehashed_as({"n": "1", "action": "skip", "pair": "p", "reviewer": "kim"}),
    "n is true": rehashed_as({"n": True, "action": "skip", "pair": "p", "reviewer": "kim"}),
    "no action": rehashed_as({"n": 1, "pair": "p", "reviewer": "kim"}),
    "another action": rehashed_as({"n": 1, "action": "delete", "pair": "p", "reviewer": "kim"}),
    "undo of nothing": rehashed_as({"n": 1, "action": "undo", "pair": "p", "reviewer": "kim"}),
    "reason is a list": rehashed_as({"n": 1} | decision(1, reason=[])),
    "pair is a list": rehashed_as({"n": 1} | decision(1, pair=[])),
    "a long number": b'{"n":' + b"1" * 5_000 + b"}\n",
}


@pytest.mark.parametrize("name", ODD_LINES)
def test_an_odd_line_is_reported_with_its_number(book, name, capsys):
    book.path.write_bytes(ODD_LINES[name])
    for command in ((review_verify,), (review_export, "--no_test", "--out", book.path.parent)):
        assert exit_code(*command, "--decisions", book.path) == 1
        told = capsys.readouterr().err
        assert f"{book.path}:1: " in told and "Traceback" not in told and len(told) < 600


def test_without_its_mark_a_cut_end_shows_by_the_hash_that_was_kept(book, capsys):
    last = [book.add(decision(at)) for at in range(3)][-1]["hash"]
    chain.mark_path(book.path).unlink()
    assert exit_code(review_verify, "--decisions", book.path, "--last_hash", last) == 0
    tamper(book.path, tampering.cut, 2)
    assert exit_code(review_verify, "--decisions", book.path) == 0, "the chain alone does not show it"
    assert (
        exit_code(review_verify, "--decisions", book.path, "--last_hash", last) == 1
        and "cut off at the end" in capsys.readouterr().err
    )


def test_a_file_that_is_gone_is_reported_and_not_begun_anew(book, capsys):
    book.add(decision(1))
    book.path.unlink()
    assert exit_code(review_verify, "--decisions", book.path) == 1
    assert f"{book.path}:1: lines are missing; 1 decision had been written" in capsys.readouterr().err
    with pytest.raises(chain.Changed, match="lines are missing"):
        decisions.Decisions(book.path)
    assert not book.path.exists()


def test_a_mark_that_was_damaged_is_reported(book, capsys):
    book.add(decision(1))
    chain.mark_path(book.path).write_text("[]")
    assert exit_code(review_verify, "--decisions", book.path) == 1
    assert "decisions.jsonl.last: not what was written there" in capsys.readouterr().err
    with pytest.raises(chain.Changed, match="jsonl.last"):
        book.add(decision(2))


# ---- under a running service


def deleted(path):
    path.unlink()


def written_anew(path):
    """A whole chain of its own."""
    path.unlink()
    chain.mark_path(path).unlink()
    other = decisions.Decisions(path)
    for at in range(9):
        other.add(decision(at, reviewer="lee"))


UNDER_WAY = {harm.__name__: lambda path, harm=harm: tamper(path, harm, 3) for harm in HARMS}


@pytest.mark.parametrize("harm", [*UNDER_WAY.values(), deleted, written_anew], ids=[*UNDER_WAY, "deleted", "anew"])
def test_nothing_is_added_to_a_file_that_was_changed_meanwhile(book, harm):
    """Whoever wrote the decisions knows them, and another process that read only the first ones knows the last one."""
    for at in range(3):
        book.add(decision(at))
    second = decisions.Decisions(book.path)
    for at in range(3, 6):
        book.add(decision(at))
    whole = book.path.read_bytes()
    mark = chain.mark_path(book.path).read_bytes()
    harm(book.path)
    left = book.path.read_bytes() if book.path.exists() else None
    for one in (book, second):
        with pytest.raises(chain.Changed, match=r"decisions.jsonl"):
            one.add(decision(7))
    assert (book.path.read_bytes() if book.path.exists() else None) == left
    with book.reading():
        assert len(book.entries) == 6, "what was read stays known"
    book.path.write_bytes(whole)
    chain.mark_path(book.path).write_bytes(mark)
    assert book.add(decision(8))["n"] == 7 and second.add(decision(9))["n"] == 8 and chain.problems(book.path) == []


def test_a_file_that_is_replaced_while_a_decision_is_written_acknowledges_none(book, monkeypatch):
    book.add(decision(1))
    write = decisions.write

    def replaced(file, line):
        write(file, line)
        copy = book.path.with_name("copy")
        copy.write_bytes(book.path.read_bytes())
        copy.replace(book.path)

    monkeypatch.setattr(decisions, "write", replaced)
    with pytest.raises(chain.Changed, match="was replaced"):
        book.add(decision(2))


def test_a_lock_that_another_process_holds_is_waited_for_no_longer_than_allowed(book):
    short = decisions.Decisions(book.path, lock_s=0.1)
    with open(book.path, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for work in (lambda: short.add(decision(1)), lambda: short.reading().__enter__()):
            with pytest.raises(decisions.Held):
                work()
    assert short.add(decision(1))["n"] == 1


def test_half_a_line_is_told_and_cut_off_by_the_next_start(book, capsys):
    book.add(decision(1))
    whole = book.path.read_bytes()
    book.path.write_bytes(whole + b'{"n":2,"ti')
    assert exit_code(review_verify, "--decisions", book.path) == 1 and "half a line" in capsys.readouterr().err
    again = decisions.Decisions(book.path)
    assert again.n_cut_off == 10 and book.path.read_bytes() == whole and again.add(decision(2))["n"] == 2
    assert chain.problems(book.path) == []


def test_a_full_disk_leaves_the_file_as_it_was(book, monkeypatch):
    book.add(decision(1))
    before = book.path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "fsync", full)
        book.add(decision(2))
    assert book.path.read_bytes() == before and book.add(decision(3))["n"] == 2 and chain.problems(book.path) == []


def test_threads_and_processes_write_one_chain(book):
    command = [sys.executable, ROOT / "tests/support/decision_writers.py", book.path, "1", "40"]
    others = [subprocess.Popen([*map(str, command)], env=WITH_SOURCES, stdout=subprocess.DEVNULL) for _ in range(2)]
    threads = [threading.Thread(target=lambda: [book.add(decision(at)) for at in range(20)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert [other.wait(60) for other in others] == [0, 0]
    for thread in threads:
        thread.join()
    assert chain.problems(book.path) == [] and len(list(chain.read(book.path))) == 120


def test_killed_writers_lose_nothing_acknowledged_and_tampering_between_their_rounds_shows(tmp_path, capsys):
    """Eight threads of two processes a round; tests/service/test_review.py has the same by HTTP."""
    path = tmp_path / "decisions.jsonl"
    acknowledged = []
    command = [sys.executable, ROOT / "tests/support/decision_writers.py", path, "4", "100000"]
    for harm in (tampering.changed, tampering.cut):
        writers = [
            subprocess.Popen([*map(str, command)], env=WITH_SOURCES, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        told = [[writer.stdout.readline()] for writer in writers]
        time.sleep(0.3)
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
        for writer, lines in zip(writers, told, strict=True):
            # The last line may be torn: what nobody could read was not acknowledged.
            lines += writer.communicate()[0].splitlines(keepends=True)
            acknowledged += [line.strip() for line in lines if line.endswith("\n")]
        book = decisions.Decisions(path)
        assert chain.problems(path) == [] and set(acknowledged) <= {entry["hash"] for entry in book.entries}
        assert len(book.entries) <= len(acknowledged) + 8 * 2, "at most what each was waiting for"
        whole = path.read_bytes()
        line = tamper(path, harm, len(book.entries) // 2)
        assert exit_code(review_verify, "--decisions", path) == 1 and f"{path}:{line}: " in capsys.readouterr().err
        with pytest.raises(chain.Changed):
            decisions.Decisions(path)
        path.write_bytes(whole)
    assert len(acknowledged) > 20


def test_the_latest_decision_that_nobody_took_back_stands(book):
    book.add(decision(1))
    book.add(corrected(1))
    second = book.add(decision(2))
    book.add(decision(3, action="skip", result=None))
    book.add({"action": "undo", "of": second["n"], "pair": second["pair"], "reviewer": "kim"})
    standing = decisions.standing(list(chain.read(book.path)))
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


def test_a_second_export_cannot_come_between_the_rows_and_their_manifest(book, exported, tmp_path, monkeypatch):
    book.add(decision(1))
    write = review_export.write_manifest
    refused = []

    def beside_another(path, *args, **facts):
        with pytest.raises(WorkFailed) as error, locks.only_writer(tmp_path / "out/training_rows.jsonl"):
            pass
        refused.append(error)
        write(path, *args, **facts)

    monkeypatch.setattr(review_export, "write_manifest", beside_another)
    assert exported()[0] == 0 and len(refused) == 1


def test_an_export_without_space_is_one_sentence_and_leaves_the_earlier_one(book, tmp_path, capsys):
    for at in range(20):
        book.add(decision(at))
    with disks.small_disk(tmp_path / "disk", "64k") as disk:
        words = ("--decisions", book.path, "--no_test", "--out", disk / "out")
        assert exit_code(review_export, *words) == 0
        earlier = {path: path.read_bytes() for path in (disk / "out").iterdir()}
        for at in range(20, 60):
            book.add(decision(at))
        decided = book.path.read_bytes()
        filler = disks.fill(disk)
        capsys.readouterr()
        for mode, why in (("rw", "no space left"), ("ro", "Read-only file system")):
            disks.make(disk, mode)
            assert exit_code(review_export, *words) == 1
            told = capsys.readouterr()
            assert why in told.err and told.err.count("\n") == 1 and not told.out
            assert {path: path.read_bytes() for path in (disk / "out").iterdir()} == earlier
        disks.make(disk, "rw")
        filler.unlink()
        assert exit_code(review_export, *words) == 0 and "60 rows" in capsys.readouterr().out
    assert book.path.read_bytes() == decided


def test_the_check_needs_no_disk_that_can_be_written(tmp_path, capsys):
    with disks.small_disk(tmp_path / "disk", "64k") as disk:
        path = disk / "decisions.jsonl"
        decisions.Decisions(path).add(decision(1))
        disks.fill(disk)
        disks.make(disk, "ro")
        assert exit_code(review_verify, "--decisions", path) == 0 and "1 decision, " in capsys.readouterr().out


def test_decisions_of_another_task_are_not_exported_as_this_ones(book, exported):
    facts = {key: value for key, value in decision(1).items() if "result" not in key}
    book.add(facts | {"mood": "angry", "model_mood": "angry"})
    code, *_, told = exported()
    assert code == 2 and "decisions.jsonl:1: a decision of another task than crm" in told and "--task" in told


def test_a_file_that_was_changed_is_not_exported(book, exported):
    book.add(decision(1))
    book.path.write_bytes(book.path.read_bytes().replace(b"kim", b"lee"))
    code, *_, told = exported()
    assert code == 1 and "changed after it was written" in told and "nothing was exported" in told
