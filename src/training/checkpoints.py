"""Checkpoints that a killed run goes on from: whose they are, and which is the last whole one."""

import json
import shutil

from common import write_text
from training.processes import is_main


def prepare_folder(result, fingerprint):
    """The checkpoint folder; checkpoints of other settings, data or code are thrown away."""
    checkpoints = result / "checkpoints"
    mark = checkpoints / "fingerprint.txt"
    if is_main():
        (result / "manifest.json").unlink(missing_ok=True)
        if checkpoints.exists() and (not mark.is_file() or mark.read_text() != fingerprint):
            print(f"{checkpoints}: these checkpoints are of other settings, data or code; starting anew", flush=True)
            shutil.rmtree(checkpoints)
        checkpoints.mkdir(parents=True, exist_ok=True)
        write_text(mark, fingerprint)
    return checkpoints


def last_whole_checkpoint(checkpoints):
    """The newest checkpoint that was written to its end; a run killed while saving leaves one that is not."""
    found = sorted(checkpoints.glob("checkpoint-*"), key=step_of)
    for path in reversed(found):
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError):
            if is_main():
                print(f"{path}: half-written, left aside", flush=True)
                shutil.rmtree(path)
            continue
        return path
    return None


def step_of(checkpoint):
    return int(checkpoint.name.rsplit("-", 1)[1])


def kept_words(checkpoints):
    """What an interrupted training goes on from; empty before the first checkpoint."""
    last = last_whole_checkpoint(checkpoints)
    return f"the training up to step {step_of(last)} is kept in {last}" if last else ""
