"""A training that goes on from an adapter made before: from the one that ships to one's own rows, say."""

from pathlib import Path

from common import ROOT, UserError, read_json
from language_model import hub, model_folder

SAME = {"r": "r", "lora_alpha": "alpha"}  # what an adapter's matrices are made for: PEFT's names, and the config's


def folder_of(config):
    """The folder of the adapter that training starts from; None where it starts from the base alone."""
    if config.peft.start_from is None:
        return None
    return next((path for path in (Path(config.peft.start_from), ROOT / config.peft.start_from) if path.is_dir()), None)


def check(config):
    """Before anything is fetched: whether the adapter is there, whole, and made with these settings."""
    if config.peft.start_from is None:
        return
    folder = folder_of(config)
    if folder is None or not hub.is_adapter(folder):
        raise UserError(
            f"peft.start_from: {config.peft.start_from} holds no adapter; name a folder with {hub.ADAPTER_CONFIG}"
        )
    model_folder.check_weights(folder)
    made = read_json(folder / hub.ADAPTER_CONFIG)
    for name, ours in SAME.items():
        if made.get(name) != getattr(config.peft, ours):
            raise UserError(
                f"peft.start_from: {folder} was made with {ours} {made.get(name)}, and peft.{ours} is "
                f"{getattr(config.peft, ours)}; set peft.{ours}={made.get(name)}"
            )
    manifest = folder / "manifest.json"
    facts = read_json(manifest) if manifest.is_file() else {}
    method = facts.get("config", {}).get("peft", {}).get("method", config.peft.method)
    if method != config.peft.method:
        raise UserError(
            f"peft.start_from: {folder} was trained with {method}, and peft.method is {config.peft.method}; its "
            f"matrices fit only the weights that they were trained against; set peft.method={method}"
        )


def check_base(config):
    """Whether the adapter was made for this base, which must be there."""
    folder = folder_of(config)
    if folder is None:
        return
    made = read_json(folder / hub.ADAPTER_CONFIG)
    # An adapter fresh from training names the folder of its base, one that ships its name on the hub.
    if made["base_model_name_or_path"] not in (config.model_id, str(hub.place_of(config.model_id))):
        raise UserError(
            f"peft.start_from: {folder} was trained on {made['base_model_name_or_path']}, not on {config.model_id}"
        )


def load(config, model):
    """Give a fresh adapter the matrices of the one to start from."""
    from peft import set_peft_model_state_dict
    from peft.utils import load_peft_weights

    folder = folder_of(config)
    if folder is None:
        return
    try:
        strange = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu")).unexpected_keys
    except RuntimeError as error:
        raise UserError(
            f"peft.start_from: {folder} does not fit {config.model_id} ({str(error).strip().splitlines()[-1].strip()})"
        ) from error
    if strange:
        raise UserError(
            f"peft.start_from: {folder} adapts other modules than peft.target_modules names (first {strange[0]})"
        )
