"""The service by HTTP: what it promises, what it refuses, and what becomes of requests when the model, its server or
the process fails.
"""

import contextlib
import contextvars
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx2
import jsonschema
import pytest

import serve
import service.answering
import service.memory
import tasks.crm.service
from common import ROOT, UserError, WorkFailed
from constrained_decode import openai_api
from language_model import model_server
from service import metrics
from service.settings import Limits, key_hashes
from support.endpoint import GOOD, Server, cut, hang, saying
from support.pipeline import exit_code
from support.serving import PAIR, REFUSED, SHARES, TASK, Model, log_of, running
from tasks.crm.synthetic import rows as synthetic_rows

SECRETS = ("Zebulon", "Quux", "5550101")


@pytest.fixture
def served(monkeypatch):
    """Start a service around a made-up model; several may run."""
    with contextlib.ExitStack() as stack:
        yield lambda engine=None, **settings: stack.enter_context(running(engine or Model(), monkeypatch, **settings))


# ---- what is promised


def test_a_pair_is_answered_with_exactly_the_two_keys(served):
    client = served()
    response = client.post("/match", json=PAIR)
    assert (
        response.status_code == 200
        and response.json() == json.loads(GOOD)
        and response.headers["content-type"] == "application/json"
    )
    assert list(response.json()) == ["result", "reasoning"]


def test_detail_adds_probabilities_and_field_evidence(served):
    told = served().post("/match?detail=true", json=PAIR).json()
    assert told["probabilities"] == SHARES and told["closed_at_budget"] is False
    assert {"field": "phone", "relation": "same", "record1": "5550101", "record2": "555-0101"} in told["evidence"]


def test_evidence_shows_what_nobody_compares_too(served):
    case = {"record1": {"name": "Ann", "customer_id": 7, "notes": "moved"}, "record2": {"name": "Ann", "notes": ""}}
    evidence = served().post("/match?detail=true", json=case).json()["evidence"]
    assert evidence[1:] == [
        {"field": "customer_id", "relation": "not_compared", "record1": "7", "record2": ""},
        {"field": "notes", "relation": "not_compared", "record1": "moved", "record2": ""},
    ]


def test_a_batch_comes_back_in_order_with_what_was_wrong_in_its_place(served):
    client = served()
    rows = [row["input"] for row in synthetic_rows(150, 1)]
    rows[7] = {"record1": {}}
    rows[9] = 3
    for response in (
        client.post("/match/batch", json=rows),
        client.post(
            "/match/batch", content="\n".join(map(json.dumps, rows)), headers={"content-type": "application/x-ndjson"}
        ),
    ):
        lines = [json.loads(line) for line in response.text.splitlines()]
        assert (
            response.status_code == 200
            and len(lines) == 150
            and response.headers["content-type"] == "application/x-ndjson"
        )
        assert lines[7] == {"error": "record2 missing", "status": 422} and lines[9]["status"] == 422
        assert all(line == json.loads(GOOD) for at, line in enumerate(lines) if at not in (7, 9))


def test_batches_wait_where_single_requests_are_turned_away(served):
    client = served(Model(seconds=0.02), limits=Limits(most_waiting=2))
    lines = client.post("/match/batch", json=[PAIR] * 30).text.splitlines()
    assert [json.loads(line) for line in lines] == [json.loads(GOOD)] * 30


def test_health_readiness_and_metrics(served):
    client = served()
    client.post("/match", json=PAIR)
    client.post("/match", content="{")
    assert client.get("/healthz").json() == {"status": "ok"} and client.get("/readyz").json() == {"status": "ready"}
    text = client.get("/metrics").text
    assert (
        'steward_verdicts_total{result="POSSIBLE"}' in text
        and 'route="/match",status="200"' in text
        and "steward_queue_depth 0.0" in text
    )
    assert (
        "steward_answer_seconds_bucket" in text
        and "steward_in_flight 1.0" in text
        and "steward_closed_at_budget_total" in text
    )


def test_a_killed_processs_requests_are_not_counted_as_under_way(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    for pid in (gone.pid, os.getpid()):
        (tmp_path / f"gauge_livesum_{pid}.db").write_bytes(b"")
    metrics.forget_the_dead(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"gauge_livesum_{os.getpid()}.db"]


def test_what_waits_is_answered_together_and_one_alone_at_once(served):
    model = Model(seconds=0.03)
    client = served(model)
    start = time.monotonic()
    client.post("/match", json=PAIR)
    assert time.monotonic() - start < 1
    model.batches.clear()
    with ThreadPoolExecutor(8) as pool:
        assert {
            response.status_code for response in pool.map(lambda _: client.post("/match", json=PAIR), range(40))
        } == {200}
    assert max(model.batches) >= 4 and len(model.batches) <= 30, model.batches


def test_requests_that_began_in_two_groups_become_one_batch(served):
    """Else the groups take turns for ever, each waiting while the other is answered."""
    model = Model(seconds=0.6)
    client = served(model)
    with ThreadPoolExecutor(4) as pool:

        def keeps_asking(at):
            time.sleep(0.3 * (at % 2))
            return [client.post("/match", json=PAIR).status_code for _ in range(5)]

        assert sum(pool.map(keeps_asking, range(4)), []) == [200] * 20
    assert 4 in model.batches, model.batches


def test_a_client_that_hangs_up_leaves_the_line(served):
    model = Model()
    model.gate.clear()
    client = served(model)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/match", json=PAIR)
        with pytest.raises(httpx2.TimeoutException):
            httpx2.post(client.base_url.join("/match"), json=PAIR, timeout=0.5, trust_env=False)
        until = time.monotonic() + 5
        while "steward_queue_depth 0.0" not in client.get("/metrics").text:
            assert time.monotonic() < until, "still in line"
        assert 'route="/match",status="499"' in client.get("/metrics").text
        model.gate.set()
        assert first.result().status_code == 200
    assert sum(model.batches) == 1


def test_an_openai_client_is_answered(served):
    client = served()
    body = {"model": "steward", "messages": TASK.messages(PAIR), "temperature": 0.1, "max_tokens": 64}
    told = client.post("/v1/chat/completions", json=body).json()
    assert told["choices"][0]["message"]["content"] == GOOD and told["usage"] == {
        "prompt_tokens": 50,
        "completion_tokens": 20,
        "total_tokens": 70,
    }
    assert client.get("/v1/models").json()["data"][0]["id"] == "steward"
    for wrong, status in (
        ({"model": "gpt"}, 404),
        ({"messages": []}, 422),
        ({"n": 2}, 422),
        ({"stream": "yes"}, 422),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}}, 422),
    ):
        assert client.post("/v1/chat/completions", json=body | wrong).status_code == status, wrong


@pytest.mark.parametrize("streams", [False, True])
def test_the_projects_own_engine_can_ask_the_service(served, streams):
    """With its canary, its probabilities, and as the benchmark asks: streamed."""
    client = served()
    engine = openai_api.load(
        "steward",
        TASK,
        SimpleNamespace(gen=SimpleNamespace(max_new_tokens=64, temperature=0.0, top_p=1.0)),
        endpoint=f"{str(client.base_url).rstrip('/')}/v1",
    )
    answer = (
        engine.ask(TASK.messages(PAIR), streams=True) if streams else dict(engine.answers([TASK.messages(PAIR)]))[0]
    )
    assert answer.text == GOOD and answer.finish_reason == "stop" and answer.completion_tokens == 20
    assert answer.probabilities == pytest.approx(SHARES)


# ---- what is refused


@pytest.mark.parametrize("name", REFUSED)
def test_a_body_that_is_no_pair_is_refused_with_its_reason(served, name):
    body, status = REFUSED[name]
    response = served().post("/match", content=body, headers={"content-type": "application/json"})
    assert response.status_code == status and set(response.json()) == {"error"} and len(response.json()["error"]) > 10
    assert "x" * 20 not in response.text and "Traceback" not in response.text


def test_a_body_is_not_read_beyond_its_limit(served):
    sent = []

    def endless():
        for _ in range(2_000):
            sent.append(1)
            yield b" " * 65_536

    client = served()
    with contextlib.suppress(httpx2.HTTPError):
        assert client.post("/match", content=endless(), headers={"content-type": "application/json"}).status_code == 413
    assert len(sent) < 1_000


@pytest.mark.parametrize(
    ("kind", "status"),
    [("application/json; charset=utf-8", 200), ("text/plain", 415), ("application/x-www-form-urlencoded", 415)],
)
def test_the_content_type_is_asked_for(served, kind, status):
    assert served().post("/match", content=json.dumps(PAIR), headers={"content-type": kind}).status_code == status


def test_who_comes_when_the_line_is_full_is_told_when_to_come_again(served):
    model = Model()
    model.gate.clear()
    client = served(model, limits=Limits(most_waiting=3))
    with ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(client.post, "/match", json=PAIR) for _ in range(12)]
        time.sleep(1)
        turned_away = [one.result() for one in waiting if one.done()]
        assert turned_away and all(
            one.status_code == 429 and int(one.headers["retry-after"]) >= 1 for one in turned_away
        )
        model.gate.set()
        assert sorted({one.result().status_code for one in waiting}) == [200, 429]
    assert client.post("/match", json=PAIR).status_code == 200


def test_an_answer_that_takes_too_long_is_given_up_and_others_go_on(served):
    model = Model()
    model.gate.clear()
    client = served(model, limits=Limits(timeout_s=0.3))
    response = client.post("/match", json=PAIR)
    assert response.status_code == 504 and "0.3 s" in response.json()["error"]
    model.gate.set()
    assert client.post("/match", json=PAIR).status_code == 200


def test_one_request_that_breaks_the_model_does_not_hurt_the_next(served):
    client = served()
    assert client.post("/match", json={"record1": {"a": "explode"}, "record2": {}}).status_code == 502
    assert client.post("/match", json=PAIR).status_code == 200


def test_a_model_that_writes_no_answer_gives_no_verdict(served):
    client = served(Model(text="Sure! They are the same."))
    for path, body in (("/match", PAIR), ("/v1/chat/completions", {"messages": TASK.messages(PAIR)})):
        response = client.post(path, json=body)
        assert response.status_code == 502 and set(response.json()) == {"error"}, path


def test_a_broken_model_is_not_ready_until_it_answers_again(served, monkeypatch):
    monkeypatch.setattr(service.answering, "READY_EVERY_S", 0.1)

    class Breaking(Model):
        is_whole = True

        def answers(self, conversations):
            if not self.is_whole:
                raise RuntimeError("device lost")
            yield from super().answers(conversations)

    model = Breaking()
    client = served(model)
    model.is_whole = False
    assert client.get("/readyz").status_code == 200 and client.post("/match", json=PAIR).status_code == 502
    time.sleep(0.2)
    assert client.get("/readyz").status_code == 503 and client.get("/healthz").status_code == 200
    model.is_whole = True
    time.sleep(0.2)
    # Nobody is sent here by now: the service finds out by itself.
    assert client.get("/readyz").status_code == 200 and len(model.batches) == 1


def test_one_request_that_broke_the_model_does_not_make_it_unready(served):
    client = served()
    assert client.post("/match", json={"record1": {"a": "explode"}, "record2": {}}).status_code == 502
    assert client.get("/readyz").status_code == 200


def test_what_broke_the_model_is_in_the_log_by_its_place_alone(served, capfd):
    served().post("/match", json={"record1": {"a": "explode Zebulon"}, "record2": {}})
    log = log_of(capfd, '"route": "/match"')
    assert '"cause": "ValueError at serving.py' in log and not any(word in log for word in SECRETS)


HALF = '{"record1": {"name": "\\ud800"}, "record2": {"name": "\\ud800x"}}'


@pytest.mark.parametrize("path", ["/match?detail=true", "/match/batch?detail=true"])
def test_half_a_letter_is_answered_escaped(served, path):
    content = f"[{HALF}, {HALF}]" if "batch" in path else HALF
    response = served().post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 200
    for line in response.text.splitlines():
        assert json.loads(line)["evidence"][0]["record1"] == "\ud800"


def test_half_a_letter_in_a_chat_is_refused(served):
    content = '{"messages": [{"role": "user", "content": "\\ud800"}]}'
    assert (
        served().post("/v1/chat/completions", content=content, headers={"content-type": "application/json"}).status_code
        == 422
    )


def test_a_key_twice_among_very_many_is_told_at_once(served):
    body = "[{" + ",".join(f'"{at}":0' for at in range(400_000)) + ',"399999":1}]'
    start = time.monotonic()
    client = served(limits=Limits(most_body_bytes=10_000_000))
    assert client.post("/match/batch", content=body, headers={"content-type": "application/json"}).status_code == 400
    assert time.monotonic() - start < 20


def test_a_body_that_does_not_come_is_given_up(served, capfd):
    client = served(limits=Limits(body_within_s=0.3))
    head = b"POST /match HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", client.base_url.port)) as slow:
        slow.sendall(head)
        slow.settimeout(10)
        assert b" 408 " in slow.recv(1_000)
    with socket.create_connection(("127.0.0.1", client.base_url.port)) as gone:
        gone.sendall(head)
    assert '"status": 499' in log_of(capfd, '"status": 499')


def test_few_batches_at_a_time_so_that_others_find_room(served):
    model = Model()
    model.gate.clear()
    client = served(model)
    with ThreadPoolExecutor(4) as pool:
        under_way = [pool.submit(client.post, "/match/batch", json=[PAIR]) for _ in range(Limits.most_batches)]
        until = time.monotonic() + 10
        while "steward_in_flight 4.0" not in client.get("/metrics").text and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.3)
        response = client.post("/match/batch", json=[PAIR])
        assert response.status_code == 429 and "retry-after" in response.headers
        model.gate.set()
        assert [one.result().status_code for one in under_way] == [200] * 3
    # A batch's place is free once its last byte was handed over, a moment after the client has it.
    until = time.monotonic() + 10
    while (again := client.post("/match/batch", json=[PAIR])).status_code == 429 and time.monotonic() < until:
        time.sleep(0.02)
    assert again.status_code == 200


# ---- keys, ids, logs


def test_only_who_has_a_key_may_ask(served, tmp_path):
    (tmp_path / "keys").write_text("# ours\nfirst-key-0123456789\nsecond-key-0123456789\n")
    client = served(key_hashes=key_hashes(tmp_path / "keys"))
    assert client.post("/match", json=PAIR).status_code == 401 and client.get("/metrics").status_code == 401
    for key, status in (
        ("first-key-0123456789", 200),
        ("second-key-0123456789", 200),
        ("second-key-012345678", 401),
        ("x", 401),
    ):
        response = client.post("/match", json=PAIR, headers={"authorization": f"Bearer {key}"})
        assert response.status_code == status and ("www-authenticate" in response.headers) == (status == 401)
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == client.get("/").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8080", 200),
        ("127.0.0.1", 200),
        ("[::1]:8080", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:8080", 421),
        ("[", 421),
        ("", 421),
    ],
)
def test_without_keys_nobody_is_answered_under_another_name(served, host, status):
    """A page in a browser here could give its own name this machine's address."""
    assert served().post("/match", json=PAIR, headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--host", "0.0.0.0"), "whoever reaches this machine could ask"),
        (("--keys", "nowhere"), "nowhere: no such file"),
        (("--queue", 0), "--queue 0: a whole number from 1 to 1,000,000 is wanted"),
        (("--model_path", "nowhere"), "no such model folder"),
        (("--backend", "x"), "there is no such engine"),
        (("--workers", 0), "--workers 0: a whole number from 1 to 1,024"),
        (("--workers", 2, "--keep_traffic"), "--workers 1"),
        (("--engine_args=--dtype half",), "no server is started here"),
        (("--port", 70_000), "--port 70000: a whole number from 1 to 65,535"),
        (("--port", 0), "--port 0: a whole number from 1 to"),
        (("--port", "abc"), "--port abc: a whole number from 1 to"),
        (("--review", "nowhere"), "nowhere: no such file"),
        (("--backend", "openai_api"), "--upstream"),
        (("--timeout", "nan"), "--timeout nan: a number from 0.1"),
        (("--workers", 2, "--backend", "vllm"), "a vllm server of its own"),
    ],
)
def test_a_wrong_start_is_told(words, message, capsys):
    assert exit_code(serve, *words) == 2 and message in capsys.readouterr().err


def test_short_keys_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("STEWARD_API_KEYS", "short")
    with pytest.raises(UserError, match="key 1 of STEWARD_API_KEYS is shorter"):
        key_hashes(None)


def test_a_port_in_use_is_told_before_a_model_is_loaded(capsys):
    server = Server(saying(GOOD))
    assert (
        exit_code(serve, "--port", server.http.server_port) == 2 and "choose another --port" in capsys.readouterr().err
    )


def test_a_requests_id_is_given_back_and_an_odd_one_replaced(served):
    client = served()
    assert client.get("/healthz", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert client.get("/healthz", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"


def test_the_log_holds_no_record_text_and_no_traceback(served, capfd):
    client = served()
    for body in (
        json.dumps(PAIR),
        json.dumps(PAIR | {"Zebulon": 1}),
        '{"Quux": ',
        json.dumps({"record1": {"Zebulon": "explode"}, "record2": {}}),
        json.dumps({"record1": {"Quux": "x" * 6_000}, "record2": {}}),
        json.dumps([PAIR]).replace("Quux", "\\ud800"),
    ):
        client.post("/match", content=body, headers={"content-type": "application/json"})
        client.post("/match/batch", content=body, headers={"content-type": "application/json"})
    log = log_of(capfd, '"method": "POST"', 12)
    assert not any(word in log for word in (*SECRETS, "Traceback", "explode"))
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    found = [line for line in lines if line["route"] == "/match"]
    assert (
        len(found) == 6
        and all(line["request"] and line["ms"] >= 0 for line in found)
        and found[0]["result"] == "POSSIBLE"
    )


def test_an_error_that_nobody_expected_shows_no_words_of_the_client(served, monkeypatch, capfd):
    client = served()
    monkeypatch.setattr(
        tasks.crm.service, "check_body", lambda value, limits: (_ for _ in ()).throw(RuntimeError(f"odd: {value}"))
    )
    response = client.post("/match", json=PAIR)
    log = log_of(capfd, "RuntimeError")
    assert response.status_code == 500 and response.headers["x-request-id"] in response.json()["error"]
    assert "RuntimeError at test_serve.py" in log and not any(word in log + response.text for word in SECRETS)


def test_records_are_logged_where_that_was_asked_for(served, capfd):
    served(log_records=True).post("/match", json=PAIR)
    assert "Zebulon" in log_of(capfd, '"route": "/match"')


# ---- a model behind a server elsewhere


@pytest.fixture
def upstream(monkeypatch):
    servers = []
    monkeypatch.setattr(openai_api, "TIMEOUT_S", 1.0)

    def start(behave, **options):
        servers.append(Server(behave, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()


def test_probabilities_are_asked_of_a_server_only_where_someone_wants_them(upstream):
    asked = []

    def behave(server, handler, body):
        asked.append(bool(body.get("logprobs")))
        server.say(handler, GOOD)

    with before(upstream(behave)) as client:
        client.post("/match", json=PAIR)
        client.post("/match?detail=true", json=PAIR)
        client.post("/v1/chat/completions", json={"messages": TASK.messages(PAIR), "logprobs": True})
        client.post("/v1/chat/completions", json={"messages": TASK.messages(PAIR)})
    assert asked == [False, True, True, False]


@contextlib.contextmanager
def before(server, **settings):
    with running(upstream=server.endpoint, model_path="steward", **settings) as client:
        yield client


def test_a_server_elsewhere_answers(upstream):
    with before(upstream(saying(GOOD))) as client:
        assert client.post("/match", json=PAIR).json() == json.loads(GOOD)
        assert len(client.post("/match/batch", json=[PAIR] * 20).text.splitlines()) == 20


def test_a_service_that_ends_while_its_server_starts_leaves_no_server(tmp_path):
    stopped = threading.Event()
    stopped.set()
    context = contextvars.copy_context()
    context.run(model_server.STOPPED.set, stopped)

    def start():
        command = [sys.executable, "-c", "import time; time.sleep(600)", "steward-test-server"]
        with (
            pytest.raises(WorkFailed, match="stopped before"),
            model_server.running(command, "http://127.0.0.1:9/health", tmp_path / "log"),
        ):
            pass

    context.run(start)
    assert not subprocess.run(["pgrep", "-f", "steward-test-server"], capture_output=True).stdout


def test_engines_in_the_process_can_say_whether_a_prompt_fits():
    for name in ("hf", "llama_cpp"):
        assert callable(importlib.import_module(f"constrained_decode.{name}").Engine.check_prompt)


def test_without_a_name_the_servers_first_model_is_asked(upstream, tmp_path):
    named = []

    def behave(server, handler, body):
        named.append(body["model"])
        server.say(handler, GOOD)

    with running(upstream=upstream(behave).endpoint, model_path="", review_folder=str(tmp_path)) as client:
        assert client.post("/match", json=PAIR).status_code == 200 and named == ["steward"]


def test_an_engine_that_is_a_server_is_started_and_stopped_with_the_service(upstream, monkeypatch):
    """As --backend vllm and sglang are."""
    server = upstream(saying(GOOD))
    life = []

    @contextlib.contextmanager
    def start(model_path, task, config, n_rows, more, log):
        life.append(f"started {more}")
        yield server.endpoint, {}
        life.append("stopped")

    module = SimpleNamespace(serve=start, connect=openai_api.connect, STARTS_SERVER=True)
    monkeypatch.setattr(service.answering, "load_engine", lambda name: module)
    with running(backend="vllm", engine_args="--dtype half") as client:
        assert client.post("/match", json=PAIR).json() == json.loads(GOOD) and life == ["started --dtype half"]
    assert life[1:] == ["stopped"]


@pytest.mark.parametrize(
    ("behave", "status", "why"),
    [
        (hang, 504, "timeout"),
        (cut, 502, "connection cut"),
        (saying("rubbish"), 502, "no answer that fits"),
        (saying("{", status=500), 502, "status 500"),
        (saying("{", status=401), 502, "not allowed"),
        (saying("{", status=404), 502, "not found"),
        (saying("maximum context length is 4096; Zebulon", status=400), 413, "longer than the model can read"),
    ],
)
def test_a_server_that_fails_gives_no_verdict(upstream, behave, status, why, capfd):
    with before(upstream(behave)) as client:
        response = client.post("/match", json=PAIR)
        assert response.status_code == status and why in response.json()["error"] and "result" not in response.json()
        assert client.get("/healthz").status_code == 200
    assert not any(word in capfd.readouterr().err for word in (*SECRETS, "Traceback"))


def test_a_server_that_goes_down_makes_the_service_not_ready(upstream, monkeypatch):
    monkeypatch.setattr(service.answering, "READY_EVERY_S", 0.0)
    server = upstream(saying(GOOD))
    with before(server) as client:
        assert client.get("/readyz").status_code == 200
        server.http.shutdown()
        server.http.server_close()
        assert client.get("/readyz").status_code == 503 and client.get("/healthz").status_code == 200
        assert client.post("/match", json=PAIR).status_code == 502


# ---- the process


@contextlib.contextmanager
def process(*words, command=(sys.executable, str(ROOT / "src/serve.py")), **environment):
    port = model_server.free_port()
    command = [*command, f"PORT={port}"] if command[0] == "make" else [*command, "--port", str(port), *map(str, words)]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command, cwd=ROOT, env=os.environ | environment, start_new_session=True, stdout=log, stderr=log
        ) as one,
    ):
        one.said = lambda: (log.seek(0), log.read())[1]
        client = httpx2.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False, limits=httpx2.Limits(max_connections=64)
        )
        try:
            until = time.monotonic() + 90
            while one.poll() is None and time.monotonic() < until:
                with contextlib.suppress(httpx2.HTTPError):
                    if client.get("/readyz").status_code == 200:
                        break
                time.sleep(0.1)
            yield one, client
        finally:
            client.close()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(one.pid, signal.SIGKILL)


def in_flight(client):
    """Requests that the service is working on, but for this question."""
    return float(re.search(r"^steward_in_flight (\S+)", client.get("/metrics").text, re.M)[1]) - 1


@pytest.mark.slow
def test_whoever_was_let_in_before_sigterm_is_answered():
    rows = [row["input"] for row in synthetic_rows(24, 3)]
    with process() as (one, client):
        with ThreadPoolExecutor(24) as pool:
            waiting = [pool.submit(client.post, "/match", json=row) for row in rows]
            until = time.monotonic() + 20
            while sum(future.done() for future in waiting) + in_flight(client) < len(rows) and time.monotonic() < until:
                time.sleep(0.01)
            one.terminate()
            found = [response.result() for response in waiting]
        assert {response.status_code for response in found} == {200}
        assert all(jsonschema.Draft202012Validator(TASK.answer_schema).is_valid(response.json()) for response in found)
        assert one.wait(30) in (0, -signal.SIGTERM, 143) and "Traceback" not in one.said()


@pytest.mark.slow
def test_the_readmes_command_serves_and_its_question_is_answered():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [question] = re.findall(
        r"^curl http://127.0.0.1:8080/match -H 'content-type: application/json' -d '(.*)'$", readme, re.M
    )
    with process(command=("make", "serve", f"PY={sys.executable}", "REVIEWS=unused")) as (one, client):
        response = client.post("/match", content=question, headers={"content-type": "application/json"})
        assert response.status_code == 200 and set(response.json()) == {"result", "reasoning"}
        one.terminate()


@pytest.mark.slow
def test_several_processes_serve_and_count_together():
    with process("--workers", 2) as (one, client):

        def status(row):
            """Of the answer, once the process that is asked has loaded its model."""
            until = time.monotonic() + 60
            while (found := client.post("/match", json=row["input"]).status_code) == 503 and time.monotonic() < until:
                time.sleep(0.2)
            return found

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(status, synthetic_rows(12, 4))) == [200] * 12
        answered = 'steward_http_requests_total{method="POST",route="/match",status="200"'
        counted = [line for line in client.get("/metrics").text.splitlines() if line.startswith(answered)]
        assert [float(line.split()[-1]) for line in counted] == [12.0]
        one.terminate()
        one.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_model_that_cannot_be_loaded_ends_the_service_with_a_message(tmp_path, n_workers):
    import shutil

    shutil.copytree(ROOT / "models/steward-mini", tmp_path / "m")
    with open(tmp_path / "m/model.safetensors", "r+b") as file:
        file.seek(5_000_000)
        file.write(b"damaged!")
    with process("--model_path", tmp_path / "m", "--workers", n_workers) as (one, _):
        assert one.wait(60) == 2
        said = one.said()
        assert "damaged" in said and "the service did not start" in said and "Traceback" not in said


def test_memory_is_given_back_now_and_then(served, monkeypatch):
    given_back = threading.Event()
    monkeypatch.setattr(service.memory, "EVERY_S", 0.01)
    monkeypatch.setattr(
        service.memory,
        "ctypes",
        SimpleNamespace(CDLL=lambda _: SimpleNamespace(malloc_trim=lambda _: given_back.set())),
    )
    served()
    assert given_back.wait(5)


def test_a_capacity_that_the_operator_set_stays(monkeypatch):
    monkeypatch.setenv(service.memory.SHAPES_VARIABLE, "7")
    service.memory.keep_few_shapes()
    assert os.environ[service.memory.SHAPES_VARIABLE] == "7"
