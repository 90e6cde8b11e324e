"""Training on the stand-in: resumed, merged and gated, in LoRA and QLoRA, in one process and two."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from support.pipeline import done, prepared, run
from support.warm_python import QUIET

pytestmark = pytest.mark.slow
N_ROWS = 120
STEPS_AN_EPOCH = 12
QUICK = ["train.epochs=1", "train.evals_per_epoch=4", "train.eval_rows=24", "peft.dropout=0.05", "peft.r=8"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("training"), n_rows=N_ROWS)


def train(project, out, *settings):
    return ["src/sft_train.py", "--config", "configs/standin.yaml", "--out", out, "--set", *QUICK, *settings]


def adapter(project, out):
    return (project / out / "standin-lora" / "adapter_model.safetensors").read_bytes()


def manifest(project, out, kind="merged"):
    return json.loads((project / out / f"standin-{kind}" / "manifest.json").read_text())


@pytest.fixture(scope="module")
def uninterrupted(project):
    done(*train(project, "whole"), cwd=project)
    return project


def test_two_runs_give_the_same_bits(uninterrupted):
    done(*train(uninterrupted, "again"), cwd=uninterrupted)
    assert adapter(uninterrupted, "again") == adapter(uninterrupted, "whole")


def test_another_seed_gives_other_bits(uninterrupted):
    done(*train(uninterrupted, "seed", "train.seed=43"), cwd=uninterrupted)
    assert adapter(uninterrupted, "seed") != adapter(uninterrupted, "whole")


def test_patience_goes_on_where_it_was(project):
    slow = ["train.lr=1e-7", "train.patience=2", "train.epochs=4", "train.evals_per_epoch=2"]
    done(*train(project, "patient", *slow), cwd=project)
    steps = manifest(project, "patient")["training"]["steps"]
    assert steps < 4 * STEPS_AN_EPOCH, "the run was meant to stop early"
    checkpoints = project / "patience" / "standin-lora" / "checkpoints"
    process = subprocess.Popen(
        [sys.executable, *train(project, "patience", *slow)],
        cwd=project,
        env=os.environ | QUIET,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: n_whole(checkpoints) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done(*train(project, "patience", *slow), cwd=project)
    assert manifest(project, "patience")["training"]["steps"] == steps
    assert adapter(project, "patience") == adapter(project, "patient")


def n_whole(checkpoints):
    """How many checkpoints were written to their end; a file is there before its text is."""
    found = 0
    for path in checkpoints.glob("checkpoint-*/trainer_state.json"):
        with contextlib.suppress(OSError, ValueError):
            json.loads(path.read_text())
            found += 1
    return found


def until(happened, process, most_s=120):
    end = time.monotonic() + most_s
    while not happened():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_half_written_checkpoint_is_left_aside(uninterrupted):
    project = uninterrupted
    shutil.copytree(project / "whole", project / "torn")
    lora = project / "torn" / "standin-lora"
    (lora / "checkpoints" / "checkpoint-9").mkdir(parents=True)
    fingerprint = json.loads((lora / "manifest.json").read_text())["fingerprint"]
    (lora / "checkpoints" / "fingerprint.txt").write_text(fingerprint)
    (lora / "checkpoints" / "checkpoint-9" / "trainer_state.json").write_text('{"cut off')
    before = adapter(project, "torn")
    (lora / "manifest.json").unlink()
    (project / "torn" / "standin-merged" / "manifest.json").unlink()
    output = done(*train(project, "torn"), cwd=project)
    assert "half-written" in output and "going on" not in output
    assert adapter(project, "torn") == before


def test_nothing_is_done_twice_and_only_the_merge_when_only_it_changed(uninterrupted):
    output = done(*train(uninterrupted, "whole"), cwd=uninterrupted)
    assert "up to date" in output and "training" not in output
    before = adapter(uninterrupted, "whole")
    output = done(*train(uninterrupted, "whole", "merge.dtype=bfloat16"), cwd=uninterrupted)
    assert "only the merge runs" in output
    assert adapter(uninterrupted, "whole") == before
    assert manifest(uninterrupted, "whole")["merge"]["dtype"] == "bfloat16"
    done(*train(uninterrupted, "whole"), cwd=uninterrupted)


def test_the_manifest_says_where_the_model_came_from(uninterrupted):
    facts = manifest(uninterrupted, "whole")
    training = facts["training"]
    assert training["adapted"] == dict.fromkeys(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], 4
    )
    assert training["rows"] + training["left_out"]["train"] == N_ROWS * 8 // 10
    assert facts["parity"]["passed"] and facts["parity"]["mean_probability_gap"] < 1e-4
    assert set(facts) >= {
        "config",
        "data",
        "versions",
        "git_commit",
        "hardware",
        "wall_s",
        "peak_memory_mib",
        "fingerprint",
    }
    assert not any(str(uninterrupted) in json.dumps(value) for value in facts.values()), (
        "a manifest holds no machine path"
    )
    assert list((uninterrupted / "whole" / "standin-lora" / "tensorboard").glob("events*"))


def test_a_merged_model_or_an_adapter_with_one_bit_flipped_is_not_loaded(uninterrupted):
    project = uninterrupted
    shutil.copytree(project / "whole", project / "flipped")
    for kind, file in (("merged", "model.safetensors"), ("lora", "adapter_model.safetensors")):
        weights = bytearray((project / "flipped" / f"standin-{kind}" / file).read_bytes())
        weights[-1] ^= 1
        (project / "flipped" / f"standin-{kind}" / file).write_bytes(weights)
    ask = ["src/ask.py", "--model_path", "flipped/standin-merged", '{"a": "b"}', '{"a": "c"}']
    for command in (ask, train(project, "flipped", "merge.dtype=bfloat16")):
        result = run(*command, cwd=project)
        assert result.returncode == 2 and "Traceback" not in result.stderr
        assert "not the weights that manifest.json names" in result.stderr.splitlines()[-1]
    assert manifest(project, "flipped")["merge"]["dtype"] != "bfloat16", "nothing was merged from a damaged adapter"


def test_a_damaged_merged_model_is_made_again_from_its_adapter(uninterrupted):
    project = uninterrupted
    shutil.copytree(project / "whole", project / "damaged")
    weights = project / "damaged" / "standin-merged" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    output = done(*train(project, "damaged"), cwd=project)
    assert "the weights are damaged, and are made again" in output and "only the merge runs" in output
    assert weights.read_bytes() == whole


def test_the_best_checkpoint_is_the_one_that_decides_best(uninterrupted):
    training = manifest(uninterrupted, "whole")["training"]
    scores = training["val_macro_f1_by_step"]
    assert len(scores) >= 4
    assert scores[str(training["best_step"])] == max(scores.values()) == round(training["best_val_macro_f1"], 4)


def test_a_merged_model_that_decides_otherwise_is_refused(uninterrupted):
    project = uninterrupted
    shutil.copytree(project / "whole", project / "gate")
    lora = project / "gate" / "standin-lora"
    merged = project / "gate" / "standin-merged"
    code = (
        "import sys; sys.path.insert(0, 'src'); import sft_train; from common import run\n"
        "from training import merge_adapter\n"
        "whole = merge_adapter.fold\n"
        "def lossy(config, dtype, lora, folder, chat):\n"
        "    whole(config, dtype, lora, folder, chat)\n"
        "    from safetensors.torch import load_file, save_file\n"
        "    weights = load_file(folder / 'model.safetensors')\n"
        "    save_file({name: w * 1.05 for name, w in weights.items()}, folder / 'model.safetensors', "
        "metadata={'format': 'pt'})\n"
        "merge_adapter.fold = lossy\n"
        "run(sft_train.main)"
    )
    (merged / "manifest.json").unlink()
    before = sorted(path.name for path in merged.iterdir())
    result = run("-c", code, *train(project, "gate")[1:], cwd=project)
    assert result.returncode == 1 and result.stderr.startswith(
        "failed: the merged model does not decide like the adapter"
    ), result.stderr
    assert "Next:" in result.stderr and "was kept" in result.stderr
    assert not merged.with_name("standin-merged.part").exists()
    assert sorted(path.name for path in merged.iterdir()) == before, "the older merged model is untouched"
    assert (lora / "manifest.json").exists()


def test_qlora_trains_merges_and_passes_the_gate(project):
    output = done(
        *train(project, "qlora", "peft.method=qlora", "train.epochs=0.1", "train.gradient_ckpt=true"), cwd=project
    )
    facts = manifest(project, "qlora")
    assert "parity gate, float32: passed" in output
    assert facts["training"]["quantization"] == "NF4, double" and facts["merge"]["base"] == "dequantized"
    assert "quantization_config" not in json.loads((project / "qlora" / "standin-merged" / "config.json").read_text())


def test_packed_rows_train_and_keep_the_rows_a_step(project):
    done(*train(project, "packed", "train.packing=on", "train.epochs=0.3"), cwd=project)
    training = manifest(project, "packed")["training"]
    assert training["packing"] and training["per_device_batch"] * training["grad_accum"] < 8


def test_out_of_memory_goes_on_with_half_the_rows_from_the_last_step(project):
    code = (
        "import sys; sys.path.insert(0, 'src'); import sft_train, torch; from common import run\n"
        "from training import trainer\n"
        "whole = trainer.StewardTrainer.compute_loss\n"
        "def tight(self, model, inputs, *args, **kwargs):\n"
        "    if self.model.training and self.state.global_step >= 2 and len(inputs['input_ids']) > 2:\n"
        "        raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate')\n"
        "    return whole(self, model, inputs, *args, **kwargs)\n"
        "trainer.StewardTrainer.compute_loss = tight\n"
        "run(sft_train.main)"
    )
    output = done("-c", code, *train(project, "tight", "train.epochs=0.3", "train.micro_batch=4")[1:], cwd=project)
    assert "going on from step 2, kept in" in output and "out of memory with 4" in output
    training = manifest(project, "tight")["training"]
    assert (training["per_device_batch"], training["grad_accum"], training["steps"]) == (2, 4, 4)
    assert training["micro_batch"]["chosen"] == 2 and training["micro_batch"]["used_gb"] > 0
    assert "time, estimated: " in output


def test_packing_probe_sees_rows_that_leak(project):
    code = (
        "import sys; sys.path.insert(0, 'src'); import torch; from training import trainer\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained('models/standin')\n"
        "rows = [list(range(10, 40)), list(range(50, 90))]\n"
        "apart = trainer.packing_gap(model, *rows)\n"
        "forward = model.forward\n"
        "model.forward = lambda position_ids=None, **inputs: forward(**inputs)\n"
        "print(apart, trainer.packing_gap(model, *rows))"
    )
    apart, leaking = map(float, done("-c", code, cwd=project).split())
    assert apart < 1e-5 and leaking > 1e-2


def test_two_processes_train_one_adapter(project):
    # accelerate starts one process on a CPU whatever it is asked; torch's own launcher sets the same variables for two.
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    output = done(
        *command, *train(project, "two", "train.epochs=0.5", "train.grad_accum=2", "train.batch_size=4"), cwd=project
    )
    training = manifest(project, "two")["training"]
    assert training["processes"] == 2 and training["grad_accum"] == 1
    assert output.count("parity gate, float32: passed") == 1


def test_divergence_is_said_and_nothing_is_merged(uninterrupted):
    code = (
        "import sys; sys.path.insert(0, 'src'); import sft_train, torch; from common import run\n"
        "from training import fine_tuning\n"
        "save = fine_tuning.save_adapter\n"
        "def broken(trainer, chat, lora):\n"
        "    next(p for p in trainer.model.parameters() if p.requires_grad).data.fill_(float('nan'))\n"
        "    save(trainer, chat, lora)\n"
        "fine_tuning.save_adapter = broken\n"
        "run(sft_train.main)"
    )
    result = run("-c", code, *train(uninterrupted, "diverged", "train.epochs=0.1")[1:], cwd=uninterrupted)
    assert result.returncode == 1 and result.stderr.startswith("failed: training diverged"), result.stderr
    assert "lower train.lr" in result.stderr
    assert not (uninterrupted / "diverged" / "standin-merged").exists()
    assert not (uninterrupted / "diverged" / "standin-lora" / "manifest.json").exists()
