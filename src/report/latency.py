"""The benchmark's side of the report: its runs from the manifests beside <name>_latency.csv, two CSV files, one table
and the curves.
"""

import csv
import io
import json
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

from common import UserError
from report import charts
from report.marked_text import md, md_table
from report.shapes import BENCHMARK_SHAPE, LEVEL_FACTS, checked

CSV = "_latency.csv"
MANIFEST = "_latency.manifest.json"
# The comparison takes a model's number from the first of these that has measured it.
ENGINES = {
    "vllm": "vLLM",
    "openai_api": "OpenAI-compatible server",
    "sglang": "SGLang",
    "llama_cpp": "llama.cpp",
    "hf": "transformers",
}
# A server's own constraint has its own words and stands between the two.
DECODINGS = {"guaranteed": 0, "unconstrained": 2}
RUN_COLUMNS = ["model", "title", "backend", "decoding", "weights"]
LATENCY_CSV = [
    *LEVEL_FACTS,
    "p50_ms",
    "p95_ms",
    "p99_ms",
    "first_token_p50_ms",
    "first_token_p95_ms",
    "floor_p50_ms",
    "p50_of_floor",
]
THROUGHPUT_CSV = [
    *LEVEL_FACTS,
    "req_per_s",
    "output_tok_per_s",
    "prompt_tok_per_s",
    "json_valid_raw_pct",
    "json_valid_pct",
    "closed_at_budget_pct",
    "mask_overruled_pct",
    "floor_req_per_s",
    "req_per_s_of_floor_pct",
]
TABLE = (
    "Model",
    "Engine",
    "Load",
    "n",
    "p50 (ms)",
    "p95 (ms)",
    "p99 (ms)",
    "First token p50 (ms)",
    "Req/s",
    "Output tok/s",
    "Valid %",
    "p50 / floor",
)
TABLE_NOTE = (
    "C is the number of requests kept open at once; n counts requests. p50 / floor says how many times longer an "
    "answer takes than "
    "what the hardware allows at one token a step; – stands for what was not measured."
)
MOST_LETTERS = 300


@dataclass
class Run:
    """One benchmark run: an engine that served one model at several levels of load."""

    name: str
    path: Path
    facts: dict
    title: str

    @property
    def model(self):
        return self.facts["model"]

    @property
    def engine(self):
        return f"{ENGINES.get(self.facts['backend'], self.facts['backend'])} ({self.facts['decoding']})"

    @property
    def random(self):
        return self.facts["weights"] == "random"

    @property
    def rank(self):
        """Before another run of the same model where the comparison has room for one."""
        backend = self.facts["backend"]
        decoding = self.facts["decoding"]
        return (
            self.random,
            list(ENGINES).index(backend) if backend in ENGINES else len(ENGINES),
            DECODINGS.get(decoding, 1),
        )

    @cached_property
    def closed(self):
        """Concurrency -> its level, of the closed loops alone."""
        return {int(level["concurrency"]): level for level in self.facts["levels"] if level["form"] == "closed"}

    @property
    def files(self):
        table = self.path.with_name(self.name + CSV)
        return (self.path, table) if table.exists() else (self.path,)


def find_runs(reports, task):
    """Every finished run, a model's preferred engine first; a run that did not finish is an error."""
    for table in sorted(reports.glob(f"*{CSV}")):
        manifest = table.with_name(table.name.removesuffix(CSV) + MANIFEST)
        if not manifest.exists():
            raise UserError(
                f"{table}: no {manifest.name} beside it, so this benchmark did not finish; {again(table)}, or delete "
                "the file"
            )
    runs = [read_run(path, task) for path in sorted(reports.glob(f"*{MANIFEST}"))]
    titles = [run.title for run in runs]
    for run in runs:
        if titles.count(run.title) > 1:
            run.title += f" [{run.name}]"
    return sorted(runs, key=lambda run: (run.facts["title"].casefold(), *run.rank, run.name))


def read_run(path, task):
    name = path.name.removesuffix(MANIFEST)
    run = Run(name, path, checked(path, BENCHMARK_SHAPE, task, again(path.with_name(name + CSV))), "")
    run.title = f"{run.facts['title']} on {run.engine}"
    return run


def again(table):
    return f"make it again with src/eval_latency_throughput.py --out {table} (make bench-<model>)"


def not_run(task):
    return f"the benchmark has not run; make bench-<model>{task.for_make} runs it"


def csv_text(runs, columns):
    """One row a level; empty where nothing was measured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(RUN_COLUMNS + columns)
    for run in runs:
        writer.writerows(
            [run.facts[key] for key in RUN_COLUMNS] + [level[key] for key in columns] for level in run.facts["levels"]
        )
    return out.getvalue()


def markdown(runs, task):
    """The section of the Markdown block."""
    title = "### Latency and throughput\n\n"
    if not runs:
        return f"{title}Not measured: {md(not_run(task))}."
    rows = [
        [md(run.facts["title"] + (" (random weights)" if run.random else "")), md(run.engine), *map(md, shown(level))]
        for run in runs
        for level in run.facts["levels"]
    ]
    made_on = "\n".join(
        f"- {md(run.title)}: {md('; '.join(f'{name}: {value}' for name, value in circumstances(run)))}" for run in runs
    )
    return f"{title}{md_table(TABLE, rows, n_text=3)}\n\n{TABLE_NOTE}\n\n{made_on}"


def html_table(runs):
    """The same table with one row group a run."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in TABLE)
    return f"<thead><tr>{head}</tr></thead>" + "".join(f"<tbody>{html_rows(run)}</tbody>" for run in runs)


def html_rows(run):
    levels = run.facts["levels"]
    mark = '<span class="small">random weights</span>' if run.random else ""
    first = (
        f'<th scope="rowgroup" rowspan="{len(levels)}">{escape(run.facts["title"])}{mark}</th>'
        f'<td class="engine" rowspan="{len(levels)}">{escape(run.engine)}</td>'
    )
    rows = ["".join(f"<td>{escape(text)}</td>" for text in shown(level)) for level in levels]
    return f"<tr>{first}" + "</tr><tr>".join(rows) + "</tr>"


def shown(level):
    """A level as the words of its table row."""
    n = f"{level['n']:,.0f}" + (f" ({level['n_failed']:,.0f} failed)" if level["n_failed"] else "")
    speeds = [
        short(level[key])
        for key in ("p50_ms", "p95_ms", "p99_ms", "first_token_p50_ms", "req_per_s", "output_tok_per_s")
    ]
    valid = "–" if level["json_valid_pct"] is None else charts.shown_value("json_valid_pct", level["json_valid_pct"])
    return [load(level), n, *speeds, valid, "–" if level["p50_of_floor"] is None else f"{level['p50_of_floor']:,.1f}×"]


def load(level):
    parts = [
        {"closed": "", "open": "open loop", "verdicts": "verdicts only"}[level["form"]],
        "" if level["concurrency"] is None else f"C = {level['concurrency']:,.0f}",
        "" if level["rate_per_s"] is None else f"{level['rate_per_s']:g} req/s",
    ]
    return ", ".join(filter(None, parts))


def short(value):
    return "–" if value is None else charts.shown_number(value)


def curves(runs):
    """Latency and requests a second of the closed loops, with the floor where it is known."""
    kinds = [
        ("p50 latency", "p50 (ms)", "ms", "p50_ms", "floor_p50_ms"),
        ("p95 latency", "p95 (ms)", "ms", "p95_ms", None),
        ("Throughput", "requests/s", "requests/s", "req_per_s", "floor_req_per_s"),
    ]
    runs = [run for run in runs if run.closed]
    names = [run.title + (", random weights" if run.random else "") for run in runs]
    return [
        (
            title,
            axis,
            unit,
            [(name, points(run, key), points(run, floor)) for name, run in zip(names, runs, strict=True)],
        )
        for title, axis, unit, key, floor in kinds
    ]


def points(run, key):
    """What a logarithmic axis can show of a column: nothing below a thousandth."""
    return [
        (concurrency, level[key])
        for concurrency, level in sorted(run.closed.items())
        if key and (level[key] or 0) >= 0.001
    ]


def source(run, level, wanted):
    """Which run and level a number of the comparison comes from."""
    concurrency = int(level["concurrency"])
    failed = f"{level['n_failed']:,.0f} of {level['n']:,.0f} requests failed" if level["n_failed"] else "none failed"
    parts = [
        f"{run.title}: closed loop at concurrency {concurrency}"
        + (", the lowest measured" if concurrency != wanted else "")
        + f", n = {level['n']:,.0f}, {failed}",
        hardware(run),
        "random weights, so only speed and memory mean anything" if run.random else "",
        run.path.name,
    ]
    return "; ".join(filter(None, parts))


def hardware(run):
    """The part of a manifest's hardware that the speed depends on most."""
    facts = run.facts.get("hardware") or {}
    if facts.get("gpu"):
        return f"{facts['gpu_count']} x {facts['gpu']}" if facts.get("gpu_count", 1) != 1 else str(facts["gpu"])
    return f"CPU ({words(facts)})" if facts else "hardware not recorded"


def circumstances(run):
    """What the speed depends on: named below the table for every run."""
    facts = run.facts
    floor = run.facts["floor"] or {}
    units = {"weights_gb": "GB of weights", "bandwidth_gb_s": "GB/s", "matmul_tflop_s": "TFLOP/s"}
    limits = [f"{short(floor[key])} {unit}" for key, unit in units.items() if floor.get(key) is not None] + [
        floor.get("note") or ""
    ]
    yield "hardware", words(facts.get("hardware")) or "not recorded"
    yield "versions", words(facts.get("versions")) or "not recorded"
    yield "engine", words(facts["engine"]) or "not recorded"
    yield "weights", "random, so only speed and memory mean anything" if run.random else "trained"
    yield "floor", ", ".join(filter(None, limits)) or "not known"


def provenance(runs):
    """Where each run's numbers come from, from its manifest."""
    for run in runs:
        facts = run.facts
        yield (
            run,
            [
                ("benchmark", run.path.name),
                ("checkpoint", facts["checkpoint"] or "not recorded"),
                ("data", data_words(run)),
                ("command", facts.get("command") or "not recorded"),
                ("git commit", facts.get("git_commit") or "not recorded"),
                ("finished", facts.get("finished") or "not recorded"),
            ],
        )


def data_words(run):
    data = run.facts["data"]
    rows = f"{data['rows']:,} rows, " if data["rows"] is not None else ""
    return f"{data['path'] or 'unnamed data'} ({rows}sha256 {str(data['sha256'])[:12]})"


def words(facts):
    """Facts of a manifest as text."""
    known = {name: value for name, value in (facts or {}).items() if value is not None}
    shown = [
        f"{name} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in known.items()
    ]
    return ", ".join(charts.clipped(text, MOST_LETTERS) for text in shown)
