"""The comparison as one HTML page that loads nothing from elsewhere."""

import base64
import hashlib
import json
import re
from html import escape
from pathlib import Path

from report import charts, latency
from report.sentences import data_words
from report.wrong_answers import wrong_answers, wrong_words


def page(report, most_wrong):
    """The whole HTML page; record text enters it only as escaped JSON."""
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", template, re.S).group(1)
    parts = {
        "task": escape(report.task.title),
        "script_sha256": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "summary": html_summary(report),
        "warnings": html_warnings(report),
        "comparison": html_comparison(report),
        "notes": "".join(f'<li id="note-{number}">{escape(note)}</li>' for number, note in enumerate(report.notes, 1)),
        "overlay": charts.of_all([(model.title, model.metrics) for model in report.measured]),
        "models": html_models(report),
        "latency": html_latency(report),
        "jumps": "".join(
            f'<li><a href="#model-{at}">{escape(model.title)}</a></li>' for at, model in enumerate(report.measured)
        ),
        "about": definitions([(model.title, text) for model, text in report.about()]),
        "resources": html_resources(report),
        "provenance": html_provenance(report),
        "wrong": json_in_html(wrong_answers(report, most_wrong)),
        "wrong_words": wrong_words(report.task),
        "wrong_title": wrong_words(report.task).capitalize(),
    }
    # One pass, so that a placeholder's spelling inside a value stays text; lone surrogates have no UTF-8.
    filled = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match.group(1)], template)
    return filled.encode("utf-8", "backslashreplace").decode()


def html_summary(report):
    data = dict.fromkeys(data_words(model) for model in report.measured)
    n_synthetic = sum(bool(model.metrics["data"].get("synthetic")) for model in report.measured)
    facts = [
        ("Measured", f"{len(report.measured):,} of {len(report.models):,} rows"),
        ("Data", "; ".join(data) or "none yet"),
        (
            "Records",
            f"synthetic in {n_synthetic:,} of {len(report.measured):,} measurements"
            if n_synthetic
            else "not marked as synthetic",
        ),
        (
            "Last measured",
            max((str(model.metrics.get("finished", "")) for model in report.measured), default="") or "never",
        ),
    ]
    return definitions(facts if report.measured else facts[:2])


def html_warnings(report):
    return "".join(
        f'<p class="warning"><strong>{escape(title)}:</strong> {escape(sentence)}</p>'
        for title, sentence in report.warnings()
    )


def html_comparison(report):
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("Model", "Checkpoint", *report.columns))
    body = "".join(
        f'<tr><th scope="row">{escape(model.title)}</th><td class="checkpoint">{escape(model.checkpoint)}</td>'
        + "".join(html_cell(report, cell) for cell in cells)
        + "</tr>"
        for model, cells in zip(report.models, report.cells, strict=True)
    )
    return f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"


def html_cell(report, cell):
    ref = html_ref(report.note_number(cell)) if cell.note else ""
    if cell.reason:
        return f'<td class="none" title="{escape(cell.reason)}">{cell.text.replace(" ", "&nbsp;")}{ref}</td>'
    spread = f'<span class="small">{cell.spread}</span>' if cell.spread else ""
    return f'<td>{cell.text}{ref}{spread}<span class="small">n = {cell.n:,.0f}</span></td>'


def html_ref(number):
    return f' <a class="ref" href="#note-{number}" aria-label="note {number}">[{number}]</a>'


def html_latency(report):
    """The benchmark's curves and table, and below them what each run was made on."""
    if not report.runs:
        return f'<p class="none">Not measured: {escape(latency.not_run(report.task))}.</p>'
    made_on = definitions(
        (run.title, "; ".join(f"{name}: {value}" for name, value in latency.circumstances(run))) for run in report.runs
    )
    return (
        f'{charts.of_benchmark(latency.curves(report.runs))}<div class="card"><div class="scroll" tabindex="0" '
        'role="region" aria-label="Benchmark '
        f'table"><table class="comparison levels">{latency.html_table(report.runs)}</table></div></div>'
        f'<p class="below muted">{escape(latency.TABLE_NOTE)}</p><h3>What each run was made on</h3>{made_on}'
    )


def html_models(report):
    return (
        "".join(html_model(model, at) for at, model in enumerate(report.measured))
        or '<p class="none">No model has been measured.</p>'
    )


def html_model(model, at):
    facts = f"{model.kind}, {model.checkpoint}" if model.checkpoint else model.kind
    return (
        f'<article id="model-{at}"><h3>{escape(model.title)}</h3><p class="muted">{escape(facts)}</p>'
        f"{charts.of_one(model.title, model.metrics)}{charts.kpi_table(model.metrics['kpis'])}</article>"
    )


def html_resources(report):
    notes = [(model.title, text) for model, text in report.resource_notes()]
    return definitions(notes) if notes else '<p class="none">No language model has been measured.</p>'


def html_provenance(report):
    return "".join(
        f"<details><summary>{escape(measured.title)}</summary>{definitions(facts)}</details>"
        for measured, facts in report.provenance()
    )


def definitions(facts):
    items = "".join(f"<div><dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts)
    return f"<dl>{items}</dl>"


def json_in_html(value):
    """JSON that cannot end its script element, whatever the records hold."""
    return (
        json.dumps(value, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    )
