"""What an answer states and the evidence beside it does not show is marked, by HTTP and on the review page."""

import json

import jsonschema
import pytest

from support import small_tasks
from support.chromium import BROWSER, started
from support.serving import PAIR, Model, running

SENTENCE = "Clear duplicate: surname and phone match; name differs; city is on one side only."
# Z. Quux and Zebulon Quux are similar, both telephones the same; neither record has a city.
MARKS = [
    {"field": "name", "words": "name", "stated": "different", "evidence": "similar"},
    {"field": "city", "words": "city", "stated": "one_sided", "evidence": "not_given"},
]


def saying(sentence):
    return Model(json.dumps({"result": "DUPLICATE", "reasoning": sentence}, separators=(",", ":")))


def test_detail_marks_what_the_evidence_does_not_show(monkeypatch):
    with running(saying(SENTENCE), monkeypatch) as client:
        plain = client.post("/match", json=PAIR).json()
        told = client.post("/match?detail=true", json=PAIR).json()
        (line,) = client.post("/match/batch?detail=true", json=[PAIR]).text.splitlines()
        described = client.get("/openapi.json").json()
    assert list(plain) == ["result", "reasoning"]
    assert told["unsupported"] == MARKS == json.loads(line)["unsupported"]
    shown = {row["field"]: row["relation"] for row in told["evidence"]}
    assert shown == {"name": "similar", "phone": "same"}
    schema = {"$ref": "#/components/schemas/Verdict", "components": described["components"]}
    jsonschema.Draft202012Validator(schema).validate(told)
    assert "unsupported" in described["components"]["schemas"]["Verdict"]["properties"]


def test_nothing_is_marked_where_the_evidence_shows_it(monkeypatch):
    with running(saying("Clear duplicate: phone matches; name is similar."), monkeypatch) as client:
        assert client.post("/match?detail=true", json=PAIR).json()["unsupported"] == []


def test_a_task_that_compares_nothing_marks_nothing(monkeypatch):
    task = small_tasks.loaded(monkeypatch, "notes")
    case = {"question": "Where?", "note": "Here."}
    with running(Model("Here.", shares=None), monkeypatch, task=task.name) as client:
        told = client.post("/answer?detail=true", json=case).json()
    assert "unsupported" not in told and "evidence" not in told


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
def test_the_review_page_marks_it_beside_the_sentence(tmp_path, monkeypatch):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n", encoding="utf-8")
    files = {"review_folder": str(tmp_path / "reviews"), "review_cases": str(tmp_path / "pairs.jsonl")}
    with started() as browser, running(saying(SENTENCE), monkeypatch, **files) as client:
        page = browser.new_page()
        page.goto(str(client.base_url))
        page.wait_for_selector("#card:not([hidden])")
        assert page.inner_text("#sentence") == SENTENCE
        assert page.locator("#sentence a.unsupported").all_inner_texts() == ["name", "city"]
        assert page.locator("#unsupported li").all_inner_texts() == [
            "Not supported: name (stated: different; compared: \u2248 similar)",
            "Not supported: city (stated: one sided; compared: in neither)",
        ]
        page.locator("#sentence a.unsupported").first.click()
        assert page.locator("#rows tr.pointed").get_attribute("data-field") == "name"
        page.check("#blind")
        assert page.locator("#unsupported").is_hidden(), "a mark would tell what the model says"
