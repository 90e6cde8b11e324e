"""An adapter's folder loads as one model with its base, wherever a model folder is asked for."""

import dataclasses
import json
import shutil

import pytest

import make_standin
import sft_train
from common import ROOT, UserError, WorkFailed, read_json, sha256_file, write_json
from config import load_config
from constrained_decode import llama_cpp, load_engine, sglang, vllm
from language_model import adapter, chat_template, hub, model_folder
from language_model.base_model import has_bfloat16_arithmetic
from language_model.verdict_branch import find_branch, verdict_probabilities
from service import answering
from tasks import load_task
from tasks.crm.synthetic import rows as synthetic_rows
from training import shipping

TASK = load_task()
CASES = [TASK.messages(row["input"]) for row in synthetic_rows(6, 3)]


@dataclasses.dataclass
class Trained:
    config: object
    base: object
    lora: object
    merged: object
    shipped: object


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A stand-in base, an adapter of random matrices as training leaves it, and what is made of both."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    place = tmp_path_factory.mktemp("adapters")
    base, lora, merged, shipped = (place / name for name in ("base", "x-lora", "x-merged", "crm-x"))
    texts = [message["content"] for messages in CASES for message in messages]
    tokenizer, model = make_standin.make(texts, 1)
    model.save_pretrained(base)
    config = load_config(ROOT / "configs" / "standin.yaml", [f"model_id={base}"])
    torch.manual_seed(5)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.02)
    model.save_pretrained(lora)
    model.merge_and_unload().save_pretrained(merged)
    for folder in (base, lora, merged):
        tokenizer.save_pretrained(folder)
    training = {"rows": 6, "epochs": 1, "steps": 2, "precision": "float32", "tokens_per_s": 1.0}
    training |= {"selected_by": "macro_f1", "best_val_macro_f1": 0.5}
    facts = {"config": dataclasses.asdict(config), "task": "crm", "fingerprint": "f", "training": training, "data": {}}
    facts |= {"command": "python src/sft_train.py", "wall_s": 2.0, "hardware": {}, "versions": {}, "finished": "today"}
    write_json(lora / "manifest.json", facts | {"weights_sha256": model_folder.weights_sha256(lora)})
    made_of = {"adapter_sha256": sha256_file(lora / "adapter_model.safetensors")}
    write_json(merged / "manifest.json", facts | made_of | {"weights_sha256": model_folder.weights_sha256(merged)})
    write_json(merged / "calibration.json", {"temperature": 1.5})
    shipping.ship(config, lora, merged, shipped)
    return Trained(config, base, lora, merged, shipped)


def shares(folder, config):
    engine = load_engine("hf").load(folder, TASK, config)
    found = {at: list(shares.values()) for at, shares in engine.verdicts(CASES)}
    return [found[at] for at in range(len(CASES))]


def test_adapter_folded_merged_and_beside_its_base_decide_alike(trained):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    coarse = 1e-2 if has_bfloat16_arithmetic() else None  # then a CPU calculates in it
    merged = shares(trained.merged, trained.config)
    shipped = shares(trained.shipped, trained.config)
    for one, other in zip(merged, shipped, strict=True):
        assert one == pytest.approx(other, abs=coarse or 2e-3)
    base = AutoModelForCausalLM.from_pretrained(trained.base)
    beside = PeftModel.from_pretrained(base, trained.lora).eval()
    chat = chat_template.load_chat(trained.config)
    found = verdict_probabilities(beside, chat.prompts_ids(CASES), find_branch(chat, TASK), chat.pad_id)
    folded = adapter.folded(trained.lora).eval()
    again = verdict_probabilities(folded, chat.prompts_ids(CASES), find_branch(chat, TASK), chat.pad_id)
    for one, other in zip(found, again, strict=True):
        assert list(one.values()) == pytest.approx(list(other.values()), abs=coarse or 1e-4)
    without = verdict_probabilities(
        AutoModelForCausalLM.from_pretrained(trained.base).eval(),
        chat.prompts_ids(CASES),
        find_branch(chat, TASK),
        chat.pad_id,
    )
    assert (
        max(
            abs(a - b) for x, y in zip(found, without, strict=True) for a, b in zip(x.values(), y.values(), strict=True)
        )
        > 0.01
    )


def test_what_ships_is_half_the_bytes_and_names_its_base(trained):
    size = (trained.lora / "adapter_model.safetensors").stat().st_size
    assert (trained.shipped / "adapter_model.safetensors").stat().st_size < 0.6 * size
    assert sorted(path.name for path in trained.shipped.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "calibration.json",
        "manifest.json",
    ]
    assert hub.base_of(trained.shipped) == str(trained.base)
    facts = read_json(trained.shipped / "manifest.json")
    assert facts["base_weights_sha256"] == model_folder.weights_sha256(trained.base)
    assert "rank 32" in (trained.shipped / "README.md").read_text()


def copy_of(trained, folder):
    return shutil.copytree(trained.shipped, folder)


def test_an_adapter_with_one_bit_flipped_is_refused(trained, tmp_path):
    folder = copy_of(trained, tmp_path / "a")
    data = bytearray((folder / "adapter_model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "adapter_model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="adapter_model.safetensors: not the weights that manifest.json names"):
        load_engine("hf").load(folder, TASK, trained.config)


def test_a_base_that_is_gone_is_named(trained, tmp_path, monkeypatch):
    folder = copy_of(trained, tmp_path / "a")
    rename_base(folder, "models/gone")
    with pytest.raises(UserError, match="models/gone: no such model folder"):
        load_engine("hf").load(folder, TASK, trained.config)


def rename_base(folder, name):
    settings = read_json(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", settings | {"base_model_name_or_path": str(name)})


def test_a_base_of_another_shape_is_one_sentence(trained, tmp_path):
    folder = copy_of(trained, tmp_path / "a")
    rename_base(folder, ROOT / "models" / "steward-mini")
    with pytest.raises(UserError, match="this adapter does not fit .*steward-mini"):
        adapter.folded(folder)


def test_other_weights_than_those_of_the_training_are_said(trained, tmp_path, capsys):
    folder = copy_of(trained, tmp_path / "a")
    adapter.ensure_base(folder)
    assert capsys.readouterr().err == ""
    facts = read_json(folder / "manifest.json")
    write_json(folder / "manifest.json", facts | {"base_weights_sha256": "0" * 64})
    adapter.ensure_base(folder)
    assert "was trained on other weights than those in" in capsys.readouterr().err


def test_an_adapter_of_four_bit_weights_is_not_folded_into_whole_ones(trained, tmp_path):
    folder = copy_of(trained, tmp_path / "a")
    facts = read_json(folder / "manifest.json")
    facts["config"]["peft"]["method"] = "qlora"
    write_json(folder / "manifest.json", facts)
    with pytest.raises(UserError, match="trained against 4-bit weights.*name the merged model"):
        load_engine("hf").load(folder, TASK, trained.config)


@pytest.mark.parametrize("engine", [llama_cpp, vllm, sglang])
def test_engines_that_want_whole_weights_say_so(engine, trained, monkeypatch):
    if engine is vllm:
        monkeypatch.setattr(vllm, "check_installed", lambda: None)
    monkeypatch.setattr(llama_cpp, "library", lambda name: None)
    with pytest.raises(UserError, match="an adapter alone; this engine wants whole weights"):
        engine.load(trained.shipped, TASK, trained.config)


def test_an_adapter_is_known_by_its_weights_and_not_by_its_times(trained, tmp_path):
    assert model_folder.model_identity(copy_of(trained, tmp_path / "a")) == model_folder.model_identity(trained.shipped)


def test_where_a_base_can_come_from_changes_no_training(trained, monkeypatch, tmp_path):
    for name in ("train", "val"):
        (tmp_path / name).write_text(json.dumps(name))
    args = type("Args", (), {"train": tmp_path / "train", "val": tmp_path / "val"})
    package = {"package": load_config(ROOT / "configs" / "smollm2_135m.yaml").package}
    named = dataclasses.replace(trained.config, **package)
    first, second = (sft_train.training_fingerprint(args, config, TASK) for config in (trained.config, named))
    assert first == second


def test_shipping_touches_no_folder_that_holds_something_else(trained, tmp_path):
    shipping.check(trained.config, tmp_path / "new")
    shipping.check(trained.config, trained.shipped)
    (tmp_path / "mine").write_text("mine")
    for place in (tmp_path, tmp_path / "mine", trained.base):
        with pytest.raises(UserError, match="holds something else than an adapter"):
            shipping.check(trained.config, place)
    with pytest.raises(UserError, match="holds something else"):
        shipping.check(trained.config, type(tmp_path)("."))


def test_what_could_not_be_loaded_is_not_shipped(trained):
    peft = dataclasses.replace(trained.config.peft, method="qlora")
    with pytest.raises(UserError, match="trained against 4-bit weights"):
        shipping.check(dataclasses.replace(trained.config, peft=peft), trained.shipped)
    with pytest.raises(UserError, match="lies in the hub's cache only; run make fetch"):
        shipping.check(dataclasses.replace(trained.config, model_id="some-org/Some-Model"), trained.shipped)


def test_an_adapter_that_the_merged_model_was_not_made_from_is_not_shipped(trained, tmp_path):
    merged = shutil.copytree(trained.merged, tmp_path / "merged")
    write_json(merged / "manifest.json", read_json(merged / "manifest.json") | {"adapter_sha256": "0" * 64})
    with pytest.raises(WorkFailed, match="not the adapter that .*merged was made from"):
        shipping.ship(trained.config, trained.lora, merged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_known_by_the_base_that_it_meets(trained, tmp_path):
    folder = copy_of(trained, tmp_path / "a")
    before = [model_folder.model_identity(folder), answering.fingerprint(folder)]
    base = tmp_path / "base"
    shutil.copytree(trained.base, base)
    rename_base(folder, base)
    one = answering.fingerprint(folder)
    shutil.copy(trained.merged / "model.safetensors", base)
    assert answering.fingerprint(folder) != one, "the same names and another base"
    assert model_folder.model_identity(folder) != before[0] and one != before[1]
