"""The models at their true size, without weights: what our settings adapt, counted, and what check-<model> says
before a GPU is rented.
"""

import json
import subprocess
import sys

import pytest

import check_model
from build_prompts import prompt_row
from common import ROOT, UserError
from support import families
from tasks import load_task
from tasks.crm.synthetic import rows as synthetic_rows

CONFIG = ROOT / "configs" / "phi4mini.yaml"
PLANS_SEVEN = "[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]"
SPLIT = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
FUSED = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
# name -> (parameters of the published checkpoint, our rank, trained ones, linear kinds, layers)
PUBLISHED = {
    "phi4mini": (3_836_021_760, 64, 92_274_688, FUSED, 32),
    "phi3mini": (3_821_079_552, 16, 25_165_824, FUSED, 32),
    "qwen3_4b": (4_022_468_096, 64, 132_120_576, SPLIT, 36),
    "llama3_2_3b": (3_212_749_824, 64, 97_255_424, SPLIT, 28),
    "mistral7b": (7_248_023_552, 64, 167_772_160, SPLIT, 32),
}


def saved_config(name, folder, *overrides):
    families.ARCHITECTURES[name]().save_pretrained(folder)
    return families.config(name, folder, *overrides)


def n_parameters(model, trained_only=False):
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained_only)


@pytest.mark.parametrize("name", PUBLISHED)
def test_our_settings_adapt_every_linear_layer(name, tmp_path, capsys):
    total, rank, trained, kinds, n_layers = PUBLISHED[name]
    config = saved_config(name, tmp_path)
    model = check_model.meta_model(config)
    assert config.peft.r == rank and n_parameters(model) == total
    assert check_model.linear_kinds(model) == kinds
    assert check_model.check_adapter(model, config)
    said = capsys.readouterr().out
    assert n_parameters(model, trained_only=True) == trained
    assert (
        said
        == f"ok   LoRA adapts {', '.join(f'{kind} x{n_layers}' for kind in sorted(kinds))}: {trained:,} parameters\n"
    )


def test_the_plans_seven_names_adapt_a_third_of_phi_and_fail(tmp_path, capsys):
    config = saved_config("phi4mini", tmp_path, f"peft.target_modules={PLANS_SEVEN}")
    assert not check_model.check_adapter(check_model.meta_model(config), config)
    said = capsys.readouterr().out
    assert (
        said.startswith("FAIL LoRA adapts down_proj x32, o_proj x32: 35,651,584 parameters")
        and "NOT gate_up_proj, qkv_proj" in said
    )


def test_names_that_match_nothing_are_listed_with_those_that_would(tmp_path):
    config = saved_config("phi4mini", tmp_path, "peft.target_modules=[query, value]")
    with pytest.raises(
        UserError, match="matches nothing in this model; it has down_proj, gate_up_proj, o_proj, qkv_proj"
    ):
        check_model.check_adapter(check_model.meta_model(config), config)


@pytest.fixture(scope="module")
def phi(tmp_path_factory):
    """A Phi checkpoint's folder as the hub would hold it, and training prompts."""
    folder = tmp_path_factory.mktemp("check")
    task = load_task()
    families.save("phi4mini", folder / "phi")
    (folder / "train.jsonl").write_text(
        "".join(json.dumps(prompt_row(row, task)) + "\n" for row in synthetic_rows(30, 1)), encoding="utf-8"
    )
    return folder


def check(folder, *overrides):
    command = [
        sys.executable,
        "src/check_model.py",
        "--config",
        "configs/phi4mini.yaml",
        "--train",
        folder / "train.jsonl",
        "--set",
        f"model_id={folder / 'phi'}",
        *overrides,
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_check_model_says_ready_and_shows_every_line(phi):
    done = check(phi)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line[:4] for line in lines[:9]] == ["ok  "] * 9 and lines[
        -1
    ] == "configs/phi4mini.yaml is ready: make train-phi4mini"
    for words in (
        "config configs/phi4mini.yaml: Phi-4-Mini-Instruct",
        "system text",
        "control tokens",
        "beginning token: 0",
        "end token '<|end|>' is trained",
        "the template does not read the clock",
        "verdicts part at one token: DUPLICATE, POSSIBLE, NO_MATCH",
        "0 of 30 rows do not fit",
        "gate_up_proj x32",
        "92,274,688 parameters",
        "memory, estimated",
        "time, estimated",
        "one training sample",
    ):
        assert words in done.stdout, words
    sample = done.stdout[done.stdout.index("loss on the part") :]
    assert '<|assistant|>>>>{"result":"' in sample and "<|end|><<<" in sample
    assert "Traceback" not in done.stderr


def test_check_model_warns_of_the_mix_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    processed = tmp_path / "processed"
    processed.mkdir()
    train = processed / "train.jsonl"
    train.write_text(json.dumps(prompt_row(next(synthetic_rows(1, 3)), load_task())) + "\n", encoding="utf-8")
    monkeypatch.setattr(check_model.chat_template, "load_chat", lambda config: 1 / 0)

    def said(facts):
        (tmp_path / "manifest.json").write_text(json.dumps(facts))
        with pytest.raises(ZeroDivisionError):
            monkeypatch.setattr(sys, "argv", ["check_model.py", "--config", str(CONFIG), "--train", str(train)])
            check_model.main()
        return capsys.readouterr().out

    found = said({"classes": {"train": {"DUPLICATE": 32, "NO_MATCH": 10}, "test": {"DUPLICATE": 4}}})
    assert "warning: 46 rows are too few to train on or to score: the test split has 4 rows" in found
    assert "warning: no row is POSSIBLE" in found
    assert "warning" not in said({"classes": {"one": 1}}) + said([])


@pytest.mark.slow
def test_check_model_fails_the_plans_list_and_names_the_line(phi):
    done = check(phi, f"peft.target_modules={PLANS_SEVEN}")
    assert done.returncode == 1 and "fix the lines marked FAIL" in done.stderr and "Traceback" not in done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert "NOT gate_up_proj, qkv_proj: use target_modules: all-linear" in line and "is ready" not in done.stdout
