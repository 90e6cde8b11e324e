"""POST /qod: the checked call, or 422 with the reasons in words; never an unchecked call."""

import dataclasses
import json

import jsonschema
import pytest
from referencing import Registry, Resource

from support.qod_answers import CALL, REFUSAL, changed, text
from support.serving import Model, running
from tasks.qod import checks
from tasks.qod import service as qod_service

SENTENCE = {"request": "Video consultation for +49 151 23456789 to 198.51.100.7, ninety minutes"}


class Parrot(Model):
    """Writes the call, the refusal or a bad call, as the request says."""

    TEXTS = {
        "refuse": text(REFUSAL),
        "fail": text(changed(("duration",), 90_000)),
        "prose": f"Here it is: {text(CALL)}",
        "nonsense": "I cannot do that.",
    }

    def answers(self, conversations):
        for at, answer in super().answers(conversations):
            word = conversations[at][-1]["content"].split()[0]
            yield at, dataclasses.replace(answer, text=self.TEXTS.get(word, text(CALL)))


@pytest.fixture(scope="module")
def served():
    with pytest.MonkeyPatch.context() as patched, running(Parrot(shares=None), patched, task="qod") as client:
        yield client


@pytest.mark.parametrize("words", [SENTENCE["request"], "prose around it"])
def test_a_call_is_the_body(served, words):
    response = served.post("/qod", json={"request": words})
    assert response.status_code == 200 and response.json() == CALL
    detail = served.post("/qod?detail=true", json={"request": words}).json()
    assert detail == CALL | {"closed_at_budget": False}


def test_a_request_that_lacks_something_gets_422_with_the_reasons(served):
    response = served.post("/qod", json={"request": "refuse this"})
    assert response.status_code == 422
    body = response.json()
    assert body["answer"] == REFUSAL and body.keys() == {"error", "answer"}
    assert "the duration is missing" in body["error"] and "several values" in body["error"]


def test_a_call_that_fails_a_check_gets_422_without_the_call(served):
    response = served.post("/qod", json={"request": "fail at once"})
    assert response.status_code == 422 and response.json().keys() == {"error"}
    assert "$.duration" in response.json()["error"] and "90" not in response.json()["error"]
    assert 'steward_unanswered_total{why="failed a check"}' in served.get("/metrics").text


def test_a_text_without_json_is_the_models_failure(served):
    response = served.post("/qod", json={"request": "nonsense please"})
    assert response.status_code == 502 and response.json().keys() == {"error"}


def test_a_batch_holds_each_in_its_place(served):
    cases = [{"request": words} for words in ("whole", "refuse", "fail", "nonsense")] + [{"wish": "x"}]
    lines = [json.loads(line) for line in served.post("/qod/batch", json=cases).text.splitlines()]
    assert lines[0] == CALL and lines[1]["answer"] == REFUSAL
    assert [line.get("status") for line in lines] == [None, 422, 422, 502, 422]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], "found a list"),
        ({}, "request missing"),
        ({"request": "x", "admin": True}, "only request is read"),
        ({"request": 7}, "found a number"),
        ({"request": " "}, "is empty"),
        ({"request": "x" * 4_001}, "at most 4,000"),
        ({"request": "half \ud83d"}, "surrogate"),
    ],
)
def test_a_body_that_is_no_request_says_so(served, body, words):
    response = served.post("/qod", content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code == 422 and words in response.json()["error"] and "answer" not in response.json()


def test_what_is_described_is_what_is_answered(served):
    described = served.get("/openapi.json").json()
    route = described["paths"]["/qod"]["post"]
    assert "lacks something" in route["responses"]["422"]["description"]
    resource = Resource.from_contents({"$schema": "https://json-schema.org/draft/2020-12/schema"} | described)
    registry = Registry().with_resource("urn:openapi", resource)

    def checker(name):
        reference = {"$ref": f"urn:openapi#/components/schemas/{name}"}
        return jsonschema.Draft202012Validator(reference, registry=registry)

    assert checker("Request").is_valid(SENTENCE) and not checker("Request").is_valid({"request": ""})
    for query in ("", "?detail=true"):
        assert checker("Answer").is_valid(served.post(f"/qod{query}", json=SENTENCE).json())
    assert not checker("Answer").is_valid(changed(("duration",), "5400"))
    assert checker("Error").is_valid(served.post("/qod", json={"request": "refuse"}).json())
    assert "answer" in described["components"]["schemas"]["Error"]["properties"]


def test_the_example_is_a_right_answer():
    assert checks.strict_violations(qod_service.EXAMPLE_ANSWER) == []
    assert qod_service.check_body(qod_service.EXAMPLE, None) is None
