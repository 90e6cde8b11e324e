"""The service of tasks without a service.py, three of them without a verdict: text, JSON, a tool call."""

import contextlib
import dataclasses
import json
from functools import lru_cache
from types import SimpleNamespace

import jsonschema
import pytest
from prometheus_client import Counter
from referencing import Registry, Resource

import make_standin
import review_export
import serve
import service.answering
from common import ROOT, UserError, read_jsonl
from constrained_decode import openai_api
from service import metrics
from service.review import chain, export
from service.settings import Limits
from service.task_contract import TaskContract
from support import letters, small_tasks
from support.pipeline import exit_code
from support.serving import Model, running
from tasks.crm import service as crm_service

JSON = {"content-type": "application/json"}
GEN = SimpleNamespace(gen=SimpleNamespace(max_new_tokens=64, temperature=0.0, top_p=1.0))
WRONG_CASES = {"notes": {"question": " "}, "booking": {"wish": "a room"}, "switches": ["light"]}


@pytest.fixture(params=small_tasks.NAMES)
def task(request, monkeypatch):
    return small_tasks.loaded(monkeypatch, request.param)


def sample(task):
    return read_jsonl(task.folder / "sample.jsonl")


@pytest.fixture
def served(task, monkeypatch):
    """A client of a service whose model always writes the first sample's answer."""
    text = task.completion(sample(task)[0]["output"])
    with running(Model(text, shares=None), monkeypatch, task=task.name) as client:
        yield client


def test_a_case_is_answered_under_one_key(task, served):
    row = sample(task)[0]
    response = served.post("/answer", json=row["input"])
    assert response.status_code == 200
    assert response.json() == {"answer": row["output"]}


def test_detail_says_what_there_is_to_say(task, served):
    row = sample(task)[0]
    body = served.post("/answer?detail=true", json=row["input"]).json()
    cut = {"cut_at_budget": False} if task.answer == "text" else {}
    assert body == {"answer": row["output"], "closed_at_budget": False} | cut


def test_a_text_that_the_budget_cut_off_says_so(monkeypatch):
    task = small_tasks.loaded(monkeypatch, "notes")

    class Cut(Model):
        def answers(self, conversations):
            for at, answer in super().answers(conversations):
                yield at, dataclasses.replace(answer, finish_reason="length")

    with running(Cut(sample(task)[0]["output"], shares=None), monkeypatch, task=task.name) as client:
        body = client.post("/answer?detail=true", json=sample(task)[0]["input"]).json()
    assert body["cut_at_budget"] is True


@pytest.mark.parametrize("is_lines", [False, True])
def test_a_batch_comes_back_in_order_with_what_was_wrong_in_its_place(task, served, is_lines):
    cases = [row["input"] for row in sample(task)]
    cases[3] = WRONG_CASES[task.name]
    content = "\n".join(map(json.dumps, cases)) if is_lines else json.dumps(cases)
    kind = "application/x-ndjson" if is_lines else "application/json"
    response = served.post("/answer/batch", content=content, headers={"content-type": kind})
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert response.status_code == 200 and len(lines) == len(cases)
    assert lines[3]["status"] == 422
    assert all(line == {"answer": sample(task)[0]["output"]} for at, line in enumerate(lines) if at != 3)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'{"a": NaN}', 400),
        (b'{"request": "\xff"}', 400),
        (b"null", 422),
        (b"[]", 422),
        (json.dumps({str(at): at for at in range(201)}).encode(), 422),
        (json.dumps({"request": json.loads("[" * 9 + "]" * 9)}).encode(), 422),
        (json.dumps({"request": "x" * 6_000, "question": "x" * 6_000}).encode(), 413),
        (json.dumps({"request": "x" * 70_000}).encode(), 413),
    ],
)
def test_a_body_that_is_no_case_is_refused_with_its_reason(served, body, status):
    response = served.post("/answer", content=body, headers=JSON)
    assert response.status_code == status
    assert set(response.json()) == {"error"} and len(response.json()["error"]) > 8
    assert "x" * 20 not in response.text and "record" not in response.text and "pair" not in response.text


def test_what_the_task_says_of_a_case_is_told(task, served):
    wrong = WRONG_CASES[task.name]
    response = served.post("/answer", json=wrong)
    assert response.status_code == 422 and response.json()["error"] == "; ".join(task.check_case(wrong))


def test_an_answer_that_is_none_is_an_error(task, monkeypatch):
    with running(Model(" ", shares=None), monkeypatch, task=task.name) as client:
        response = client.post("/answer", json=sample(task)[0]["input"])
    assert response.status_code == 502 and "sent no answer" in response.json()["error"]


def schema_checker(described, name):
    """A validator of one of the schemas in /openapi.json."""
    resource = Resource.from_contents(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "urn:openapi"} | described
    )
    registry = Registry().with_resource("urn:openapi", resource)
    reference = {"$ref": f"urn:openapi#/components/schemas/{name}"}
    return jsonschema.Draft202012Validator(reference, registry=registry)


def test_the_described_routes_fit_what_is_really_asked_and_answered(task, served):
    described = served.get("/openapi.json").json()
    case = sample(task)[0]["input"]
    assert set(described["paths"]) == {
        "/healthz",
        "/readyz",
        "/metrics",
        "/answer",
        "/answer/batch",
        "/v1/models",
        "/v1/chat/completions",
    }
    route = described["paths"]["/answer"]["post"]
    asked = route["requestBody"]["content"]["application/json"]
    answered = route["responses"]["200"]["content"]["application/json"]
    name = task.case.capitalize()
    assert asked["schema"]["$ref"].endswith(f"/{name}") and asked["example"] == case
    assert schema_checker(described, name).is_valid(case)
    assert schema_checker(described, "Answer").is_valid(answered["example"])
    for query in ("", "?detail=true"):
        body = served.post(f"/answer{query}", json=case).json()
        assert schema_checker(described, "Answer").is_valid(body)
    assert not schema_checker(described, "Answer").is_valid({"answer": 3})
    assert not schema_checker(described, name).is_valid({"a": [[[[[]]]]]})
    words = json.dumps(described).lower()
    assert not [word for word in ("record", "pair", "review", "verdict", "duplicate") if word in words]


def test_metrics_and_log_know_no_verdict(task, served):
    served.post("/answer", json=sample(task)[0]["input"])
    text = served.get("/metrics").text
    assert 'route="/answer",status="200"' in text and "steward_answer_seconds_bucket" in text


def test_the_chat_route_answers_in_the_tasks_own_form(task, served):
    row = sample(task)[0]
    body = {"model": "steward", "messages": task.messages(row["input"])}
    choice = served.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert task.parsed(choice["message"]["content"]) == row["output"]
    assert served.get("/v1/models").json()["data"][0]["answer_schema"] == task.answer_schema
    assert served.post("/v1/chat/completions", json=body | {"logprobs": True}).status_code == 422
    in_json = served.post("/v1/chat/completions", json=body | {"response_format": {"type": "json_object"}})
    assert in_json.status_code == (200 if task.answer == "json" else 422)


@pytest.mark.parametrize("streams", [False, True])
def test_the_projects_own_engine_can_ask_the_service(task, served, streams):
    row = sample(task)[0]
    engine = openai_api.load("steward", task, GEN, endpoint=endpoint_of(served))
    messages = task.messages(row["input"])
    answer = engine.ask(messages, streams=True) if streams else dict(engine.answers([messages]))[0]
    assert task.parsed(answer.text) == row["output"]
    assert answer.probabilities is None and answer.finish_reason == "stop"


def endpoint_of(client):
    return f"{str(client.base_url).rstrip('/')}/v1"


def test_a_service_before_our_own_service_answers_too(task, served, monkeypatch):
    row = sample(task)[0]
    monkeypatch.setattr(service.answering, "load_engine", lambda name: openai_api)
    with running(task=task.name, upstream=endpoint_of(served), model_path="steward") as client:
        assert client.post("/answer", json=row["input"]).json() == {"answer": row["output"]}


def test_nobody_is_shown_a_review_page_without_verdicts(served):
    for path in ("/", "/review/next", "/review/statistics"):
        assert served.get(path).status_code == 404, path


@pytest.mark.parametrize("words", [("--review", "cases.jsonl"), ("--keep_traffic",)])
def test_a_review_of_a_task_without_a_verdict_is_refused(task, words, capsys):
    assert exit_code(serve, "--task", task.name, "--model_path", "somewhere", *words) == 2
    message = capsys.readouterr().err
    assert f"{words[0]}: " in message and f"the task {task.name} has none" in message
    assert message.count("\n") == 1


def test_an_export_of_decisions_without_a_verdict_is_refused(task, capsys):
    assert exit_code(review_export, "--task", task.name) == 2 and "has none" in capsys.readouterr().err


def test_without_a_model_that_ships_one_must_be_named(task, capsys):
    assert exit_code(serve, "--task", task.name) == 2
    assert f"no model ships for the task {task.name}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_model_serves_the_task(task, tmp_path):
    """Random weights: what fits is the engine's doing. Asked directly, and by the project's own engine."""
    rows = sample(task)
    texts = [message["content"] for row in rows for message in task.messages(row["input"])]
    texts += [task.completion(row["output"]) for row in rows]
    tokenizer, model = make_standin.make(texts, 1)
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    config = str(ROOT / "configs" / "standin.yaml")
    with running(task=task.name, model_path=str(tmp_path), config=config) as client:
        body = client.post("/answer", json=rows[0]["input"]).json()
        assert task.answer_problems(body["answer"]) == []
        engine = openai_api.load("steward", task, GEN, endpoint=endpoint_of(client))
        answers = dict(engine.answers([task.messages(row["input"]) for row in rows[:3]]))
        assert all(task.parsed(answer.text) is not None for answer in answers.values())


# ---- a task with a verdict of its own


@pytest.fixture
def moods(tmp_path, monkeypatch):
    return letters.loaded(monkeypatch, tmp_path / "tasks")


@contextlib.contextmanager
def reviewed(moods, monkeypatch, tmp_path):
    engine = Model(moods.completion(letters.ANGRY), shares=letters.SHARES)
    with running(engine, monkeypatch, task="moods", review_folder=str(tmp_path), keep_traffic=True) as client:
        yield client


def test_another_verdict_is_answered_counted_and_reviewed(moods, monkeypatch, tmp_path):
    # One process counts one task's verdicts; the tests of CRM's share this one.
    count = lru_cache(lambda key: Counter("steward_moods_total", "Answers by mood", [key]))
    monkeypatch.setattr(metrics, "verdicts", count)
    with reviewed(moods, monkeypatch, tmp_path) as client:
        body = client.post("/answer?detail=true", json={"text": "WHERE IS IT"}).json()
        assert body == {"answer": letters.ANGRY, "probabilities": letters.SHARES, "closed_at_budget": False}
        assert 'steward_moods_total{mood="angry"} 1.0' in client.get("/metrics").text
        found = client.post("/review/next", json={}).json()
        card = found["card"]
        page = found["page"]
        assert found["labels"] == ["glad", "angry", "unclear"]
        assert card[page["verdict_key"]] == "angry" and card[page["reason_key"]] == "It shouts."
        assert card["rows"] == [{"field": "text", "relation": None, "value": "WHERE IS IT"}]
        assert page["case"] == "letter" and list(page["columns"]) == ["value"]
        said = {"pair": card["pair"], "action": "decide", "verdict": "unclear", "reviewer": "kim", "reason": "irony"}
        assert client.post("/review/decide", json=said).json()["action"] == "correct"
        assert client.get("/review/statistics").json()["matrix"] == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]
    [entry] = chain.read(tmp_path / "decisions.jsonl")
    assert chain.problems(tmp_path / "decisions.jsonl") == []
    assert entry["mood"] == "unclear" and entry["model_mood"] == "angry" and entry["reason"] == "irony"
    contract = TaskContract(moods, Limits())
    assert export.model_answer(entry, moods) == letters.ANGRY
    assert export.row_of(entry, contract)["output"] == letters.ANGRY | {"mood": "unclear", "reason": "irony"}
    rejected = export.preference_of(entry, export.row_of(entry, contract), moods)["rejected"]
    assert json.loads(rejected) == letters.ANGRY


def test_the_review_is_described_with_the_tasks_own_labels(moods, monkeypatch, tmp_path):
    with reviewed(moods, monkeypatch, tmp_path) as client:
        described = client.get("/openapi.json").json()
    decide = described["paths"]["/review/decide"]["post"]["requestBody"]["content"]["application/json"]
    checker = jsonschema.Draft202012Validator(decide["schema"])
    assert checker.is_valid(decide["example"]) and "letter" in described["paths"]["/review/next"]["post"]["summary"]
    assert not checker.is_valid(decide["example"] | {"verdict": "sad"})
    assert "Letter" in described["components"]["schemas"] and "Verdict" in described["components"]["schemas"]


# ---- what a service.py says


def test_a_reference_inside_a_schema_is_found_in_the_description(moods, monkeypatch):
    """A schema's references start at its own top, not at that of /openapi.json."""
    schema = json.loads(json.dumps(letters.SCHEMA)) | {"$defs": {"count": {"type": "integer"}}}
    schema["properties"]["shown"] = {"$ref": "#/$defs/count"}
    (moods.folder / "answer.schema.json").write_text(json.dumps(schema))
    with running(Model(moods.completion(letters.ANGRY)), monkeypatch, task="moods") as client:
        described = client.get("/openapi.json").json()
    checker = schema_checker(described, "Verdict")
    assert checker.is_valid({"answer": letters.ANGRY}) and not checker.is_valid(
        {"answer": letters.ANGRY | {"shown": "seven"}}
    )


def test_every_name_of_crms_service_is_one_that_the_service_reads():
    """A name that nobody reads would be a promise not kept."""
    documented = TaskContract.__init__.__globals__["__doc__"]
    names = [name for name in vars(crm_service) if name.isupper() and name != "RECORDS"]
    names += ["case_schema", "check_body", "evidence", "reason_for"]
    assert len(names) > 10 and [name for name in names if name not in documented] == []


def test_an_unknown_word_is_an_error(moods, monkeypatch):
    (moods.folder / "service.py").write_text('WORDS = {"recrods": "x"}\n')
    with pytest.raises((TypeError, UserError), match="recrods"):
        TaskContract(moods, Limits())
