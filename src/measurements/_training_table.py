"""The table of TRL's trainer beside ours, from the reports of `measure.py training_speed`."""

from measurements import _reports
from measurements.speed import number, shown
from measurements.training_speed import WAYS
from report.marked_text import md, md_table

PATTERN = "training_speed_*.json"
HEAD = [
    "model",
    "trained by",
    "rows a step",
    "rows or bins at once",
    "gradient checkpointing",
    "tokens/s",
    "times as fast as TRL",
    "an epoch, s",
    "memory, GB",
    "padding %",
]
N_TEXT = 2


def training_table(folder):
    """Every way of training of each measured model; None where nothing was measured."""
    return _reports.table(folder, PATTERN, "training_speed", table_of)


def table_of(reports):
    rows = [row_of(report, case, facts) for report in reports for case, facts in report["cases"].items()]
    return "\n\n".join([md_table(HEAD, rows, n_text=N_TEXT), "\n".join(map(notes, reports))])


def row_of(report, case, facts):
    way, method = case.split()
    model = md(report["model"] + (", random weights" if report["weights"] == "random" else ""))
    begun = [model, f"{WAYS[way]}, {method}"]
    if "failed" in facts:
        return [*begun, *["-"] * (len(HEAD) - len(begun) - 1), md(facts["failed"])]
    ratio = facts["times_of_trl"]
    return [
        *begun,
        f"{facts['rows_a_step']:.1f}",
        f"{facts['at_once']} {'bins' if facts['packing'] else 'rows'}",
        "yes" if facts["gradient_ckpt"] else "no",
        shown(facts["tokens_per_s"]),
        shown(ratio) if ratio else "-",
        number(facts["epoch_s"]["median"]),
        f"{facts['used_gb']:.2f}",
        f"{facts['padding_pct']:.1f}",
    ]


def notes(report):
    whole = next(facts for facts in report["cases"].values() if "failed" not in facts)
    machine = _reports.machine(report["trained_on"]["hardware"])
    return (
        f"- {md(report['model'])}: {md(machine)}; median of {report['repeats']} runs, "
        f"each a process of its own (least to most); an epoch is {whole['file']['rows']:,} rows of "
        f"{whole['file']['tokens'] / whole['file']['rows']:,.0f} tokens; {_reports.commit_and_time(report)}"
    )
