"""The sentences beside the comparison, which the Markdown block and the page share."""

from common import shown_path
from report import latency
from report.charts import digits
from report.models import BASELINE
from scoring.kpis import comparison_columns

BOOSTING = "baseline_boosting"


def warnings(models, runs, task):
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
        *(baseline_warnings(measured) if task.verdict and task.module("baseline") else ()),
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
        own = model.value("macro_f1")
        best = rival and rival.value("macro_f1")
        if own is None or best is None:
            unknown.append(model.title)
        elif own < best:
            yield from lost(model, rival)
    if unknown:
        yield (
            "No baseline beside it",
            f"the gradient boosting baseline was not measured on the data of {listed(unknown)}, "
            "so nothing here says whether a language model is needed.",
        )


def lost(model, rival):
    own = model.kpi("macro_f1")
    best = rival.kpi("macro_f1")
    doubt = " (the 95 % intervals overlap)" if own["ci95"][1] >= best["ci95"][0] else ""
    yield (
        f"{model.title} loses to gradient boosting",
        f"its macro-F1 of {own['value']:.3f} is below the {best['value']:.3f} "
        f"of the gradient boosting baseline on the same data{doubt}.",
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


def resource_notes(models, task):
    """Memory, precision and quantisation of each measured language model, in one sentence each."""
    measured = [model for model in models if model.metrics and model.kind != BASELINE]
    for model in measured:
        facts = {
            "training": training_words(model.metrics.get("training") or {}),
            "inference": f"{precision_of(model)} on {model.metrics.get('backend', 'an unnamed backend')}, "
            + memory_words(model.metrics.get("predicted") or {}),
            "quantisation in training": f"{training_quantisation(model.metrics.get('training') or {})}, in inference: "
            + precision_of(model),
            "observed impact": quantisation_impact(model, measured, task),
        }
        yield model, "; ".join(f"{name}: {text}" for name, text in facts.items())


def training_words(training):
    if not training:
        return "not recorded"
    precision = training.get("precision", "unrecorded precision")
    return f"{training.get('method', 'unknown method')} in {precision}, {memory_words(training)}"


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


def quantisation_impact(model, measured, task):
    """The same model on the same data in another precision, or the plain word that nobody looked."""
    kpi, title = main_kpi(task)
    others = [
        other
        for other in measured
        if other.name == model.name
        and other.measured_on == model.measured_on
        and precision_of(other) != precision_of(model)
        and other.value(kpi) is not None
    ]
    own = model.value(kpi)
    if not others or own is None:
        return f"not measured (only {precision_of(model)} was run)"
    return ", ".join(
        f"{title} {own - other.value(kpi):+.{digits(kpi)}f} against {precision_of(other)}" for other in others
    )


def main_kpi(task):
    """(KPI, title) by which two runs are compared in a sentence."""
    if task.verdict:
        return "macro_f1", "macro-F1"
    title, kpi = next(iter(comparison_columns(task).items()))
    return kpi, title


def provenance(models):
    """Where each row's numbers come from, from the manifest inside its metrics file."""
    for model in models:
        if model.metrics:
            yield model, provenance_of(model)


def provenance_of(model):
    facts = model.metrics
    scored = " ".join(words(facts.get(key)) for key in ("versions", "hardware") if facts.get(key))
    found = {
        "metrics": shown_path(model.metrics_path),
        "predictions": shown_path(model.files[1]),
        "data": data_words(model),
        "command": facts.get("command"),
        "git commit": facts.get("git_commit"),
        "predicted on": words((facts.get("predicted") or {}).get("hardware")),
        "scored with": scored,
        "finished": facts.get("finished"),
    }
    return [(name, value or "not recorded") for name, value in found.items()]


def words(facts):
    return " ".join(f"{name} {value}" for name, value in (facts or {}).items())
