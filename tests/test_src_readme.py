"""src/README.md names every step, shared file and folder of src/ once, and nothing else."""

import re

from common import ROOT

TEXT = (ROOT / "src/README.md").read_text(encoding="utf-8")
STEPS, SHARED = TEXT.split("# What the steps share")


def named(text):
    return re.findall(r"^- `([^`]+)`", text, re.M)


def is_step(path):
    return bool(re.search(r"^def main\(", path.read_text(encoding="utf-8"), re.M))


def test_every_step_is_named_once_among_the_steps():
    assert sorted(named(STEPS)) == sorted(path.name for path in (ROOT / "src").glob("*.py") if is_step(path))


def test_every_shared_file_and_folder_is_named_once():
    files = [path.name for path in (ROOT / "src").glob("*.py") if not is_step(path)]
    folders = [f"{path.parent.name}/" for path in (ROOT / "src").glob("*/__init__.py")]
    assert sorted(named(SHARED)) == sorted(files + folders)


def test_data_comes_before_training_before_scoring_before_use():
    names = named(STEPS)
    order = ("synthesize.py", "prepare_splits.py", "build_prompts.py", "check_model.py", "sft_train.py", "predict.py")
    order += ("evaluate_kpis.py", "make_report.py", "serve.py", "review_export.py")
    assert sorted(order, key=names.index) == list(order)
