"""What training does for a task with a verdict: its token's weight in the loss, and the temperature after the merge."""

import json
from types import SimpleNamespace

import pytest
import torch

from language_model.chat_template import IGNORED
from training import merge_adapter, parity
from training.trainer import VerdictsWeighted, token_weights

LABELS = torch.tensor([[IGNORED, IGNORED, 5, 6, 7, 8], [IGNORED, 5, 6, IGNORED, 5, 6]])


def test_the_weight_is_the_verdicts_alone_also_in_packed_rows():
    weights = token_weights(LABELS, 1, 3.0)
    assert torch.equal(weights / weights[0, 2], torch.tensor([[0, 0, 1, 3, 1, 1], [0, 1, 3, 0, 1, 3.0]]))
    assert weights.sum() == pytest.approx((LABELS != IGNORED).sum()), "the loss stays a mean over the answers' tokens"


def test_a_weight_of_one_weighs_nothing_and_of_zero_leaves_the_verdict_out():
    answers = (LABELS != IGNORED).float()
    assert torch.equal(token_weights(LABELS, 1, 1.0), answers)
    assert token_weights(LABELS, 1, 0.0)[0, 3] == 0


def test_weighted_model_scales_the_log_probability_that_predicts_the_verdict():
    model = VerdictsWeighted(lambda **inputs: SimpleNamespace(log_probs=torch.full((2, 5), -1.0)), 1, 3.0)
    found = model(labels=LABELS).log_probs
    assert found[0].argmin() == 2, "the token before the verdict predicts it"


def calibrated(folder, monkeypatch, n_examples, known):
    (folder / "calibration.json").write_text('{"temperature": 3.0}')
    branch = SimpleNamespace(opening=[9], token_of={"DUPLICATE": 1, "POSSIBLE": 2, "NO_MATCH": 3})
    examples = [
        {"input_ids": [7, 7, 9, 1 + 2 * (at % 2), 8], "labels": [IGNORED, IGNORED, 9, 1 + 2 * (at % 2), 8]}
        for at in range(n_examples)
    ]
    monkeypatch.setattr(parity, "load_merged", lambda folder: None)
    monkeypatch.setattr(parity, "choices", lambda model, prompts, *rest: [reported(at) for at in range(len(prompts))])
    return merge_adapter.calibrated(folder, examples, branch, SimpleNamespace(pad_id=0), known, "val.jsonl")


def reported(at, wrong_every=8):
    """Sure of DUPLICATE and NO_MATCH in turn, and wrong in each eighth."""
    right = at % wrong_every != 0
    return {
        "DUPLICATE": 0.98 if (at % 2 == 0) == right else 0.01,
        "POSSIBLE": 0.01,
        "NO_MATCH": 0.01 if (at % 2 == 0) == right else 0.98,
    }


def test_too_few_validation_rows_leave_no_calibration(tmp_path, monkeypatch):
    assert calibrated(tmp_path, monkeypatch, 49, [reported(at) for at in range(49)]) is None
    assert not (tmp_path / "calibration.json").exists(), "the base model's temperature is not that of the merged one"


@pytest.mark.parametrize("n, known", [(60, 60), (200, 64)], ids=["those of the parity gate", "all, asked anew"])
def test_the_temperature_is_fitted_on_the_validation_rows(tmp_path, monkeypatch, n, known):
    facts = calibrated(tmp_path, monkeypatch, n, [reported(at) for at in range(known)])
    kept = json.loads((tmp_path / "calibration.json").read_text())
    assert kept == facts and kept["rows"] == n and kept["fitted_on"] == "val.jsonl"
    assert kept["temperature"] > 1.5, "it was surer than it was right"
