"""A signal becomes one report: what is kept, how it goes on, and the exit code that a shell expects."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

import interruption
from common import written_whole
from interruption import Journal
from support.pipeline import ROOT

STEP = """
import sys, time
sys.path.insert(0, {src!r})
import interruption
from common import run


def main():
    {body}


run(main)
"""
# In short naps: a signal that comes just before one long sleep would be noticed behind it.
SLEEPS = 'print("begun", flush=True); [time.sleep(0.1) for _ in range(600)]'


def stopped(tmp_path, body, *signals, env=()):
    """(exit code, what was said) of a step that gets signals once it has begun, each after so many seconds."""
    path = tmp_path / "step.py"
    path.write_text(STEP.format(src=str(ROOT / "src"), body=body))
    step = subprocess.Popen(
        [sys.executable, path, "--rows", "a b"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | dict(env),
    )
    assert step.stdout.readline() == "begun\n"
    for number, after_s in signals:
        time.sleep(after_s)
        step.send_signal(number)
    _, said = step.communicate(timeout=30)
    return step.returncode, said


@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
def test_a_signal_ends_a_step_with_a_report_and_no_traceback(number, code, name, tmp_path):
    found, said = stopped(tmp_path, SLEEPS, (number, 0))
    assert found == code
    assert said == (
        f"stopped by {name}: nothing half-written was left; start again with: python {tmp_path}/step.py --rows 'a b'\n"
    )


def test_what_is_kept_is_said_with_the_command_that_make_was_given(tmp_path):
    body = f'with interruption.keeping(lambda: "3 answers are kept in x.part"): {SLEEPS}'
    typed = {interruption.TYPED: "make ask PAIRS=x.jsonl"}
    code, said = stopped(tmp_path, body, (signal.SIGTERM, 0), env=typed)
    assert code == 143
    assert said == "stopped by SIGTERM: 3 answers are kept in x.part; go on with: make ask PAIRS=x.jsonl\n"


def test_a_signal_that_a_launcher_hands_on_is_the_same_stop(tmp_path):
    """The first one's clean-up goes on."""
    body = f"""
    try:
        {SLEEPS}
    finally:
        time.sleep(0.5)
        print("cleaned up", file=sys.stderr)"""
    code, said = stopped(tmp_path, body, (signal.SIGINT, 0), (signal.SIGTERM, 0.2))
    assert code == 130
    assert said.startswith("cleaned up\nstopped by Ctrl-C")


def test_work_that_looks_for_itself_ends_where_it_can_keep_what_it_has(tmp_path):
    body = """
    with interruption.until_asked():
        print("begun", flush=True)
        while not interruption.is_asked():
            time.sleep(0.01)
        print("step finished", file=sys.stderr)
        interruption.stop_now()"""
    code, said = stopped(tmp_path, body, (signal.SIGINT, 0))
    assert code == 130
    assert "stopping after this step; once more stops at once" in said
    assert said.index("step finished") < said.index("stopped by Ctrl-C")


def test_a_signal_behind_the_last_look_still_ends_the_step(tmp_path):
    body = """
    with interruption.until_asked():
        print("begun", flush=True)
        while not interruption.is_asked():
            time.sleep(0.01)
    print("went on", file=sys.stderr)"""
    code, said = stopped(tmp_path, body, (signal.SIGTERM, 0))
    assert code == 143
    assert "went on" not in said


def test_a_second_signal_in_the_clean_up_ends_a_server_too(tmp_path):
    body = """
    import subprocess
    interruption.SAME_STOP_S = 0.1
    server = subprocess.Popen(["sleep", "60"], start_new_session=True)
    print(server.pid, file=sys.stderr, flush=True)
    with interruption.with_group(server):
        try:
            print("begun", flush=True)
            [time.sleep(0.1) for _ in range(600)]
        finally:
            [time.sleep(0.1) for _ in range(600)]"""
    code, said = stopped(tmp_path, body, (signal.SIGINT, 0), (signal.SIGINT, 0.5))
    assert code == 130
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            # Ended, and read by whoever takes over orphans.
            os.kill(int(said.split()[0]), 0)
            time.sleep(0.1)


def test_a_second_signal_ends_such_work_at_once(tmp_path, monkeypatch):
    body = f"""
    interruption.SAME_STOP_S = 0.1
    with interruption.until_asked():
        {SLEEPS}"""
    code, said = stopped(tmp_path, body, (signal.SIGINT, 0), (signal.SIGINT, 0.5))
    assert code == 130
    assert "Traceback" not in said


def test_a_signal_that_the_user_ignores_stays_ignored(tmp_path):
    """As nohup does it."""
    body = 'print("begun", flush=True); time.sleep(1)'
    path = tmp_path / "step.py"
    path.write_text(STEP.format(src=str(ROOT / "src"), body=body))
    ignored = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.executable, "
    command = f"{ignored}[sys.executable, {str(path)!r}])"
    step = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True)
    assert step.stdout.readline() == "begun\n"
    step.send_signal(signal.SIGHUP)
    assert step.wait(30) == 0


def test_a_journal_goes_on_where_it_was_and_is_gone_when_the_work_is_whole(tmp_path):
    out = tmp_path / "answers.jsonl"
    with pytest.raises(RuntimeError), Journal(out, "work", "answers") as journal:
        journal.add([1, "a"])
        journal.add([2, "b\ud800"])
        raise RuntimeError
    with Journal(out, "work", "answers") as journal:
        assert journal.entries == [[1, "a"], [2, "b\ud800"]]
        assert journal.words() == f"2 answers are kept in {journal.path}"
        assert journal.path.name.startswith("answers.jsonl.") and journal.path.suffix == ".kept"
    assert list(tmp_path.iterdir()) == []


def test_other_work_has_a_journal_of_its_own_and_says_that_there_is_another(tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    with pytest.raises(RuntimeError), Journal(out, "work", "answers") as journal:
        journal.add(1)
        raise RuntimeError
    with Journal(out, "other work", "answers") as other:
        assert other.entries == []
        other.report()
        other.add(2)
    assert capsys.readouterr().out.startswith(f"{journal.path} keeps what was done with other settings")
    assert [json.loads(line) for line in journal.path.read_text().splitlines()] == ["work", 1]
    assert not other.path.exists()


def test_work_that_is_not_whole_keeps_its_journal(tmp_path):
    with Journal(tmp_path / "x", "work", "answers") as journal:
        journal.add(1)
        journal.is_whole = False
    assert journal.path.is_file()


def test_a_result_is_written_while_its_journal_is_open(tmp_path):
    """A disk that is full only then must not cost what was kept."""
    out = tmp_path / "answers.jsonl"
    with pytest.raises(OSError), Journal(out, "work", "answers") as journal:
        journal.add("a")
        with written_whole(out) as file:
            file.write("half")
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(RuntimeError), Journal(out, "work", "answers") as again:
        assert again.entries == ["a"]
        raise RuntimeError
    assert list(tmp_path.iterdir()) == [journal.path]


@pytest.mark.parametrize("torn", ['"b', '"b"', "\x00\x00", '"b\n'])
def test_a_line_that_a_kill_cut_off_is_dropped(torn, tmp_path):
    out = tmp_path / "answers.jsonl"
    with pytest.raises(RuntimeError), Journal(out, "work", "answers") as journal:
        journal.add("a")
        raise RuntimeError
    with open(journal.path, "a") as file:
        file.write(torn)
    with pytest.raises(RuntimeError), Journal(out, "work", "answers") as journal:
        assert journal.entries == ["a"]
        journal.add("c")
        raise RuntimeError
    assert [json.loads(line) for line in journal.path.read_text().splitlines()] == ["work", "a", "c"]


def test_a_journal_without_entries_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), Journal(tmp_path / "x", "work", "answers"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
