"""A folder that holds an adapter alone: its base is found or fetched, and both become one model in memory.

Folded once, it runs as fast as a merged model and takes no room on disk; adding two small products to every layer of
every token would not.
"""

import sys
from pathlib import Path

from common import UserError, read_json
from config import config_from_dict
from language_model import base_files, hub, model_folder
from language_model.base_model import has_bfloat16_arithmetic, load_weights

FOLDED_IN_FLOAT32_BELOW = 1e9  # parameters; more would need twice the memory


def ensure_base(folder):
    """Fetch the base that an adapter was trained on where it is not here."""
    manifest = Path(folder) / "manifest.json"
    facts = read_json(manifest) if manifest.is_file() else {}
    if "config" in facts:
        config = config_from_dict(facts["config"], manifest)
        check_foldable(folder, config)
        base_files.ensure(config)
    warn_of_another_base(folder, facts.get("base_weights_sha256"))


def check_foldable(folder, config):
    if config.peft.method == "qlora":
        raise UserError(
            f"{folder}: this adapter was trained against 4-bit weights, so it does not fit the whole ones; name the "
            "merged model"
        )


def warn_of_another_base(folder, trained_on):
    """Say so where the weights here are not those of the training, as the hub's are beside a package's four bits."""
    base = hub.place_of(hub.base_of(folder))
    if trained_on and base and model_folder.weights_sha256(base) != trained_on:
        print(
            f"warning: {folder} was trained on other weights than those in {base}; its verdicts may differ",
            file=sys.stderr,
            flush=True,
        )


def folded(folder):
    """The base with the adapter's products added to its weights."""
    import torch
    from peft import PeftModel

    model_folder.check_weights(folder)
    base_id = hub.base_of(folder)
    base = load_weights(base_id, dtype="auto")
    if base.num_parameters() < FOLDED_IN_FLOAT32_BELOW:
        base = base.float()
    try:
        model = PeftModel.from_pretrained(base, folder).merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{folder}: this adapter does not fit {base_id} ({str(error).strip().splitlines()[0]}); copy it again"
        ) from error
    fast = torch.cuda.is_available() or has_bfloat16_arithmetic()
    return model.to(torch.bfloat16) if fast else model
