"""The table of what a mock server of the official API accepts, from the reports of `measure.py judge`."""

from pathlib import Path

from measurements import _reports
from report.marked_text import md, md_table

PATTERN = "judge*.json"
HEAD = ["answers of", "answers", "calls that pass the strict check", "accepted by the mock server", "accepted %"]


def judge_table(folder):
    """Every judged file of answers; None where nothing was measured."""
    return _reports.table(folder, PATTERN, "judge", table_of)


def table_of(reports):
    rows = [row_of(facts) for report in reports for facts in report["predictions"]]
    return "\n\n".join([md_table(HEAD, rows, n_text=1), "\n".join(map(notes, reports))])


def row_of(facts):
    posted = facts["posted"]
    share = f"{100 * facts['accepted'] / posted:.2f}" if posted else "-"
    name = Path(facts["path"]).stem.removesuffix("_predictions")
    return [md(name), f"{facts['answers']:,}", f"{posted:,}", f"{facts['accepted']:,}", share]


def notes(report):
    own = report["own_test"]
    api = report["api"]
    parts = [
        f"- {md(report['server'])} from the official file of {md(api['title'])} {md(api['version'])}",
        f"of {own['bodies']} bodies with a fault that its schema names it rejected {own['rejected']}",
        *scenarios_words(report["scenarios"]),
        _reports.commit_and_time(report),
    ]
    return "; ".join(parts)


def scenarios_words(scenarios):
    if not scenarios:
        return []
    return [
        f"{len(scenarios['covered'])} of the {scenarios['official']} official scenarios of bad requests are bodies "
        f"that the strict check rejects, {len(scenarios['not_in_the_body'])} are no matter of the body"
    ]
