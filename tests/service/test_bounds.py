"""The bounds on what comes from outside: each is crossed by one, none is without a line in docs/serving.md, and what an
attacker holds open is given up in time.
"""

import contextlib
import dataclasses
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import locks
import serve
from common import ROOT, UserError
from service.queue import Waiting, together
from service.settings import BOUNDS, CUT, Limits, limits_of, variable_of
from support import disks
from support.pipeline import exit_code
from support.serving import PAIR, Model, running

JSON = {"content-type": "application/json"}
LINES = {"content-type": "application/x-ndjson"}
BY_REVIEW = {"most_leases", "lock_s"}  # crossed by the tests of the review
WITHIN_S = 10  # a busy machine is slow, and nothing here takes a second on one that is not


@pytest.fixture
def served(monkeypatch):
    """Start a service around a made-up model."""
    with contextlib.ExitStack() as stack:
        yield lambda engine=None, **bounds: stack.enter_context(
            running(engine or Model(), monkeypatch, limits=Limits(**bounds))
        )


@contextlib.contextmanager
def connected(client, *parts, small=False):
    """A connection of its own, on which the parts were sent."""
    with socket.socket() as one:
        if small:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        one.settimeout(WITHIN_S)
        one.connect(("127.0.0.1", client.base_url.port))
        for part in parts:
            one.sendall(part)
        yield one


def head(path="/match", n_body=0, kind="application/json", method="POST"):
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", f"content-type: {kind}", f"content-length: {n_body}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def status(one):
    """Of the answer that comes, or that the connection was cut without one."""
    said = b""
    with contextlib.suppress(ConnectionError):
        while not said.endswith((b"}", b"0\r\n\r\n")) and (part := one.recv(65_536)):
            said += part
    found = re.match(rb"HTTP/1.1 (\d+) ", said)
    return int(found[1]) if found else CUT


def asked(client, *parts):
    with connected(client, *parts) as one:
        return status(one)


def padded(value, n):
    """A value as JSON of so many bytes."""
    return json.dumps(value).encode().ljust(n)


def posted(client, content, path="/match", headers=JSON):
    return client.post(path, content=content, headers=headers).status_code


# ---- each bound crossed by one: {name: (what it is set to, what gives the status at it and one beyond it)}


def connections(client, most):
    with contextlib.ExitStack() as stack:
        # The client's own connection is one.
        held = [stack.enter_context(connected(client)) for _ in range(most - 1)]
        beyond = stack.enter_context(connected(client))
        held[-1].sendall(head("/healthz", method="GET"))
        return status(held[-1]), status(beyond)


def head_bytes(client, most):
    found = []
    for n in (most, most + 1):
        start = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: "
        found.append(asked(client, start + b"x" * (n - len(start) - 4) + b"\r\n\r\n"))
    return found


def head_seconds(client, _):
    whole = head("/healthz", method="GET")
    return asked(client, whole[:30], whole[30:]), asked(client, whole[:30])


def body_bytes(client, most):
    return posted(client, padded(PAIR, most)), posted(client, padded(PAIR, most + 1))


def batch_bytes(client, most):
    return [posted(client, padded([PAIR], n), "/match/batch") for n in (most, most + 1)]


def body_seconds(client, _, path="/match", value=PAIR):
    body = json.dumps(value).encode()
    start = head(path, len(body))
    return asked(client, start, body), asked(client, start, body[:-1])


def batch_seconds(client, _):
    return body_seconds(client, _, "/match/batch", [PAIR])


def batches(client, most):
    body = json.dumps([PAIR]).encode()
    with contextlib.ExitStack() as stack:
        start = [head("/match/batch", len(body)), body[:-1]]
        held = [stack.enter_context(connected(client, *start)) for _ in range(most)]
        until_in_flight(client, most)
        beyond = asked(client, *start)
        held[-1].sendall(body[-1:])
        return status(held[-1]), beyond


def until_in_flight(client, n):
    """Wait until the service works on so many requests, but for this question."""
    until_shown(client, f"steward_in_flight {n + 1}.0")


def until_shown(client, metric):
    until = time.monotonic() + WITHIN_S
    while metric not in client.get("/metrics").text:
        assert time.monotonic() < until, f"no {metric}"
        time.sleep(0.01)


def cases(client, most):
    return [posted(client, json.dumps([PAIR] * n), "/match/batch") for n in (most, most + 1)]


def fields(client, most):
    records = [{str(at): at for at in range(n)} for n in (most, most + 1)]
    return [client.post("/match", json=PAIR | {"record1": record}).status_code for record in records]


def levels(client, most):
    # The record is a level itself.
    values = [json.loads("[" * n + "]" * n) for n in (most - 1, most)]
    return [client.post("/match", json=PAIR | {"record1": {"a": value}}).status_code for value in values]


def waiting(client, most):
    gate = client.model.gate
    gate.clear()
    with ThreadPoolExecutor(most + 2) as pool:
        first = pool.submit(client.post, "/match", json=PAIR)
        until = time.monotonic() + WITHIN_S
        while not client.model.asked.is_set() and time.monotonic() < until:
            time.sleep(0.01)
        others = [pool.submit(client.post, "/match", json=PAIR) for _ in range(most)]
        until_shown(client, f"steward_queue_depth {most}.0")  # one that is in flight may not wait yet
        beyond = client.post("/match", json=PAIR).status_code
        gate.set()
        assert first.result().status_code == 200
        return others[-1].result().status_code, beyond


def seconds_to_answer(client, _):
    first = client.post("/match", json=PAIR).status_code
    client.model.gate.clear()
    try:
        return first, client.post("/match", json=PAIR).status_code
    finally:
        client.model.gate.set()


def long_answer(client):
    """The request for an answer that no socket's buffer holds, and its pieces."""
    record = {"a": "x" * 2_000}
    body = json.dumps([{"record1": record, "record2": record}] * 1_500).encode()
    return head("/match/batch?detail=true", len(body)), body


def taken(client, _):
    with connected(client, *long_answer(client)) as reader:
        n_bytes = 0
        with contextlib.suppress(TimeoutError):
            while not (part := reader.recv(65_536)).endswith(b"0\r\n\r\n"):
                n_bytes += len(part)
        first = 200 if n_bytes > 6_000_000 else n_bytes
    before = n_cut(client)
    until = time.monotonic() + WITHIN_S
    with connected(client, *long_answer(client), small=True):
        while n_cut(client) == before and time.monotonic() < until:
            time.sleep(0.05)
    return first, "whole" if n_cut(client) == before else CUT


def n_cut(client):
    """Connections that were closed without an answer, in all tests of this process."""
    found = re.search(r'route="unknown",status="cut"} (\S+)', client.get("/metrics").text)
    return float(found[1]) if found else 0.0


def refused_body(client, n, n_sent):
    """A request of another type, refused before its body comes; then whether the connection goes on behind it."""
    with connected(client, head(n_body=n, kind="text/plain")) as one:
        assert status(one) == 415
        with contextlib.suppress(ConnectionError):
            one.sendall(b" " * n_sent)
            if n == n_sent:
                one.sendall(head("/healthz", method="GET"))
            return status(one)
    return CUT


def drained_bytes(client, most):
    return refused_body(client, most, most), refused_body(client, most + 1, most + 1)


def drained_seconds(client, _):
    return refused_body(client, 100, 100), refused_body(client, 100, 99)


CROSSED = {
    "most_connections": (4, connections),
    "most_head_bytes": (1_000, head_bytes),
    "head_within_s": (0.4, head_seconds),
    "most_body_bytes": (2_000, body_bytes),
    "body_within_s": (0.4, body_seconds),
    "most_batch_bytes": (2_000, batch_bytes),
    "batch_within_s": (0.4, batch_seconds),
    "most_batches": (2, batches),
    "most_cases": (3, cases),
    "most_fields": (5, fields),
    "most_levels": (3, levels),
    "most_waiting": (2, waiting),
    "timeout_s": (0.4, seconds_to_answer),
    "stalled_s": (0.6, taken),
    "paused_s": (0.4, body_seconds),
    "most_drained_bytes": (50_000, drained_bytes),
    "drained_within_s": (0.4, drained_seconds),
}


class Watched(Model):
    """A model that says when it was first asked."""

    def __init__(self):
        super().__init__()
        self.asked = threading.Event()

    def answers(self, conversations):
        self.asked.set()
        yield from super().answers(conversations)


@pytest.mark.parametrize("name", CROSSED)
def test_a_bound_is_kept_to_the_last_one(served, name):
    value, cross = CROSSED[name]
    model = Watched()
    client = served(model, **{name: value})
    client.model = model
    at, beyond = cross(client, value)
    [bound] = [field for field in BOUNDS if field.name == name]
    assert (at, beyond) == (200, bound.metadata["status"])
    assert client.get("/healthz").status_code == 200


def test_every_bound_is_crossed_by_a_test():
    assert {field.name for field in BOUNDS} == CROSSED.keys() | BY_REVIEW


def shown(field):
    """A bound as docs/serving.md has it."""
    facts = field.metadata
    where = " or ".join(f"`{name}`" for name in (facts["option"], variable_of(field)) if name)
    default = f"{field.default:,}".removesuffix(".0")
    return f"| {facts['words']} | {default} | {where} | {facts['status'] or 'none'} |"


def test_the_page_shows_the_table():
    page = (ROOT / "docs/serving.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in map(shown, BOUNDS) if line not in page] == []


@pytest.mark.parametrize(
    ("options", "variables", "message"),
    [
        ({}, {"STEWARD_MOST_FIELDS": "0"}, "STEWARD_MOST_FIELDS 0: a whole number from 1 to 100,000"),
        ({}, {"STEWARD_STALLED_S": "nan"}, "STEWARD_STALLED_S nan: a number from 0.1 to 86,400"),
        ({"most_waiting": "many"}, {}, "--queue many: a whole number"),
        ({"timeout_s": "1e9"}, {}, "--timeout 1e9: a number from"),
    ],
)
def test_a_bound_out_of_range_is_refused_by_name(monkeypatch, options, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=re.escape(message)):
        limits_of(options)


def test_an_option_goes_before_its_variable_and_that_before_the_table(monkeypatch):
    monkeypatch.setenv("STEWARD_MOST_WAITING", "7")
    monkeypatch.setenv("STEWARD_TIMEOUT_S", "0.5")
    assert limits_of({"most_waiting": "5"}) == dataclasses.replace(Limits(), most_waiting=5, timeout_s=0.5)


# ---- attacks


def test_a_batch_whose_last_byte_is_withheld_has_a_place_like_any_other(served):
    """Else any number of them would be read into memory."""
    client = served()
    body = json.dumps([PAIR] * 500).encode()
    with contextlib.ExitStack() as stack:
        start = head("/match/batch", len(body)), body[:-1]
        held = [stack.enter_context(connected(client, *start)) for _ in range(Limits.most_batches)]
        until_in_flight(client, len(held))
        assert [asked(client, *start) for _ in range(5)] == [429] * 5
        assert client.post("/match", json=PAIR).status_code == 200
        for one in held:
            one.sendall(body[-1:])
        assert [status(one) for one in held] == [200] * 3
    until_in_flight(client, 0)
    assert client.post("/match/batch", json=[PAIR]).status_code == 200


@pytest.mark.parametrize("leaves", ["before its body", "before its answer"])
def test_a_batch_that_is_given_up_leaves_its_place(served, leaves):
    client = served(most_batches=1)
    body = json.dumps([PAIR] * 50).encode()
    sent = body[:-1] if leaves == "before its body" else body
    for _ in range(3):
        with connected(client, head("/match/batch", len(body)), sent):
            pass
    until = time.monotonic() + WITHIN_S
    while (found := client.post("/match/batch", json=[PAIR]).status_code) == 429 and time.monotonic() < until:
        time.sleep(0.05)
    assert found == 200


HEALTHZ = head("/healthz", method="GET")
BEHIND = {
    "a header without end": [b"GET /healthz HTTP/1.1\r\nx: ", *[b"x" * 65_536] * 100],
    "a head that does not go on": [b"GET /healthz HTTP/1.1\r\nx: "],
    "many requests": [HEALTHZ * 1_000],
}


@contextlib.contextmanager
def hanging(served, *behind, **bounds):
    """(a client, a connection whose first request waits for the model, with what was sent behind it; the model)"""
    model = Model()
    model.gate.clear()
    client = served(model, **bounds)
    body = json.dumps(PAIR).encode()
    try:
        # In one piece: what is behind comes with what is before.
        with connected(client, head(n_body=len(body)) + body + b"".join(behind[:1])) as one:
            with contextlib.suppress(ConnectionError):
                for part in behind[1:]:
                    one.sendall(part)
            yield client, one, model
    finally:
        model.gate.set()


@pytest.mark.parametrize("name", BEHIND)
def test_what_comes_behind_a_request_that_is_being_answered_is_bounded(served, name):
    before = n_cut(served())
    with hanging(served, *BEHIND[name], head_within_s=0.4) as (client, one, _):
        one.settimeout(4)
        with contextlib.suppress(TimeoutError):
            assert status(one) == CUT
        assert n_cut(client) == before + 1
        until_in_flight(client, 0)


def test_a_few_requests_behind_one_wait_for_their_turn(served):
    """Longer than a head may take: what is not read yet cannot have come."""
    more = [HEALTHZ * 3 + HEALTHZ[:20]]
    with hanging(served, *more, head_within_s=0.4) as (_, one, model):
        time.sleep(0.8)
        model.gate.set()
        one.sendall(HEALTHZ[20:])
        said = b""
        while said.count(b"HTTP/1.1 200") < 5:
            part = one.recv(65_536)
            assert part, said
            said += part


def test_a_head_behind_the_last_answer_does_not_hold_up_the_end(monkeypatch):
    model = Model()
    model.gate.clear()
    body = json.dumps(PAIR).encode()
    with running(model, monkeypatch, limits=Limits(drained_within_s=0.4)) as client:
        stack = contextlib.ExitStack()
        one = stack.enter_context(connected(client, head(n_body=len(body)) + body + HEALTHZ[:20]))
        until_in_flight(client, 1)
        threading.Timer(0.5, model.gate.set).start()
        start = time.monotonic()
    assert time.monotonic() - start < 9
    with stack:
        assert status(one) == 200


MANY = {
    "empty lists": (b"[" + b"[]," * 600_000 + b"[]]", JSON, 413),
    "numbers": (b"[" + b"1," * 600_000 + b"1]", JSON, 413),
    "one list of lists": (b"[[" + b"[]," * 600_000 + b"[]]]", JSON, 413),
    "one text": (b'["' + b"x" * 1_000_000 + b'"]', JSON, 413),
    "lines": (b"[]\n" * 600_000, LINES, 413),
    "no lines": (b"\n" * 2_000_000, LINES, 422),
    "space": (b"[" + b" " * 2_000_000 + b"]", JSON, 422),
    "no list": (b'{"a":[' + b"[]," * 600_000 + b"[]]}", JSON, 422),
}


@pytest.mark.parametrize("name", MANY)
def test_millions_of_cases_are_refused_before_they_are_made(served, name):
    body, kind, wanted = MANY[name]
    client = served()
    with client.stream("POST", "/match/batch", content=body, headers=kind) as response:
        assert response.status_code == wanted


WRONG_LISTS = {
    "not closed": (b"[{}", 400),
    "no comma": (b"[{} {}]", 400),
    "comma at the end": (b"[{},]", 400),
    "more behind": (b"[{}] {}", 400),
    "half a number": (b"[1", 400),
    "broken text": (b'[{"a": "\xff"}]', 400),
    "wrong long before the end": (b'[{"a": nothing}' + b" " * 100_000 + b"]", 400),
    "text that is not closed": (b'["' + b"x" * 50_000, 400),
    "not a list": (b"3", 422),
    "empty": (b" [ ] ", 422),
    "nothing": (b"", 400),
    "deep": (b"[" * 30_000 + b"]" * 30_000, 400),
}


@pytest.mark.parametrize("name", WRONG_LISTS)
def test_a_list_is_read_strictly(served, name):
    body, wanted = WRONG_LISTS[name]
    response = served().post("/match/batch", content=body, headers=JSON)
    assert response.status_code == wanted and set(response.json()) == {"error"}


def test_a_case_beyond_the_first_look_and_letters_of_many_bytes_are_read_whole(served):
    values = [PAIR | {"record1": {"a": letter * n}} for letter in "aé€😀" for n in (1_023, 1_024, 1_025, 1_200)]
    content = " [ " + " , ".join(json.dumps(value, ensure_ascii=False, indent=1) for value in values) + " ] "
    lines = served().post("/match/batch", content=content.encode(), headers=JSON).text.splitlines()
    assert len(lines) == len(values) and all("result" in line for line in lines)


def test_who_takes_no_answer_does_not_hold_up_the_end(monkeypatch):
    with running(Model(), monkeypatch) as client:
        stalled = connected(client, *long_answer(client), small=True)
        stalled.__enter__()
        until_in_flight(client, 1)
        start = time.monotonic()
    assert time.monotonic() - start < 9
    stalled.__exit__(None, None, None)


def test_a_refusal_arrives_although_the_body_goes_on(served):
    """Closed at once, the system would reset the connection, and the answer be lost."""
    client = served()
    with connected(client, head(n_body=2_000_000)) as one:
        for _ in range(20):
            one.sendall(b" " * 100_000)
            time.sleep(0.005)
        assert status(one) == 413


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ({"content-type": 'application/json; charset="UTF-8"'}, 200),
        ({"content-type": "application/json; charset=utf-16"}, 415),
        ({"content-type": "application/json; a=b; charset=latin-1"}, 415),
        (JSON | {"content-encoding": "identity"}, 200),
        (JSON | {"content-encoding": "gzip"}, 415),
    ],
)
def test_another_charset_or_encoding_is_refused(served, headers, wanted):
    client = served()
    assert posted(client, json.dumps(PAIR), headers=headers) == wanted
    assert posted(client, json.dumps([PAIR]), "/match/batch", headers) == wanted


def test_one_long_record_does_not_make_the_short_ones_wait(served):
    class Padding(Model):
        batch_size = 16
        lengths = []

        def answers(self, conversations):
            self.gate.wait(WITHIN_S)
            self.lengths.append(sorted(len(messages[-1]["content"]) for messages in conversations))
            yield from super().answers(conversations)

    model = Padding()
    model.gate.clear()
    client = served(model)
    with ThreadPoolExecutor(18) as pool:
        first = pool.submit(client.post, "/match", json=PAIR)
        until_in_flight(client, 1)
        rows = [PAIR] * 8 + [{"record1": {"a": "\\" * 400}, "record2": {}}] + [PAIR] * 7
        others = [pool.submit(client.post, "/match", json=row) for row in rows]
        until_in_flight(client, 17)
        model.gate.set()
        assert {one.result().status_code for one in [first, *others]} == {200}
    assert [lengths for lengths in model.lengths if len(lengths) > 1 and lengths[-1] > 3 * lengths[0]] == []


def waits(n_tokens, due_s=0.0, patience_s=0.0):
    return Waiting([], False, due_s, patience_s, None, None, n_tokens)


def test_a_batch_begins_with_who_is_due_and_holds_little_padding():
    long = waits(900)
    short = [waits(50 + at) for at in range(20)]
    assert together([long, *short], 16)[0] == long and len(together([long, *short], 16)) <= 2
    assert together([*short[:3], long, *short[3:]], 16) == short[:16]
    assert len(together([waits(900) for _ in range(16)], 16)) == 4, "a batch of long ones is short"
    later = waits(51, time.monotonic() + 60)
    assert together([short[0], later, *short[1:16]], 16) == short[:16], "who gives way fills up what is left"
    assert together([short[0], later, short[1]], 16) == [short[0], short[1], later]


def test_a_long_one_gives_way_until_its_patience_is_over():
    now = time.monotonic()
    short = [waits(50, now) for _ in range(3)]
    patient = waits(900, now - 1, patience_s=60)
    assert together([patient, *short], 16) == short
    assert together([patient], 16) == [patient], "where nobody else waits it has its turn"
    impatient = waits(900, now - 2, patience_s=1)
    assert together([impatient, *short], 16) == [impatient]


def test_a_second_service_on_the_same_decisions_says_who_has_them(tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n", encoding="utf-8")
    with locks.only_writer(tmp_path / "reviews/service"):
        words = ("--review", tmp_path / "pairs.jsonl", "--reviews", tmp_path / "reviews")
        assert exit_code(serve, *words) == 1
    said = capsys.readouterr().err
    assert "reviews/service is being written by process" in said and "Traceback" not in said


def test_decisions_on_a_volume_need_no_folder_around_them_that_can_be_written(tmp_path, monkeypatch, capsys):
    """As in the image, where nobody may write beside the folder; two containers share the volume and nothing else."""
    monkeypatch.setattr(serve, "serve", lambda *_: None)
    (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n", encoding="utf-8")
    with disks.small_disk(tmp_path / "image", "64k") as image, disks.small_disk(image / "reviews", "64k") as volume:
        words = ("--review", tmp_path / "pairs.jsonl", "--reviews", volume)
        disks.make(image, "ro")
        assert exit_code(serve, *words) == 0
        capsys.readouterr()
        disks.make(volume, "ro")
        assert exit_code(serve, *words) == 1
        said = capsys.readouterr().err
    assert "reviews: Read-only file system" in said and said.count("\n") == 1


def test_a_wrong_review_file_is_the_users(tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_text("{\n", encoding="utf-8")
    assert exit_code(serve, "--review", tmp_path / "pairs.jsonl", "--reviews", tmp_path / "reviews") == 2
    assert "pairs.jsonl" in capsys.readouterr().err
