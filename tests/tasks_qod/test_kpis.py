"""KPIs of QoD answers: what fits no schema is judged by its text, and refusals are counted apart from calls."""

import pytest

from scoring import kpis as scoring
from support.qod_answers import CALL, GONE, REFUSAL, changed, text
from tasks import load_task
from tasks.qod import checks, kpis

TASK = load_task("qod")
REQUEST = {"request": "a request"}
COUNTS = {name for _, *parts in kpis.AGGREGATES.values() for name in parts}


def score(written, gold):
    return kpis.score({"input": REQUEST, "output": gold, "text": written}, TASK.parsed(written))


def prediction(written, gold):
    facts = {"finish_reason": "stop", "completion_tokens": 9, "overruled": None, "late": None}
    return {"id": "x", "input": REQUEST, "gold": gold, "raw": written, "answer": TASK.parsed(written)} | facts


@pytest.mark.parametrize("written", ["", "no JSON", text(CALL), text(REFUSAL), text({"device": 3})])
@pytest.mark.parametrize("gold", [CALL, REFUSAL])
def test_every_row_has_every_count(written, gold):
    assert score(written, gold).keys() == COUNTS


def test_a_right_call_has_full_marks():
    found = score(text(CALL), CALL)
    assert {name for name, n in found.items() if not n} == {"lacking", "recognised", "named", "strange", "refused"}


def test_a_right_refusal_has_full_marks():
    found = score(text(REFUSAL), REFUSAL)
    assert {name for name, n in found.items() if n} == {
        "rows",
        "lacking",
        "check_json",
        "strict",
        "recognised",
        "named",
    }


def test_json_that_breaks_the_answers_schema_is_still_judged():
    written = text(changed(("duration",), "5400"))
    assert TASK.parsed(written) is None
    found = score(written, CALL)
    assert found["check_json"] == found["check_types"] == found["right_device"] == found["right_profile"] == 1
    assert found["check_duration"] == found["seven"] == found["official"] == found["right_duration"] == 0
    assert found["strict"] == found["right"] == 0


def test_a_text_that_is_no_json_passes_nothing():
    found = score(f"Here it is: {text(CALL)}", CALL)
    assert {name for name, n in found.items() if n} == {"rows", "complete"}


def test_a_refused_call_has_no_right_value_and_no_unknown_field():
    found = score(text(REFUSAL), CALL)
    assert found["refused"] == found["strict"] == found["check_unknown"] == 1
    assert found["check_required"] == found["seven"] == found["official"] == found["strange"] == 0
    assert not any(found[f"right_{name}"] for name in checks.PARTS)


@pytest.mark.parametrize(
    "answer",
    [
        changed(("priority",), 1),
        changed(("device", "publicAddress"), "203.0.113.75"),
        REFUSAL | {"admin": True},
        changed(("error", "admin"), [], REFUSAL),
    ],
)
def test_a_field_that_is_not_known_where_it_stands_is_counted(answer):
    assert score(text(answer), CALL)["strange"] == score(text(answer), REFUSAL)["strange"] == 1


def test_a_refusal_in_a_wrong_form_is_not_recognised():
    for written in (text({"error": "no device"}), text(CALL), text(changed(("error", "missing"), [], REFUSAL))[:-1]):
        found = score(written, REFUSAL)
        assert found["recognised"] == found["named"] == found["complete"] == 0
    other = score(text(changed(("error", "missing"), ["device"], REFUSAL)), REFUSAL)
    assert other["recognised"] == 1 and other["named"] == 0


def test_the_shares_of_a_handful_of_answers():
    rows = [
        prediction(text(CALL), CALL),
        prediction(text(changed(("qosProfile",), "QOS_L")), CALL),
        prediction(text(changed(("priority",), 1)), CALL),
        prediction(text(REFUSAL), CALL),
        prediction(text(REFUSAL), REFUSAL),
    ]
    found = {name: kpi["value"] for name, kpi in scoring.score(rows, TASK)["kpis"].items()}
    assert found["exact_pct"] == 40 and found["json_pct"] == 100 and found["strict_pct"] == 80
    assert found["seven_checks_pct"] == 50 and found["official_pct"] == 75 and found["unknown_fields_pct"] == 20
    assert found["profile_pct"] == 50 and found["device_pct"] == 75 and found["values_exact_pct"] == 25
    assert found["refused_pct"] == 25 and found["recognised_pct"] == found["refusal_exact_pct"] == 100


def test_every_column_of_the_comparison_is_a_kpi():
    rows = [prediction(text(CALL), CALL), prediction(text(REFUSAL), REFUSAL)]
    found = scoring.score(rows, TASK)["kpis"]
    assert {name: found[name]["value"] for name in TASK.columns.values()} == dict.fromkeys(TASK.columns.values(), 100)
    worst = [prediction("?", CALL), prediction(text(changed(("device",), GONE)), REFUSAL)]
    found = scoring.score(worst, TASK)["kpis"]
    assert [name for name in TASK.columns.values() if found[name]["value"]] == ["json_pct"]


def test_a_request_belongs_to_a_group_by_its_length():
    lengths = [kpis.slices({"request": "word " * n})["length"] for n in (1, 15, 16, 40, 41)]
    assert lengths == ["up to 15 words", "up to 15 words", "16 to 40 words", "16 to 40 words", "over 40 words"]
