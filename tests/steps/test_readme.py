"""Every command that README and docs/ show is run, word for word, in a fresh copy; a real model's name becomes the
stand-in's.
"""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from service.review import decisions
from support.pipeline import ROOT, copy_of_the_repo, done
from support.warm_python import QUIET, warm_python
from tasks import load_task

REAL_MODEL = "phi4mini"
# Not run here: what begins so needs what no test machine has, or takes long; each is covered as said.
ELSEWHERE = {
    "make test": "running now",
    "make setup": "test_setup.py, with a stand-in for pip and conda",
    "make demo": "test_demo.py",
    "make prep IN=pairs.csv": "test_own_table.py, with a table that it makes",
    "make train-steward_mini": "test_own_table.py",
    "make kpi-steward_mini": "test_own_table.py",
    "make train-smollm2_135m SET=": "half an hour on two cores; test_start.py with a tiny one",
    "make dpo-phi4mini": "test_preference_tuning.py, with pairs that it makes",
    "make kpi-phi4mini-dpo": "test_preference_tuning.py",
    "make train-phi3mini": "needs a GPU; test_recipe.py trains the stand-in by the same recipe",
    "make dpo-phi3mini": "needs a GPU; test_preference_tuning.py",
    "make kpi-phi3mini-dpo": "needs a GPU; test_preference_tuning.py",
    "make serve": "test_serve.py, with README's own question",
    "make pretrain": "needs a GPU; test_pretrain.py trains a tiny one",
    "curl http://127.0.0.1:8080/match": "test_serve.py asks it of a service",
    "vllm serve": "needs a GPU",
    "docker build": "needs a Docker engine",
    "docker run": "needs a Docker engine",
    "python src/serve.py --upstream": "needs a vLLM server; test_contract.py has one of its own before it",
    "python src/measure.py judge": "needs Node.js, npm and the official file; test_judge.py has a server of its own",
    "python src/measure.py odd_requests": "needs a trained model; test_odd_requests.py has one of its own",
    "python src/measure.py attack": "minutes; test_attack.py has its attackers, before a made-up model",
    "python src/lock_image.py": "needs what pip says in the image; test_lock_image.py",
    "pip install --dry-run": "downloads gigabytes",
    "python src/evaluate_kpis.py --backend openai_api": "test_endpoint.py, with a server of its own",
    "python src/eval_latency_throughput.py --endpoint": "test_latency.py, with a server of its own",
    "pip install -r requirements-llama_cpp.txt": "compiles for a quarter of an hour",
    "python src/export_gguf.py": "needs requirements-llama_cpp.txt; test_llama_cpp.py where it is there",
    "python src/ask.py --backend llama_cpp": "needs requirements-llama_cpp.txt; test_llama_cpp.py where it is there",
}


def commands_of(*pages):
    """The lines of all bash fences, each once, in the order in which they are shown."""
    blocks = [block for page in pages for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.M | re.S)]
    lines = [line for block in blocks for line in block.splitlines() if line.strip() and not line.startswith("#")]
    return list(dict.fromkeys(lines))


def shown_commands():
    return commands_of(ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def run_here(command):
    return not any(command.startswith(start) for start in ELSEWHERE)


def test_the_readme_shows_the_contract():
    commands = "\n".join(commands_of(ROOT / "README.md"))
    for needed in (
        "make ask",
        "make setup",
        "make prep",
        f"make train-{REAL_MODEL}",
        f"make kpi-{REAL_MODEL}",
        f"make bench-{REAL_MODEL}",
        "make report",
        "make demo",
        "make test",
        "python src/prepare_splits.py --in data/all.jsonl --out data",
        "python src/build_prompts.py",
        f"accelerate launch src/sft_train.py --config configs/{REAL_MODEL}.yaml",
        f"python src/evaluate_kpis.py --model_path outputs/{REAL_MODEL}-merged --backend hf --schema "
        "configs/decoding.jsonschema "
        f"--data data/test.jsonl --out reports/{REAL_MODEL}_metrics.json",
    ):
        assert needed in commands
    assert all(any(command.startswith(start) for command in shown_commands()) for start in ELSEWHERE), (
        "an exception that neither README nor docs/ have any more"
    )


def test_every_file_that_the_readme_names_exists():
    tree = re.search(r"^## Where things are\n+```\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S).group(1)
    names = re.findall(r"[\w/]+\.(?:py|md)", tree)
    assert len(names) >= 15
    assert [name for name in names if not any((ROOT / folder / name).exists() for folder in ("", "src", "docs"))] == []


@pytest.mark.slow
def test_the_sample_answer_is_what_the_shipped_model_says():
    [sample] = [
        json.loads(line)
        for line in re.findall(r'^(\{"result".*"probabilities".*\})$', (ROOT / "README.md").read_text(), re.M)
    ]
    asked = subprocess.run(
        [warm_python(), "src/ask.py", "--pairs", "src/tasks/crm/sample_pairs.jsonl"],
        cwd=ROOT,
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line) for line in asked.stdout.splitlines() if line.startswith("{")]
    assert {key: sample[key] for key in ("result", "reasoning")} in [
        {key: answer[key] for key in ("result", "reasoning")} for answer in answers
    ]
    found = next(answer for answer in answers if answer["reasoning"] == sample["reasoning"])
    # The last digits are the machine's.
    assert found["probabilities"] == pytest.approx(sample["probabilities"], abs=0.02)


def decided(path):
    case = {"record1": {"name": "Ann Lee"}, "record2": {"name": "Anne Lea"}}
    decision = {"action": "correct", "pair": decisions.case_hash(load_task(), case), "id": None, "input": case}
    decision |= {"model": "m:1", "model_result": "POSSIBLE", "model_reasoning": "Needs review: name is similar."}
    decision |= {"model_probability": 0.6, "result": "NO_MATCH", "reasoning": None, "reason": "other person"}
    decisions.Decisions(path).add(decision | {"reviewer": "kim", "seconds": 2.0, "blind": False})


@pytest.mark.slow
def test_every_command_runs_word_for_word(tmp_path):
    project = copy_of_the_repo(tmp_path)
    # Few rows and a short training: the commands are what is tested here.
    done("src/synthesize.py", "--rows", 240, "--out", "data/all.jsonl", cwd=project)
    config = project / "configs" / "standin.yaml"
    config.write_text(config.read_text().replace("epochs: 2", "epochs: 0.2"))
    (project / "mine.csv").write_text(
        "id,customer,name,city,phone\n"
        + "".join(
            f"{at},{at // 2},{'Ann Lee Bob Roe Cy Fox Di Gray'.split()[at // 2 % 4]} {at // 2},Salem {at % 3},555 "
            f"01{at // 2:02}\n"
            for at in range(60)
        )
    )
    # make would draw 100,000 rows for boosting; a few that are newer than the generator serve here.
    (project / "reports").mkdir(exist_ok=True)
    done("src/synthesize.py", "--rows", 400, "--out", "reports/transfer_synthetic.jsonl", cwd=project)
    # One decision of a steward, for the commands that read them.
    decided(project / "reviews/decisions.jsonl")
    commands = [command.replace(REAL_MODEL, "standin") for command in shown_commands() if run_here(command)]
    assert len(commands) >= 20
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")} | QUIET
    environment |= {
        "PY": warm_python(),
        "REQUESTS": "2",
        "PATH": f"{Path(warm_python()).parent}:{os.environ['PATH']}",
    }
    for command in commands:
        result = subprocess.run(shlex.split(command), cwd=project, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"
    made = [
        "data/manifest.json",
        "data/processed/val.jsonl",
        "outputs/standin-lora/adapter_model.safetensors",
        "outputs/standin-merged/model.safetensors",
        "reports/standin_metrics.json",
        "reports/standin_predictions.jsonl",
        "reports/baseline_boosting_metrics.json",
        "reports/baseline_splink_metrics.json",
        "reports/standin_hf_latency.csv",
        "reports/latency.csv",
        "reports/metrics.csv",
        "reports/model_comparison.md",
        "reports/index.html",
    ]
    assert [name for name in made if not (project / name).is_file()] == []
