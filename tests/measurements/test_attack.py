"""src/measure.py attack: its attackers against a service with a made-up model; what costs too much is named."""

from contextlib import nullcontext
from unittest.mock import Mock

import pytest

import interruption
import locks
from common import WorkFailed
from measurements import attack
from support.pipeline import exit_code
from support.serving import TASK, Model, running
from tasks.crm.synthetic import rows

# What each attack gets from a service whose bounds hold.
MET_WITH = {
    "held_batches": {"200": 3, "429": 2},
    "never_reading": {"nothing read": 1},
    "millions_of_lists": {"413": 3},
    "slow_heads": {"none": 2},
    "odd_record": {"200"},
    "cross_site": {"403": 2, "405": 1, "a steward is shown a case": False},
}


@pytest.fixture
def target(monkeypatch):
    for name, n in {
        "HELD_BYTES": 2**20,
        "N_HELD": 5,
        "N_NEVER_READING": 1,
        "N_MANY": 3,
        "N_MANY_BODIES": 1,
        "N_SLOW_HEADS": 2,
        "N_CROSS_SITE": 3,
    }.items():
        monkeypatch.setattr(attack, name, n)
    with running(Model(), monkeypatch) as client:
        cases = [row["input"] for row in rows(200, 1)]
        yield attack.Target(client.base_url.port, TASK.hook("service", "ROUTE"), cases, seconds=1.0)


@pytest.mark.parametrize("name", attack.ATTACKS)
def test_an_attack_ends_in_time_with_what_it_was_met_with(target, name):
    found = attack.ATTACKS[name](target)
    expected = MET_WITH[name]
    assert found == expected if isinstance(expected, dict) else found.keys() == expected
    assert attack.until_normal(target, peace_p95_ms=1_000) < 5


def test_clients_and_the_probe_are_answered(target):
    asked = attack.ask(target, 3)
    assert asked["n"] >= 3 and asked["statuses"] == {"200": asked["n"]}
    assert len(attack.is_alive(target)) > 3


def measured(name="slow_heads", saw=None, **beside):
    """What an attack cost, just within the bounds."""
    return {
        "attack": name,
        "peace": {"p95_ms": 100.0, "n": 9, "statuses": {"200": 9}},
        "beside": {
            "healthz_p99_ms": 99.0,
            "p95_ms": 200.0,
            "attack_saw": saw or {"408": 50},
            "n": 7,
            "statuses": {"200": 7},
        }
        | beside,
        "p95_times": 2.0,
        "memory_above_rest_mib": 300.0,
        "until_normal_s": 0.1,
    }


def test_what_costs_too_much_is_named():
    one = measured(p95_ms=201.0) | {"p95_times": 2.01}
    assert attack.problems(one) == ["slow_heads: 2.01 times the p95 in peace, at most 2.0"]
    assert "| slow heads | 99 | 300 | 100 | 201 | 2.01 | 0.1 | 408: 50 |" in attack.table([one])


def test_who_was_not_served_is_named():
    assert attack.problems(measured()) == []
    refused = measured(statuses={"200": 1, "429": 4, "503": 2})
    words = "slow_heads: of 7 ordinary requests (beside) some had no answer, 429: 4, 503: 2"
    assert attack.problems(refused) == [words]
    for shown, wrong in ((True, []), (False, ["cross_site: a steward was shown no case"])):
        assert attack.problems(measured("cross_site", {"403": 2, attack.SHOWN: shown})) == wrong


def test_a_review_that_never_comes_is_waited_for_no_longer_than_it_may_take(target, monkeypatch):
    monkeypatch.setattr(attack, "REVIEWED_WITHIN_S", 0.1)
    with pytest.raises(WorkFailed, match="had not answered 20 cases"):
        attack.until_reviewed(target)


def test_its_processes_leave_ctrl_c_to_it(monkeypatch):
    made = []
    monkeypatch.setattr(
        attack, "ProcessPoolExecutor", lambda *_, **options: made.append(options) or nullcontext(Mock())
    )
    with attack.pool():
        assert made == [{"initializer": interruption.leave_to_parent}]


def test_a_second_measurement_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(attack, "served", None)
    with locks.only_writer(tmp_path / "x.json"):
        assert exit_code(attack, "--out", tmp_path / "x.json") == 1
    assert "x.json is being written by process" in capsys.readouterr().err


def test_a_wrong_time_is_refused(capsys):
    assert exit_code(attack, "--out", "x.json", "--seconds", 0) == 2
    assert "--seconds 0.0: a number from 1 to 600" in capsys.readouterr().err
