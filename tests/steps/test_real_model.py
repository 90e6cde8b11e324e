"""A real language model goes the whole way on a CPU, from an empty folder; a quarter of an hour, so only when asked."""

import os
import re
import subprocess
import sys
import time

import pytest

from common import read_json
from support.pipeline import copy_of_the_repo, done

ASKED_FOR = "STEWARD_REAL_MODEL"
MOST_OFF = 0.3  # of the real time, that the estimate may be
UNITS_S = {"s": 1, "min": 60, "h": 3600}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get(ASKED_FOR), reason=f"trains a real model: {ASKED_FOR}=1 runs it"),
]


def trained(folder, config):
    """(seconds that the run's own line estimates, seconds from that line to the end)."""
    with subprocess.Popen(
        [sys.executable, "src/sft_train.py", *config],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        said = ""
        for line in running.stdout:
            said += line
            if found := re.search(r"time, estimated: ([\d.,]+) (s|min|h)", line):
                value, unit = found.groups()
                guessed_s = float(value.replace(",", "")) * UNITS_S[unit]
                started = time.monotonic()
    assert running.returncode == 0, said[-3000:]
    return guessed_s, time.monotonic() - started


def test_fetch_check_train_score_and_report_without_a_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = copy_of_the_repo(tmp_path / "project")
    config = ["--config", "configs/smollm2_135m.yaml"]
    assert not (folder / "models" / "base").exists()
    done("src/fetch_base.py", *config, cwd=folder)
    manifest = folder / "models" / "base" / "HuggingFaceTB--SmolLM2-135M-Instruct" / "manifest.json"
    assert read_json(manifest)["base"]["source"] == "package"
    done("src/synthesize.py", "--rows", 250, "--out", "data/all.jsonl", cwd=folder)
    done("src/prepare_splits.py", cwd=folder)
    done("src/build_prompts.py", cwd=folder)
    assert "is ready: make train-smollm2_135m" in done("src/check_model.py", *config, cwd=folder)
    guessed_s, real_s = trained(folder, config)
    print(f"estimated {guessed_s:.0f} s, real {real_s:.0f} s")
    kpi = ["--model_path", "outputs/smollm2_135m-merged", "--data", "data/val.jsonl", "--limit", 50]
    done("src/evaluate_kpis.py", *kpi, "--out", "reports/smollm2_135m_metrics.json", cwd=folder)
    kpis = read_json(folder / "reports" / "smollm2_135m_metrics.json")["kpis"]
    assert kpis["json_valid_pct"]["value"] == 100
    done("src/make_report.py", cwd=folder)
    assert "SmolLM2-135M-Instruct" in (folder / "reports" / "model_comparison.md").read_text(encoding="utf-8")
    assert guessed_s == pytest.approx(real_s, rel=MOST_OFF)
