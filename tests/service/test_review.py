"""The stewards' review by HTTP: who is shown what, what is kept, and what becomes of a decision when the disk, the file
or the process fails.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

import review_verify
import service.answering
import service.review.desk
import service.review.leases
from common import ROOT, WorkFailed
from constrained_decode import Answer
from language_model import model_server
from service.review import chain, decisions
from service.review.leases import Leases
from service.settings import Limits
from service.task_contract import TaskContract
from support import disks
from support.endpoint import GOOD
from support.pipeline import exit_code
from support.serving import PAIR, SHARES, TASK, Model, running
from support.tampering import HARMS, cut, tamper
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
    told = client.post("/review/next", json={}).json()
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
        card = clients[at % 2].post("/review/next", json={}).json()["card"]
        said = {"pair": card["pair"], "action": "decide", "verdict": "POSSIBLE", "reviewer": "kim"}
        assert clients[1 - at % 2].post("/review/decide", json=said).json()["n"] == at + 1
    assert [client.post("/review/next", json={}).json()["card"] for client in clients] == [None, None]
    assert [client.get("/review/statistics").json()["decided"] for client in clients] == [10, 10]


def shown_to(client, reviewer=""):
    return client.post("/review/next", json={"reviewer": reviewer}).json()["card"]


def decided_on(client, card, reviewer="kim"):
    said = {"pair": card["pair"], "action": "decide", "verdict": "POSSIBLE", "reviewer": reviewer}
    return client.post("/review/decide", json=said)


def test_on_a_full_or_read_only_disk_decisions_are_refused_none_is_lost_and_reading_goes_on(served, tmp_path):
    with disks.small_disk(tmp_path / "disk", "64k") as disk:
        client = served(**review_files(tmp_path, 12) | {"review_folder": str(disk / "reviews")})
        all_answered(client, 12)
        path = disk / "reviews/decisions.jsonl"
        statuses = [decided_on(client, shown_to(client, "kim")).status_code]
        filler = disks.fill(disk)
        while statuses[-1] == 200:  # the file's last block holds a few more
            response = decided_on(client, shown_to(client, "kim"))
            statuses.append(response.status_code)
        assert statuses[-1] == 507 and "No space left" in response.json()["error"]
        assert client.post("/match", json=PAIR).status_code == 200
        disks.make(disk, "ro")
        responses = [
            decided_on(client, shown_to(client, "kim")),
            client.post("/review/undo", json={"reviewer": "kim"}),
        ]
        for response in responses:
            assert response.status_code == 507 and "Read-only file system" in response.json()["error"]
        shown = [shown_to(client, name)["pair"] for name in ("kim", "lee", "max")]
        assert len(set(shown)) == 3, "who looks at what is known without the disk"
        n_decided = client.get("/review/statistics").json()["decided"]
        assert n_decided == statuses.count(200)
        disks.make(disk, "rw")
        filler.unlink()
        assert decided_on(client, shown_to(client, "kim")).json()["n"] == n_decided + 1
        assert chain.problems(path) == [] and len(list(chain.read(path))) == n_decided + 1


def test_a_folder_that_cannot_be_written_is_one_sentence_at_the_start(tmp_path):
    with disks.small_disk(tmp_path / "disk", "64k") as disk:
        disks.make(disk, "ro")
        with pytest.raises(WorkFailed, match=r"reviews.*Read-only file system; no decision can be kept there"):
            service.review.desk.Reviews(TaskContract(TASK, Limits()), disk / "reviews", None, "m:1", None, None)


def test_a_decisions_file_that_is_cut_under_the_service_is_not_added_to_and_reading_goes_on(served, tmp_path):
    client = served(**review_files(tmp_path, 6))
    all_answered(client, 6)
    path = tmp_path / "reviews/decisions.jsonl"
    for _ in range(3):
        assert decided_on(client, shown_to(client, "kim")).status_code == 200
    whole = path.read_bytes()
    tamper(path, cut, 1)
    left = path.read_bytes()
    for response in (
        decided_on(client, shown_to(client, "kim")),
        client.post("/review/undo", json={"reviewer": "kim"}),
    ):
        words = response.json()["error"]
        assert response.status_code == 507 and "decisions.jsonl:2: lines are missing; 3 decisions" in words
        assert str(tmp_path) not in words and "make review-verify" in words
    assert path.read_bytes() == left and client.get("/review/statistics").json()["decided"] == 3
    path.write_bytes(whole)
    assert decided_on(client, shown_to(client, "kim")).json()["n"] == 4, "as it was, it goes on"


def test_a_lock_that_another_process_holds_stops_neither_answers_nor_the_next_pair(served, tmp_path):
    client = served(**review_files(tmp_path, 6), limits=Limits(lock_s=0.5))
    all_answered(client, 6)
    card = shown_to(client, "kim")
    with open(tmp_path / "reviews/decisions.jsonl", "rb") as held, ThreadPoolExecutor(60) as pool:
        fcntl.flock(held, fcntl.LOCK_EX)
        # More than there are threads: none of them waits for those before it.
        asked = [pool.submit(client.post, "/review/next", json={"reviewer": f"kim {at}"}) for at in range(40)]
        decided = pool.submit(decided_on, client, card)
        start = time.monotonic()
        batch = client.post("/match/batch", json=[PAIR] * 3)
        assert batch.status_code == 200 and len(batch.text.splitlines()) == 3
        for response in [one.result() for one in [*asked, decided]]:
            assert response.status_code == 503 and "another process holds" in response.json()["error"]
            assert response.headers["retry-after"] == "1"
        assert time.monotonic() - start < 10
        assert client.get("/review/statistics").json()["decided"] == 0
    assert decided_on(client, card).json()["n"] == 1


CROSS_SITE = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"origin": "http://elsewhere.example"},
    {"origin": "null"},
]


def test_a_page_of_another_site_is_lent_nothing_and_decides_nothing(served, tmp_path):
    client = served(**review_files(tmp_path, 2))
    all_answered(client, 2)
    card = shown_to(client)
    said = {"pair": card["pair"], "action": "skip", "reviewer": "kim"}
    for at in range(130):
        headers = CROSS_SITE[at % len(CROSS_SITE)]
        response = client.post("/review/next", json={"reviewer": f"kim {at}"}, headers=headers)
        assert response.status_code == 403 and "another site" in response.json()["error"]
    for headers in CROSS_SITE:
        assert client.post("/review/decide", json=said, headers=headers).status_code == 403
        assert client.post("/review/undo", json=said, headers=headers).status_code == 403
    # A form or an image can send these without asking; neither may lend.
    assert client.get("/review/next", params={"reviewer": "kim"}).status_code == 405
    plain = {"content-type": "text/plain", "sec-fetch-site": "same-origin"}
    assert client.post("/review/next", content="{}", headers=plain).status_code == 415
    own = {"origin": str(client.base_url).rstrip("/")}
    assert client.post("/review/next", json={"reviewer": "kim"}, headers=own).json()["card"]["pair"] == card["pair"]


def test_odd_lines_of_kept_answers_are_skipped_and_counted(served, tmp_path):
    files = review_files(tmp_path, 2)
    first = served(**files)
    all_answered(first, 2)
    path = tmp_path / "reviews/answers.jsonl"
    kept = json.loads(path.read_bytes().splitlines()[0])
    odd = [
        None,
        3,
        [],
        {},
        kept | {"pair": []},
        kept | {"pair": None},
        kept | {"model": {}},
        kept | {"answer": None},
        kept | {"answer": {"result": ["POSSIBLE"], "reasoning": "x"}},
        kept | {"answer": "POSSIBLE"},
        kept | {"probabilities": {"POSSIBLE": "0.7"}},
        kept | {"probabilities": [0.7]},
        kept | {"probabilities": {"MAYBE": 0.7}},
    ]
    lines = [json.dumps(one).encode() for one in odd] + [b"{", b"\xff", b"[" * 30_000, json.dumps(kept).encode()]
    path.write_bytes(b"\n".join(lines) + b"\n")
    second = served(**files)
    all_answered(second, 2)
    statistics = second.get("/review/statistics").json()
    assert statistics["skipped_answers"] == len(lines) - 1
    assert shown_to(second, "kim")["probabilities"] == SHARES


def test_simultaneous_asks_of_two_services_never_show_one_pair_twice(served, tmp_path):
    files = review_files(tmp_path, 24)
    clients = [served(**files) for _ in range(2)]
    for client in clients:
        all_answered(client, 24)
    with ThreadPoolExecutor(20) as pool:
        cards = list(pool.map(lambda at: shown_to(clients[at % 2], f"steward {at}"), range(20)))
    assert len({card["pair"] for card in cards}) == 20


@pytest.mark.parametrize("most", [2, 4, 10])
def test_none_is_given_up_before_there_are_too_many(tmp_path, most):
    leases = Leases(tmp_path / "leases.json", most)
    given = [f"pair {at}" for at in range(most + 2)]
    for n, pair in enumerate(given, 1):
        leases.give(pair, "kim")
        time.sleep(0.001)
        assert leases.of_others("lee") == set(given[max(0, n - most) : n])


def test_a_reviewer_keeps_so_many_pairs_from_the_others_and_no_more(tmp_path, monkeypatch):
    leases = Leases(tmp_path / "leases.json", 2)
    for at in range(5):
        leases.give(f"pair {at}", "kim")
        time.sleep(0.001)
    assert leases.of_others("lee") == {"pair 3", "pair 4"} and leases.of_others("kim") == set()
    again = Leases(tmp_path / "leases.json", 2)
    assert again.of_others("lee") == {"pair 3", "pair 4"}, "another process knows them"
    for damaged in (b"", b"null", b"[1]", b'{"p":1}', b'{"p":["kim","x"]}', b'{"p":["kim",1e999]}'):
        (tmp_path / "leases.json").write_bytes(damaged)
        assert again.of_others("lee") == set()
    leases.give("pair 5", "kim")
    later = time.time() + 601
    monkeypatch.setattr(service.review.leases.time, "time", lambda: later)
    assert again.of_others("lee") == set(), "after ten minutes it is free again"


def test_a_pair_that_was_taken_back_is_the_reviewers_again(served, tmp_path):
    client = served(**review_files(tmp_path, 2))
    all_answered(client, 2)
    card = shown_to(client, "kim")
    decided_on(client, card)
    other = shown_to(client, "kim")
    assert client.post("/review/undo", json={"reviewer": "kim"}).json()["card"]["pair"] == card["pair"]
    assert shown_to(client, "lee")["pair"] == other["pair"], "kim looks at the one, lee is shown the other"


def test_two_stewards_are_shown_different_pairs(served, tmp_path):
    client = served(**review_files(tmp_path, 3))
    all_answered(client, 3)
    shown = {
        name: client.post("/review/next", json={"reviewer": name}).json()["card"]["pair"] for name in ("kim", "lee")
    }
    assert (
        shown["kim"] != shown["lee"]
        and client.post("/review/next", json={"reviewer": "kim"}).json()["card"]["pair"] == shown["kim"]
    )
    client.post("/review/next", json={"reviewer": "max"})
    assert client.post("/review/next", json={"reviewer": "ann"}).json()["card"] is None, "all three are being looked at"


def test_a_decision_on_another_verdict_than_was_shown_is_refused(served, tmp_path):
    client = served(**review_files(tmp_path, 1))
    all_answered(client, 1)
    said = {
        "pair": client.post("/review/next", json={}).json()["card"]["pair"],
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
        "pair": client.post("/review/next", json={}).json()["card"]["pair"],
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
        "pair": first.post("/review/next", json={}).json()["card"]["pair"],
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
    response = served().post("/review/next", json={})
    assert response.status_code == 404 and "--review" in response.json()["error"]


def test_the_count_says_what_it_counts(served, tmp_path):
    files = review_files(tmp_path, 5)
    cases = (tmp_path / "pairs.jsonl").read_text().splitlines()
    (tmp_path / "pairs.jsonl").write_text("\n".join([*cases, *cases[:2]]) + "\n")
    client = served(**files)
    all_answered(client, 5)
    card = shown_to(client, "kim")
    client.post("/review/decide", json={"pair": card["pair"], "action": "skip", "reviewer": "kim"})
    decided_on(client, shown_to(client, "kim"))
    progress = client.get("/review/statistics").json()["progress"]
    assert progress == {
        "decided": 1,
        "pairs": 5,
        "repeated_lines": 2,
        "skipped": 1,
        "answered": 5,
        "unreadable": 0,
    }


# ---- the process


@contextlib.contextmanager
def workers(folder, cases, n_workers=2):
    """(process group, address) of a service of several processes before a made-up model."""
    port = model_server.free_port()
    command = [sys.executable, "tests/support/stub_service.py", port, folder, cases, n_workers]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT / "tests")))}
    with subprocess.Popen(
        [*map(str, command)],
        cwd=ROOT,
        env=paths,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as one:
        address = f"http://127.0.0.1:{port}"
        try:
            until = time.monotonic() + 90
            with httpx2.Client(base_url=address, trust_env=False) as client:
                while one.poll() is None and time.monotonic() < until:
                    with contextlib.suppress(httpx2.HTTPError):
                        if client.get("/readyz").status_code == 200:
                            break
                    time.sleep(0.1)
            yield one.pid, address
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(one.pid, signal.SIGKILL)


def steward(address, name, acknowledged, undone):
    """Decide what comes, take back where nothing comes, until nobody answers any more."""
    with contextlib.suppress(httpx2.HTTPError), httpx2.Client(base_url=address, timeout=20, trust_env=False) as client:
        while True:
            # Each connection may lead to either worker.
            headers = {"connection": "close"}
            card = client.post("/review/next", json={"reviewer": name}, headers=headers).json().get("card")
            if card is None:
                response = client.post("/review/undo", json={"reviewer": name}, headers=headers)
                if response.status_code == 200:
                    undone.append(name)
                continue
            said = {"pair": card["pair"], "action": "decide", "verdict": "POSSIBLE", "reviewer": name}
            response = client.post("/review/decide", json=said, headers=headers)
            if response.status_code == 200:
                acknowledged.append(response.json()["hash"])


@pytest.mark.slow
def test_every_acknowledged_decision_survives_kill_9_and_every_tampering_between_rounds_is_reported(tmp_path, capsys):
    """STEWARD_KILL_ROUNDS=10 are the rounds of the published figures."""
    review_files(tmp_path, 40)
    path = tmp_path / "reviews/decisions.jsonl"
    acknowledged = []
    undone = []
    n_rounds = int(os.environ.get("STEWARD_KILL_ROUNDS", 2))
    n_half_lines = 0
    for at in range(n_rounds):
        with workers(tmp_path / "reviews", tmp_path / "pairs.jsonl") as (group, address), ThreadPoolExecutor(8) as pool:
            enough = len(acknowledged) + 60
            names = [f"steward {n}" for n in range(8)]
            stewards = [pool.submit(steward, address, name, acknowledged, undone) for name in names]
            until = time.monotonic() + 30
            while len(acknowledged) < enough and time.monotonic() < until:
                time.sleep(0.01)
            os.killpg(group, signal.SIGKILL)
            for one in stewards:
                one.result(30)
        n_half_lines += decisions.Decisions(path).n_cut_off > 0
        assert exit_code(review_verify, "--decisions", path) == 0
        entries = list(chain.read(path))
        kept = {entry["hash"] for entry in entries}
        assert set(acknowledged) <= kept and len(acknowledged) > 10 * at
        n_undone = sum(entry["action"] == "undo" for entry in entries)
        # Beside what was acknowledged, at most what each steward was waiting for.
        assert len(undone) <= n_undone and len(kept) <= len(acknowledged) + len(undone) + 8 * (at + 1)
        whole = path.read_bytes()
        # All kinds of tampering in the run of two rounds too.
        for harm in HARMS[at % 2 :: 2]:
            line = tamper(path, harm, len(kept) // 2)
            capsys.readouterr()
            assert exit_code(review_verify, "--decisions", path) == 1
            assert f"{path}:{line}: " in capsys.readouterr().err
            path.write_bytes(whole)
    with capsys.disabled():
        n_acknowledged = len(acknowledged) + len(undone)
        print(f"\n{n_rounds} rounds: {n_acknowledged} acknowledged, {len(kept)} kept, {n_half_lines} half lines")
