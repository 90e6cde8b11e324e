"""Preference tuning on the stand-in: margins rise against a frozen reference, a killed run goes on, chosen answers that
fall are reported.
"""

import dataclasses
import json
import signal
from types import SimpleNamespace

import pytest

import dpo_train
import interruption
import make_standin
import sft_train
from common import ROOT, write_json
from config import load_config
from language_model import base_model, chat_template, model_folder
from support import small_tasks
from support.pipeline import exit_code
from training import fine_tuning, preference_pairs, preference_tuning

pytestmark = pytest.mark.slow
N_TRAIN = 6
N_VAL = 2
STEPS = 2 * N_TRAIN
QUICK = ["dpo.lr=2e-3", "dpo.epochs=2", "dpo.evals_per_epoch=2"]


@pytest.fixture(scope="module")
def task():
    with pytest.MonkeyPatch.context() as patch:
        # Two test workers share the cores, so each keeps to its one thread.
        patch.setattr(preference_tuning, "use_every_core", lambda: None)
        yield small_tasks.loaded(patch, "booking")


@pytest.fixture(scope="module")
def place(task, tmp_path_factory):
    """A stand-in base, an adapter as fine-tuning leaves it, pairs and prompts."""
    place = tmp_path_factory.mktemp("preferences")
    rows = [json.loads(line) for line in (task.folder / "sample.jsonl").read_text().splitlines()]
    texts = [message["content"] for row in rows for message in task.messages(row["input"])]
    tokenizer, model = make_standin.make(texts + [task.completion(row["output"]) for row in rows], 1)
    model.save_pretrained(place / "base")
    tokenizer.save_pretrained(place / "base")
    write_adapter(place / "out" / "standin-lora", model, tokenizer, f"{place}/base", task)
    lines = [pair_of(at, row, task) for at, row in enumerate(rows)]
    write_lines(place / "pairs.jsonl", lines[:N_TRAIN])
    write_lines(place / "pairs_val.jsonl", lines[N_TRAIN : N_TRAIN + N_VAL])
    write_lines(place / "prompts.jsonl", [prompt_of(pair, task) for pair in lines[N_TRAIN:]])
    return place


def write_adapter(folder, model, tokenizer, base, task):
    """An adapter of random matrices with its manifest."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = load_config(ROOT / "configs" / "standin.yaml", [f"model_id={base}", "peft.r=4", "train.lr=7e-3"])
    torch.manual_seed(5)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, settings)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.02)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    training = {"rows": 8, "epochs": 1, "steps": 2, "precision": "float32", "selected_by": "loss", "best_val_loss": 2.5}
    facts = {"config": dataclasses.asdict(config), "task": task.name, "fingerprint": "f", "training": training}
    facts |= {"data": {}, "command": "python src/sft_train.py", "wall_s": 2.0, "hardware": {}}
    write_json(folder / "manifest.json", facts | {"weights_sha256": model_folder.weights_sha256(folder)})


def pair_of(at, row, task):
    rejected = row["output"] | {"nights": str(row["output"]["nights"])}
    texts = {"chosen": task.completion(row["output"]), "rejected": task.completion(rejected)}
    return {"id": f"pair-{at}", "input": row["input"], **texts, "violation": "types"}


def prompt_of(pair, task):
    completion = [{"role": "assistant", "content": pair["chosen"]}]
    return {"id": pair["id"], "prompt": task.messages(pair["input"]), "completion": completion}


def write_lines(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def tune(place, out, *settings, options=()):
    """The step's exit code; the result lies in the folder `out`."""
    files = ["--train", place / "pairs.jsonl", "--val", place / "pairs_val.jsonl", "--prompts", place / "prompts.jsonl"]
    words = ["--config", ROOT / "configs" / "standin.yaml", "--task", "booking", *files, "--out", place / out, *options]
    words += [] if "--adapter" in options else ["--adapter", place / "out" / "standin-lora"]
    return exit_code(dpo_train, *words, "--set", f"model_id={place}/base", *QUICK, *settings)


def manifest(place, out, kind="dpo"):
    return json.loads((place / out / f"standin-{kind}" / "manifest.json").read_text())


def adapter(place, out):
    return (place / out / "standin-dpo" / "adapter_model.safetensors").read_bytes()


@dataclasses.dataclass
class Tuned:
    place: object
    trainer: object


@pytest.fixture(scope="module")
def tuned(place):
    """A whole run, and the trainer as it was at its end."""
    seen = []
    save = fine_tuning.save_adapter
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fine_tuning, "save_adapter", lambda trainer, *rest: (seen.append(trainer), save(trainer, *rest)))
        assert tune(place, "out") == 0
    return Tuned(place, seen[0])


def test_margins_rise_and_the_curves_are_kept_by_step(tuned):
    facts = manifest(tuned.place, "out")
    train = facts["curves"]["train"]
    val = facts["curves"]["val"]
    assert train["step"] == list(range(1, STEPS + 1)) and val["step"] == [3, 6, 9, 12]
    assert train["rewards/margins"][0] == 0, "before the first step the model is its reference"
    assert val["rewards/margins"][-1] > val["rewards/margins"][0] and val["rewards/margins"][-1] > 0.5
    assert val["rewards/accuracies"][-1] == 1 and val["loss"][-1] < val["loss"][0] < 0.7
    assert val["logps/rejected"][-1] < val["logps/rejected"][0]
    assert {len(values) for values in train.values()} == {STEPS}
    assert facts["training"]["steps"] == STEPS and facts["training"]["rows"] == N_TRAIN


def test_the_reference_is_the_fine_tuned_adapter_to_the_end(tuned):
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    before = load_file(tuned.place / "out" / "standin-lora" / "adapter_model.safetensors")
    after = load_file(tuned.place / "out" / "standin-dpo" / "adapter_model.safetensors")
    reference = get_peft_model_state_dict(tuned.trainer.model, adapter_name="ref")
    assert before.keys() == after.keys() == reference.keys() and len(before) > 20
    assert all(torch.equal(reference[name], before[name]) for name in before)
    assert not any(torch.equal(after[name], before[name]) for name in before)
    trainable = [name for name, weights in tuned.trainer.model.named_parameters() if weights.requires_grad]
    assert trainable and all(".default." in name for name in trainable)


def test_the_result_is_an_adapter_and_a_merged_model_behind_the_gate(tuned):
    merged = manifest(tuned.place, "out", "dpo-merged")
    assert merged["parity"]["passed"] and merged["config"]["name"] == "Stand-in (random weights) + DPO"
    assert merged["config"]["peft"]["r"] == 4, "as the adapter has it, not as the YAML says"
    folder = tuned.place / "out" / "standin-dpo"
    assert not (folder / "ref").exists() and not (folder / "checkpoints").exists()
    assert list((folder / "tensorboard").glob("events*"))
    assert manifest(tuned.place, "out")["fine_tuning"]["training"]["best_val_loss"] == 2.5


def test_the_adapter_to_pass_on_tells_both_phases(tuned):
    assert tune(tuned.place, "out", options=["--ship", tuned.place / "booking-standin"]) == 0
    card = (tuned.place / "booking-standin" / "README.md").read_text()
    assert "learning rate 0.007" in card and "best loss on" in card and "2.500" in card
    assert f"DPO, sigmoid, beta 0.1) against the frozen adapter: {N_TRAIN} pairs, 2 epochs, {STEPS} steps" in card


def test_settings_of_one_phase_train_nothing_again_in_the_other(place, task):
    files = SimpleNamespace(
        train=place / "prompts.jsonl", val=place / "pairs_val.jsonl", prompts=place / "prompts.jsonl"
    )
    names = {}
    for override in ("train.seed=42", "dpo.beta=0.3", "train.lr=1e-4", "merge.dtype=float16", "train.max_seq_len=512"):
        config = load_config(ROOT / "configs" / "standin.yaml", [f"model_id={place}/base", override])
        tuning = dpo_train.tuning_fingerprint(files, config, task, place / "out" / "standin-lora")
        names[override] = (sft_train.training_fingerprint(files, config, task), tuning)
    training, tuning = names.pop("train.seed=42")
    assert {override for override, (one, _) in names.items() if one != training} == {
        "train.lr=1e-4",
        "train.max_seq_len=512",
    }
    assert {override for override, (_, one) in names.items() if one != tuning} == {
        "dpo.beta=0.3",
        "train.max_seq_len=512",
    }


def test_nothing_is_done_twice_and_only_the_merge_where_only_it_changed(tuned, capfd):
    assert tune(tuned.place, "out") == 0
    assert "is up to date" in capfd.readouterr().out
    before = adapter(tuned.place, "out")
    assert tune(tuned.place, "out", "merge.dtype=float16", "merge.qlora_base=original") == 0
    out = capfd.readouterr().out
    assert "only the merge runs" in out and "preference tuning" not in out
    assert adapter(tuned.place, "out") == before
    assert manifest(tuned.place, "out", "dpo-merged")["merge"]["dtype"] == "float16"


def test_a_run_that_was_stopped_goes_on_and_ends_alike(tuned, capfd, monkeypatch):
    from training import preference_trainer

    step = preference_trainer.PreferenceTrainer.training_step

    def stopped(self, *args, **kwargs):
        if self.state.global_step == 8:
            raise interruption.Interrupted(signal.SIGINT)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(preference_trainer.PreferenceTrainer, "training_step", stopped)
        assert tune(tuned.place, "stopped") == 130
    said = capfd.readouterr()
    assert "stopped by Ctrl-C: the training up to step 6 is kept in" in said.err
    assert tune(tuned.place, "stopped") == 0
    assert "going on from step 6" in capfd.readouterr().out
    assert adapter(tuned.place, "stopped") == adapter(tuned.place, "out")
    assert manifest(tuned.place, "stopped")["curves"] == manifest(tuned.place, "out")["curves"]


def test_the_loss_on_the_chosen_answers_keeps_them_and_without_it_they_fall(tuned, capfd):
    assert tune(tuned.place, "held", "dpo.sft_weight=1") == 0
    out = capfd.readouterr().out
    assert "step 12/12: validation loss" in out and "warning" not in out
    assert manifest(tuned.place, "held")["training"]["chosen_fell_by"] < 0
    assert tune(tuned.place, "fallen", "dpo.lr=1e-2", options=["--adapter", tuned.place / "held" / "standin-dpo"]) == 0
    facts = manifest(tuned.place, "fallen")
    fell = facts["training"]["chosen_fell_by"]
    assert fell == pytest.approx(-facts["curves"]["val"]["rewards/chosen"][-1] / 0.1, abs=1e-2) and fell > 0.1
    out = capfd.readouterr().out
    assert "warning: at the end the chosen answers became less likely: their mean log-probability on v" in out
    assert f" fell by {fell:.2f}, from " in out and "lower dpo.lr, raise dpo.beta, or set dpo.sft_weight=1" in out


def test_the_first_fall_is_reported_while_training_goes_on(capfd):
    from training import preference_trainer

    shown = preference_trainer.Progress()
    state = SimpleNamespace(is_world_process_zero=True, global_step=3, max_steps=9)
    logs = {f"eval_{name}": 0.5 for name in preference_trainer.CURVES}
    said = []
    for logp, reward in ((-3.0, 0.0), (-3.5, -0.05), (-4.0, -0.1)):
        shown.on_log(
            SimpleNamespace(beta=0.1),
            state,
            None,
            logs | {"eval_logps/chosen": logp, "eval_rewards/chosen": reward},
        )
        said.append(capfd.readouterr().out)
    assert ["warning" in words for words in said] == [False, True, False]
    assert "fell by 0.50, from -3.00 to -3.50; lower dpo.lr" in said[1]


def test_a_rounded_adapter_begins_at_its_reference_again(place):
    import torch
    from peft import PeftModel

    from training import preference_trainer

    model = PeftModel.from_pretrained(base_model.load_weights(f"{place}/base"), place / "out" / "standin-lora")
    model.add_adapter("ref", model.peft_config["default"])
    for weights, reference in zip(adapted(model, "default"), adapted(model, "ref"), strict=True):
        reference.data = weights.data.clone()
        weights.data = weights.data.to(torch.bfloat16)
    preference_trainer.begin_at_the_reference(model)
    for weights, reference in zip(adapted(model, "default"), adapted(model, "ref"), strict=True):
        assert weights.dtype == torch.float32 and torch.equal(weights, reference)
        assert weights.data_ptr() != reference.data_ptr()
    assert len(adapted(model, "ref")) > 20


def adapted(model, adapter):
    return [weights for name, weights in model.named_parameters() if f".{adapter}." in name]


def test_a_model_in_bfloat16_is_tuned_with_an_adapter_in_float32(place, task, monkeypatch, tmp_path):
    """Weights in bfloat16 and autocast, which a CPU has too."""
    import torch

    from training import preference_trainer

    load = base_model.load_base
    arguments = preference_trainer.DPOConfig
    monkeypatch.setattr(base_model, "load_base", lambda config: (load(config)[0].to(torch.bfloat16), "bfloat16"))
    monkeypatch.setattr(preference_trainer, "DPOConfig", lambda **values: arguments(**values | {"use_cpu": True}))
    overrides = [f"model_id={place}/base", "train.gradient_ckpt=true", "dpo.grad_accum=2", "dpo.lr=1e-2"]
    config = load_config(ROOT / "configs" / "standin.yaml", overrides)
    chat = chat_template.load_chat(config)
    pairs = preference_pairs.read_pairs(place / "pairs.jsonl", task)
    examples, _ = preference_pairs.encode_pairs(pairs, chat, config)
    trainer = preference_tuning.make_trainer(
        config, chat, {"train": examples, "val": examples[:2]}, place / "out" / "standin-lora", tmp_path / "checkpoints"
    )
    assert {weights.dtype for weights in trainer.model.parameters()} == {torch.bfloat16, torch.float32}
    preference_tuning.run_within_memory(trainer, tmp_path / "checkpoints", "standin.yaml")
    assert trainer.state.global_step == N_TRAIN // 2
    first, *_, last = preference_trainer.curves(trainer.state.log_history)["train"]["rewards/margins"]
    assert first == pytest.approx(0, abs=0.05) and last > 0.1
    assert {weights.dtype for weights in trainer.model.parameters() if weights.requires_grad} == {torch.float32}


@pytest.mark.parametrize(
    ("settings", "options", "said"),
    [
        ([], ["--adapter", "nowhere"], "nowhere: no fine-tuned adapter to begin with; make it with make train-standin"),
        (["peft.r=8"], [], "was trained with peft.r=4; take this setting out"),
        (["model_id=other"], [], "the config says model_id: other; train it anew"),
        ([], ["--train", "none.jsonl"], "none.jsonl: no such file; make preferences TASK=booking PREDICTIONS="),
        (["dpo.loss=kto"], [], "dpo.loss: 'kto' is none of sigmoid, ipo"),
    ],
)
def test_a_wrong_call_is_one_sentence(place, capfd, settings, options, said):
    assert tune(place, "wrong", *settings, options=options) == 2
    err = capfd.readouterr().err
    assert said in err and len(err.splitlines()) == 1 and not (place / "wrong").exists()
