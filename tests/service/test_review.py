"""The stewards' review by HTTP: who is shown what, what is kept, and what becomes of a decision when the disk, the file
or the process fails.
"""

import contextlib
import json
import os
import subprocess
import time

import pytest

import service.answering
import service.review.desk
from common import WorkFailed
from constrained_decode import Answer
from service.review import decisions
from service.settings import Limits
from service.task_contract import TaskContract
from support.endpoint import GOOD
from support.serving import PAIR, TASK, Model, running
from tasks.crm.synthetic import rows as synthetic_rows


@pytest.fixture
def served(monkeypatch):
    """Start a service around a made-up model; several may run."""
    with contextlib.ExitStack() as stack:
        yield lambda engine=None, **settings: stack.enter_context(running(engine or Model(), monkeypatch, **settings))


def test_answered_requests_can_be_kept_for_review_the_least_certain_of_them(served, tmp_path, monkeypatch):
    monkeypatch.setattr(service.review.desk, "MOST_PASSING", 3)

    class Growing(Model):
        def answers(self, conversations):
            for at, messages in enumerate(conversations):
                share = 0.5 + int(json.loads(messages[-1]["content"])["record1"]["n"]) / 100
                yield (
                    at,
                    Answer(GOOD, "stop", 50, 20, {"DUPLICATE": 1 - share, "POSSIBLE": share, "NO_MATCH": 0.0}, 0.01),
                )

    client = served(Growing(), review_folder=str(tmp_path), keep_traffic=True)
    for n in (9, 5, 7, 30, 1, 5):
        client.post("/match", json={"record1": {"n": n}, "record2": {"n": n}})
    told = client.get("/review/next").json()
    assert told["progress"]["pairs"] == 3 and told["card"]["records"]["record1"]["n"] == 1
    assert not any(path.name != "decisions.jsonl" and path.stat().st_size for path in tmp_path.iterdir()), (
        "nothing of them is on the disk"
    )


def review_files(tmp_path, n):
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps(row["input"]) + "\n" for row in synthetic_rows(n, 6)), encoding="utf-8"
    )
    return {"review_folder": str(tmp_path / "reviews"), "review_cases": str(tmp_path / "pairs.jsonl")}


def all_answered(client, n):
    until = time.monotonic() + 20
    while client.get("/review/statistics").json()["progress"]["answered"] < n:
        assert time.monotonic() < until, "not answered"
        time.sleep(0.05)


def test_two_services_share_one_queue(served, tmp_path):
    """What one has answered the other offers and decides too; a pair that was decided is offered by neither."""
    files = review_files(tmp_path, 10)
    clients = [served(**files) for _ in range(2)]
    for client in clients:
        all_answered(client, 10)
    for at in range(10):
        card = clients[at % 2].get("/review/next").json()["card"]
        said = {"pair": card["pair"], "action": "decide", "verdict": "POSSIBLE", "reviewer": "kim"}
        assert clients[1 - at % 2].post("/review/decide", json=said).json()["n"] == at + 1
    assert [client.get("/review/next").json()["card"] for client in clients] == [None, None]
    assert [client.get("/review/statistics").json()["decided"] for client in clients] == [10, 10]


def test_on_a_really_full_disk_decisions_are_refused_and_none_is_lost(served, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], capture_output=True).returncode
    ):
        pytest.skip("a small file system can only be mounted by root, with the right to mount")
    try:
        client = served(**review_files(tmp_path, 40) | {"review_folder": str(disk / "reviews")})
        statuses = []
        all_answered(client, 40)
        for _ in range(40):
            card = client.get("/review/next").json()["card"]
            said = {"pair": card["pair"], "action": "decide", "verdict": "POSSIBLE", "reviewer": "kim"}
            response = client.post("/review/decide", json=said)
            statuses.append(response.status_code)
        assert (
            set(statuses) == {200, 507}
            and "No space left" in response.json()["error"]
            and client.post("/match", json=PAIR).status_code == 200
        )
        path = disk / "reviews/decisions.jsonl"
        assert decisions.problems(path) == [] and len(list(decisions.read(path))) == statuses.count(200)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_two_stewards_are_shown_different_pairs(served, tmp_path):
    client = served(**review_files(tmp_path, 3))
    all_answered(client, 3)
    shown = {
        name: client.get("/review/next", params={"reviewer": name}).json()["card"]["pair"] for name in ("kim", "lee")
    }
    assert (
        shown["kim"] != shown["lee"]
        and client.get("/review/next", params={"reviewer": "kim"}).json()["card"]["pair"] == shown["kim"]
    )
    client.get("/review/next", params={"reviewer": "max"})
    assert client.get("/review/next", params={"reviewer": "ann"}).json()["card"] is None, (
        "all three are being looked at"
    )


def test_a_decision_on_another_verdict_than_was_shown_is_refused(served, tmp_path):
    client = served(**review_files(tmp_path, 1))
    all_answered(client, 1)
    said = {
        "pair": client.get("/review/next").json()["card"]["pair"],
        "action": "decide",
        "verdict": "POSSIBLE",
        "reviewer": "kim",
    }
    response = client.post("/review/decide", json=said | {"shown": "DUPLICATE"})
    assert response.status_code == 409 and "POSSIBLE now" in response.json()["error"]
    assert client.post("/review/decide", json=said | {"shown": "POSSIBLE"}).status_code == 200


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": 1e308},
        {"seconds": -1},
        {"seconds": 10**400},
        {"reviewer": "kim\n"},
        {"reviewer": "k\ud800"},
        {"reason": "\ud800"},
        {"reason": "x" * 1_001},
        {"reasoning": "x" * 321},
        {"reasoning": ""},
        {"verdict": "MAYBE"},
        {"action": "accept"},
    ],
)
def test_what_would_stay_in_the_chain_for_good_is_checked(served, tmp_path, wrong):
    client = served(**review_files(tmp_path, 1))
    all_answered(client, 1)
    said = {
        "pair": client.get("/review/next").json()["card"]["pair"],
        "action": "decide",
        "verdict": "POSSIBLE",
        "reviewer": "kim",
    } | wrong
    response = client.post("/review/decide", content=json.dumps(said), headers={"content-type": "application/json"})
    assert response.status_code == 422 and client.get("/review/statistics").json()["decided"] == 0


def test_an_undo_sees_what_another_process_decided(served, tmp_path):
    files = review_files(tmp_path, 2)
    first = served(**files)
    second = served(**files)
    all_answered(first, 2)
    all_answered(second, 2)
    said = {
        "pair": first.get("/review/next").json()["card"]["pair"],
        "action": "decide",
        "verdict": "POSSIBLE",
        "reviewer": "kim",
    }
    assert first.post("/review/decide", json=said).status_code == 200
    assert second.post("/review/undo", json={"reviewer": "kim"}).json()["card"]["pair"] == said["pair"]


def test_pairs_are_tried_again_when_the_model_could_not_answer(served, tmp_path, monkeypatch):
    monkeypatch.setattr(service.review.desk, "AFTER_FAILURE_S", 0.05)
    monkeypatch.setattr(service.answering, "READY_EVERY_S", 0.2)

    class Recovering(Model):
        def answers(self, conversations):
            self.batches.append(len(conversations))
            if len(self.batches) < 4:
                raise RuntimeError("out of memory")
            yield from super().answers(conversations)

    model = Recovering()
    all_answered(served(model, **review_files(tmp_path, 3)), 3)
    assert len(model.batches) < 20, "not without a pause"


def test_a_chain_that_was_changed_is_not_added_to(tmp_path):
    path = tmp_path / "decisions.jsonl"
    decisions.Decisions(path).add({"action": "skip", "pair": "p", "reviewer": "kim"})
    path.write_bytes(path.read_bytes().replace(b"kim", b"lee"))
    with pytest.raises(WorkFailed, match="make review-verify lists what is wrong"):
        service.review.desk.Reviews(TaskContract(TASK, Limits()), tmp_path, None, "m:1", None, None)


def test_review_routes_say_what_is_missing(served):
    response = served().get("/review/next")
    assert response.status_code == 404 and "--review" in response.json()["error"]
