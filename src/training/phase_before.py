"""The fine-tuned adapter that a preference tuning begins with: whether it is there, whole, and of these settings."""

import dataclasses

from common import UserError, read_json
from config import config_from_dict
from language_model import hub, model_folder

OF_THE_ADAPTER = ("peft", "chat")  # sections that fine-tuning decided
RECORDED = ("fingerprint", "weights_sha256", "command", "wall_s", "hardware", "config", "training", "data")


def facts(adapter, how_to_make):
    """The manifest of a whole adapter."""
    manifest = adapter / "manifest.json"
    if not manifest.is_file() or not hub.is_adapter(adapter):
        raise UserError(f"{adapter}: no fine-tuned adapter to begin with; make it with {how_to_make}")
    model_folder.check_weights(adapter)
    return read_json(manifest)


def settings(config, overrides, adapter, found):
    """The configuration with the sections that fine-tuning decided as the adapter has them, and a name of its own."""
    made_with = config_from_dict(found["config"], adapter / "manifest.json")
    if made_with.model_id != config.model_id:
        raise UserError(
            f"{adapter} was trained on {made_with.model_id}, and the config says model_id: {config.model_id}; train it "
            "anew, or name the adapter of this model with --adapter"
        )
    for section in OF_THE_ADAPTER:
        said = [text for text in overrides if text.startswith(f"{section}.")]
        if said and (others := differences(section, config, made_with)):
            raise UserError(
                f"--set {' '.join(said)}: {adapter} was trained with {', '.join(others)}; take this setting out, or "
                "train the adapter anew with it"
            )
    name = f"{config.name} + DPO"
    return dataclasses.replace(
        config, name=name, **{section: getattr(made_with, section) for section in OF_THE_ADAPTER}
    )


def differences(section, config, made_with):
    """What of a section the adapter was made with and the configuration says otherwise."""
    wanted = dataclasses.asdict(getattr(config, section))
    made = dataclasses.asdict(getattr(made_with, section))
    return [f"{section}.{key}={made[key]}" for key in made if made[key] != wanted[key]]


def recorded(found):
    """Of its manifest what the record of the whole training keeps."""
    return {key: found[key] for key in RECORDED if key in found}
