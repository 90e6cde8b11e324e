"""The rows of the comparison: models that were measured, with the predictions behind their metrics, and models of
configs/ that were not.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from common import ROOT, UserError, sha256_file
from config import load_config
from report.shapes import checked, metrics_shape
from scoring.kpis import read_predictions

METRICS = "_metrics.json"
BASELINE = "baseline"
LANGUAGE_MODEL = "language model"
STANDIN = "standin"


@dataclass
class Model:
    """One row of the comparison: a YAML in configs/, a metrics file, or both."""

    name: str
    title: str
    checkpoint: str
    kind: str
    metrics: dict | None = None
    metrics_path: Path | None = None
    predictions: tuple = ()
    files: tuple = ()
    about: str = ""

    def kpi(self, name):
        return self.metrics["kpis"].get(name) if self.metrics else None

    def value(self, name):
        """A KPI's number; None where it was not measured."""
        return (self.kpi(name) or {}).get("value")

    @property
    def file_name(self):
        return self.metrics_path.name.removesuffix(METRICS) if self.metrics_path else self.name

    @property
    def measured_on(self):
        """Which rows: the file's hash, and how many of its rows (LIMIT answers the first few only)."""
        return self.metrics["data"].get("sha256"), self.metrics["data"].get("rows")


def find_models(reports, configs, task):
    """Measured language models, then baselines, then the models that have not run, each by title."""
    measured = [read_model(path, task) for path in sorted(reports.glob(f"*{METRICS}"))]
    names = [model.name for model in measured]
    for model in measured:
        if names.count(model.name) > 1:
            model.title += f" ({model.file_name})"
    planned = [planned_model(path) for path in sorted(configs.glob("*.yaml"))]
    waiting = [model for model in planned if model.name not in names and model.name != STANDIN]
    tell_what_they_are(measured, planned)
    return sorted(
        measured + waiting,
        key=lambda model: (model.metrics is None, model.kind == BASELINE, model.title.casefold(), model.name),
    )


def planned_model(path):
    config = load_config(path)
    return Model(path.stem, config.name, config.model_id, LANGUAGE_MODEL, files=(path,), about=config.about or "")


def tell_what_they_are(measured, planned):
    """Give each measured model the words of the YAML of its name, or of the one with its checkpoint."""
    words = {model.checkpoint: model.about for model in planned} | {model.name: model.about for model in planned}
    for model in measured:
        model.about = words.get(model.name) or words.get(model.checkpoint, "")


def read_model(path, task):
    metrics = checked(path, metrics_shape(task), task, f"make it again with src/evaluate_kpis.py --out {path}")
    predictions_path = find_predictions(path, metrics["predictions"])
    return Model(
        metrics["model"],
        str(metrics.get("title") or metrics["model"]),
        str(metrics.get("checkpoint") or ""),
        metrics.get("kind", LANGUAGE_MODEL),
        metrics,
        path,
        scored_predictions(predictions_path, path, metrics, task),
        files=(path, predictions_path),
    )


def find_predictions(metrics_path, named):
    """Beside the metrics first, so that a copied reports folder reads its own files."""
    places = [metrics_path.parent / Path(named).name, ROOT / named]
    found = next((place for place in places if os.path.isfile(place)), None)
    if found is None:
        raise UserError(
            f"{metrics_path}: its predictions {named} are neither beside it nor in the project; "
            f"put them back, or make both again with src/evaluate_kpis.py --out {metrics_path}"
        )
    return found


def scored_predictions(path, metrics_path, metrics, task):
    """The very rows that were scored. Metrics made before they held the hash of their predictions go unchecked."""
    rows = read_predictions(path, task)
    if metrics.get("predictions_sha256", sha256_file(path)) != sha256_file(path):
        raise UserError(
            f"{path}: these {len(rows):,} predictions are not the ones that {metrics_path} scored (predictions_sha256 "
            f"differs); score again with src/evaluate_kpis.py --out {metrics_path}"
        )
    return rows
