"""Make the comparison from what was measured: python src/make_report.py --reports reports

Reads every <model>_metrics.json with the predictions that it names and every <run>_latency.manifest.json of the
benchmark; writes metrics.csv, latency.csv, throughput.csv, model_comparison.md and index.html. In model_comparison.md
only the part between the two marker comments is replaced; what people write around it stays.
"""

import argparse
import csv
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

from common import ROOT, UserError, read_jsonl, run, sha256_file, shown_path, written_whole
from config import load_config
from manifest import Clock, write_manifest
from report import latency
from report.cells import LATENCY_COLUMNS, METRICS, row_cells
from report.marked_text import md, md_table
from report.page import BASELINE, page, provenance, resource_notes, warnings
from report.shapes import METRICS_SHAPE, checked
from tasks import DEFAULT, load_task

STANDIN = "standin"
MOST_WRONG = 500
LANGUAGE_MODEL = "language model"
BEGIN = (
    "<!-- steward:begin (made by make report; what stands between the two markers is replaced, the rest is yours) -->"
)
END = "<!-- steward:end -->"
MARKER = re.compile(r"<!--\s*steward:(begin|end)\b.*?-->", re.S)


def main():
    args = parse_args()
    clock = Clock()
    task = load_task(args.task)
    models = find_models(args.reports, args.configs, task)
    runs = latency.find_runs(args.reports, task)
    report = Report(models, runs, task, args.reports)
    comparison = args.reports / "model_comparison.md"
    texts = {
        args.reports / "metrics.csv": metrics_csv(models),
        args.reports / "latency.csv": latency.csv_text(runs, latency.LATENCY_CSV),
        args.reports / "throughput.csv": latency.csv_text(runs, latency.THROUGHPUT_CSV),
        comparison: around_block(comparison, report.markdown(), task),
        args.reports / "index.html": page(report, MOST_WRONG),
    }
    # Absent while the files are replaced, so that its presence means that they belong together.
    (args.reports / "manifest.json").unlink(missing_ok=True)
    with written_whole(*texts) as files:
        for file, text in zip(files, texts.values(), strict=True):
            file.write(text)
    write_manifest(
        args.reports / "manifest.json",
        clock,
        task=task.name,
        inputs={shown_path(path): sha256_file(path) for measured in [*models, *runs] for path in measured.files},
    )
    print_summary(models, runs, texts)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--reports",
        type=Path,
        help="folder with <model>_metrics.json and <run>_latency.csv, written to as well (default reports)",
    )
    parser.add_argument(
        "--configs", type=Path, default=ROOT / "configs", help="folder with one YAML a model (default configs)"
    )
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    args = parser.parse_args()
    args.reports = args.reports or load_task(args.task).under("reports")
    for folder in (args.reports, args.configs):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file, not a folder; name the folder")
    if not args.configs.is_dir():
        raise UserError(f"{args.configs}: no such folder; --configs names the folder with one YAML a model")
    return args


def print_summary(models, runs, texts):
    measured = [model for model in models if model.metrics]
    for title, sentence in warnings(models, runs):
        print(f"note: {title}: {sentence}")
    print(
        f"{len(measured):,} of {len(models):,} rows measured, benchmark runs: {len(runs):,}; wrote "
        f"{', '.join(shown_path(path) for path in texts)}"
    )


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

    def kpi(self, name):
        return self.metrics["kpis"].get(name) if self.metrics else None

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
    waiting = [
        planned_model(path)
        for path in sorted(configs.glob("*.yaml"))
        if path.stem not in names and path.stem != STANDIN
    ]
    return sorted(
        measured + waiting,
        key=lambda model: (model.metrics is None, model.kind == BASELINE, model.title.casefold(), model.name),
    )


def planned_model(path):
    config = load_config(path)
    return Model(path.stem, config.name, config.model_id, LANGUAGE_MODEL, files=(path,))


def read_model(path, task):
    metrics = checked(path, METRICS_SHAPE, task, f"make it again with src/evaluate_kpis.py --out {path}")
    predictions_path = find_predictions(path, metrics["predictions"])
    model = Model(
        metrics["model"],
        str(metrics.get("title") or metrics["model"]),
        str(metrics.get("checkpoint") or ""),
        metrics.get("kind", LANGUAGE_MODEL),
        metrics,
        path,
        files=(path, predictions_path),
    )
    model.predictions = checked_predictions(predictions_path, path, metrics, task)
    return model


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


def checked_predictions(path, metrics_path, metrics, task):
    """The rows that were scored: their confusion matrix must be the one in the metrics file."""
    rows = read_jsonl(path)
    labels = task.verdict.labels
    again = f"score again with src/evaluate_kpis.py --out {metrics_path}"
    counts = [[0] * (len(labels) + 1) for _ in labels]
    for number, row in enumerate(rows, 1):
        try:
            said = len(labels) if row["label"] is None else labels.index(row["label"])
            counts[labels.index(row["gold"][task.verdict.key])][said] += 1
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}:{number}: not a prediction of this task ({type(error).__name__}: {error}); {again}"
            ) from error
    confusion = metrics["confusion"]
    if (confusion["labels"], len(confusion["said"]), confusion["counts"]) != (list(labels), len(labels) + 1, counts):
        raise UserError(
            f"{path}: these {len(rows):,} predictions are not the ones that {metrics_path} scored "
            f"(the confusion matrices differ); {again}"
        )
    return rows


class Report:
    """The comparison with its numbered notes, as Markdown and as a page."""

    def __init__(self, models, runs, task, reports):
        self.models = models
        self.runs = runs
        self.task = task
        self.columns = [*task.columns, *LATENCY_COLUMNS]
        self.cells = [row_cells(model, runs, reports, task) for model in models]
        self.notes = list(dict.fromkeys(cell.note for row in self.cells for cell in row if cell.note))
        self.measured = [model for model in models if model.metrics]

    def note_number(self, cell):
        return self.notes.index(cell.note) + 1

    def markdown(self):
        """The generated block, without its markers."""
        parts = [
            "## Measured comparison",
            *(f"> **{md(title)}:** {md(sentence)}" for title, sentence in warnings(self.models, self.runs)),
            self.md_table(),
            "\n".join(f"- [{number}] {md(note)}" for number, note in enumerate(self.notes, 1)),
            self.md_intervals(),
            latency.markdown(self.runs, self.task),
            self.md_list("Memory, precision and quantisation", resource_notes(self.models)),
            self.md_list(
                "Where the numbers come from",
                [
                    (measured, "; ".join(f"{name}: {value}" for name, value in facts))
                    for measured, facts in [*provenance(self.models), *latency.provenance(self.runs)]
                ],
            ),
        ]
        return "\n\n".join(part for part in parts if part)

    def md_table(self):
        rows = [
            [
                md(model.title),
                md(model.checkpoint),
                *(f"{cell.text} [{self.note_number(cell)}]" if cell.note else cell.text for cell in cells),
            ]
            for model, cells in zip(self.models, self.cells, strict=True)
        ]
        return md_table(["Model", "Checkpoint", *self.columns], rows)

    def md_intervals(self):
        rows = [
            [
                md(model.title),
                *(
                    f"{cell.spread} (n = {cell.n:,})" if cell.spread else cell.text
                    for cell in cells[: len(self.task.columns)]
                ),
            ]
            for model, cells in zip(self.models, self.cells, strict=True)
            if model.metrics
        ]
        return "### n and 95 % intervals\n\n" + md_table(["Model", *self.task.columns], rows) if rows else ""

    def md_list(self, title, notes):
        lines = [f"- {md(measured.title)}: {md(text)}" for measured, text in notes]
        return f"### {title}\n\n" + "\n".join(lines) if lines else ""


def around_block(path, block, task):
    """The file with its generated block replaced and every other byte as it was."""
    block = f"{BEGIN}\n\n{block}\n\n{END}"
    if not path.exists():
        return (
            f"# Model comparison: {task.title}\n\nWrite your own reading above or below the generated block: "
            f"`make report` replaces only what stands between its two marker comments.\n\n{block}\n"
        )
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8, then run again"
        ) from error
    found = list(MARKER.finditer(text))
    if not found and "steward:begin" not in text and "steward:end" not in text:
        return f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}\n{block}\n"
    if [match.group(1) for match in found] != ["begin", "end"]:
        raise UserError(
            f"{path}: {len(found)} marker comment(s) found "
            f"({', '.join(match.group(1) for match in found) or 'damaged'}), expected "
            f"one '<!-- steward:begin -->' and then one '{END}'; restore the pair, or delete both for a new block at "
            "the end"
        )
    return text[: found[0].start()] + block + text[found[1].end() :]


def metrics_csv(models):
    """One row a model, three columns a KPI; empty where nothing was measured."""
    names = list(dict.fromkeys(name for model in models if model.metrics for name in model.metrics["kpis"]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "model",
            "checkpoint",
            "kind",
            "n",
            *(column for name in names for column in (name, f"{name}_low", f"{name}_high")),
        ]
    )
    for model in models:
        kpis = [model.kpi(name) or {} for name in names]
        values = [value for kpi in kpis for value in (kpi.get("value"), *(kpi.get("ci95") or (None, None)))]
        writer.writerow(
            [model.file_name, model.checkpoint, model.kind, (model.kpi("accuracy") or {}).get("n"), *values]
        )
    return out.getvalue()


if __name__ == "__main__":
    run(main)
