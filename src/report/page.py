"""The sentences beside the comparison, which the Markdown block and the page share, and the HTML page itself."""

import base64
import hashlib
import json
import re
from html import escape
from pathlib import Path

from common import shown_path
from report import charts, latency

BASELINE = "baseline"
BOOSTING = "baseline_boosting"
MOST_LETTERS = 2_000


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
        "resources": html_resources(report),
        "provenance": html_provenance(report),
        "wrong": json_in_html(wrong_verdicts(report, most_wrong)),
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
        for title, sentence in warnings(report.models, report.runs)
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
    notes = [(model.title, text) for model, text in resource_notes(report.models)]
    return definitions(notes) if notes else '<p class="none">No language model has been measured.</p>'


def html_provenance(report):
    found = [*provenance(report.models), *latency.provenance(report.runs)]
    return "".join(
        f"<details><summary>{escape(measured.title)}</summary>{definitions(facts)}</details>"
        for measured, facts in found
    )


def wrong_verdicts(report, most_wrong):
    """What the page's list filters and draws: the surest wrong verdicts of each model."""
    found = []
    n_wrong = []
    for at, model in enumerate(report.measured):
        wrong = [row for row in model.predictions if row["label"] != row["gold"][report.task.verdict.key]]
        n_wrong.append(len(wrong))
        wrong.sort(key=lambda row: -confidence(row))
        found += [wrong_verdict(report.task, row, at) for row in wrong[:most_wrong]]
    return {
        "models": [{"title": model.title, "wrong": n} for model, n in zip(report.measured, n_wrong, strict=True)],
        "most": most_wrong,
        "labels": list(report.task.verdict.labels),
        "sides": list(report.task.module("data").RECORDS),
        "rows": found,
    }


def wrong_verdict(task, row, at):
    kpis = task.module("kpis")
    key = task.verdict.key
    gold_text, said_text = (
        {name: value for name, value in (answer or {}).items() if name != key}
        for answer in (row["gold"], row.get("answer"))
    )
    return {
        "id": str(row.get("id", "")),
        "model": at,
        "gold": row["gold"][key],
        "said": row["label"],
        "p": row.get("probabilities"),
        "swapped": row.get("swapped_probabilities"),
        "slices": kpis.slices(row["input"]),
        "goldText": gold_text,
        "saidText": said_text,
        "fields": [marked(field) for field in kpis.compare(row["input"])],
        "raw": clipped(row["raw"]) if row.get("answer") is None and row.get("raw") else None,
    }


def confidence(row):
    return max((row.get("probabilities") or {"": -1.0}).values())


def marked(field):
    """A compared field with both values as lists of text that alternates unmarked, marked, unmarked and so on."""
    from rapidfuzz.distance import Indel

    left = clipped(field["left"])
    right = clipped(field["right"])
    if field["relation"] not in ("similar", "different"):
        pieces = [left], [right]
    # Values with little in common are marked whole: scattered shared letters mean nothing.
    elif Indel.normalized_similarity(left, right) < 0.5:
        pieces = ["", left], ["", right]
    else:
        same = [op for op in Indel.opcodes(left, right) if op.tag == "equal"]
        pieces = (
            alternating(left, [(op.src_start, op.src_end) for op in same]),
            alternating(right, [(op.dest_start, op.dest_end) for op in same]),
        )
    return {"field": field["field"], "relation": field["relation"], "left": pieces[0], "right": pieces[1]}


def alternating(text, kept):
    """Cut a text at its kept ranges; a single kept letter between two differences joins them."""
    kept = [(a, b) for a, b in kept if b - a > 1 or a == 0 or b == len(text)]
    parts = [""]
    end = 0
    for a, b in kept:
        if a == end:
            parts[-1] += text[a:b]
        else:
            parts += [text[end:a], text[a:b]]
        end = b
    return parts + [text[end:]] if end < len(text) else parts


def clipped(text):
    text = str(text)
    return (
        text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}… ({len(text) - MOST_LETTERS:,} more characters)"
    )


def definitions(facts):
    items = "".join(f"<div><dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts)
    return f"<dl>{items}</dl>"


def json_in_html(value):
    """JSON that cannot end its script element, whatever the records hold."""
    return (
        json.dumps(value, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    )


def warnings(models, runs):
    """What a reader must know before the numbers: (title, sentence) pairs in plain text."""
    measured = [model for model in models if model.metrics]
    if not measured and not runs:
        return [
            (
                "Nothing has been measured yet",
                'every cell says "not run"; the notes below the table say which command fills it.',
            )
        ]
    return [
        *synthetic_warning(measured),
        *data_warning(measured),
        *baseline_warnings(measured),
        *benchmark_warnings(runs),
    ]


def synthetic_warning(measured):
    made_up = [model.title for model in measured if model.metrics["data"].get("synthetic")]
    if made_up:
        yield (
            "Synthetic data",
            f"{listed(made_up)} {'was' if len(made_up) == 1 else 'were'} measured on generated records. "
            "The numbers show that the pipeline works; they do not say how well a model does on real records.",
        )


def data_warning(measured):
    groups = {}
    for model in measured:
        groups.setdefault(model.measured_on, []).append(model)
    if len(groups) > 1:
        parts = [f"{listed([model.title for model in group])} on {data_words(group[0])}" for group in groups.values()]
        yield (
            "Different data",
            f"the rows were not all measured on the same data and must not be compared across it: {'; '.join(parts)}.",
        )


def data_words(model):
    data = model.metrics["data"]
    n_rows = f"{data['rows']:,} rows, " if data.get("rows") is not None else ""
    return f"{data.get('path', 'unnamed data')} ({n_rows}sha256 {str(data.get('sha256'))[:12]})"


def baseline_warnings(measured):
    """A language model below gradient boosting says so; one that was never compared says that."""
    unknown = []
    for model in measured:
        if model.kind == BASELINE:
            continue
        rival = next(
            (other for other in measured if other.name == BOOSTING and other.measured_on == model.measured_on), None
        )
        own = model.kpi("macro_f1")
        best = rival and rival.kpi("macro_f1")
        if not (own and best) or own["value"] is None or best["value"] is None:
            unknown.append(model.title)
        elif own["value"] < best["value"]:
            doubt = " (the 95 % intervals overlap)" if own["ci95"][1] >= best["ci95"][0] else ""
            yield (
                f"{model.title} loses to gradient boosting",
                f"its macro-F1 of {own['value']:.3f} is below the {best['value']:.3f} "
                f"of the gradient boosting baseline on the same data{doubt}.",
            )
    if unknown:
        yield (
            "No baseline beside it",
            f"the gradient boosting baseline was not measured on the data of {listed(unknown)}, "
            "so nothing here says whether a language model is needed.",
        )


def benchmark_warnings(runs):
    """Speeds of random weights say nothing about answers, and speeds compare on one machine and the same data only."""
    random = [run.title for run in runs if run.random]
    if random:
        yield (
            "Random weights",
            f"the benchmark of {listed(random)} ran with random weights: only its speed and memory mean anything.",
        )
    for what, groups in (("hardware", grouped(runs, latency.hardware)), ("data", grouped(runs, latency.data_words))):
        if len(groups) > 1:
            parts = [f"{listed([run.title for run in group])} on {key}" for key, group in groups.items()]
            yield (
                f"Benchmarks on different {what}",
                f"latency and throughput must not be compared across it: {'; '.join(parts)}.",
            )


def grouped(runs, key):
    groups = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def listed(words):
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def resource_notes(models):
    """Memory, precision and quantisation of each measured language model, in one sentence each."""
    measured = [model for model in models if model.metrics and model.kind != BASELINE]
    for model in measured:
        training = model.metrics.get("training") or {}
        predicted = model.metrics.get("predicted") or {}
        trained = f"{training.get('method', 'unknown method')} in {training.get('precision', 'unrecorded precision')}, {memory_words(training)}"
        yield (
            model,
            (
                f"training: {trained if training else 'not recorded'}; "
                f"inference: {precision_of(model)} on {model.metrics.get('backend', 'an unnamed backend')}, "
                f"{memory_words(predicted)}; "
                f"quantisation in training: {training_quantisation(training)}, in inference: {precision_of(model)}; "
                f"observed impact: {quantisation_impact(model, measured)}"
            ),
        )


def memory_words(facts):
    if facts.get("peak_gpu_memory_mib") is not None:
        gpu = (facts.get("hardware") or {}).get("gpu")
        return f"peak VRAM {facts['peak_gpu_memory_mib']:,.0f} MiB" + (f" ({gpu})" if gpu else "")
    if facts.get("peak_memory_mib") is not None:
        return f"no VRAM used (CPU, peak memory {facts['peak_memory_mib']:,.0f} MiB)"
    return "peak memory not recorded"


def precision_of(model):
    return model.metrics.get("precision") or "unrecorded precision"


def training_quantisation(training):
    if training.get("quantization"):
        return str(training["quantization"])
    return {"qlora": "NF4 (QLoRA)", "lora": "none (LoRA)"}.get(training.get("method"), "not recorded")


def quantisation_impact(model, measured):
    """The same model on the same data in another precision, or the plain word that nobody looked."""
    others = [
        other
        for other in measured
        if other.name == model.name
        and other.measured_on == model.measured_on
        and precision_of(other) != precision_of(model)
        and (other.kpi("macro_f1") or {}).get("value") is not None
    ]
    own = (model.kpi("macro_f1") or {}).get("value")
    if not others or own is None:
        return f"not measured (only {precision_of(model)} was run)"
    return ", ".join(
        f"macro-F1 {own - other.kpi('macro_f1')['value']:+.3f} against {precision_of(other)}" for other in others
    )


def provenance(models):
    """Where each row's numbers come from, from the manifest inside its metrics file."""
    for model in models:
        if model.metrics:
            facts = model.metrics
            made = " ".join(
                f"{name} {value}" for key in ("versions", "hardware") for name, value in (facts.get(key) or {}).items()
            )
            predicted = " ".join(
                f"{name} {value}" for name, value in ((facts.get("predicted") or {}).get("hardware") or {}).items()
            )
            yield (
                model,
                [
                    ("metrics", shown_path(model.metrics_path)),
                    ("predictions", shown_path(model.files[1])),
                    ("data", data_words(model)),
                    ("command", facts.get("command") or "not recorded"),
                    ("git commit", facts.get("git_commit") or "not recorded"),
                    ("predicted on", predicted or "not recorded"),
                    ("scored with", made or "not recorded"),
                    ("finished", facts.get("finished") or "not recorded"),
                ],
            )
