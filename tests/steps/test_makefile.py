"""The Makefile as a user drives it, in a copy of the project with the tests' own interpreter: what runs, what does not
run again.
"""

import json
import os
import re
import shutil
import subprocess
import time

import pytest

from support.pipeline import ROOT, copy_of_the_repo, done
from support.warm_python import QUIET, warm_python

pytestmark = pytest.mark.slow
MODELS = {"phi4mini", "qwen3_4b", "llama3_2_3b", "mistral7b", "standin"}


def make(project, *words, good=True):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")} | QUIET
    result = subprocess.run(
        ["make", f"PY={warm_python()}", *words], cwd=project, capture_output=True, text=True, env=environment
    )
    assert (result.returncode == 0) == good, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


def steps(output):
    """The scripts that make ran, in order."""
    commands = (line for line in output.splitlines() if line.startswith(warm_python()))
    return re.findall(r"src/(\w+)\.py", "\n".join(commands))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Everything made once for the stand-in, small."""
    folder = copy_of_the_repo(tmp_path_factory.mktemp("make"))
    done("src/synthesize.py", "--rows", 240, "--out", "data/all.jsonl", cwd=folder)
    (folder / "data" / "all.jsonl.manifest.json").unlink()
    # The recipe's small run, so that later calls without SET see it as the config's own.
    config = folder / "configs" / "standin.yaml"
    config.write_text(config.read_text().replace("epochs: 2", "epochs: 0.2").replace("r: 32", "r: 4"))
    for target in ("prep", "kpi-standin", "baseline", "report"):
        make(folder, target)
    return folder


def touch(project, name):
    time.sleep(0.01)
    (project / name).touch()


def planned(project, *targets):
    return steps(make(project, "-n", *targets))


def test_prep_twice_does_nothing_the_second_time(project):
    before = {path: path.stat().st_mtime_ns for path in (project / "data").rglob("*.json*")}
    output = make(project, "prep")
    assert "up to date" in output and "build_prompts" not in output
    assert {path: path.stat().st_mtime_ns for path in (project / "data").rglob("*.json*")} == before


def test_steps_on_the_way_are_up_to_date(project):
    assert planned(project, "baseline") == []
    assert planned(project, "kpi-standin") == ["evaluate_kpis"], (
        "asked for by name: it looks for itself whether there is work"
    )


def test_a_step_asked_for_by_name_says_that_nothing_changed(project):
    output = make(project, "train-standin", "kpi-standin")
    assert output.count("is up to date") == 2 and "training Stand-in" not in output


def test_new_labels_run_everything_again(project):
    touch(project, "data/all.jsonl")
    assert planned(project, "kpi-standin")[:2] == ["prepare_splits", "build_prompts"]
    make(project, "prep", "kpi-standin", "baseline", "report")


def test_older_labels_put_in_place_later_are_seen(project):
    labels = project / "data" / "all.jsonl"
    before = (project / "data" / "all.jsonl").read_text()
    labels.write_text("".join(before.splitlines(keepends=True)[:200]))
    os.utime(labels, (1e9, 1e9))
    assert "200 rows" in make(project, "prep")
    labels.write_text(before)
    make(project, "prep", "kpi-standin", "baseline", "report")


def test_one_config_changed_reruns_that_model_only(project):
    other = project / "configs" / "other.yaml"
    standin = project / "configs" / "standin.yaml"
    other.write_text(standin.read_text())
    make(project, "train-other", "kpi-other")
    other.write_text(standin.read_text().replace("lr: 3e-3", "lr: 2e-3"))
    assert planned(project, "kpi-standin") == ["evaluate_kpis"]
    assert planned(project, "kpi-other") == ["sft_train", "evaluate_kpis"]
    output = make(project, "kpi-standin", "kpi-other")
    assert output.count("parity gate, float32: passed") == 1 and "standin_predictions.jsonl is up to date" in output
    assert '"lr": 0.002' in (project / "outputs" / "other-merged" / "manifest.json").read_text()
    for name in (
        "configs/other.yaml",
        "reports/other_metrics.json",
        "reports/other_predictions.jsonl",
        "reports/other_predictions.manifest.json",
    ):
        (project / name).unlink()
    for kind in ("lora", "merged"):
        shutil.rmtree(project / "outputs" / f"other-{kind}")


def test_a_limit_does_not_stick(project):
    metrics = project / "reports" / "standin_metrics.json"
    make(project, "kpi-standin", "LIMIT=5")
    assert json.loads(metrics.read_text())["kpis"]["accuracy"]["n"] == 5
    make(project, "kpi-standin")
    assert json.loads(metrics.read_text())["kpis"]["accuracy"]["n"] == 24


def test_other_weights_of_the_same_settings_answer_anew(project):
    manifest = project / "outputs" / "standin-merged" / "manifest.json"
    before = manifest.read_text()
    manifest.write_text(before.replace('"adapter_sha256": "', '"adapter_sha256": "0'))
    assert "24 answers in" in make(project, "kpi-standin")
    manifest.write_text(before)
    make(project, "kpi-standin")


def test_a_kpi_file_touched_only_scores_again(project):
    predictions = project / "reports" / "standin_predictions.jsonl"
    before = predictions.stat().st_mtime_ns
    touch(project, "src/tasks/crm/kpis.py")
    assert planned(project, "kpi-standin") == ["evaluate_kpis"]
    output = make(project, "kpi-standin")
    assert "predictions.jsonl is up to date" in output and predictions.stat().st_mtime_ns == before
    make(project, "baseline")


def test_report_never_trains(project):
    touch(project, "configs/standin.yaml")
    touch(project, "data/all.jsonl")
    assert planned(project, "report") == ["make_report"]
    make(project, "prep", "train-standin", "kpi-standin", "baseline")


def test_a_changed_prompt_trains_again(project):
    prompt = project / "src" / "tasks" / "crm" / "prompt.md"
    touch(project, "src/tasks/crm/prompt.md")
    assert planned(project, "train-standin") == ["build_prompts", "sft_train"]
    assert prompt.read_text() == (ROOT / "src/tasks/crm/prompt.md").read_text()
    output = make(project, "train-standin")
    assert "is up to date" in output, "same bytes in the prompts: the trainer sees that nothing changed"
    make(project, "kpi-standin", "report")


def test_preference_tuning_never_fine_tunes_and_its_model_is_a_model(project):
    assert planned(project, "dpo-standin") == ["dpo_train"]
    assert planned(project, "kpi-standin-dpo") == ["dpo_train", "evaluate_kpis"]
    assert planned(project, "ask-standin-dpo") == ["ask"] and planned(project, "serve-standin-dpo") == ["serve"]
    assert "data/preferences.jsonl: no such file" in make(project, "dpo-standin", good=False)
    assert "no model 'phi4' in configs/" in make(project, "dpo-phi4", good=False)


def test_preference_pairs_are_made_of_the_splits_and_removed_by_clean_where_they_were_made(project):
    assert planned(project, "preferences") == ["build_preferences"]
    assert "TASK=crm: it makes no wrong answers" in make(project, "preferences", good=False)
    output = make(project, "preferences", "TASK=qod", "ROWS=60", "N_PAIRS=20")
    assert steps(output) == ["prepare_splits", "build_preferences"] and "20 preference pairs: 18 in data/qod" in output
    assert "N_PAIRS=1: at least 2" in make(project, "preferences", "TASK=qod", "N_PAIRS=1", good=False)
    make(project, "clean", "TASK=qod")
    assert not any((project / "data" / "qod").iterdir())
    (project / "data" / "qod" / "preferences.jsonl").write_text("mine")
    make(project, "clean", "TASK=qod")
    assert [path.name for path in (project / "data" / "qod").iterdir()] == ["preferences.jsonl"]
    shutil.rmtree(project / "data" / "qod")


def test_a_setting_on_the_command_line_reaches_the_manifest(project):
    output = make(project, "train-standin", "SET=train.lr=1e-3")
    assert '"lr": 0.001' in (project / "outputs" / "standin-merged" / "manifest.json").read_text()
    assert "sft_train" in steps(output)
    assert "training Stand-in" in make(project, "train-standin"), "a setting of the last call does not stick"
    make(project, "kpi-standin", "baseline", "report")


def test_help_lists_every_target_model_and_variable(project):
    shown = make(project, "help", "BACKEND=hf", "LIMIT=7")
    phony = set(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M))
    targets = {word for line in phony for word in line.split() if not word.startswith("$(")} - {
        "ALWAYS",
        "demo-steps",
        "transfer-sets",
    }
    families = {"check-<model>", "train-<model>", "dpo-<model>", "kpi-<model>"}
    assert {target for target in targets | families if f"make {target}" not in shown} == set()
    models = re.search(r"^models +(.*)$", shown, re.M).group(1).split()
    assert set(models) >= MODELS
    assert re.search(r"LIMIT +7 ", shown) and re.search(r"TASK +crm ", shown)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("prep", "TASK=crmm"), "no task 'crmm'; there is: crm"),
        (("kpi-standin", "BACKEND=hff"), "no backend 'hff'"),
        (("train-phi4",), "no model 'phi4' in configs/; there is: "),
    ],
)
def test_wrong_words_are_named(project, words, said):
    assert said in make(project, *words, good=False)


def test_the_demo_of_the_second_task_has_all_phases(project):
    output = make(project, "--dry-run", "demo", "TASK=qod")
    ran = list(dict.fromkeys(steps(output)))
    assert ran == [
        "prepare_splits",
        "build_prompts",
        "sft_train",
        "evaluate_kpis",
        "build_preferences",
        "dpo_train",
        "make_report",
    ]
    assert "peft.start_from=models/qod-smollm2_135m" in output
    assert all("demo/" in line for line in output.splitlines() if "--out" in line)


def test_a_failing_step_fails_the_target_and_leaves_no_result(project):
    data = project / "data" / "all.jsonl"
    whole = data.read_text()
    data.write_text(whole + "{broken\n")
    touch(project, "data/all.jsonl")
    output = make(project, "prep", good=False)
    assert "data/all.jsonl:241" in output and "Traceback" not in output
    data.write_text(whole)
    make(project, "prep", "kpi-standin", "baseline", "report")


def test_clean_removes_what_was_made_and_nothing_else(project):
    words = "Our own conclusion.\n"
    comparison = project / "reports" / "model_comparison.md"
    comparison.write_text(comparison.read_text() + words)
    (project / "outputs" / "notes.txt").write_text("mine")
    for name in (
        "mini_sampled.jsonl",
        "mini_sampled.manifest.json",
        "mini_sampled.jsonl.1.kept",
        "customers_sampled.csv",
    ):
        (project / "data" / name).write_text("{}")
    make(project, "clean")
    left = {
        str(path.relative_to(project))
        for folder in ("data", "outputs", "reports", "models")
        for path in (project / folder).rglob("*")
        if path.is_file()
    }
    shipped = {name for name in left if name.startswith(("models/steward-mini/", "models/crm-", "models/qod-"))}
    assert "models/steward-mini/model.safetensors" in shipped
    assert "models/crm-smollm2_135m/adapter_model.safetensors" in shipped
    left -= shipped
    own = {"data/README.md", "data/all.jsonl", "data/customers_sampled.csv"}
    assert left == own | {"outputs/notes.txt", "reports/model_comparison.md"}
    assert words in comparison.read_text() and "steward:begin" not in comparison.read_text()
