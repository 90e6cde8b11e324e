"""Three tasks without a verdict, added as a user adds one: a folder each. Every step runs on them, and no file outside
the folders is added or changed.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from language_model.model_server import free_port
from support import small_tasks
from support.pipeline import copy_of_the_repo, done
from support.warm_python import QUIET, warm_python
from tasks import task_names

pytestmark = pytest.mark.slow
STARTS_WITHIN_S = 180
# Greedy: what is drawn depends on who stands beside a row.
QUICK = ["train.epochs=2", "train.evals_per_epoch=1", "peft.r=4", "gen.temperature=0"]


def hashes(project):
    """{path: hash} of everything that a user would commit."""
    folders = ("src", "configs", "docs", "tests")
    files = [path for folder in folders for path in (project / folder).rglob("*") if path.suffix != ".pyc"]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = copy_of_the_repo(tmp_path_factory.mktemp("tasks"))
    small_tasks.installed_in(project)
    before = hashes(project)
    yield project
    assert hashes(project) == before


@pytest.fixture(scope="module", params=small_tasks.NAMES)
def trained(request, project):
    """(project, task, what check said) with a model that was trained, merged and asked."""
    task = request.param
    sample = project / "src" / "tasks" / task / "sample.jsonl"
    (project / "data" / task).mkdir(parents=True)
    (project / "data" / task / "all.jsonl").write_bytes(sample.read_bytes())
    done("src/prepare_splits.py", "--task", task, cwd=project)
    done("src/build_prompts.py", "--task", task, cwd=project)
    done("src/make_standin.py", "--data", f"data/{task}/processed/train.jsonl", cwd=project)
    config = ("--config", "configs/standin.yaml")
    checked = done("src/check_model.py", *config, "--task", task, cwd=project)
    done("src/sft_train.py", *config, "--task", task, "--set", *QUICK, cwd=project)
    return project, task, checked


def model(task):
    return f"outputs/{task}/standin-merged"


def kpi(project, task, *options, out):
    path = f"reports/{task}/{out}_metrics.json"
    done(
        "src/evaluate_kpis.py", *options, "--data", f"data/{task}/all.jsonl", "--out", path, "--task", task, cwd=project
    )
    return json.loads((project / path).read_text())["kpis"]


def test_check_says_ready_without_a_word_about_verdicts(trained):
    _, _, checked = trained
    assert "is ready" in checked and "FAIL" not in checked and "verdict" not in checked


def test_training_picks_by_the_loss_and_the_merge_is_gated_by_tokens(trained):
    project, task, _ = trained
    manifest = json.loads((project / model(task) / "manifest.json").read_text())
    assert manifest["training"]["selected_by"] == "loss" and manifest["training"]["best_val_loss"] > 0
    assert manifest["parity"]["passed"] and manifest["parity"]["tokens_changed"] == 0
    assert manifest["calibration"] is None


def test_answers_are_scored_without_labels(trained):
    project, task, _ = trained
    kpis = kpi(project, task, "--model_path", model(task), out="standin")
    assert kpis["exact_pct"]["n"] == 12 and "accuracy" not in kpis and "ece" not in kpis
    predictions = (project / "reports" / task / "standin_predictions.jsonl").read_text().splitlines()
    assert len(predictions) == 12 and "label" not in json.loads(predictions[0])
    if task != "notes":
        assert all(json.loads(line)["answer"] is not None for line in predictions), "held to the schema"
    done("src/make_report.py", "--reports", f"reports/{task}", "--task", task, cwd=project)
    page = (project / "reports" / task / "index.html").read_text()
    table = (project / "reports" / task / "model_comparison.md").read_text()
    assert "Stand-in" in table and "macro" not in table.lower() and 'class="confusion"' not in page


def test_a_case_is_asked(trained):
    project, task, _ = trained
    case = json.loads((project / "src/tasks" / task / "sample.jsonl").read_text().splitlines()[0])["input"]
    out = done("src/ask.py", json.dumps(case), "--model_path", model(task), "--task", task, cwd=project)
    [answer] = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    expected = {"notes": {"answer"}, "booking": {"city", "nights", "guest"}, "switches": {"name", "arguments"}}[task]
    assert set(answer) == expected or (task == "notes" and "error" in answer)


def test_the_served_model_answers_and_is_scored_over_http(trained):
    project, task, _ = trained
    case = json.loads((project / "src/tasks" / task / "sample.jsonl").read_text().splitlines()[0])["input"]
    with served(project, task) as address:
        request = urllib.request.Request(
            f"{address}/answer", json.dumps(case).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            assert response.status == 200 and "answer" in json.loads(response.read())
        options = ["--model_path", "steward", "--backend", "openai_api", "--endpoint", f"{address}/v1", "--limit", "6"]
        over_http = kpi(project, task, *options, "--config", "configs/standin.yaml", out="http")
    in_process = kpi(project, task, "--model_path", model(task), "--limit", "6", out="six")
    assert over_http["exact_pct"]["value"] == in_process["exact_pct"]["value"]


@contextlib.contextmanager
def served(project, task):
    """The address of a service of the task's trained model, while a block runs."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [warm_python(), "src/serve.py", "--model_path", model(task), "--task", task, "--port", str(port)]
    process = subprocess.Popen(command, cwd=project, env=os.environ | QUIET, stderr=subprocess.DEVNULL)
    try:
        until_ready(process, address)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def until_ready(process, address):
    until = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < until:
        assert process.poll() is None, "the service ended"
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    raise AssertionError("the service was not ready in time")


def test_the_three_are_not_part_of_the_project():
    assert not set(small_tasks.NAMES) & set(task_names())
