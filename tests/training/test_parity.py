"""How many choices of a merged model may differ from its adapter's before the gate refuses it."""

import pytest

from training import parity

LIMIT = 1e-3
SURE = {"gold": 0.9, "other": 0.1}
TURNED = {"gold": 0.1, "other": 0.9}
TORN = {"gold": 0.501, "other": 0.499}
TORN_TURNED = {"gold": 0.499, "other": 0.501}


def compared(adapter, merged, in_batches=None):
    with_adapter = parity.Look(adapter, in_batches or adapter, [-0.1])
    noise = parity.probability_gap(with_adapter.choices, with_adapter.choices_in_batches)
    return parity.compare(with_adapter, parity.Look(merged, merged, [-0.1]), noise, LIMIT, "token")


def turned(n, of, by=TURNED):
    return [by] * n + [SURE] * (of - n)


@pytest.mark.parametrize(
    ("n", "of", "passes"),
    [(0, 64, True), (1, 64, False), (1, 999, False), (1, 2_000, True), (2, 2_000, True), (3, 2_000, False)],
)
def test_one_clear_choice_in_a_thousand_may_change(n, of, passes):
    found = compared([SURE] * of, turned(n, of))
    assert found["clear_tokens_changed"] == n
    assert found["passed"] == passes == (n <= found["clear_tokens_allowed"])


def test_what_the_adapter_changes_by_itself_is_allowed_to_the_merged_model():
    adapter = [SURE] * 60
    found = compared(adapter, turned(3, 60), in_batches=turned(1, 60))
    assert found["noise"] == pytest.approx(0.8 / 60)
    assert found["clear_tokens_allowed"] == parity.NOISE_ALLOWED
    assert found["passed"]
    assert not compared(adapter, turned(4, 60), in_batches=turned(1, 60))["passed"]


def test_a_choice_that_was_open_does_not_count():
    found = compared([TORN] * 64, [TORN_TURNED] * 64)
    assert (found["tokens_changed"], found["clear_tokens_changed"]) == (64, 0)


def test_a_large_difference_of_all_is_refused_although_no_choice_changes():
    found = compared([SURE] * 64, [{"gold": 0.8, "other": 0.2}] * 64)
    assert (found["tokens_changed"], found["passed"]) == (0, False)
