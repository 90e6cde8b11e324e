"""One writer for each output."""

import json
import os
import signal
import subprocess
import sys

import pytest

import interruption
import locks
from common import WorkFailed
from support.pipeline import ROOT

HOLDS = """
import sys, time
sys.path.insert(0, {src!r})
import locks

with locks.only_writer({place!r}):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the place `model`."""
    program = HOLDS.format(src=str(ROOT / "src"), place=str(tmp_path / "model"))
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--config", "x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {interruption.TYPED: "make train-x"},
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_writer_is_told_who_the_first_is(holder, tmp_path):
    with pytest.raises(WorkFailed) as refused, locks.only_writer(tmp_path / "model"):
        pass
    held = json.loads((tmp_path / ".model.lock").read_text())
    assert str(refused.value) == (
        f"{tmp_path}/model is being written by process {holder.pid}, since {held['since']}: make train-x; "
        f"wait for it, or end it with: kill {holder.pid}"
    )


def test_a_neighbour_is_free(holder, tmp_path):
    with locks.only_writer(tmp_path / "model2"):
        pass


def test_a_dead_holder_s_lock_is_taken_over_and_goes(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".model.lock").is_file()
    with locks.only_writer(tmp_path / "model"):
        assert json.loads((tmp_path / ".model.lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_goes_when_the_holder_is_done(holder, tmp_path):
    holder.communicate("done\n", timeout=10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", ["", "no JSON", "{}", "[]"])
def test_a_holder_that_could_not_sign_still_holds(words, holder, tmp_path):
    (tmp_path / ".model.lock").write_text(words)
    with pytest.raises(WorkFailed, match="another process; wait for it"), locks.only_writer(tmp_path / "model"):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    refused = pytest.raises(OSError, match=r"/file'$")
    with refused, locks.only_writer(tmp_path / "file" / "model"):
        pass


def test_a_lock_that_a_dead_process_of_another_user_left_is_taken_over(tmp_path, monkeypatch):
    (tmp_path / ".model.lock").write_text("{}")
    real = open

    def refused_once(path, mode="r", **options):
        if "a" in mode and (tmp_path / ".model.lock").exists() and (tmp_path / ".model.lock").read_text() == "{}":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, mode, **options)

    monkeypatch.setattr(locks, "open", refused_once, raising=False)
    with locks.only_writer(tmp_path / "model"):
        assert json.loads((tmp_path / ".model.lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []
