"""What is made again when a file changes: everything that depends on it, and nothing else."""

import json
import subprocess
import sys

import pytest

from common import ROOT
from constrained_decode import engine_names
from support.pipeline import copy_of_the_repo, done

SRC = ROOT / "src"
ENGINES = engine_names()
HELPERS = sorted(path.relative_to(ROOT).as_posix() for path in (SRC / "constrained_decode").glob("_[a-z]*.py"))
# Files of other rooms that shape an answer of the engine in this process.
SHAPES_AN_ANSWER = [
    "src/scoring/predictions.py",
    "src/language_model/chat_template.py",
    "src/language_model/hub.py",
    "src/language_model/verdict_branch.py",
    "src/language_model/calibration.py",
    "src/tasks/__init__.py",
    "src/tasks/answers.py",
    "src/tasks/crm/data.py",
    "src/tasks/crm/prompt.md",
    "src/tasks/crm/task.yaml",
    "configs/decoding.jsonschema",
    "configs/steward_mini.yaml",
    "data.jsonl",
]
SHAPES_NONE = [
    *(
        path.relative_to(ROOT).as_posix()
        for room in ("report", "service", "training")
        for path in (SRC / room).rglob("*.py")
    ),
    *(
        f"src/scoring/{name}.py"
        for name in ("kpis", "kpis_of_verdicts", "kpis_of_every_task", "bootstrap", "baselines")
    ),
    *(f"src/tasks/crm/{name}.py" for name in ("kpis", "service", "baseline", "synthetic", "importing")),
    "src/make_report.py",
    "src/evaluate_kpis.py",
    "configs/phi4mini.yaml",
    "README.md",
]
EDITS = {
    "src/tasks/crm/prompt.md": "\nBe careful.\n",
    "src/tasks/crm/task.yaml": "gen:\n  max_new_tokens: 60\n",
    "configs/steward_mini.yaml": None,
    "configs/phi4mini.yaml": None,
    "configs/decoding.jsonschema": None,
    "README.md": "\nMore words.\n",
}
# Prints {edited file: {what: its fingerprint}} of every edit, one after the other, each taken back.
PROGRAM = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
root, edits, engines = json.loads(sys.argv[1])
sys.path.insert(0, f"{root}/src")
import prepare_splits, sft_train
from config import load_config
from language_model.model_folder import model_config
from rows import load_rows
from scoring import predictions
from tasks import load_task

def fingerprints():
    task, data = load_task(), Path("data.jsonl")
    args = SimpleNamespace(seed=1, rows=2000, reasons="keep")
    found = {"splits": prepare_splits.splits_fingerprint(data, args, task)}
    config = load_config("configs/steward_mini.yaml", (), task.overlay)
    found["training"] = sft_train.training_fingerprint(SimpleNamespace(train=data, val=data), config, task)
    for engine in engines:
        args = SimpleNamespace(config="configs/steward_mini.yaml", model_path="models/steward-mini", backend=engine,
                               limit=None, batch_size=None, unconstrained=False, endpoint=None)
        rows = load_rows(data, task)
        found[engine] = predictions.predictions_fingerprint(args, task, model_config(args, task), data, rows)
    return found

found = {"": fingerprints()}
for name, added in edits.items():
    path = Path(name)
    before = path.read_bytes()
    path.write_text(path.read_text() + added["add"] if "add" in added else path.read_text().replace(*added["replace"]))
    assert path.read_bytes() != before, name
    found[name] = fingerprints()
    path.write_bytes(before)
assert fingerprints() == found[""]
print(json.dumps(found))
"""


def edit_of(name):
    if name == "configs/decoding.jsonschema":
        return {"replace": ["320", "300"]}
    if name.startswith("configs/"):
        return {"replace": ["temperature: 0", "temperature: 0.7 #"]}
    if name == "data.jsonl":
        return {
            "add": '{"input":{"record1":{"name":"Bo"},"record2":{}},"output":{"result":"NO_MATCH","reasoning":"x"}}\n'
        }
    return {"add": EDITS.get(name) or "\n\nEDITED = True\n"}


@pytest.fixture(scope="module")
def fingerprints(tmp_path_factory):
    """{edited file: {step or engine: fingerprint}} from a copy of the project."""
    project = copy_of_the_repo(tmp_path_factory.mktemp("edited"))
    done("src/synthesize.py", "--rows", 12, "--out", "data.jsonl", cwd=project)
    engines = [f"src/constrained_decode/{name}.py" for name in ENGINES]
    names = [*engines, *HELPERS, *SHAPES_AN_ANSWER, *SHAPES_NONE, *ALSO]
    edits = {name: edit_of(name) for name in names}
    given = json.dumps([str(project), edits, [name for name in ENGINES if name != "llama_cpp"]])
    result = subprocess.run([sys.executable, "-c", PROGRAM, given], cwd=project, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


ALSO = [
    "src/entity_resolution/near_duplicates.py",
    "src/entity_resolution/plain_text.py",
    "src/rows.py",
    "src/training/trainer.py",
    "src/training/selection.py",
    "src/dataset.py",
    "src/language_model/base_model.py",
    "src/prepare_splits.py",
]


def changed(fingerprints, name):
    return {what for what, value in fingerprints[name].items() if value != fingerprints[""][what]}


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "llama_cpp"])
def test_an_edited_engine_makes_its_own_answers_again(fingerprints, engine):
    assert engine in changed(fingerprints, f"src/constrained_decode/{engine}.py")
    assert "training" not in changed(fingerprints, f"src/constrained_decode/{engine}.py")


@pytest.mark.parametrize("helper", HELPERS)
def test_an_edited_helper_makes_answers_again(fingerprints, helper):
    assert changed(fingerprints, helper) & set(ENGINES)


@pytest.mark.parametrize("name", SHAPES_AN_ANSWER)
def test_what_shapes_an_answer_makes_answers_again(fingerprints, name):
    assert "hf" in changed(fingerprints, name)


@pytest.mark.parametrize("name", SHAPES_NONE)
def test_a_kpi_a_report_or_the_service_makes_no_answer_again(fingerprints, name):
    assert changed(fingerprints, name) & {*ENGINES, "splits"} == set()


def test_splits_and_training_depend_on_their_own_code(fingerprints):
    assert "splits" in changed(fingerprints, "src/entity_resolution/near_duplicates.py")
    assert "splits" in changed(fingerprints, "src/rows.py")
    assert "splits" in changed(fingerprints, "src/prepare_splits.py")
    assert "splits" in changed(fingerprints, "data.jsonl")
    assert changed(fingerprints, "src/training/trainer.py") == {"training"}
    assert changed(fingerprints, "src/training/selection.py") == {"training"}
    assert "training" in changed(fingerprints, "src/dataset.py")
    assert "training" in changed(fingerprints, "src/language_model/base_model.py")
    assert "training" in changed(fingerprints, "configs/steward_mini.yaml")


@pytest.mark.parametrize("name", ["duration", "merge_adapter", "parity"])
def test_how_long_it_takes_and_how_it_is_merged_trains_nothing_again(fingerprints, name):
    assert changed(fingerprints, f"src/training/{name}.py") == set()


def test_words_change_nothing(tmp_path):
    """A comment, a docstring or a line break must not train a model again."""
    path = tmp_path / "code.py"
    program = f"import sys; sys.path.insert(0, {str(SRC)!r}); import manifest; from pathlib import Path; "
    program += f"print(manifest.code_hash(Path({str(path)!r})))"

    def hash_of(text):
        path.write_text(text)
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    code = 'def f(x):\n    """One."""\n    return x + 1\n'
    assert hash_of(code) == hash_of('def f(x):\n    """Two."""\n    # why\n    return (\n        x + 1\n    )\n')
    assert hash_of(code) != hash_of(code.replace("+", "-"))


@pytest.mark.slow
def test_predictions_are_made_again_and_only_when_needed(tmp_path):
    project = copy_of_the_repo(tmp_path)
    done("src/synthesize.py", "--rows", 1, "--out", "rows.jsonl", cwd=project)
    command = ["src/evaluate_kpis.py", "--model_path", "models/steward-mini", "--data", "rows.jsonl", "--out", "m.json"]
    assert "1 answers" in done(*command, cwd=project)
    assert "up to date" in done(*command, cwd=project)
    for name, again in (("src/tasks/crm/kpis.py", False), ("src/constrained_decode/_guarantee.py", True)):
        path = project / name
        path.write_text(path.read_text() + "\n\nEDITED = True\n")
        assert ("up to date" in done(*command, cwd=project)) != again
