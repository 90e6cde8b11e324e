"""A trained adapter as a small folder to pass on: half its bytes, a card, and no copy of its base."""

import dataclasses
from pathlib import Path

from common import (
    ROOT,
    UserError,
    WorkFailed,
    folder_written_whole,
    read_json,
    sha256_file,
    shown_path,
    write_json,
    write_text,
)
from config import config_from_dict
from language_model import calibration, hub, model_folder
from manifest import Clock, write_manifest
from tasks import DEFAULT

TUNED_FROM = "fine_tuning"  # in the manifest of a tuned adapter, what is known of the phase before
CARD = Path(__file__).with_name("adapter_card.md")


def check(config, out):
    """Before any training: whether this config gives an adapter to pass on, and whether its folder may be written."""
    if config.peft.method == "qlora":
        raise UserError(
            "--ship: an adapter trained against 4-bit weights does not fit the whole ones; set peft.method=lora, or "
            "pass on the merged model"
        )
    if not hub.folder_of(config.model_id):
        raise UserError(f"--ship: {config.model_id} lies in the hub's cache only; run make fetch-<model> first")
    is_ours = (out / "adapter_config.json").is_file()
    if not out.name or (out.exists() and not is_ours and not (out.is_dir() and not any(out.iterdir()))):
        raise UserError(f"--ship {out}: holds something else than an adapter; name a new folder, or an adapter's")


def ship(config, lora, merged, out):
    """Write the adapter in float16, the merged model's temperature, a manifest and a card."""
    clock = Clock()
    trained = read_json(lora / "manifest.json") if (lora / "manifest.json").is_file() else {}
    if trained.get("weights_sha256") != model_folder.weights_sha256(lora) or not is_of(merged, lora):
        raise WorkFailed(f"{lora}: not the adapter that {merged} was made from; train again with --force")
    base = hub.folder_of(config.model_id)
    with folder_written_whole(out) as part:
        write_half(lora / "adapter_model.safetensors", part / "adapter_model.safetensors")
        settings = read_json(lora / "adapter_config.json")
        write_json(part / "adapter_config.json", settings | {"base_model_name_or_path": config.model_id})
        if (merged / calibration.FILE).is_file():
            write_json(part / calibration.FILE, read_json(merged / calibration.FILE))
        facts = {
            "config": dataclasses.asdict(config) | {"name": f"{config.name}, adapter that ships"},
            "task": trained["task"],
            "fingerprint": trained["fingerprint"],
            "base": base_facts(base),
            "base_weights_sha256": model_folder.weights_sha256(base),
            "training": trained["training"]
            | {key: trained[key] for key in ("command", "wall_s", "hardware", "versions", "finished")},
            "data": trained["data"],
            **{key: trained[key] for key in (TUNED_FROM,) if key in trained},
            "weights_sha256": model_folder.weights_sha256(part),
        }
        write_text(part / "README.md", card(config, facts, (part / "adapter_model.safetensors").stat().st_size, out))
        write_manifest(part / "manifest.json", clock, **facts)
    print(f"adapter to pass on in {shown_path(out)}")


def is_of(merged, lora):
    return read_json(merged / "manifest.json").get("adapter_sha256") == sha256_file(lora / "adapter_model.safetensors")


def write_half(source, target):
    """The adapter's matrices in float16, whose eleven bits keep what bfloat16 training could tell apart."""
    import torch
    from safetensors.torch import load_file, save_file

    halves = {name: weights.to(torch.float16) for name, weights in load_file(source).items()}
    if not all(torch.isfinite(weights).all() for weights in halves.values()):
        raise WorkFailed(f"{source}: does not fit into float16; nothing was written")
    save_file(halves, target, metadata={"format": "pt"})


def base_facts(base):
    facts = read_json(base / "manifest.json") if (base / "manifest.json").is_file() else {}
    return facts.get("base", {"source": shown_path(base)})


def card(config, facts, n_bytes, out):
    """The folder's README, from the manifest's facts alone."""
    base = facts["base"]
    training = facts["training"]
    if before := facts.get(TUNED_FROM):
        # Of an adapter that was tuned on preferences the card tells the first phase first.
        training = before | before["training"]
        config = dataclasses.replace(config, train=config_from_dict(before["config"], "manifest.json").train)
    quantized = f", which holds them in {base['quantized']}" if base.get("quantized") else ""
    return CARD.read_text(encoding="utf-8").format(
        title=f"{config.name} for the task {facts['task']}: an adapter",
        folder=out.resolve().relative_to(ROOT) if out.resolve().is_relative_to(ROOT) else out.name,
        config=config,
        megabytes=n_bytes / 1e6,
        source=f"the package {base['package']}{quantized}" if "package" in base else base["source"],
        training=training,
        preferences=preferences(config, facts) if TUNED_FROM in facts else "",
        metric=training["selected_by"],
        score=training[f"best_val_{training['selected_by']}"],
        gpu=training["hardware"].get("gpu", "CPU"),
        processes=training.get("processes", 1),
        speed=f", {training['tokens_per_s']:,.0f} tokens/s" if "tokens_per_s" in training else "",
        task=f" --task {facts['task']}" if facts["task"] != DEFAULT else "",
        data=f"data/{facts['task']}/test.jsonl" if facts["task"] != DEFAULT else "data/test.jsonl",
    )


def preferences(config, facts):
    """The card's lines about the second phase."""
    tuned = facts["training"]
    return (
        f"- then preference tuning (DPO, {config.dpo.loss}, beta {config.dpo.beta:g}) against the frozen adapter: "
        f"{tuned['rows']:,} pairs, {tuned['epochs']:g} epochs, {tuned['steps']:,} steps; learning rate "
        f"{config.dpo.lr:g}, seed {config.dpo.seed}\n"
        f"- at its end, on {tuned['rows_val']:,} validation pairs: the chosen answer is preferred in "
        f"{tuned['val_accuracy']:.1%}, margin {tuned['val_margin']:.2f}\n"
        f"- `{tuned['command']}`\n"
    )
