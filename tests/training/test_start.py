"""A training that goes on from an adapter: it is checked before anything heavy, and its matrices are what trains."""

import json

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from common import ROOT, UserError
from config import load_config
from language_model import hub
from training import fine_tuning, start

BASE = "models/steward-mini"


def config(*overrides):
    return load_config(ROOT / "configs" / "steward_mini.yaml", overrides)


def tiny():
    torch.manual_seed(1)
    shape = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    return LlamaForCausalLM(shape)


@pytest.fixture
def made(tmp_path):
    """An adapter whose matrices are no longer those of a fresh one."""
    model = get_peft_model(tiny(), fine_tuning.adapter_settings(config()))
    with torch.no_grad():
        for weights in model.parameters():
            if weights.requires_grad:
                weights.add_(0.5)
    model.save_pretrained(tmp_path / "made")
    described = json.loads((tmp_path / "made" / "adapter_config.json").read_text())
    (tmp_path / "made" / "adapter_config.json").write_text(json.dumps(described | {"base_model_name_or_path": BASE}))
    return tmp_path / "made"


def test_training_begins_with_the_adapters_matrices(made):
    from_it = config(f"peft.start_from={made}")
    start.check(from_it)
    model = get_peft_model(tiny(), fine_tuning.adapter_settings(from_it))
    start.load(from_it, model)
    trained = [weights for name, weights in model.named_parameters() if "lora_B" in name]
    assert trained and all(torch.equal(weights, torch.full_like(weights, 0.5)) for weights in trained)


def test_a_base_may_be_named_by_its_folder(made, monkeypatch, tmp_path):
    monkeypatch.setenv(hub.BASES, str(tmp_path))
    base = hub.fetched_folder("org/base")
    base.mkdir()
    for name in ("config.json", "manifest.json"):
        (base / name).write_text("{}")
    described = json.loads((made / "adapter_config.json").read_text())
    (made / "adapter_config.json").write_text(json.dumps(described | {"base_model_name_or_path": str(base)}))
    start.check_base(config(f"peft.start_from={made}", "model_id=org/base"))
    with pytest.raises(UserError, match="was trained on .*, not on org/other"):
        start.check_base(config(f"peft.start_from={made}", "model_id=org/other"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["peft.r=8"], "made with r 32, and peft.r is 8"),
        (["peft.alpha=8"], "made with alpha 64, and peft.alpha is 8"),
    ],
)
def test_what_does_not_fit_is_said_before_training(made, settings, words):
    with pytest.raises(UserError, match=words):
        start.check(config(f"peft.start_from={made}", *settings))


def test_a_place_without_an_adapter_and_another_method(made):
    with pytest.raises(UserError, match="models/nowhere holds no adapter"):
        start.check(config("peft.start_from=models/nowhere"))
    (made / "manifest.json").write_text(json.dumps({"config": {"peft": {"method": "qlora"}}}))
    with pytest.raises(UserError, match="was trained with qlora, and peft.method is lora"):
        start.check(config(f"peft.start_from={made}"))


def test_other_modules_are_refused(made):
    from_it = config(f"peft.start_from={made}", "peft.target_modules=[q_proj]")
    with pytest.raises(UserError, match="adapts other modules than peft.target_modules names"):
        start.load(from_it, get_peft_model(tiny(), fine_tuning.adapter_settings(from_it)))
