"""src/measure.py attack: its attackers against a service with a made-up model; what costs too much is named."""

import pytest

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


def test_what_costs_too_much_is_named():
    one = {
        "attack": "slow_heads",
        "peace": {"p95_ms": 100.0},
        "beside": {"healthz_p99_ms": 99.0, "p95_ms": 201.0, "attack_saw": {"408": 50}},
        "p95_times": 2.01,
        "memory_above_rest_mib": 300.0,
        "until_normal_s": 0.1,
    }
    assert attack.problems(one) == ["slow_heads: 2.01 times the p95 in peace, at most 2.0"]
    assert "| slow heads | 99 | 300 | 100 | 201 | 2.01 | 0.1 | 408: 50 |" in attack.table([one])


def test_a_wrong_time_is_refused(capsys):
    assert exit_code(attack, "--out", "x.json", "--seconds", 0) == 2
    assert "--seconds 0.0: a number from 1 to 600" in capsys.readouterr().err
