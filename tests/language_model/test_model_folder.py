"""A model whose weights changed by a single bit loads nowhere: whoever loads one asks its manifest first."""

import json
import shutil
import sys
import types

import pytest

import export_gguf
import make_standin
from common import ROOT, UserError, read_json, sha256_file, sha256_text
from config import load_config
from constrained_decode import llama_cpp, load_engine, sglang, vllm
from language_model import base_model, model_folder
from support.pipeline import exit_code
from tasks import load_task
from tasks.crm.synthetic import rows as synthetic_rows
from training import merge_adapter

TASK = load_task()


def config(folder):
    return load_config(ROOT / "configs" / "standin.yaml", [f"model_id={folder}"])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The stand-in model as its own step leaves it."""
    place = tmp_path_factory.mktemp("weights")
    prompts = [
        {
            "id": str(at),
            "prompt": TASK.messages(row["input"]),
            "completion": [{"role": "assistant", "content": TASK.completion(row["output"])}],
        }
        for at, row in enumerate(synthetic_rows(8, 1))
    ]
    (place / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts), encoding="utf-8")
    assert exit_code(make_standin, "--data", place / "train.jsonl", "--out", place / "standin") == 0
    return place / "standin"


def one_bit_flipped(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.fixture(scope="module")
def damaged(written):
    folder = shutil.copytree(written, written.with_name("damaged"))
    one_bit_flipped(folder / "model.safetensors")
    (folder / "model.gguf").write_bytes(b"GGUF")
    return folder


def served(module, folder):
    with module.serve(folder, TASK, config(folder), 1, "", folder / "log"):
        pass


LOADERS = {
    "hf": lambda folder: load_engine("hf").load(folder, TASK, config(folder)),
    "outlines": lambda folder: load_engine("outlines").load(folder, TASK, config(folder)),
    "llama_cpp": lambda folder: llama_cpp.load(folder, TASK, config(folder)),
    "vllm": lambda folder: vllm.load(folder, TASK, config(folder)),
    "vllm's server": lambda folder: served(vllm, folder),
    "sglang's server": lambda folder: served(sglang, folder),
    "training": lambda folder: base_model.load_base(config(folder)),
    "merging": lambda folder: merge_adapter.load_adapter_model(config(folder), folder),
    "export": lambda folder: export_gguf.export(folder, folder / "out.gguf", "f16"),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_weights_with_one_bit_flipped_are_refused(loader, damaged, monkeypatch):
    # Whether the packages are here is asked before the weights are; they are needed only after.
    monkeypatch.setattr(vllm, "check_installed", lambda: None)
    for name in ("llama_cpp", "gguf"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    with pytest.raises(UserError, match="model.safetensors: not the weights that manifest.json names; they are dam"):
        LOADERS[loader](damaged)


@pytest.mark.slow
def test_whole_weights_load(written):
    assert read_json(written / "manifest.json")["weights_sha256"] == sha256_file(written / "model.safetensors")
    assert LOADERS["hf"](written) and LOADERS["training"](written)


def test_weights_in_several_files_and_an_adapters_are_checked_too(tmp_path):
    for name in ("a.safetensors", "b.safetensors", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"weights_sha256": sha256_text("adapter_model.safetensors")}))
    model_folder.check_weights(tmp_path)
    index = {"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    hashes = " ".join(map(sha256_text, ("a.safetensors", "b.safetensors")))
    manifest.write_text(json.dumps({"weights_sha256": sha256_text(hashes)}))
    model_folder.check_weights(tmp_path)
    one_bit_flipped(tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="a.safetensors, b.safetensors: not the weights"):
        model_folder.check_weights(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(UserError, match="no weights, b.safetensors is missing"):
        model_folder.check_weights(tmp_path)


def test_a_gguf_file_that_is_not_the_one_its_manifest_names_is_refused(tmp_path):
    file = tmp_path / "mini.gguf"
    file.write_bytes(b"GGUF and weights")
    llama_cpp.check_file(file)
    (tmp_path / "mini.manifest.json").write_text(json.dumps({"gguf_sha256": sha256_file(file)}))
    llama_cpp.check_file(file)
    one_bit_flipped(file)
    with pytest.raises(UserError, match=r"not the file that mini\.manifest\.json names.*make it again with src/export"):
        llama_cpp.check_file(file)
