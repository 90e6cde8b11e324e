"""The folders of one model's training: their names, and whether they hold what they should."""

from common import UserError, read_json
from language_model import model_folder
from training.processes import say


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
