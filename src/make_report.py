"""Make the comparison from what was measured: python src/make_report.py --reports reports

Reads every <model>_metrics.json and the predictions that it names; writes metrics.csv, model_comparison.md and index.html.
In model_comparison.md only the part between the two marker comments is replaced; what people write around it stays.
"""

import argparse
import base64
import csv
import hashlib
import io
import json
import math
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

import report_charts as charts
from common import ROOT, Clock, UserError, read_json, read_jsonl, run, sha256_file, shown_path, write_manifest, written_whole
from config import load_config
from tasks import DEFAULT, load_task

METRICS = "_metrics.json"
BOOSTING = "baseline_boosting"
STANDIN = "standin"
LATENCY_COLUMNS = ("p50 (ms)", "p95 (ms)", "Req/s @8", "Tok/s")
NO_BENCHMARK = "the benchmark has not run"
MOST_WRONG = 500
MOST_LETTERS = 2_000
LANGUAGE_MODEL, BASELINE = "language model", "baseline"
NEEDED = {"model": str, "kpis": dict, "data": dict, "confusion": dict, "calibration": list, "risk_coverage": list, "slices": dict, "predictions": str}
BEGIN = "<!-- steward:begin (made by make report; what stands between the two markers is replaced, the rest is yours) -->"
END = "<!-- steward:end -->"
MARKER = re.compile(r"<!--\s*steward:(begin|end)\b.*?-->", re.S)


def main():
    args = parse_args()
    clock, task = Clock(), load_task(args.task)
    models = find_models(args.reports, args.configs, task)
    report = Report(models, task, args.reports)
    comparison = args.reports / "model_comparison.md"
    texts = {args.reports / "metrics.csv": metrics_csv(models), comparison: around_block(comparison, report.markdown(), task),
             args.reports / "index.html": report.page()}
    # Absent while the three files are replaced, so that its presence means that they belong together.
    (args.reports / "manifest.json").unlink(missing_ok=True)
    with written_whole(*texts) as files:
        for file, text in zip(files, texts.values(), strict=True):
            file.write(text)
    write_manifest(args.reports / "manifest.json", clock, task=task.name,
                   inputs={shown_path(path): sha256_file(path) for model in models for path in model.files})
    print_summary(models, texts)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path, help="folder with <model>_metrics.json, written to as well (default reports)")
    parser.add_argument("--configs", type=Path, default=ROOT / "configs", help="folder with one YAML a model (default configs)")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")
    args = parser.parse_args()
    args.reports = args.reports or load_task(args.task).under("reports")
    for folder in (args.reports, args.configs):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file, not a folder; name the folder")
    if not args.configs.is_dir():
        raise UserError(f"{args.configs}: no such folder; --configs names the folder with one YAML a model")
    return args


def print_summary(models, texts):
    measured = [model for model in models if model.metrics]
    for title, sentence in warnings(models):
        print(f"note: {title}: {sentence}")
    print(f"{len(measured):,} of {len(models):,} rows measured; wrote {', '.join(shown_path(path) for path in texts)}")


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
    def data_sha256(self):
        return self.metrics["data"].get("sha256")


def find_models(reports, configs, task):
    """Measured language models, then baselines, then the models that have not run, each by title."""
    measured = [read_model(path, task) for path in sorted(reports.glob(f"*{METRICS}"))]
    names = [model.name for model in measured]
    for model in measured:
        if names.count(model.name) > 1:
            model.title += f" ({model.metrics_path.name.removesuffix(METRICS)})"
    waiting = [planned_model(path) for path in sorted(configs.glob("*.yaml")) if path.stem not in names and path.stem != STANDIN]
    return sorted(measured + waiting, key=lambda model: (model.metrics is None, model.kind == BASELINE, model.title.casefold(), model.name))


def planned_model(path):
    config = load_config(path)
    return Model(path.stem, config.name, config.model_id, LANGUAGE_MODEL, files=(path,))


def read_model(path, task):
    metrics = checked_metrics(path, task)
    predictions_path = find_predictions(path, metrics["predictions"])
    model = Model(metrics["model"], str(metrics.get("title") or metrics["model"]), str(metrics.get("checkpoint") or ""),
                  metrics.get("kind", LANGUAGE_MODEL), metrics, path, files=(path, predictions_path))
    model.predictions = checked_predictions(predictions_path, path, metrics, task)
    return model


def checked_metrics(path, task):
    """A metrics file that holds all that the report draws."""
    metrics, again = read_json(path), f"make it again with src/evaluate_kpis.py --out {path}"
    if not isinstance(metrics, dict):
        raise UserError(f"{path}: an object was expected, found {type(metrics).__name__}; {again}")
    for key, kind in NEEDED.items():
        if not isinstance(metrics.get(key), kind):
            raise UserError(f"{path}: '{key}' is {'missing' if key not in metrics else repr(metrics[key])[:60]}, expected a {kind.__name__}; {again}")
    if metrics.get("task", task.name) != task.name:
        raise UserError(f"{path}: it is of the task '{metrics['task']}', not '{task.name}'; give --task {metrics['task']} or another --reports")
    for name, kpi in metrics["kpis"].items():
        if not is_kpi(kpi):
            raise UserError(f"{path}: kpis.{name} is {str(kpi)[:60]}, expected value, ci95 and n; {again}")
    return metrics


def is_kpi(kpi):
    """{value, ci95, n} with numbers, or with nulls where there was nothing to measure."""
    if not isinstance(kpi, dict) or not is_number(kpi.get("n")):
        return False
    if kpi.get("value") is None:
        return "value" in kpi
    return is_number(kpi["value"]) and isinstance(kpi.get("ci95"), list) and len(kpi["ci95"]) == 2 and all(map(is_number, kpi["ci95"]))


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def find_predictions(metrics_path, named):
    """Beside the metrics first, so that a copied reports folder reads its own files."""
    places = [metrics_path.parent / Path(named).name, ROOT / named]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(f"{metrics_path}: its predictions {named} are neither beside it nor in the project; "
                        f"put them back, or make both again with src/evaluate_kpis.py --out {metrics_path}")
    return found


def checked_predictions(path, metrics_path, metrics, task):
    """The rows that were scored: their confusion matrix must be the one in the metrics file."""
    rows, labels, again = read_jsonl(path), task.labels, f"score again with src/evaluate_kpis.py --out {metrics_path}"
    counts = [[0] * (len(labels) + 1) for _ in labels]
    for number, row in enumerate(rows, 1):
        try:
            said = len(labels) if row["label"] is None else labels.index(row["label"])
            counts[labels.index(row["gold"][task.label_key])][said] += 1
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}:{number}: not a prediction of this task ({type(error).__name__}: {error}); {again}") from error
    if counts != metrics["confusion"].get("counts"):
        raise UserError(f"{path}: these {len(rows):,} predictions are not the ones that {metrics_path} scored "
                        f"(the confusion matrices differ); {again}")
    return rows


@dataclass(frozen=True)
class Cell:
    text: str
    spread: str = ""    # the 95 % interval
    n: int | None = None
    reason: str = ""    # why there is no number


def kpi_cell(model, name, reports, task):
    if not model.metrics:
        option = "" if task.name == DEFAULT else f" TASK={task.name}"
        return Cell("not run", reason=f"{model.name}: no {shown_path(reports / (model.name + METRICS))}; run make kpi-{model.name}{option}")
    kpi = model.kpi(name)
    if kpi is None:
        return Cell("not run", reason=f"{model.title}: {shown_path(model.metrics_path)} has no '{name}'; score it again")
    if kpi["value"] is None:
        return Cell("n/a", n=kpi["n"], reason="a baseline says a verdict and nothing else, so there is no answer text to judge"
                    if model.kind == BASELINE else f"{model.title}: there was nothing to measure '{name}' on (n = {kpi['n']})")
    low, high = (charts.shown_value(name, bound) for bound in kpi["ci95"])
    return Cell(charts.shown_value(name, kpi["value"]), f"{low} to {high}", kpi["n"])


def warnings(models):
    """What a reader must know before the numbers: (title, sentence) pairs in plain text."""
    measured = [model for model in models if model.metrics]
    if not measured:
        return [("Nothing has been measured yet", "every cell says \"not run\"; the notes below the table say which command fills it.")]
    return [*synthetic_warning(measured), *data_warning(measured), *baseline_warnings(measured)]


def synthetic_warning(measured):
    made_up = [model.title for model in measured if model.metrics["data"].get("synthetic")]
    if made_up:
        yield ("Synthetic data", f"{listed(made_up)} {'was' if len(made_up) == 1 else 'were'} measured on generated records. "
               "The numbers show that the pipeline works; they do not say how well a model does on real records.")


def data_warning(measured):
    groups = {}
    for model in measured:
        groups.setdefault(model.data_sha256, []).append(model)
    if len(groups) > 1:
        parts = [f"{listed([model.title for model in group])} on {data_words(group[0])}" for group in groups.values()]
        yield ("Different data", f"the rows were not all measured on the same data and must not be compared across it: {'; '.join(parts)}.")


def data_words(model):
    data = model.metrics["data"]
    n_rows = f"{data['rows']:,} rows, " if is_number(data.get("rows")) else ""
    return f"{data.get('path', 'unnamed data')} ({n_rows}sha256 {str(data.get('sha256'))[:12]})"


def baseline_warnings(measured):
    """A language model below gradient boosting says so; one that was never compared says that."""
    unknown = []
    for model in measured:
        if model.kind == BASELINE:
            continue
        rival = next((other for other in measured if other.name == BOOSTING and other.data_sha256 == model.data_sha256), None)
        own, best = model.kpi("macro_f1"), rival and rival.kpi("macro_f1")
        if not (own and best) or own["value"] is None or best["value"] is None:
            unknown.append(model.title)
        elif own["value"] < best["value"]:
            doubt = " (the 95 % intervals overlap)" if own["ci95"][1] >= best["ci95"][0] else ""
            yield (f"{model.title} loses to gradient boosting", f"its macro-F1 of {own['value']:.3f} is below the {best['value']:.3f} "
                   f"of the gradient boosting baseline on the same data{doubt}.")
    if unknown:
        yield ("No baseline beside it", f"the gradient boosting baseline was not measured on the data of {listed(unknown)}, "
               "so nothing here says whether a language model is needed.")


def listed(words):
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def resource_notes(models):
    """Memory, precision and quantisation of each measured language model, in one sentence each."""
    measured = [model for model in models if model.metrics and model.kind != BASELINE]
    for model in measured:
        training, predicted = model.metrics.get("training") or {}, model.metrics.get("predicted") or {}
        trained = f"{training.get('method', 'unknown method')} in {training.get('precision', 'unrecorded precision')}, {memory_words(training)}"
        yield model, (f"training: {trained if training else 'not recorded'}; "
                      f"inference: {precision_of(model)} on {model.metrics.get('backend', 'an unnamed backend')}, {memory_words(predicted)}; "
                      f"quantisation in training: {training_quantisation(training)}, in inference: {precision_of(model)}; "
                      f"observed impact: {quantisation_impact(model, measured)}")


def memory_words(facts):
    if is_number(facts.get("peak_gpu_memory_mib")):
        gpu = (facts.get("hardware") or {}).get("gpu")
        return f"peak VRAM {facts['peak_gpu_memory_mib']:,.0f} MiB" + (f" ({gpu})" if gpu else "")
    if is_number(facts.get("peak_memory_mib")):
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
    others = [other for other in measured if other.name == model.name and other.data_sha256 == model.data_sha256
              and precision_of(other) != precision_of(model) and (other.kpi("macro_f1") or {}).get("value") is not None]
    own = (model.kpi("macro_f1") or {}).get("value")
    if not others or own is None:
        return f"not measured (only {precision_of(model)} was run)"
    return ", ".join(f"macro-F1 {own - other.kpi('macro_f1')['value']:+.3f} against {precision_of(other)}" for other in others)


def provenance(models):
    """Where each row's numbers come from, from the manifest inside its metrics file."""
    for model in models:
        if model.metrics:
            facts = model.metrics
            made = " ".join(f"{name} {value}" for key in ("versions", "hardware") for name, value in (facts.get(key) or {}).items())
            predicted = " ".join(f"{name} {value}" for name, value in ((facts.get("predicted") or {}).get("hardware") or {}).items())
            yield model, [("metrics", shown_path(model.metrics_path)), ("predictions", shown_path(model.files[1])), ("data", data_words(model)),
                          ("command", facts.get("command") or "not recorded"), ("git commit", facts.get("git_commit") or "not recorded"),
                          ("predicted on", predicted or "not recorded"), ("scored with", made or "not recorded"),
                          ("finished", facts.get("finished") or "not recorded")]


class Report:
    """The comparison with its numbered notes, as Markdown and as a page."""

    def __init__(self, models, task, reports):
        self.models, self.task = models, task
        self.columns = [*task.columns, *LATENCY_COLUMNS]
        latency = [Cell("not run", reason=NO_BENCHMARK)] * len(LATENCY_COLUMNS)
        self.cells = [[kpi_cell(model, name, reports, task) for name in task.columns.values()] + latency for model in models]
        self.notes = list(dict.fromkeys(cell.reason for row in self.cells for cell in row if cell.reason))
        self.measured = [model for model in models if model.metrics]

    def note_number(self, cell):
        return self.notes.index(cell.reason) + 1

    def markdown(self):
        """The generated block, without its markers."""
        parts = ["## Measured comparison", *(f"> **{md(title)}:** {md(sentence)}" for title, sentence in warnings(self.models)), self.md_table(),
                 "\n".join(f"- [{number}] {md(note)}" for number, note in enumerate(self.notes, 1)), self.md_intervals(),
                 self.md_list("Memory, precision and quantisation", [(model, text) for model, text in resource_notes(self.models)]),
                 self.md_list("Where the numbers come from", [(model, "; ".join(f"{name}: {value}" for name, value in facts))
                                                              for model, facts in provenance(self.models)])]
        return "\n\n".join(part for part in parts if part)

    def md_table(self):
        rows = [[md(model.title), md(model.checkpoint), *(f"{cell.text} [{self.note_number(cell)}]" if cell.reason else cell.text for cell in cells)]
                for model, cells in zip(self.models, self.cells, strict=True)]
        return md_table(["Model", "Checkpoint", *self.columns], rows)

    def md_intervals(self):
        rows = [[md(model.title), *(f"{cell.spread} (n = {cell.n:,})" if cell.spread else cell.text for cell in cells[:len(self.task.columns)])]
                for model, cells in zip(self.models, self.cells, strict=True) if model.metrics]
        return "### n and 95 % intervals\n\n" + md_table(["Model", *self.task.columns], rows) if rows else ""

    def md_list(self, title, notes):
        return f"### {title}\n\n" + "\n".join(f"- {md(model.title)}: {md(text)}" for model, text in notes) if notes else ""

    def page(self):
        """The whole HTML page; record text enters it only as escaped JSON."""
        template = (Path(__file__).parent / "report_page.html").read_text(encoding="utf-8")
        script = re.search(r"<script>(.*?)</script>", template, re.S).group(1)
        parts = {"task": escape(self.task.title), "script_sha256": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
                 "summary": self.html_summary(), "warnings": self.html_warnings(), "comparison": self.html_comparison(),
                 "notes": "".join(f'<li id="note-{number}">{escape(note)}</li>' for number, note in enumerate(self.notes, 1)),
                 "overlay": charts.of_all([(model.title, model.metrics) for model in self.measured]), "models": self.html_models(),
                 "jumps": "".join(f'<li><a href="#model-{at}">{escape(model.title)}</a></li>' for at, model in enumerate(self.measured)),
                 "resources": self.html_resources(), "provenance": self.html_provenance(), "wrong": json_in_html(self.wrong_verdicts())}
        # One pass, so that a placeholder's spelling inside a value stays text; lone surrogates have no UTF-8.
        page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match.group(1)], template)
        return page.encode("utf-8", "backslashreplace").decode()

    def html_summary(self):
        data = dict.fromkeys(data_words(model) for model in self.measured)
        n_synthetic = sum(bool(model.metrics["data"].get("synthetic")) for model in self.measured)
        facts = [("Measured", f"{len(self.measured):,} of {len(self.models):,} rows"),
                 ("Data", "; ".join(data) or "none yet"),
                 ("Records", f"synthetic in {n_synthetic:,} of {len(self.measured):,} measurements" if n_synthetic else "not marked as synthetic"),
                 ("Last measured", max((str(model.metrics.get("finished", "")) for model in self.measured), default="") or "never")]
        return definitions(facts if self.measured else facts[:2])

    def html_warnings(self):
        return "".join(f'<p class="warning"><strong>{escape(title)}:</strong> {escape(sentence)}</p>' for title, sentence in warnings(self.models))

    def html_comparison(self):
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("Model", "Checkpoint", *self.columns))
        body = "".join(f'<tr><th scope="row">{escape(model.title)}</th><td class="checkpoint">{escape(model.checkpoint)}</td>'
                       + "".join(map(self.html_cell, cells)) + "</tr>" for model, cells in zip(self.models, self.cells, strict=True))
        return f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"

    def html_cell(self, cell):
        if cell.reason:
            number = self.note_number(cell)
            return (f'<td class="none" title="{escape(cell.reason)}">{cell.text.replace(" ", "&nbsp;")} <a class="ref" href="#note-{number}" '
                    f'aria-label="note {number}">[{number}]</a></td>')
        return f'<td>{cell.text}<span class="small">{cell.spread}</span><span class="small">n = {cell.n:,}</span></td>'

    def html_models(self):
        return "".join(self.html_model(model, at) for at, model in enumerate(self.measured)) or '<p class="none">No model has been measured.</p>'

    def html_model(self, model, at):
        facts = f"{model.kind}, {model.checkpoint}" if model.checkpoint else model.kind
        return (f'<article id="model-{at}"><h3>{escape(model.title)}</h3><p class="muted">{escape(facts)}</p>'
                f'{charts.of_one(model.title, model.metrics)}{charts.kpi_table(model.metrics["kpis"])}</article>')

    def html_resources(self):
        notes = [(model.title, text) for model, text in resource_notes(self.models)]
        return definitions(notes) if notes else '<p class="none">No language model has been measured.</p>'

    def html_provenance(self):
        return "".join(f"<details><summary>{escape(model.title)}</summary>{definitions(facts)}</details>" for model, facts in provenance(self.models))

    def wrong_verdicts(self):
        """What the page's list filters and draws: the surest wrong verdicts of each model."""
        found, n_wrong = [], []
        for at, model in enumerate(self.measured):
            wrong = [row for row in model.predictions if row["label"] != row["gold"][self.task.label_key]]
            n_wrong.append(len(wrong))
            wrong.sort(key=lambda row: -confidence(row))
            found += [self.wrong_verdict(row, at) for row in wrong[:MOST_WRONG]]
        return {"models": [{"title": model.title, "wrong": n} for model, n in zip(self.measured, n_wrong, strict=True)], "most": MOST_WRONG,
                "labels": list(self.task.labels), "sides": list(self.task.module("data").RECORDS), "rows": found}

    def wrong_verdict(self, row, at):
        kpis, key = self.task.module("kpis"), self.task.label_key
        gold_text, said_text = ({name: value for name, value in (answer or {}).items() if name != key} for answer in (row["gold"], row.get("answer")))
        return {"id": str(row.get("id", "")), "model": at, "gold": row["gold"][key], "said": row["label"], "p": row.get("probabilities"),
                "swapped": row.get("swapped_probabilities"), "slices": kpis.slices(row["input"]), "goldText": gold_text, "saidText": said_text,
                "fields": [marked(field) for field in kpis.compare(row["input"])],
                "raw": clipped(row["raw"]) if row.get("answer") is None and row.get("raw") else None}


def confidence(row):
    return max((row.get("probabilities") or {"": -1.0}).values())


def marked(field):
    """A compared field with both values as lists of text that alternates unmarked, marked, unmarked and so on."""
    from rapidfuzz.distance import Indel

    left, right = clipped(field["left"]), clipped(field["right"])
    if field["relation"] not in ("similar", "different"):
        pieces = [left], [right]
    # Values with little in common are marked whole: scattered shared letters mean nothing.
    elif Indel.normalized_similarity(left, right) < 0.5:
        pieces = ["", left], ["", right]
    else:
        same = [op for op in Indel.opcodes(left, right) if op.tag == "equal"]
        pieces = alternating(left, [(op.src_start, op.src_end) for op in same]), alternating(right, [(op.dest_start, op.dest_end) for op in same])
    return {"field": field["field"], "relation": field["relation"], "left": pieces[0], "right": pieces[1]}


def alternating(text, kept):
    """Cut a text at its kept ranges; a single kept letter between two differences joins them."""
    kept = [(a, b) for a, b in kept if b - a > 1 or a == 0 or b == len(text)]
    parts, end = [""], 0
    for a, b in kept:
        if a == end:
            parts[-1] += text[a:b]
        else:
            parts += [text[end:a], text[a:b]]
        end = b
    return parts + [text[end:]] if end < len(text) else parts


def clipped(text):
    text = str(text)
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}… ({len(text) - MOST_LETTERS:,} more characters)"


def definitions(facts):
    items = "".join(f"<div><dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts)
    return f"<dl>{items}</dl>"


def json_in_html(value):
    """JSON that cannot end its script element, whatever the records hold."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def md(text):
    """Text that cannot leave its table cell or open a comment."""
    return " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def md_table(head, rows):
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * 2 + ["---:"] * (len(head) - 2), *rows])


def around_block(path, block, task):
    """The file with its generated block replaced and every other byte as it was."""
    block = f"{BEGIN}\n\n{block}\n\n{END}"
    if not path.exists():
        return (f"# Model comparison: {task.title}\n\nWrite your own reading above or below the generated block: "
                f"`make report` replaces only what stands between its two marker comments.\n\n{block}\n")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8, then run again") from error
    found = list(MARKER.finditer(text))
    if not found and "steward:begin" not in text and "steward:end" not in text:
        return f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}\n{block}\n"
    if [match.group(1) for match in found] != ["begin", "end"]:
        raise UserError(f"{path}: {len(found)} marker comment(s) found ({', '.join(match.group(1) for match in found) or 'damaged'}), expected "
                        f"one '<!-- steward:begin -->' and then one '{END}'; restore the pair, or delete both for a new block at the end")
    return text[:found[0].start()] + block + text[found[1].end():]


def metrics_csv(models):
    """One row a model, three columns a KPI; empty where nothing was measured."""
    names = list(dict.fromkeys(name for model in models if model.metrics for name in model.metrics["kpis"]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "checkpoint", "kind", "n", *(column for name in names for column in (name, f"{name}_low", f"{name}_high"))])
    for model in models:
        kpis = [model.kpi(name) or {} for name in names]
        values = [value for kpi in kpis for value in (kpi.get("value"), *(kpi.get("ci95") or (None, None)))]
        writer.writerow([csv_name(model), model.checkpoint, model.kind, (model.kpi("accuracy") or {}).get("n"), *values])
    return out.getvalue()


def csv_name(model):
    return model.metrics_path.name.removesuffix(METRICS) if model.metrics_path else model.name


if __name__ == "__main__":
    run(main)
