"""A model's files: a folder of this disk, or a checkpoint of the hub; what goes wrong there in one sentence."""

import contextlib
import json
import os
import re
import socket
from pathlib import Path

from common import ROOT, UserError, explain_no_space

ANSWERS_WITHIN_S = 10
ADAPTER_CONFIG = "adapter_config.json"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"  # of weights in several files
BASES = "STEWARD_BASES"  # variable that names another folder than models/base for the checkpoints that were fetched


def load_tokenizer(model_id):
    from transformers import AutoTokenizer

    place = str(model_id) if (Path(model_id) / "tokenizer_config.json").is_file() else whole_model(model_id)
    if Path(place).is_dir() and not any(
        path.name.startswith(("token", "vocab", "tekken")) for path in Path(place).iterdir()
    ):
        raise UserError(
            f"{model_id}: this folder holds no tokenizer; copy the tokenizer files of its base model into it"
        )
    with hub_errors_explained(model_id):
        ask_hub_once(place)
        return AutoTokenizer.from_pretrained(place)


def ask_hub_once(place):
    """Fail at once where the hub does not answer: for a missing file its client tries eleven times in a minute."""
    import huggingface_hub as hub

    if not Path(place).is_dir() and not isinstance(hub.try_to_load_from_cache(place, "config.json"), str):
        hub.get_hf_file_metadata(hub.hf_hub_url(place, "config.json"), timeout=ANSWERS_WITHIN_S)


def folder_of(model_id):
    """The folder of this disk that holds a model: one given as such, or a fetched checkpoint; None elsewhere."""
    for path in (Path(model_id), ROOT / model_id):
        if path.is_dir():
            if not (path / "config.json").is_file() and not is_adapter(path):
                raise UserError(
                    f"{model_id}: this folder holds no model (no config.json); train it first or give another model"
                )
            return path
    fetched = fetched_folder(model_id)
    return fetched if (fetched / "manifest.json").is_file() else None


def place_of(model_id):
    """The folder that a model would be loaded from, be it the hub's cache; None where it has to be fetched first."""
    return folder_of(model_id) or cached_folder(model_id)


def cached_folder(model_id):
    """The hub's cache of a model with tokenizer and all weights; None where something is missing."""
    from huggingface_hub import try_to_load_from_cache

    if not HUB_NAME.fullmatch(str(model_id)):
        return None
    settings = try_to_load_from_cache(model_id, "tokenizer_config.json")
    if not isinstance(settings, str):
        return None
    folder = Path(settings).parent
    names = [WEIGHTS]
    if (folder / WEIGHTS_INDEX).is_file():
        names = json.loads((folder / WEIGHTS_INDEX).read_text(encoding="utf-8"))["weight_map"].values()
    return folder if all((folder / name).is_file() for name in names) else None


def is_adapter(folder):
    """Whether a folder holds an adapter without the base that it was trained on."""
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def base_of(folder):
    """The name of the base that an adapter was trained on."""
    return json.loads((Path(folder) / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]


def whole_model(model_id):
    """The place of a model's shape and tokenizer: of an adapter alone, its base's."""
    place = local_or_hub(model_id)
    return local_or_hub(base_of(place)) if is_adapter(place) else place


def fetched_folder(model_id):
    """Where a hub model's files lie once they are fetched."""
    return Path(os.environ.get(BASES) or ROOT / "models" / "base") / str(model_id).replace("/", "--")


def local_or_hub(model_id):
    """A folder of this disk or a hub name; a path that is neither is said at once."""
    if folder := folder_of(model_id):
        return str(folder)
    if not HUB_NAME.fullmatch(model_id) or model_id.split("/")[0] in ("outputs", "models", "..", "."):
        raise UserError(
            f"{model_id}: no such model folder; make it with make train-<model>, or give a hub name like "
            "Qwen/Qwen3-4B-Instruct-2507"
        )
    return model_id


@contextlib.contextmanager
def hub_errors_explained(model_id):
    """Missing, gated and unreachable checkpoints become one sentence with the next step."""
    import huggingface_hub.errors as hub

    try:
        yield
    except (UserError, RuntimeError, MemoryError):
        raise
    except Exception as error:
        if explain_no_space(error):
            raise
        causes = chain(error)
        text = " ".join(str(cause) for cause in causes)
        if any(isinstance(cause, hub.GatedRepoError) for cause in causes) or "trying to access a gated repo" in text:
            raise UserError(
                f"{model_id}: access to this model is gated; accept its licence at https://huggingface.co/{model_id}, "
                "then run: hf auth login"
            ) from error
        if (
            any(isinstance(cause, hub.RepositoryNotFoundError) for cause in causes)
            or "not a valid model identifier" in text
        ):
            raise UserError(
                f"{model_id}: no such model on the hub, or a private one; check model_id, or run: hf auth login"
            ) from error
        if any(getattr(getattr(cause, "response", None), "status_code", None) in (401, 403) for cause in causes):
            raise UserError(
                f"{model_id}: the hub refuses access; run hf auth login, or check the token that is set"
            ) from error
        unreachable = hub.LocalEntryNotFoundError | ConnectionError | TimeoutError | socket.gaierror
        if any(isinstance(cause, unreachable) for cause in causes) or "connect" in text.lower():
            offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
            raise UserError(
                f"{model_id}: not on this machine, and the hub cannot be reached"
                + (" (HF_HUB_OFFLINE is set)" if offline else "")
                + "; check the network, or give a local folder as model_id"
            ) from error
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{model_id}: could not be loaded ({reason}); check model_id or the folder's files") from error


def chain(error):
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
