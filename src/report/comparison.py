"""The comparison with its numbered notes as Markdown, and as CSV."""

import csv
import io

from report import latency, marked_text
from report.cells import LATENCY_COLUMNS, row_cells
from report.marked_text import md, md_table
from report.sentences import provenance, resource_notes, warnings
from scoring.kpis import comparison_columns

MARK = "steward"
MARK_NOTE = "made by make report; what stands between the two markers is replaced, the rest is yours"


class Comparison:
    """All measured models and benchmark runs of a task side by side."""

    def __init__(self, models, runs, task, reports):
        self.models = models
        self.runs = runs
        self.task = task
        self.kpis = comparison_columns(task)
        self.columns = [*self.kpis, *LATENCY_COLUMNS]
        self.cells = [row_cells(model, runs, reports, task) for model in models]
        self.notes = list(dict.fromkeys(cell.note for row in self.cells for cell in row if cell.note))
        self.measured = [model for model in models if model.metrics]

    def note_number(self, cell):
        return self.notes.index(cell.note) + 1

    def warnings(self):
        return warnings(self.models, self.runs, self.task)

    def resource_notes(self):
        return resource_notes(self.models, self.task)

    def about(self):
        return [(model, model.about) for model in self.models if model.about]

    def provenance(self):
        return [*provenance(self.models), *latency.provenance(self.runs)]

    def markdown(self):
        """The generated block, without its markers."""
        sources = [
            (measured, "; ".join(f"{name}: {value}" for name, value in facts)) for measured, facts in self.provenance()
        ]
        parts = [
            "## Measured comparison",
            *(f"> **{md(title)}:** {md(sentence)}" for title, sentence in self.warnings()),
            self.md_table(),
            "\n".join(f"- [{number}] {md(note)}" for number, note in enumerate(self.notes, 1)),
            self.md_intervals(),
            latency.markdown(self.runs, self.task),
            md_list("What the models are", self.about()),
            md_list("Memory, precision and quantisation", self.resource_notes()),
            md_list("Where the numbers come from", sources),
        ]
        return "\n\n".join(part for part in parts if part)

    def md_table(self):
        rows = [
            [md(model.title), md(model.checkpoint), *(self.md_cell(cell) for cell in cells)]
            for model, cells in zip(self.models, self.cells, strict=True)
        ]
        return md_table(["Model", "Checkpoint", *self.columns], rows)

    def md_cell(self, cell):
        return f"{cell.text} [{self.note_number(cell)}]" if cell.note else cell.text

    def md_intervals(self):
        rows = [
            [md(model.title), *(md_interval(cell) for cell in cells[: len(self.kpis)])]
            for model, cells in zip(self.models, self.cells, strict=True)
            if model.metrics
        ]
        return "### n and 95 % intervals\n\n" + md_table(["Model", *self.kpis], rows) if rows else ""


def md_interval(cell):
    return f"{cell.spread} (n = {cell.n:,})" if cell.spread else cell.text


def md_list(title, notes):
    lines = [f"- {md(measured.title)}: {md(text)}" for measured, text in notes]
    return f"### {title}\n\n" + "\n".join(lines) if lines else ""


def in_file(path, text, task):
    """The whole of model_comparison.md: its generated block replaced, every other byte as it was."""
    block = marked_text.block(MARK, text, MARK_NOTE)
    if not path.exists():
        return (
            f"# Model comparison: {task.title}\n\nWrite your own reading above or below the generated block: "
            f"`make report` replaces only what stands between its two marker comments.\n\n{block}\n"
        )
    before, after = marked_text.around(path, MARK, appended=True)
    return before + block + after


def metrics_csv(models):
    """One row a model, three columns a KPI; empty where nothing was measured."""
    names = list(dict.fromkeys(name for model in models if model.metrics for name in model.metrics["kpis"]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    of_kpis = [column for name in names for column in (name, f"{name}_low", f"{name}_high")]
    writer.writerow(["model", "checkpoint", "kind", "n", *of_kpis])
    for model in models:
        kpis = [model.kpi(name) or {} for name in names]
        values = [value for kpi in kpis for value in (kpi.get("value"), *(kpi.get("ci95") or (None, None)))]
        # The first KPI, accuracy or the share of exact answers, counts every row.
        n = kpis[0].get("n") if kpis else None
        writer.writerow([model.file_name, model.checkpoint, model.kind, n, *values])
    return out.getvalue()
