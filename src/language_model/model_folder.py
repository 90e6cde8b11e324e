"""What a model's folder says of itself: the settings it was trained with, and what distinguishes it from another."""

import dataclasses
import functools
import json
import re
from pathlib import Path

from common import UserError, is_folder, read_json, sha256_file, sha256_text
from config import Gen, build, config_from_dict, load_config, override
from language_model import hub

SHA256 = re.compile("[0-9a-f]{64}")
SPECIFICATION = {"max_new_tokens": 64, "temperature": 0.1, "top_p": 0.9}  # for a server whose model has no YAML here


def model_config(args, task):
    """The settings that the model was trained with, or those of --config under the task's overlay."""
    if args.config:
        return load_config(args.config, overlay=task.overlay)
    manifest = Path(args.model_path) / "manifest.json"
    if not manifest.is_file():
        if not Path(args.model_path).is_dir():
            raise UserError(
                f"{args.model_path}: no such model folder; train it first with make train-<model>, "
                "or give a hub name and --config configs/<model>.yaml"
            )
        raise UserError(
            f"{args.model_path}: this folder has no manifest.json, so its settings are unknown; add --config "
            "configs/<model>.yaml"
        )
    facts = read_json(manifest)
    if "config" not in facts:
        raise UserError(f"{manifest}: holds no 'config'; add --config configs/<model>.yaml")
    return config_from_dict(facts["config"], manifest)


@dataclasses.dataclass
class Served:
    """Of a model that a server elsewhere holds: what of a configuration a request needs."""

    name: str
    model_id: str
    gen: object


def served_config(args, task):
    """The settings to ask a server by: the model's, and where it has no YAML here those of the specification."""
    if args.config or is_folder(args.model_path):
        return model_config(args, task)
    gen = build(Gen, SPECIFICATION | task.overlay.get("gen", {}), f"src/tasks/{task.name}/task.yaml, gen")
    return Served(args.model_path or "served", args.model_path or "", gen)


@dataclasses.dataclass(frozen=True)
class Answering:
    """What --set may say of a trained model."""

    gen: Gen


def with_settings(config, settings):
    """The configuration under `gen.key=value` settings; how a trained model answers is all that is still open."""
    values = {"gen": dataclasses.asdict(config.gen)}
    for text in settings:
        if text.partition("=")[0].partition(".")[0].strip() != "gen":
            names = ", ".join(f"gen.{field.name}" for field in dataclasses.fields(Gen))
            raise UserError(f"--set {text}: the model is trained, so only how it answers may be set here: {names}")
        override(values, text)
    checked = build(Answering, values, f"{config.name} with --set {' '.join(settings)}")
    return dataclasses.replace(config, gen=checked.gen)


def check_weights(folder):
    """A model whose manifest names its weights' hash must have these: damaged ones load, and answer at random."""
    manifest = Path(folder) / "manifest.json"
    expected = read_json(manifest).get("weights_sha256") if manifest.is_file() else None
    if expected and weights_sha256(folder) != expected:
        names = ", ".join(file.name for file in weight_files(folder))
        raise UserError(
            f"{folder}/{names}: not the weights that manifest.json names; they are damaged or another model's; copy "
            "the folder again, or make it again with the step that made it"
        )


def check_whole(folder):
    """`check_weights` of a model for engines that take whole weights only."""
    if hub.is_adapter(folder):
        raise UserError(
            f"{folder}: an adapter alone; this engine wants whole weights: name the merged model that make "
            "train-<model> writes, or take --backend hf"
        )
    check_weights(folder)


def weights_sha256(folder):
    """One hash of a folder's weights, however many files they are in."""
    hashes = [
        hash_in_cache(file) or hash_of(file, file.stat().st_size, file.stat().st_mtime_ns)
        for file in weight_files(folder)
    ]
    return hashes[0] if len(hashes) == 1 else sha256_text(" ".join(hashes))


def hash_in_cache(file):
    """The hash that the hub's cache names a large file by; None of a file elsewhere."""
    blob = file.resolve()
    return blob.name if blob.parent.name == "blobs" and SHA256.fullmatch(blob.name) else None


@functools.cache
def hash_of(file, size, time_ns):
    """Of a file as it was written at this time: an engine may check what its process has checked, at 1 s a GB."""
    return sha256_file(file)


def weight_files(folder):
    """The files of a model's weights, or of an adapter's."""
    folder = Path(folder)
    index = folder / hub.WEIGHTS_INDEX
    adapter = folder / "adapter_model.safetensors"
    if index.is_file():
        names = sorted(set(read_json(index)["weight_map"].values()))
    else:
        names = [adapter.name if adapter.is_file() else hub.WEIGHTS]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: no weights, {missing[0]} is missing; copy the folder again, or train the model")
    return [folder / name for name in names]


def base_weights(folder):
    """The hash of the weights that an adapter meets on this disk; None where its base is not here yet."""
    base = hub.place_of(hub.base_of(folder))
    return weights_sha256(base) if base else None


def config_text(config):
    return json.dumps([dataclasses.asdict(config.gen), dataclasses.asdict(config.chat)], sort_keys=True)


def model_identity(model_path):
    """What distinguishes one model from another: what a merged one was made of, else files by name, size and time."""
    folder = Path(model_path)
    if not folder.is_dir():
        return str(model_path)
    facts = read_json(folder / "manifest.json") if (folder / "manifest.json").is_file() else {}
    if hub.is_adapter(folder):
        beside = [sha256_file(path) for path in sorted(folder.glob("*.json")) if path.name != "manifest.json"]
        return [weights_sha256(folder), *beside, base_weights(folder) or facts.get("base_weights_sha256")]
    if "adapter_sha256" in facts:
        return [facts[key] for key in ("fingerprint", "adapter_sha256", "merge")]
    if "base" in facts:
        return checkpoint_identity(folder, facts["weights_sha256"])
    return [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir()) if path.is_file()
    ]


def base_identity(model_id):
    """`model_identity` of a base, the same in the hub's cache as in the folder that it is fetched to."""
    place = hub.place_of(model_id)
    if place and not hub.folder_of(model_id):
        return checkpoint_identity(place, weights_sha256(place))
    return model_identity(place or model_id)


def checkpoint_identity(folder, weights):
    """What distinguishes a checkpoint of the hub: weights, and the tokenizer's files that every loading brings."""
    vocabulary = "tokenizer.json" if (folder / "tokenizer.json").is_file() else "tokenizer.model"
    texts = [folder / name for name in ("chat_template.jinja", vocabulary, "tokenizer_config.json")]
    return [weights, *(sha256_file(path) for path in texts if path.is_file())]
