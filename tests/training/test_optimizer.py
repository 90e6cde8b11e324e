"""The 8-bit optimizer is taken where it can run; elsewhere AdamW, and one line says what was missing."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch

import check_model
from common import ROOT
from config import Train, load_config
from tasks import load_task
from training import fine_tuning, micro_batch, optimizer, preference_trainer
from training import trainer as loop


@pytest.mark.parametrize(
    ("has_gpu", "package", "taken", "lacking"),
    [
        (True, "found", "paged_adamw_8bit", None),
        (True, None, "adamw", "the package bitsandbytes"),
        (False, "found", "adamw", "a CUDA GPU"),
    ],
)
def test_what_lacks_is_named(monkeypatch, has_gpu, package, taken, lacking):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    assert optimizer.taken("paged_adamw_8bit") == taken
    words = optimizer.replaced_words("paged_adamw_8bit")
    assert words is None if lacking is None else f"needs {lacking}, which is not here; training with adamw" in words
    assert optimizer.taken("adamw") == "adamw" and optimizer.replaced_words("adamw") is None


def test_every_setting_has_its_name_and_its_memory():
    settings = Train.__annotations__["optimizer"].__args__
    assert set(optimizer.IN_TRANSFORMERS) == set(check_model.ADAPTER_BYTES) == set(settings)


@pytest.mark.parametrize("able", [True, False])
def test_fine_tuning_takes_it_and_preference_tuning_never(monkeypatch, tmp_path, able):
    monkeypatch.setattr(optimizer, "obstacle", lambda wanted: None if able else "a CUDA GPU")
    config = load_config(ROOT / "configs" / "standin.yaml", overlay=load_task("qod").overlay)
    plan = fine_tuning.Plan(False, 2, 4, 2, 8, "not packed")
    found = loop.arguments(config, plan, "float32", tmp_path / "checkpoints")
    assert found.optim == ("paged_adamw_8bit" if able else "adamw_torch_fused")
    tuning = preference_trainer.arguments(config, "float32", 4, tmp_path / "checkpoints")
    assert tuning.optim == "adamw_torch_fused"


@pytest.mark.parametrize(("optim", "n_bytes"), [("adamw_torch_fused", 2 * 4), ("paged_adamw_8bit", 2 * 1)])
def test_its_states_are_counted_before_there_are_any(optim, n_bytes):
    model = torch.nn.Linear(10, 10, bias=False)
    trainer = SimpleNamespace(model=model, args=SimpleNamespace(optim=optim))
    assert micro_batch.optimizer_bytes(trainer) == 100 * n_bytes
