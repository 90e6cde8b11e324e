"""The table of what users get for odd inputs, from the reports of `measure.py odd_requests`."""

from measurements import _reports
from measurements.odd_requests import WAYS
from report.marked_text import md, md_table

PATTERN = "odd_requests*.json"
ERRORS = ("failed", "none", "too_long")
HEAD = [
    "model",
    "what is odd",
    "answers each way",
    *(f"{way}: call / reasons / error" for way in WAYS),
    *(f"{way}: unknown fields written" for way in WAYS),
    "unknown fields that go out",
]
N_TEXT = 2


def odd_requests_table(folder):
    """All odd inputs of each measured model, then each kind; None where nothing was measured."""
    return _reports.table(folder, PATTERN, "odd_requests", table_of)


def table_of(reports):
    rows = [row_of(report, family) for report in reports for family in report["ways"][next(iter(WAYS))]]
    return "\n\n".join([md_table(HEAD, rows, n_text=N_TEXT), "\n".join(map(notes, reports))])


def row_of(report, family):
    found = [report["ways"][way][family] for way in WAYS]
    return [
        md(report["title"]),
        md(family),
        f"{found[0]['asked']:,}",
        *(f"{one['answer']} / {one['refusal']} / {sum(one[name] for name in ERRORS)}" for one in found),
        *(str(one["unknown_fields_raw"]) for one in found),
        str(sum(one["unknown_fields_out"] for one in found)),
    ]


def notes(report):
    unreadable = report["unreadable"]
    refused = sum(words is not None for words in unreadable.values())
    return (
        f"- {md(report['title'])}: {report['requests']} inputs, {report['samples']} answers each at temperature "
        f"{report['gen']['temperature']}; reasons say what the request lacks; {refused} of {len(unreadable)} inputs "
        f"that are none ({md(', '.join(unreadable))}) were refused before the model; {_reports.commit_and_time(report)}"
    )
