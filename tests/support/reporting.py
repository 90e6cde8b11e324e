"""A reports folder that a test fills, and what its page holds."""

import copy
import json
import re
import sys
from html.parser import HTMLParser

import make_report
from common import read_jsonl, sha256_file
from scoring import kpis
from tasks import load_task
from tasks.crm import synthetic

TASK = load_task()
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!-- \u2028 {{wrong}} \ud800"
COLUMNS = [
    "Model",
    "Checkpoint",
    "Acc",
    "Macro-F1",
    "F1 Dup",
    "F1 Possible",
    "F1 NoMatch",
    "JSON Valid %",
    "Faithful %",
    "p50 (ms)",
    "p95 (ms)",
    "Req/s @8",
    "Tok/s",
]
CONFIG = """name: {title}
model_id: some/{name}
peft: {{method: lora, r: 8, alpha: 16, dropout: 0.0, target_modules: all-linear}}
train: {{lr: 2e-4, epochs: 1, batch_size: 1, grad_accum: 1, max_seq_len: 512, bf16: false, gradient_ckpt: false}}
gen: {{max_new_tokens: 64, temperature: 0.1, top_p: 0.9}}
"""


def prediction(row, label, raw=True):
    answer = {TASK.verdict.key: label, "reasoning": "Same person: email matches."} if raw else {TASK.verdict.key: label}
    probabilities = {name: 0.8 if name == label else 0.1 for name in TASK.verdict.labels}
    return {
        "id": row["id"],
        "input": row["input"],
        "gold": row["output"],
        "raw": json.dumps(answer) if raw else None,
        "answer": answer,
        "label": label,
        "probabilities": probabilities,
        "swapped_probabilities": None,
        "finish_reason": "stop",
    }


def scored(n_wrong, raw=True):
    """Predictions on 24 rows with the first few wrong, and their metrics."""
    rows = []
    for at, row in enumerate(synthetic.rows(24, seed=3)):
        gold = TASK.verdict.labels.index(row["output"][TASK.verdict.key])
        rows.append(prediction(row, TASK.verdict.labels[(gold + (at < n_wrong)) % len(TASK.verdict.labels)], raw))
    rows[0]["input"] = {
        "record1": {"name": HOSTILE, "city": "Springfield"},
        "record2": {"name": "Jo", "city": "Sprinfield"},
    }
    return rows, kpis.score(rows, TASK)


def answered(task, **text_of):
    """The sample answered with its gold answers but for the rows that `text_of` names by their number."""
    rows = []
    for at, row in enumerate(read_jsonl(task.folder / "sample.jsonl")):
        text = text_of.get(f"row{at}", task.completion(row["output"]))
        rows.append(
            {
                "id": f"row-{at}",
                "input": row["input"],
                "gold": row["output"],
                "raw": text,
                "answer": task.parsed(text),
                "finish_reason": "stop",
                "prompt_tokens": 9,
                "completion_tokens": 9,
                "overruled": 0,
                "late": 0,
                "seconds": 0.1,
            }
        )
    return rows, kpis.score(rows, task)


class Bench:
    """A reports folder and a configs folder, and a way to put measurements in and run the step."""

    def __init__(self, folder, monkeypatch, scores):
        self.reports = folder / "reports"
        self.configs = folder / "configs"
        self.monkeypatch = monkeypatch
        self.good, self.bad, self.boosting = scores
        self.reports.mkdir()
        self.configs.mkdir()
        for name in ("phi4mini", "mistral7b", "standin"):
            (self.configs / f"{name}.yaml").write_text(CONFIG.format(name=name, title=f"Title {name}"))

    def put(self, name, measured, kind="language model", sha256="a" * 64, synthetic=False, **more):
        rows, metrics = copy.deepcopy(measured)
        predictions = self.reports / f"{name}_predictions.jsonl"
        predictions.write_text("".join(json.dumps(row) + "\n" for row in rows))
        facts = {
            "model": name,
            "title": f"Title {name}",
            "checkpoint": f"some/{name}",
            "kind": kind,
            "precision": "bfloat16",
            "data": {"path": "data/test.jsonl", "sha256": sha256, "rows": len(rows), "synthetic": synthetic},
            "predictions": f"elsewhere/{name}_predictions.jsonl",
            "predictions_sha256": sha256_file(predictions),
            **metrics,
            **more,
        }
        (self.reports / f"{name}_metrics.json").write_text(json.dumps(facts))

    def make(self, task="crm"):
        words = ["--reports", str(self.reports), "--configs", str(self.configs), "--task", task]
        self.monkeypatch.setattr(sys, "argv", ["src/make_report.py", *words])
        make_report.main()

    def for_many_runs(self):
        """For tests with hundreds of runs: without what costs most of the time, planned models' YAML and git."""
        for path in self.configs.iterdir():
            path.unlink()
        self.monkeypatch.setattr(make_report, "write_manifest", lambda *_, **__: None)

    def text(self, name):
        return (self.reports / name).read_bytes().decode()

    def table(self):
        lines = [line for line in self.text("model_comparison.md").splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
        return [row for row in cells if len(row) == len(COLUMNS)]

    def row(self, title):
        return next(row for row in self.table() if row[0] == title)


class Elements(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def tags(self, name):
        return [attrs for tag, attrs in self.found if tag == name]


def places(value, path):
    """Every place below a key of a metrics file; where entries are of one kind, the first stands for all."""
    yield path
    alike = isinstance(value, list) or len(path) <= {"kpis": 1, "slices": 2}.get(path[0], 0)
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys[:1] if alike else keys:
        yield from places(value[key], (*path, key))


def damaged(value, path, damage):
    if not path:
        return damage
    entries = list(value) if isinstance(value, list) else dict(value)
    entries[path[0]] = damaged(value[path[0]], path[1:], damage)
    return entries
