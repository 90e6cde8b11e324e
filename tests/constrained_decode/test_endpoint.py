"""Endpoints that obey, ignore, refuse, hang, break off and babble: each has its outcome, and none becomes a verdict."""

import json
import math
import re
import subprocess
import sys
from types import SimpleNamespace

import jsonschema
import pytest

from common import ROOT, UserError, parse_json
from constrained_decode import _automaton, _endpoint, openai_api
from support.endpoint import GOOD, Server, cut, hang, saying
from tasks import load_task
from tasks.crm.synthetic import rows as synthetic_rows

TASK = load_task()
GEN = SimpleNamespace(max_new_tokens=64, temperature=0.0, top_p=1.0)
QUESTION = [{"role": "user", "content": "?"}]


@pytest.fixture
def asked(monkeypatch):
    """The engine's answer to one question put to a server that behaves so, and the engine."""
    servers = []

    def ask(behave, n=1, **options):
        server = Server(behave, **options)
        servers.append(server)
        engine = openai_api.load("steward", TASK, SimpleNamespace(gen=GEN), endpoint=server.endpoint)
        answers = dict(engine.answers([QUESTION] * n))
        return [answers[at] for at in range(n)], engine, server

    monkeypatch.setattr(openai_api, "TIMEOUT_S", 1.0)
    yield ask
    for server in servers:
        server.http.shutdown()


def test_a_valid_answer_is_given_as_it_came(asked):
    [answer], engine, _ = asked(saying(GOOD))
    assert (answer.text, answer.finish_reason, answer.prompt_tokens, answer.completion_tokens, answer.late) == (
        GOOD,
        "stop",
        9,
        5,
        0,
    )
    assert engine.outcomes == {"valid": 1}


@pytest.mark.parametrize("cut", range(len('{"result":"P'), len(GOOD)))
@pytest.mark.parametrize("spaced", [False, True])
def test_an_answer_cut_off_behind_its_verdict_is_closed_and_one_before_it_is_not(cut, spaced):
    text = GOOD[:cut].replace('":', '": ').replace('",', '", ') if spaced else GOOD[:cut]
    whole = _automaton.closed(_automaton.compile_schema(TASK.answer_schema), text)
    answer = parse_json(whole)
    assert jsonschema.Draft202012Validator(TASK.answer_schema).is_valid(answer) and answer["result"] == "POSSIBLE"
    kept = GOOD[:cut].partition('"reasoning":"')[2].removesuffix('"').removesuffix('"}')
    assert answer["reasoning"] == (kept or "."), whole


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"result":"',
        '{"result": "',
        "POSSIBLE",
        '{"result":"MAYBE","reasoning":"x',
        '["result"',
        '{"reasoning":"x","result":"POSS',
    ],
)
def test_no_verdict_is_made_up(text):
    assert _automaton.closed(_automaton.compile_schema(TASK.answer_schema), text) is None


@pytest.mark.parametrize(
    ("tail", "kept"),
    [("abc\\", "abc"), ("abc\\u00", "abc"), ("é", "é"), ("x" * 400, "x" * 320), ("a\nb", "a"), ("a\ud800", "a")],
)
def test_what_a_string_cannot_hold_ends_it(tail, kept):
    whole = _automaton.closed(
        _automaton.compile_schema(TASK.answer_schema), '{"result":"POSSIBLE","reasoning":"' + tail
    )
    assert parse_json(whole)["reasoning"] == kept


def test_a_cut_answer_is_closed_and_counted(asked):
    [answer], engine, _ = asked(saying(GOOD[:40], finish="length"))
    assert (
        parse_json(answer.text)["result"] == "POSSIBLE"
        and answer.late == 1
        and engine.outcomes == {"closed at the budget": 1}
    )


def test_a_benchmarks_clients_ask_for_no_log_probabilities(asked):
    bodies = []

    def keep(server, handler, body):
        bodies.append(body)
        server.say(handler, GOOD)

    _, engine, server = asked(keep)
    client = openai_api.connect("steward", TASK, SimpleNamespace(gen=GEN), server.endpoint, 1)
    assert client.ask(QUESTION).text == GOOD
    assert ["logprobs" in body for body in bodies] == [True, False] and bodies[1]["response_format"] == bodies[0][
        "response_format"
    ]


def test_free_text_is_no_verdict(asked):
    [answer], engine, _ = asked(saying("It is a duplicate."))
    assert answer.text == "It is a duplicate." and engine.outcomes == {"not valid": 1}


def test_a_server_that_ignores_the_constraint_stops_the_run_before_anything_is_asked(asked):
    with pytest.raises(UserError, match="ignores response_format"):
        asked(saying(GOOD), obeys=False)


@pytest.mark.parametrize(
    ("status", "words"), [(401, "API key"), (404, "wrong model name"), (400, "status 400: no such thing")]
)
def test_a_server_that_refuses_stops_the_run_with_its_words(asked, status, words):
    with pytest.raises(UserError, match=words):
        asked(lambda server, handler, body: server.send(handler, "no such thing", status), obeys=None)


def test_no_server_is_said_with_its_address():
    with pytest.raises(UserError, match=r"127.0.0.1:9/v1: not reachable.*is the server up"):
        openai_api.load("steward", TASK, SimpleNamespace(gen=GEN), endpoint="http://127.0.0.1:9/v1")


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(asked, status):
    def busy_once(server, handler, body):
        if server.n_asked == 1:
            return server.send(handler, "later", status, Retry_After="0.05")
        return server.say(handler, GOOD)

    [answer], engine, server = asked(busy_once)
    assert answer.text == GOOD and server.n_asked == 2 and engine.outcomes == {"asked again": 1, "valid": 1}


def test_a_server_that_stays_busy_fails_the_request(asked):
    [answer], engine, server = asked(
        lambda server, handler, body: server.send(handler, "full", 429, Retry_After="0.01")
    )
    assert (
        server.n_asked == _endpoint.TRIES and answer.text == "" and answer.finish_reason == "failed: status 429: full"
    )
    assert answer.probabilities is None and engine.outcomes["status 429"] == 1


@pytest.mark.parametrize(
    ("behave", "outcome"),
    [
        (hang, "timeout"),
        (cut, "connection cut"),
        (lambda server, handler, body: server.send(handler, "<html>"), "not an answer"),
        (lambda server, handler, body: server.send(handler, '{"choices": []}'), "not an answer"),
    ],
)
def test_what_goes_wrong_in_an_answer_is_counted_and_the_others_go_on(asked, behave, outcome):
    def every_other(server, handler, body):
        return behave(server, handler, body) if server.n_asked % 2 else server.say(handler, GOOD)

    answers, engine, _ = asked(every_other, n=6)
    failed = [answer for answer in answers if answer.text == ""]
    assert len(failed) == 3 and all(answer.finish_reason.startswith(f"failed: {outcome}") for answer in failed)
    assert engine.outcomes == {outcome: 3, "valid": 3}


@pytest.mark.parametrize(
    "tokens",
    [['{"', "result", '":"', "POSS", "IBLE"], ['{"result": "', "P", "OSSIBLE"], ["{", '"result":', '"POSSIBLE', '"']],
)
def test_probabilities_are_read_where_the_verdict_is_written(asked, tokens):
    at = next(place for place, token in enumerate(tokens) if "P" in token)
    lead = tokens[at][: tokens[at].index("P")]
    others = [
        (lead + spelled, share) for spelled, share in (("P", 0.3), ("POSS", 0.3), ("DUP", 0.2), ("N", 0.1), ("XX", 0.1))
    ]
    logprobs = [
        {
            "token": token,
            "top_logprobs": [{"token": other, "logprob": math.log(share)} for other, share in others]
            if place == at
            else [],
        }
        for place, token in enumerate(tokens)
    ]
    [answer], engine, _ = asked(saying(GOOD, logprobs=logprobs))
    assert answer.probabilities == pytest.approx({"POSSIBLE": 0.6 / 0.9, "DUPLICATE": 0.2 / 0.9, "NO_MATCH": 0.1 / 0.9})
    assert next(iter(dict(engine.verdicts([QUESTION])).values())) == pytest.approx(answer.probabilities)


def test_a_server_without_log_probabilities_gives_answers_but_no_verdict_probabilities(asked):
    [answer], engine, _ = asked(saying(GOOD))
    assert answer.probabilities is None
    with pytest.raises(UserError, match="no logprobs"):
        list(engine.verdicts([QUESTION]))


def piece(text, finish=None):
    return {"choices": [{"delta": {"content": text}, "finish_reason": finish}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5}}


@pytest.fixture
def streamed(monkeypatch):
    """One answer asked of a server that sends these pieces."""
    servers = []

    def ask(pieces, ends=True):
        server = Server(
            lambda server, handler, body: (
                server.stream(handler, pieces, ends) if body.get("stream") else server.say(handler, GOOD)
            )
        )
        servers.append(server)
        return openai_api.connect("steward", TASK, SimpleNamespace(gen=GEN), server.endpoint, 2).ask(
            QUESTION, streams=True
        )

    monkeypatch.setattr(openai_api, "TIMEOUT_S", 1.0)
    yield ask
    for server in servers:
        server.http.shutdown()


def test_a_streamed_answer_is_put_together_and_its_first_token_timed(streamed):
    answer = streamed(
        [{"choices": [{"delta": {"role": "assistant"}}]}, piece(GOOD[:9]), piece(GOOD[9:]), piece("", "stop"), USAGE]
    )
    assert (answer.text, answer.finish_reason, answer.prompt_tokens, answer.completion_tokens) == (GOOD, "stop", 9, 5)
    assert 0 < answer.first_s <= answer.seconds


@pytest.mark.parametrize(
    ("pieces", "ends", "outcome"),
    [
        ([piece(GOOD[:20])], False, "connection cut"),
        ([], False, "connection cut"),
        (["{oops"], True, "not an answer"),
        ([piece(GOOD[:20]), {"error": {"message": "out of memory"}}], True, "not an answer"),
    ],
)
def test_a_stream_that_goes_wrong_is_no_verdict(streamed, pieces, ends, outcome):
    answer = streamed(pieces, ends)
    assert answer.text == "" and answer.finish_reason.startswith(f"failed: {outcome}") and answer.first_s is None


def test_a_streamed_answer_that_the_budget_cut_is_closed(streamed):
    answer = streamed([piece(GOOD[:30]), piece(GOOD[30:40], "length"), USAGE])
    assert parse_json(answer.text)["result"] == "POSSIBLE" and answer.late == 1


def test_a_server_that_lists_no_model_is_told_to_be_named():
    with pytest.raises(UserError, match=r"lists no model.*--model_path names a model"):
        openai_api.connect(None, TASK, SimpleNamespace(gen=GEN), "http://127.0.0.1:9/v1", 2)


def test_the_pages_command_scores_a_server(tmp_path):
    """The page's own words, with this server's address in them."""
    page = (ROOT / "docs/decoding.md").read_text(encoding="utf-8")
    [command] = re.findall(r"^```bash\n(python src/evaluate_kpis.py --backend openai_api .*)\n```", page, re.M)
    server = Server(saying(GOOD))
    with open(tmp_path / "rows.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in synthetic_rows(12, 1))
    words = command.replace("http://localhost:8000/v1", server.endpoint).replace("reports/", f"{tmp_path}/").split()
    done = subprocess.run(
        [sys.executable, *words[1:], "--data", str(tmp_path / "rows.jsonl")], cwd=ROOT, capture_output=True, text=True
    )
    server.http.shutdown()
    assert done.returncode == 0, done.stdout + done.stderr
    kpis = json.loads((tmp_path / "phi4mini_metrics.json").read_text())["kpis"]
    assert kpis["json_valid_pct"]["value"] == 100 and kpis["json_valid_pct"]["n"] == 12 and kpis["ece"]["value"] is None
