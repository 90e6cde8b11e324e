"""No sentence contradicts the field comparison unmarked: the panel, the KPI and the marks stand on one comparison."""

import itertools
import json
import re
from types import SimpleNamespace

import pytest

from common import ROOT
from constrained_decode import hf
from language_model.model_folder import model_config
from scoring import kpis as scoring
from tasks import load_task
from tasks.crm import kpis, service
from tasks.crm.fields import relation
from tasks.crm.reasons import reasoning
from tasks.crm.synthetic import rows as synthetic_rows

TASK = load_task()
CASE = {
    "record1": {"name": "Ann Lee", "phone": "555 0101", "city": "Austin"},
    "record2": {"full_name": "Ann Leigh", "phone": "5550101", "zip": "78701"},
}
# The words of the project's own sentences, read without the code that is tested.
WRITTEN = {
    "same": r"match(?:es)?",
    "similar": r"(?:are|is) similar",
    "different": r"differs?",
    "one_sided": r"(?:are|is) on one side only",
}


@pytest.fixture(scope="module")
def rows():
    return list(synthetic_rows(300, 41))


def stated(sentence):
    """{(field, what is stated of it)} of a sentence of the project's own form."""
    found = set()
    for clause in sentence.removesuffix(".").split(": ", 1)[1].split("; "):
        for name, words in WRITTEN.items():
            if match := re.fullmatch(rf"(.+) {words}", clause):
                found |= {(field, name) for field in re.split(r", | and ", match.group(1))}
    return found


def shown(case):
    """{field: what the panel shows}, of the fields that are compared."""
    rows = service.evidence(case)
    return {row["field"]: row["relation"] for row in rows if row["relation"] != "not_compared"}


def marked(case, sentence):
    return {(one["field"], one["stated"]) for one in kpis.unsupported(case, {"reasoning": sentence})}


def test_every_contradiction_of_the_panel_is_marked_and_nothing_else(rows):
    """Each sentence beside the records of the next row, of which much of it is not true."""
    n_marked = 0
    for row, other in itertools.pairwise(rows):
        panel = shown(other["input"])
        sentence = row["output"]["reasoning"]
        # A field that only the other pair has may stand for parts of one, as a name for first and last name.
        claims = {(field, said) for field, said in stated(sentence) if field in panel}
        wrong = {
            (field, said)
            for field, said in claims
            if ("one_sided" if panel[field].endswith("_only") else panel[field]) != said
        }
        found = {(field, said) for field, said in marked(other["input"], sentence) if field in panel}
        assert found == wrong, (sentence, panel)
        n_marked += len(wrong)
    assert n_marked > 200


def test_the_projects_own_sentences_are_never_marked(rows):
    for row in rows:
        assert kpis.unsupported(row["input"], row["output"]) == [], row
        for label in TASK.verdict.labels:
            assert marked(row["input"], reasoning(label, row["input"])) == set()


@pytest.mark.parametrize(
    ("sentence", "expected"),
    {
        "Clear duplicate: name is similar.": [("name", "name", "similar", "different")],
        "Clear duplicate: phone matches.": [],
        "No match: phones differ.": [("phone", "phones", "different", "same")],
        "Same person: phone is similar.": [("phone", "phone", "similar", "same")],
        "Email matches.": [("email", "Email", "same", "not_given")],
        "City matches; zip code differs.": [
            ("city", "City", "same", "left_only"),
            ("postal code", "zip code", "different", "right_only"),
        ],
        "Full names match; first name matches.": [("name", "Full names", "same", "different")],
        "Ann is a nickname; no email on either side.": [],
        "Email is on one side only; tax id is missing.": [("email", "Email", "one_sided", "not_given")],
        "Field 4 is on one side only; c1 and city match.": [
            ("field 4", "Field 4", "one_sided", "not_given"),
            ("c1", "c1", "same", "not_given"),
            ("city", "city", "same", "left_only"),
        ],
        "Phone is only in record 1.": [("phone", "Phone", "one_sided", "same")],
    }.items(),
)
def test_a_mark_names_the_field_its_words_and_both_sides(sentence, expected):
    found = kpis.unsupported(CASE, {"reasoning": sentence})
    assert [tuple(one.values()) for one in found] == expected
    assert all(list(one) == ["field", "words", "stated", "evidence"] for one in found)


def test_an_answer_without_a_sentence_states_nothing():
    assert kpis.unsupported(CASE, {"result": "DUPLICATE"}) == []


def test_the_kpi_is_the_share_of_what_is_marked():
    sentences = ["Phone matches; name is similar.", "Phone is similar.", "Name and phone differ.", "Nothing is said."]
    rows = [
        {
            "input": CASE,
            "gold": {"result": "POSSIBLE", "reasoning": "x"},
            "raw": "{}",
            "answer": {"result": "POSSIBLE", "reasoning": sentence},
            "label": "POSSIBLE",
            "probabilities": None,
            "finish_reason": "stop",
        }
        for sentence in sentences
    ]
    found = scoring.score(rows, TASK)["kpis"]
    n_marked = sum(len(kpis.unsupported(CASE, row["answer"])) for row in rows)
    assert n_marked == 3 and found["unsupported_pct"]["n"] == 5
    assert found["unsupported_pct"]["value"] == 100 * n_marked / 5 and found["unsupported_pct"]["ci95"]
    # What is the same is similar too: true, and yet not what the panel beside it shows.
    assert found["faithful_pct"]["value"] == 60


def test_the_answer_in_the_services_description_is_what_its_panel_shows():
    assert kpis.unsupported(service.EXAMPLE, service.EXAMPLE_ANSWER) == []
    assert shown(service.EXAMPLE) == {"name": "similar", "phone": "same", "city": "same"}


def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_readmes_rows_say_what_the_panel_shows():
    [row] = [json.loads(line) for line in readme().splitlines() if line.startswith('{"input"')]
    assert kpis.unsupported(row["input"], row["output"]) == []
    [first] = re.findall(r"```json\n(\{.*\})\n(\{.*\})\n(\{.*\})\n```", readme())
    left, right, answer = map(json.loads, first)
    assert kpis.unsupported({"record1": left, "record2": right}, answer) == []


def test_readmes_question_is_answered_as_its_panel_shows():
    """By the model that ships: what matches is named, and nothing contradicts the records."""
    [question] = re.findall(r"^curl \S+/match .* -d '(.*)'$", readme(), re.M)
    case = json.loads(question)
    folder = ROOT / TASK.shipped
    config = model_config(SimpleNamespace(model_path=str(folder), config=None), TASK)
    [(_, reply)] = hf.load(str(folder), TASK, config).answers([TASK.messages(case)])
    answer = TASK.parsed(reply.text)
    assert answer == {"result": "DUPLICATE", "reasoning": "Clear duplicate: phone matches; name is similar."}
    assert kpis.unsupported(case, answer) == []


@pytest.mark.parametrize(
    ("kind", "left", "right", "expected"),
    [
        ("last_name", "Smith", "Smyth", "similar"),
        ("last_name", "Adams", "Adasm", "similar"),
        ("first_name", "Kira", "Kiar", "similar"),
        ("city", "Paris", "Pari", "similar"),
        ("city", "Bern", "Bonn", "different"),
        ("first_name", "Mary", "Mark", "different"),
        ("first_name", "Dan", "Jan", "different"),
        ("name", "J. Smith", "Jonathan Smith", "similar"),
        ("name", "Smith, J.", "Jonathan Smith", "similar"),
        ("name", "J. S.", "Jonathan Smith", "different"),
        ("name", "K. Smith", "Jonathan Smith", "different"),
        ("name", "Ann Lee", "Ann Leigh", "different"),
        ("website", "abc.de", "abd.de", "similar"),
        ("website", "ab.de", "ac.de", "different"),
        ("house_number", "12345", "12346", "different"),
        ("last_name", "!", "?", "same"),
    ],
)
def test_values_compare_as_a_careful_steward_would(kind, left, right, expected):
    assert relation(kind, left, right) == relation(kind, right, left) == expected
