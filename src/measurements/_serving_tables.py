"""The tables of what answers over time: the engines on a GPU and the service, from their manifests."""

from pathlib import Path

from common import UserError, read_json
from measurements import _reports
from report.marked_text import md_table

LOADS = (1, 4, 8, 16, 64)  # requests at a time
# How an answer was made on a GPU, by engine and decoding as the manifest names them.
GUARANTEED = "guaranteed"
UNCONSTRAINED = "unconstrained"
JSON_SCHEMA = "server's json_schema, closed here at the budget"
RUNS = {
    ("hf", GUARANTEED): "Transformers, JSON guaranteed",
    ("hf", UNCONSTRAINED): "Transformers as it comes, no JSON asked for",
    ("vllm", GUARANTEED): "vLLM, JSON guaranteed",
    ("vllm", JSON_SCHEMA): "vLLM, its own json_schema",
    ("vllm", UNCONSTRAINED): "vLLM as it comes, no JSON asked for",
}
# What a level of the benchmark shows of one task's requests: column, key, form.
LEVEL_COLUMNS = {
    "at a time": ("concurrency", "d"),
    "n": ("n", ",d"),
    "p50 ms": ("p50_ms", ",.0f"),
    "p95 ms": ("p95_ms", ",.0f"),
    "req/s": ("req_per_s", ",.1f"),
    "tokens/s": ("output_tok_per_s", ",.0f"),
    "valid %": ("json_valid_pct", ".1f"),
}
# Where the service was measured, in words.
SERVICES = {
    "cpu_steward_mini": "Steward mini in the service, two CPU cores",
    "cpu_qod_smollm2_135m": "Task qod: SmolLM2-135M with its adapter in the service, two CPU cores",
    "gpu_qod_smollm2_135m": "Task qod: SmolLM2-135M on a vLLM server, one GPU",
    "h200_steward_mini": "Steward mini on a vLLM server, one H200",
    "h200_qwen3_4b": "Qwen3-4B's shape with random weights on a vLLM server, one H200",
}


def gpu_speed_table(folder):
    """Every engine on every model's shape, from the benchmark's manifests as they were written."""
    runs = gpu_runs(folder)
    head = ["model, engine", "n", "p50 ms, one at a time", "times the limit"]
    head += [f"req/s at {n}" if n == 1 else str(n) for n in LOADS]
    head += ["% of the limit", "valid %", "verdicts/s", "% of the limit"]
    rows = [[f"{model} {RUNS[how]}", *gpu_cells(facts["levels"])] for (model, how), facts in runs.items()]
    return f"{md_table(head, rows, n_text=1)}\n\n{repeatable(runs.values())}"


def gpu_runs(folder):
    """{(model, (engine, decoding)): manifest}, all three as the manifest itself names them."""
    paths = sorted(folder.glob("*.json"), key=lambda path: path.stem)
    if not paths:
        raise UserError(f"{folder}: no manifest in it; src/eval_latency_throughput.py makes them")
    manifests = {path: read_json(path) for path in paths}
    # A server that was asked as any other says by its address which engine had started it for another run.
    started = {
        facts["engine"]["endpoint"]: facts["backend"]
        for facts in manifests.values()
        if facts["backend"] != "openai_api" and "endpoint" in facts["engine"]
    }
    runs = {}
    for path, facts in manifests.items():
        how = (started.get(facts["engine"].get("endpoint"), facts["backend"]), facts["decoding"])
        if how not in RUNS:
            known = "; ".join(f"{engine} ({decoding})" for engine, decoding in RUNS)
            raise UserError(f"{path}: {how[0]} ({how[1]}) has no words in this table; known are {known}")
        runs[Path(facts["engine"].get("served_model") or facts["model"]).name, how] = facts
    return runs


def gpu_cells(levels):
    closed = {level["concurrency"]: level for level in levels if level["form"] == "closed"}
    bulk = {level["form"]: level for level in levels}
    return [
        cell(closed, 1, "n", "d"),
        cell(closed, 1, "p50_ms", ",.0f"),
        cell(closed, 1, "p50_of_floor", ".1f"),
        *(cell(closed, n, "req_per_s", ".1f") for n in LOADS),
        cell(closed, LOADS[-1], "req_per_s_of_floor_pct", ".0f"),
        cell(closed, max(closed, default=None), "json_valid_pct", ".0f"),
        cell(bulk, "verdicts", "req_per_s", ".1f"),
        cell(bulk, "verdicts", "req_per_s_of_floor_pct", ".1f"),
    ]


def repeatable(manifests):
    """Whether the commands in the manifests can be typed again, in a sentence or two."""
    commands = [facts["command"].split() for facts in manifests]
    hidden = sum(not Path(words[1]).suffix for words in commands)
    away = sum(any(word.startswith(".gpu/") for word in words) for words in commands)
    found = []
    if away:
        which = "all" if away == len(commands) else f"{away} of these"
        found.append(
            f"Not repeatable as typed: {which} {len(commands)} commands read `.gpu/...`, the models' shapes "
            "and the prompts on the measuring machine, which the repository does not hold."
        )
    if hidden:
        found.append(
            f"In {hidden} of them no script is named (`python x`): another program had started the benchmark. "
            "The flags behind it are those of `src/eval_latency_throughput.py`."
        )
    return " ".join(found)


def requests_table(folder):
    """Latency and throughput of one task's requests, from serving_<run>.json, manifests of the benchmark; None where
    there are none.
    """
    rows = []
    machines = []
    for path in sorted(folder.glob("serving_*.json")):
        facts = read_json(path)
        how = (facts["backend"], facts["decoding"])
        begun = [f"{facts['title']}{', random weights' * (facts['weights'] == 'random')}", RUNS.get(how, " ".join(how))]
        closed = [level for level in facts["levels"] if level["form"] == "closed"]
        rows += [[*begun, *level_cells(level)] for level in closed]
        machines.append(_reports.machine(facts["hardware"]))
    if not rows:
        return None
    machine_words = " or ".join(dict.fromkeys(machines))
    return f"{md_table(['model', 'engine', *LEVEL_COLUMNS], rows)}\n\nMeasured on: {machine_words}."


def level_cells(level):
    return ["" if level[key] is None else format(level[key], form) for key, form in LEVEL_COLUMNS.values()]


def service_table(folder):
    """The service beside what stands behind it, and what an overload did; <where>.json is the manifest as it was
    written.
    """
    head = ["model", "at a time", "n", "req/s", "p50 ms", "p95 ms", "req/s without the service", "p50 ms", "share"]
    rows = []
    overloads = []
    for path in sorted(folder.glob("*.json")):
        if path.stem not in SERVICES:
            raise UserError(f"{path}: its name must be one of {', '.join(SERVICES)}")
        facts = read_json(path)
        rows += [[SERVICES[path.stem], *service_cells(level)] for level in facts["levels"]]
        if facts["overload"]:
            overloads.append(overload_words(SERVICES[path.stem], facts["overload"]))
    if not rows:
        raise UserError(f"{folder}: no manifest in it; src/measure.py service makes them")
    return "\n\n".join([md_table([*head, "valid %", "memory then, MiB"], rows, n_text=1), *overloads])


def service_cells(level):
    ours = level["service"]
    theirs = level["direct"]
    return [
        str(level["concurrency"]),
        f"{ours['n']:,}",
        f"{ours['req_per_s']:.1f}",
        f"{ours['p50_ms']:,.0f}",
        f"{ours['p95_ms']:,.0f}",
        f"{theirs['req_per_s']:.1f}",
        f"{theirs['p50_ms']:,.0f}",
        f"{level['service_of_direct']:.2f}",
        f"{100 * ours['n_valid'] / ours['n']:.1f}",
        str(level.get("memory_mib", "not run")),
    ]


def overload_words(name, found):
    ends = ", ".join(f"{n:,} with {status}" for status, n in sorted(found["statuses"].items()))
    before, after = found["memory_mib"]
    return (
        f"Overload, {name}: {found['n']:,} requests at {found['rate_per_s']:.0f} a second ended {ends}; memory "
        f"{before:,.0f} MiB before, {after:,.0f} after; "
        f"the next request was answered in {found['next_answer_ms']:,.0f} ms."
    )


def cell(levels, load, key, form):
    value = levels.get(load, {}).get(key)
    return "" if value is None else format(value, form)


def gpu_row(folder):
    """The guarantee's price on a GPU, beside the server's own."""

    runs = gpu_runs(folder)

    def level(decoding):
        levels = runs["qwen3_4b", ("vllm", decoding)]["levels"]
        return next(level for level in levels if level["concurrency"] == LOADS[-1])

    ours = level(GUARANTEED)
    theirs = level(JSON_SCHEMA)
    free = level(UNCONSTRAINED)
    return (
        f"Qwen3-4B's shape in vLLM on one H200, {LOADS[-1]} requests at a time, JSON guaranteed",
        f"{ours['req_per_s']:.0f} answers/s",
        f"vLLM's own json_schema {theirs['req_per_s']:.0f}; no JSON asked for {free['req_per_s']:.0f}",
    )
