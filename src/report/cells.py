"""What stands in a cell of the comparison: a number and how it was measured, or the reason why there is none."""

from dataclasses import dataclass

from common import shown_path
from report.charts import shown_value
from report.latency import not_run, short, source
from report.models import BASELINE, METRICS
from scoring.kpis import comparison_columns

# Column of the comparison -> what it shows of a level, and the concurrency of that level.
LATENCY_COLUMNS = {
    "p50 (ms)": ("p50_ms", 1),
    "p95 (ms)": ("p95_ms", 1),
    "Req/s @8": ("req_per_s", 8),
    "Tok/s": ("output_tok_per_s", 8),
}
NOT_SERVED = "a baseline is not served by an engine; the benchmark measures language models only"


@dataclass(frozen=True)
class Cell:
    text: str
    spread: str = ""  # the 95 % interval
    n: int | None = None
    reason: str = ""  # why there is no number
    source: str = ""  # how the number was measured, where the row's own measurement is not the answer

    @property
    def note(self):
        return self.reason or self.source


def row_cells(model, runs, reports, task):
    """The KPI cells of one row, then its latency cells."""
    kpis = [kpi_cell(model, name, reports, task) for name in comparison_columns(task).values()]
    return kpis + [latency_cell(model, runs, task, column) for column in LATENCY_COLUMNS]


def kpi_cell(model, name, reports, task):
    if not model.metrics:
        return Cell(
            "not run",
            reason=f"{model.name}: no {shown_path(reports / (model.name + METRICS))}; run make "
            f"kpi-{model.name}{task.for_make}",
        )
    kpi = model.kpi(name)
    if kpi is None:
        return Cell(
            "not run", reason=f"{model.title}: {shown_path(model.metrics_path)} has no '{name}'; score it again"
        )
    if kpi["value"] is None:
        return Cell(
            "n/a",
            n=kpi["n"],
            reason="a baseline says a verdict and nothing else, so there is no answer text to judge"
            if model.kind == BASELINE
            else f"{model.title}: there was nothing to measure '{name}' on (n = {kpi['n']})",
        )
    low, high = (shown_value(name, bound) for bound in kpi["ci95"])
    return Cell(shown_value(name, kpi["value"]), f"{low} to {high}", kpi["n"])


def latency_cell(model, runs, task, column):
    """A number of the model's best run: at a concurrency of 1 or else the lowest measured, at 8 or not at all."""
    if model.kind == BASELINE:
        return Cell("not run", reason=NOT_SERVED)
    run = min(
        (run for run in runs if run.model == model.name),
        key=lambda run: (*run.rank, run.name != model.file_name, run.name),
        default=None,
    )
    if run is None:
        return Cell("not run", reason=not_run(task))
    key, wanted = LATENCY_COLUMNS[column]
    level = run.closed.get(min(run.closed, default=None) if wanted == 1 else wanted)
    if level is None:
        return Cell(
            "not run",
            reason=f"{run.title}: a closed loop at concurrency {wanted} was not measured "
            f"(measured: {', '.join(map(str, sorted(run.closed))) or 'none'}; {run.path.name})",
        )
    if level[key] is None:
        return Cell("n/a", reason=f"{source(run, level, wanted)}; it holds no {key}")
    return Cell(short(level[key]), n=level["n"], source=source(run, level, wanted))
