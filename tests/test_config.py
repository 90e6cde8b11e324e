"""Every YAML holds what the plan asks for; the reader takes numbers, overrides and sections as people write them."""

import json
import re
from pathlib import Path

import pytest

from common import UserError
from config import Config, config_from_dict, load_config, model_names
from tasks import load_task

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PLAN_MODELS = {
    "phi4mini": "microsoft/Phi-4-mini-instruct",
    "qwen3_4b": "Qwen/Qwen3-4B-Instruct-2507",
    "llama3_2_3b": "meta-llama/Llama-3.2-3B-Instruct",
    "mistral7b": "mistralai/Mistral-7B-Instruct-v0.3",
}
PLAN_SCHEMA = {
    "type": "object",
    "properties": {
        "result": {"enum": ["DUPLICATE", "POSSIBLE", "NO_MATCH"]},
        "reasoning": {"type": "string", "minLength": 1, "maxLength": 320},
    },
    "required": ["result", "reasoning"],
    "additionalProperties": False,
}
PLAN_SYSTEM = (
    "You are a CRM data steward. Return **strict JSON** with keys: `result` (one of `DUPLICATE`, `POSSIBLE`, "
    "`NO_MATCH`) "
    "and `reasoning` (one short sentence). No extra text."
)
LLAMA = ROOT / "configs" / "llama3_2_3b.yaml"


def test_there_are_configs_to_test():
    assert len(CONFIGS) >= 5 and set(PLAN_MODELS) <= set(model_names())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_says_how_to_run_it(path):
    assert isinstance(load_config(path), Config)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"# accelerate launch src/sft_train.py --config configs/{path.name}"
    comments = [line for line in lines if line.startswith("#")]
    assert any(re.search(r"\bLicence: \S", line) for line in comments)
    assert any(re.search(r"\bContext: [\d,]+ tokens", line) for line in comments)


@pytest.mark.parametrize("name", PLAN_MODELS)
def test_the_plan_s_values_hold(name):
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    assert config.model_id == PLAN_MODELS[name]
    assert (config.peft.r, config.peft.alpha, config.peft.dropout) == (64, 16, 0.05)
    assert (config.train.epochs, config.train.batch_size * config.train.grad_accum, config.train.max_seq_len) == (
        3,
        64,
        4096,
    )
    assert (config.gen.max_new_tokens, config.gen.temperature, config.gen.top_p) == (64, 0.1, 0.9)
    assert config.train.lr == 2e-4 and isinstance(config.train.lr, float)


def test_phi_3_and_the_task_qod_have_the_settings_of_their_specification():
    """In the task's overlay they hold for every model."""
    phi = load_config(ROOT / "configs" / "phi3mini.yaml")
    assert phi.model_id == "microsoft/Phi-3-mini-4k-instruct" and phi.peft.method == "qlora"
    assert phi.peft.target_modules == "all-linear"
    for config in (phi, load_config(LLAMA, overlay=load_task("qod").overlay)):
        assert (config.peft.r, config.peft.alpha, config.peft.dropout) == (16, 16, 0.05)
        train = config.train
        assert (train.lr, train.epochs, train.batch_size, train.grad_accum) == (2e-4, 3, 2, 4)
        assert (train.schedule, train.optimizer) == ("linear", "paged_adamw_8bit")
        dpo = config.dpo
        assert (dpo.lr, dpo.epochs, dpo.batch_size, dpo.beta) == (5e-5, 1, 1, 0.1)


def test_schema_and_system_text_are_the_plan_s():
    assert json.loads((ROOT / "configs" / "decoding.jsonschema").read_text()) == PLAN_SCHEMA
    assert load_task("crm").answer_schema == PLAN_SCHEMA
    assert (ROOT / "src" / "tasks" / "crm" / "prompt.md").read_text(encoding="utf-8").strip() == PLAN_SYSTEM
    assert load_task("crm").messages({})[0] == {"role": "system", "content": PLAN_SYSTEM}


@pytest.mark.parametrize(
    "text, value",
    [("2e-4", 2e-4), ("1E5", 1e5), ("+3.5e-2", 0.035), (".5e-1", 0.05), ("0.001", 0.001), ("1.e-3", 0.001)],
)
def test_numbers_as_people_write_them(text, value):
    limit = "weight_decay"
    found = getattr(load_config(LLAMA, [f"train.{limit}={text}"]).train, limit)
    assert found == value and isinstance(found, float)


@pytest.mark.parametrize(
    "override, section, key, value",
    [
        ("train.lr=1e-4", "train", "lr", 1e-4),
        ("train.epochs=1", "train", "epochs", 1.0),
        ("train.packing=off", "train", "packing", "off"),
        ("peft.target_modules=all-linear", "peft", "target_modules", "all-linear"),
        ("peft.target_modules=[q_proj, v_proj]", "peft", "target_modules", ["q_proj", "v_proj"]),
        ("merge.dtype=float32", "merge", "dtype", "float32"),
        ("chat.system_in_user=true", "chat", "system_in_user", True),
        ("chat.template_vars.date_string='01 Jan 2030'", "chat", "template_vars", {"date_string": "01 Jan 2030"}),
        ("peft={method: lora, r: 4, alpha: 8, dropout: 0, target_modules: all-linear}", "peft", "r", 4),
    ],
)
def test_overrides(override, section, key, value):
    assert getattr(getattr(load_config(LLAMA, [override]), section), key) == value


def test_a_nested_override_leaves_its_neighbours(tmp_path):
    other = "chat:\n  template_vars:\n    date_string: a\n    mode: b\n"
    path = tmp_path / "c.yaml"
    path.write_text(LLAMA.read_text(encoding="utf-8").split("chat:")[0] + other, encoding="utf-8")
    assert load_config(path, ["chat.template_vars.mode=c", "train.seed=7", "train.seed=8"]).chat.template_vars == {
        "date_string": "a",
        "mode": "c",
    }
    assert load_config(path, ["train.seed=7", "train.seed=8"]).train.seed == 8


@pytest.mark.parametrize(
    "override, words",
    [
        ("train.lr=.nan", "train.lr"),
        ("train.lr=0", "above 0.0"),
        ("train.lr=0.2", "at most 0.1"),
        ("train.lr=true", "expected a number"),
        ("train.lr=", "None"),
        ("gen.top_p=1.5", "at most 1.0"),
        ("gen.temperature=.inf", "expected a number"),
        ("peft.dropout=1", "below 1.0"),
        ("peft.r=0", "at least 1"),
        ("peft.target_modules=[]", "target_modules"),
        ("peft.target_modules=", "target_modules"),
        ("model_id=' '", "model_id"),
        ("gen=5", "must be a section"),
        ("train.packing=maybe", "did you mean"),
        ("train.optimizer=adam", "none of adamw, paged_adamw_8bit"),
        ("chat.template=alpca", "did you mean 'alpaca'"),
        ("chat.template_vars={a: 1}", "template_vars"),
        ("train={lr: 1, lr: 2}", "--set"),
        ("trian.lr=1", "did you mean 'train'"),
    ],
)
def test_impossible_values_are_refused_by_name(override, words):
    with pytest.raises(UserError) as error:
        load_config(LLAMA, [override])
    assert words in str(error.value) and "--set" in str(error.value)


def test_a_config_survives_its_manifest():
    import dataclasses

    for path in CONFIGS:
        config = load_config(path)
        assert config_from_dict(json.loads(json.dumps(dataclasses.asdict(config))), "manifest.json") == config
