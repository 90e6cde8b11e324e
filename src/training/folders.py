"""The folders of one model's training: their names, whether they hold what they should, and what is made anew."""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import interruption
from common import UserError, quiet_libraries, read_json
from language_model import model_folder
from manifest import SRC, Clock, fingerprint
from training.processes import is_main, say

MERGING = SRC / "training" / "merge_adapter.py"


def folder_of(model, what):
    return model.with_name(f"{model.name}-{what}")


def finished(folder, name):
    """Whether a folder holds the result of this fingerprint."""
    manifest = folder / "manifest.json"
    return manifest.is_file() and read_json(manifest).get("fingerprint") == name


def undamaged(merged):
    """Whether a merged model has the weights that were written; damaged ones are made again, for a merge is cheap."""
    try:
        model_folder.check_weights(merged)
    except UserError:
        say(f"{merged}: the weights are damaged, and are made again from the adapter")
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Phase:
    """One training with its merge: two folders, what they are made from, and how."""

    adapter: Path
    merged: Path
    made_from: str  # the adapter's fingerprint
    train: Callable  # (adapter, made_from, clock)
    prompts: Path  # validation prompts, on which adapter and merged model are compared


def make_both(phase, config, task, force):
    """Make what is missing or was made from something else: the adapter, the merged model, both or neither."""
    clock = Clock()
    adapter = phase.adapter
    merged_from = fingerprint([phase.made_from, dataclasses.asdict(config.merge)], MERGING)
    if not force and finished(phase.merged, merged_from) and undamaged(phase.merged):
        say(f"{phase.merged} is up to date: same config, data, base model and code (--force trains again)")
        os.utime(phase.merged / "manifest.json")
        return
    quiet_libraries()
    if force and is_main():
        shutil.rmtree(adapter, ignore_errors=True)
    if force or not finished(adapter, phase.made_from):
        if (adapter / "manifest.json").is_file():
            made_by = read_json(adapter / "manifest.json").get("command")
            say(f"{adapter} was made from other settings, data or code ({made_by}): it is trained anew")
        phase.train(adapter, phase.made_from, clock)
    else:
        say(f"{adapter} is up to date: only the merge runs")
    if is_main():
        import dataset
        from training import merge_adapter

        with interruption.keeping(lambda: f"the adapter in {adapter} is whole, and only the merge runs again"):
            merge_adapter.merge(config, task, adapter, phase.merged, dataset.read_prompts(phase.prompts), merged_from)
