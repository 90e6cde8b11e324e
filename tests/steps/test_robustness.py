"""Steps that are killed, stopped, started twice, or run on a full disk or one that can only be read.

STEWARD_KILLS=10 python -m pytest tests/steps/test_robustness.py kills each step ten times instead of once.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter

import pytest

from support.pipeline import done, prepared, run
from support.warm_python import QUIET, warm_python

pytestmark = pytest.mark.slow
N_KILLS = int(os.environ.get("STEWARD_KILLS", 1))
QUICK = ["train.epochs=1", "train.evals_per_epoch=4", "train.eval_rows=24", "peft.r=8"]
TRAIN = ["src/sft_train.py", "--config", "configs/standin.yaml", "--set", *QUICK]
KPI = ["src/evaluate_kpis.py", "--model_path", "outputs/standin-merged", "--out", "reports/standin_metrics.json"]
BENCH = ["src/eval_latency_throughput.py", "--model_path", "outputs/standin-merged", "--concurrency", "1"]
CLUSTERS = ["--format", "clusters", "--in", "people.csv", "--id_column", "id", "--cluster_column", "who"]
# Step -> (command, what it makes that another run makes alike)
STEPS = {
    "import": (["src/import_rows.py", *CLUSTERS, "--out", "imported.jsonl"], ["imported.jsonl"]),
    "prep": (["src/prepare_splits.py"], ["data/train.jsonl", "data/val.jsonl", "data/test.jsonl"]),
    "prompts": (["src/build_prompts.py"], ["data/processed/train.jsonl", "data/processed/val.jsonl"]),
    "train": (TRAIN, ["outputs/standin-lora/adapter_model.safetensors", "outputs/standin-merged/model.safetensors"]),
    "kpi": (KPI, ["reports/standin_predictions.jsonl", "reports/standin_metrics.json"]),
    "report": (["src/make_report.py"], ["reports/metrics.csv", "reports/model_comparison.md", "reports/index.html"]),
}
# and all that it makes
MADE = {
    "import": ["imported.jsonl*"],
    "prep": ["data/[tv]*.jsonl", "data/manifest.json"],
    "prompts": ["data/processed"],
    "train": ["outputs"],
    "kpi": ["reports/standin_*"],
    "report": ["reports/index.html", "reports/*.csv", "reports/model_comparison.md", "reports/manifest.json"],
}
TIMES = ("seconds", "wall_s", "finished", "peak_memory_mib", "predicted", "rows_resumed", "predictions_sha256")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A project in which every step has run to its end, with the seconds that each took."""
    project = prepared(tmp_path_factory.mktemp("whole"), n_rows=120)
    rng = random.Random(1)
    rows = [f"{at},{at // 2},Ann Lee {at // 2},{rng.randrange(10**6)}" for at in range(3_000)]
    (project / "people.csv").write_text("id,who,name,phone\n" + "\n".join(rows) + "\n")
    seconds = {}
    for step, (command, _) in STEPS.items():
        start = time.monotonic()
        done(*command, cwd=project)
        seconds[step] = time.monotonic() - start
    return project, seconds


def before(step, whole, folder):
    """A project in which every other step has run."""
    shutil.copytree(whole[0], folder, symlinks=True)
    for pattern in MADE[step]:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


def begun(command, project):
    return subprocess.Popen(
        [warm_python(), *command],
        cwd=project,
        env=os.environ | QUIET,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(project, step):
    """The bytes of what a step makes; where they hold times, all but these."""
    found = {}
    for name in STEPS[step][1]:
        path = project / name
        found[name] = path.read_bytes()
        if step == "kpi":
            found[name] = [without_times(json.loads(line)) for line in json_lines(path)]
    return found


def json_lines(path):
    text = path.read_text()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def without_times(facts):
    return {key: value for key, value in facts.items() if key not in TIMES}


def moment(project):
    """What a killed step was at, by what it left."""
    lora = project / "outputs" / "standin-lora"
    if (project / "outputs" / "standin-merged").is_dir():
        return "behind training and merge"
    if (lora / "manifest.json").is_file():
        return "merging"
    checkpoints = list(lora.glob("checkpoints/checkpoint-*"))
    if not checkpoints:
        return "before the first checkpoint"
    half = [path for path in checkpoints if not (path / "trainer_state.json").is_file()]
    return "writing a checkpoint" if half else "training"


def left_over(project):
    return [path for pattern in ("*.part", "*.kept", ".*.lock") for path in project.rglob(pattern)]


def n_kept(folder):
    """How many results an interrupted run has kept there."""
    return sum(path.read_text().count("\n") - 1 for path in folder.glob("*.kept"))


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_step_ends_as_if_nothing_had_happened(step, whole, tmp_path):
    project, seconds = whole
    command, _ = STEPS[step]
    rng = random.Random(f"{step} {N_KILLS}")
    folder = before(step, whole, tmp_path / "killed")
    moments = Counter()
    while moments.total() < N_KILLS:
        process = begun(command, folder)
        time.sleep(rng.uniform(0.05, 1) * seconds[step])
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            moments[moment(folder)] += 1
        else:
            # Too late: the next kill is for a run that begins anew.
            assert result(folder, step) == result(project, step)
            shutil.rmtree(folder)
            before(step, whole, folder)
    done(*command, cwd=folder)
    print(f"{step}: {dict(moments)}")
    assert result(folder, step) == result(project, step)
    assert left_over(folder) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_training_that_is_stopped_says_where_it_goes_on_and_goes_on_there(number, code, whole, tmp_path):
    folder = before("train", whole, tmp_path / "stopped")
    process = begun(TRAIN, folder)
    checkpoints = folder / "outputs" / "standin-lora" / "checkpoints"
    until(lambda: list(checkpoints.glob("*/trainer_state.json")), process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in said
    assert "is kept in outputs/standin-lora/checkpoints/checkpoint-" in said
    assert "; go on with: python src/sft_train.py" in said
    assert "going on from step" in done(*TRAIN, cwd=folder)
    assert result(folder, "train") == result(whole[0], "train")
    assert left_over(folder) == []


PAIRS = 64


@pytest.fixture(scope="module")
def pairs(whole):
    """Cases of which one is longer than the model can read."""
    lines = [json.dumps({"record1": {"name": f"Ann {at}"}, "record2": {"name": "Bo"}}) for at in range(PAIRS - 1)]
    lines.insert(3, json.dumps({"record1": {"name": "x " * 9_000}, "record2": {}}))
    path = whole[0].parent / "pairs.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_answers_to_cases_are_kept_and_one_that_is_too_long_stops_no_other(whole, pairs, tmp_path):
    command = ["src/ask.py", "--pairs", pairs, "--model_path", "outputs/standin-merged", "--out"]
    process = begun([*command, tmp_path / "stopped.jsonl"], whole[0])
    until(lambda: n_kept(tmp_path) > 15, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said
    assert f" answers are kept in {tmp_path}/stopped.jsonl." in said and "; go on with: python src/ask.py" in said
    goes_on = run(*command, tmp_path / "stopped.jsonl", cwd=whole[0])
    assert goes_on.returncode == 1
    assert "going on: " in goes_on.stdout
    assert f"1 of {PAIRS} pairs could not be answered; each has an error in its place" in goes_on.stderr
    assert run(*command, tmp_path / "whole.jsonl", cwd=whole[0]).returncode == 1
    assert (tmp_path / "stopped.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    answers = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    assert [at for at, answer in enumerate(answers) if "error" in answer] == [3]
    assert answers[3]["error"].startswith("too long: the prompt takes ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped.jsonl", "whole.jsonl"]


def test_a_row_without_an_answer_is_counted_and_the_others_are_scored(whole, tmp_path):
    project, _ = whole
    rows = [json.loads(line) for line in (project / "data" / "test.jsonl").read_text().splitlines()][:4]
    rows[1]["input"]["record1"] = {"name": "x " * 9_000}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model_path", "outputs/standin-merged", "--data", tmp_path / "rows.jsonl", "--out"]
    predicted = run("src/predict.py", *words, tmp_path / "x_predictions.jsonl", cwd=project)
    assert predicted.returncode == 1
    assert "1 row has no answer and an error in its place" in predicted.stderr
    found = [json.loads(line) for line in (tmp_path / "x_predictions.jsonl").read_text().splitlines()]
    assert [at for at, row in enumerate(found) if "error" in row] == [1]
    scored = run("src/evaluate_kpis.py", *words, tmp_path / "x_metrics.json", cwd=project)
    assert scored.returncode == 0 and "warning: 1 row has no answer" in scored.stdout
    kpis = json.loads((tmp_path / "x_metrics.json").read_text())["kpis"]
    assert kpis["json_valid_pct"]["value"] == 75.0 and kpis["json_valid_pct"]["n"] == 4


def test_a_benchmark_that_is_stopped_keeps_its_levels_and_goes_on(whole, tmp_path):
    out = tmp_path / "x_latency.csv"
    command = [*BENCH, "4", "--requests", "4", "--no_floor", "--out", str(out)]
    process = begun(command, whole[0])
    until(lambda: n_kept(tmp_path) > 0, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and "1 levels are kept" in said and "Traceback" not in said
    assert "going on: 1 levels are kept" in done(*command, cwd=whole[0])
    assert len(out.read_text().splitlines()) == 3
    assert list(tmp_path.glob("*.kept")) == []


def test_a_benchmark_can_be_stopped_while_it_measures_the_machine(whole, tmp_path):
    command = [*BENCH, "--out", str(tmp_path / "x_latency.csv")]
    process = subprocess.Popen(
        [warm_python(), *command], cwd=whole[0], env=os.environ | QUIET, stdout=subprocess.PIPE, text=True
    )
    assert any("measuring this machine" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


def until(happened, process, most_s=120):
    end = time.monotonic() + most_s
    while not happened():
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("step", ["prep", "train"])
def test_of_two_at_one_place_one_works_and_the_other_says_why_not(step, whole, tmp_path):
    command, _ = STEPS[step]
    folder = before(step, whole, tmp_path / "two")
    first = begun(command, folder)
    place = "data" if step == "prep" else "outputs"
    until(lambda: list((folder / place).glob(".*.lock")), first)
    os.kill(first.pid, 0)
    second = run(*command, cwd=folder)
    first.communicate(timeout=120)
    assert {first.returncode, second.returncode} == {0, 1}
    assert "is being written by process" in second.stderr and "Traceback" not in second.stderr
    assert result(folder, step) == result(whole[0], step)


ASK = ["src/ask.py", "--pairs", "src/tasks/crm/sample_pairs.jsonl", "--model_path", "outputs/standin-merged"]
WRITERS = {
    "synthesize": ["src/synthesize.py", "--rows", "400", "--out", "disk/rows.jsonl"],
    "prompts": ["src/build_prompts.py", "--out", "disk/processed"],
    "standin": ["src/make_standin.py", "--out", "disk/standin"],
    "train": [*TRAIN, "--out", "disk/outputs"],
    "predict": ["src/predict.py", "--model_path", "outputs/standin-merged", "--out", "disk/x_predictions.jsonl"],
    "kpi": [*KPI[:-1], "disk/standin_metrics.json"],
    "ask": [*ASK, "--out", "disk/answers.jsonl"],
    "bench": [*BENCH, "--requests", "4", "--no_floor", "--out", "disk/x_latency.csv"],
    "baseline": ["src/baseline.py", "--only", "majority", "--out", "disk"],
    "report": ["src/make_report.py", "--reports", "disk"],
}


@pytest.fixture(scope="module")
def with_disk(whole, tmp_path_factory):
    """The whole project with a folder `disk` that is a file system of 16 KB."""
    project = tmp_path_factory.mktemp("disk") / "project"
    shutil.copytree(whole[0], project, symlinks=True)
    disk = project / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small file system")
    yield project
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("state", ["full", "read-only"])
@pytest.mark.parametrize("step", WRITERS)
def test_a_disk_that_takes_nothing_is_one_sentence(step, state, with_disk):
    disk = with_disk / "disk"
    filler = disk / "filler"
    filler.write_bytes(b"x" * (12_288 if state == "full" else 0))
    inputs = {path: path.read_bytes() for path in (with_disk / "data").rglob("*") if path.is_file()}
    if state == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        result = run(*WRITERS[step], cwd=with_disk)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    made = sorted(path.relative_to(disk).as_posix() for path in disk.rglob("*") if path.is_file())
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert result.returncode == 1, result.stdout[-1000:] + result.stderr[-3000:]
    said = [line for line in result.stderr.splitlines() if line.startswith(("failed:", "error:"))]
    assert len(said) == 1 and "disk" in said[0] and "Traceback" not in result.stderr, result.stderr[-3000:]
    # What is kept for the next run is no result, and the sentence says so.
    kept = [name for name in made if name.endswith(".kept")]
    assert ("are kept in disk/" in said[0]) == bool(kept)
    # Of a training's half-written checkpoints the next run takes none.
    assert [name for name in made if name not in kept and "checkpoints" not in name and "left_out" not in name] == [
        "filler"
    ]
    assert inputs == {path: path.read_bytes() for path in inputs}
