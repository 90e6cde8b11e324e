"""The tables of measured runs, README's six rows among them, from their manifests: python src/measure.py tables --runs
docs/measured --into docs/results.md

A pretraining run is <name>.json, the manifest that src/pretrain.py left, and <name>.transfer.json, what src/measure.py
transfer measured with it. In h200/ lie manifests of src/eval_latency_throughput.py, <model>_<run>.json, in service/
those of src/measure.py service.
"""

import argparse
import statistics
from pathlib import Path

from common import ROOT, UserError, read_json
from report import marked_text

# Which setting a run of the ablation changed, in words.
ARMS = {
    "base": "all ingredients",
    "canonical": "records and keys in random order instead of a fixed one",
    "variety": "three plain schemas instead of thousands",
    "frequency": "names without frequency weighting",
    "freetext": "reasonings in free prose instead of structured",
    "weight": "verdict token weighted 1 instead of 6",
}

LOADS = (1, 4, 8, 16, 64)  # requests at a time
MODELS = sorted((path.stem for path in (ROOT / "configs").glob("*.yaml")), key=len, reverse=True)
# What was measured of each model on a GPU, in words.
RUNS = {
    "hf": "Transformers, JSON guaranteed",
    "hf_plain": "Transformers as it comes, no JSON asked for",
    "vllm": "vLLM, JSON guaranteed",
    "vllm_json_schema": "vLLM, its own json_schema",
    "vllm_unconstrained": "vLLM as it comes, no JSON asked for",
}
# Where the service was measured, in words.
SERVICES = {
    "cpu_steward_mini": "Steward mini in the service, two CPU cores",
    "h200_steward_mini": "Steward mini on a vLLM server, one H200",
    "h200_qwen3_4b": "Qwen3-4B's shape with random weights on a vLLM server, one H200",
}


def main():
    args = parse_args()
    tables = {
        "pretraining": pretraining_table(args.runs),
        "ablation": ablation_table(args.runs),
        "faithful": faithful_table(args.runs),
        "gpu_speed": gpu_speed_table(args.runs / "h200"),
    }
    for name, table in tables.items():
        marked_text.put(args.into, name, table)
    marked_text.put(args.serving, "service", service_table(args.runs / "service"))
    marked_text.put(args.readme, "worth", worth_table(args.runs))


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=Path, default=Path("docs/measured"), help="folder of the runs (default docs/measured)"
    )
    parser.add_argument(
        "--into",
        type=Path,
        default=Path("docs/results.md"),
        help="file with the marker comments (default docs/results.md)",
    )
    parser.add_argument(
        "--readme", type=Path, default=Path("README.md"), help="file for the six rows (default README.md)"
    )
    parser.add_argument(
        "--serving",
        type=Path,
        default=Path("docs/serving.md"),
        help="file for the service's table (default docs/serving.md)",
    )
    return parser.parse_args()


def pretraining_table(folder):
    """Wall time, speed and held-out scores of each training seed."""
    runs = [read_json(path) for path in sorted(folder.glob("pretrain_seed*.json"))]
    if not runs:
        raise UserError(f"{folder}: no pretrain_seed<n>.json in it; copy the manifests of src/pretrain.py there")
    lines = head(
        "seed",
        "pairs",
        "wall time",
        "tokens/s",
        "of the measured matrix rate",
        "held-out accuracy",
        "macro-F1",
        "log loss",
        "ECE",
    )
    for facts in runs:
        plan = facts["plan"]
        training = facts["training"]
        held_out = facts["held_out"]
        lines.append(
            f"| {plan['seed']} | {plan['pairs']:,} | {facts['wall_s']:.0f} s | {training['tokens_per_s']:,} "
            f"| {training['model_flops_utilisation']:.1%} | {held_out['accuracy']:.4f} "
            f"| {held_out['macro_f1']:.4f} | {held_out['log_loss']:.4f} | {held_out['ece']:.4f} |"
        )
    gpus = sorted({facts["hardware"].get("gpu", "CPU") for facts in runs})
    return "\n".join(lines) + (
        f"\n\nOne {' or '.join(gpus)} a run; n = {runs[0]['held_out']['rows']:,} held-out synthetic pairs "
        "of names, places and words that training never saw."
    )


def ablation_table(folder):
    """What each ingredient is worth: one short run without it."""
    if not (folder / "ablation_base.json").is_file():
        raise UserError(f"{folder}: no ablation_base.json in it")
    lines = head(
        "run",
        "held-out log loss",
        "mean AP",
        "mean F1 at .5",
        "best F1",
        "swapped: verdicts changed",
        "keys shuffled",
        "match lost with a field",
    )
    for arm, words in ARMS.items():
        facts = read_json(folder / f"ablation_{arm}.json")
        sets = read_json(folder / f"ablation_{arm}.transfer.json")["sets"]
        found = [entry["scorers"]["model"] for entry in sets.values()]
        metric = {
            name: statistics.mean(one["metrics"][name]["value"] for one in found)
            for name in ("average_precision", "f1", "best_f1")
        }
        moved = {
            name: statistics.mean(one["robustness"][name][key] for one in found)
            for name, key in (("swapped", "changed_pct"), ("shuffled", "changed_pct"), ("field_removed", "lost_pct"))
        }
        lines.append(
            f"| {words} | {facts['held_out']['log_loss']:.3f} | {metric['average_precision']:.4f} | {metric['f1']:.3f} "
            f"| {metric['best_f1']:.3f} "
            f"| {moved['swapped']:.2f} % | {moved['shuffled']:.2f} % | {moved['field_removed']:.2f} % |"
        )
    sizes = " or ".join(f"{n:,}" for n in sorted({entry["n"] for entry in sets.values()}))
    return (
        "\n".join(lines)
        + f"\n\n{facts['plan']['pairs']:,} pairs and one seed each; means over {len(sets)} record sets of {sizes} "
        "pairs."
    )


def faithful_table(folder):
    """What src/evaluate_kpis.py found in the sentences of the shipped model, one file a set of rows."""
    paths = sorted(folder.glob("faithful_*.json"))
    if not paths:
        raise UserError(f"{folder}: no faithful_<set>.json in it; src/evaluate_kpis.py makes them")
    lines = head("rows of", "pairs", "field statements", "true", "about fields that neither record has", "valid JSON")
    for path in paths:
        kpis = read_json(path)["kpis"]
        name = path.stem.removeprefix("faithful_").replace("_", " ")
        lines.append(
            f"| {name} | {kpis['json_valid_pct']['n']:,} | {kpis['faithful_pct']['n']:,} | "
            f"{shown(kpis['faithful_pct'])} "
            f"| {shown(kpis['invented_pct'])} | {shown(kpis['json_valid_pct'])} |"
        )
    return "\n".join(lines)


def gpu_speed_table(folder):
    """Every engine on every model's shape; <model>_<run>.json says which, and is the benchmark's manifest as it was
    written.
    """
    paths = sorted(folder.glob("*.json"), key=lambda path: path.stem)
    if not paths:
        raise UserError(f"{folder}: no manifest in it; src/eval_latency_throughput.py makes them")
    lines = head(
        "model, engine",
        "n",
        "p50 ms, one at a time",
        "times the limit",
        *(f"req/s at {n}" if n == 1 else f"{n}" for n in LOADS),
        "% of the limit",
        "valid %",
        "verdicts/s",
        "% of the limit",
    )
    for path in paths:
        model = next((model for model in MODELS if path.stem.startswith(f"{model}_")), None)
        words = model and RUNS.get(path.stem.removeprefix(f"{model}_"))
        if not words:
            raise UserError(
                f"{path}: its name must be <model>_<run>.json, a model of configs/ and one of {', '.join(RUNS)}"
            )
        levels = read_json(path)["levels"]
        closed = {level["concurrency"]: level for level in levels if level["form"] == "closed"}
        bulk = {level["form"]: level for level in levels}
        rates = (cell(closed, n, "req_per_s", ".1f") for n in LOADS)
        lines.append(
            f"| {model} {words} | {cell(closed, 1, 'n', 'd')} | {cell(closed, 1, 'p50_ms', ',.0f')} | "
            f"{cell(closed, 1, 'p50_of_floor', '.1f')} "
            f"| {' | '.join(rates)} | {cell(closed, LOADS[-1], 'req_per_s_of_floor_pct', '.0f')} "
            f"| {cell(closed, max(closed, default=None), 'json_valid_pct', '.0f')} "
            f"| {cell(bulk, 'verdicts', 'req_per_s', '.1f')} | "
            f"{cell(bulk, 'verdicts', 'req_per_s_of_floor_pct', '.1f')} |"
        )
    return "\n".join(lines)


def service_table(folder):
    """The service beside what stands behind it, and what an overload did; <where>.json is the manifest as it was
    written.
    """
    lines = head(
        "model",
        "at a time",
        "n",
        "req/s",
        "p50 ms",
        "p95 ms",
        "req/s without the service",
        "p50 ms",
        "share",
        "valid %",
        "memory then, MiB",
    )
    overloads = []
    for path in sorted(folder.glob("*.json")):
        if path.stem not in SERVICES:
            raise UserError(f"{path}: its name must be one of {', '.join(SERVICES)}")
        facts = read_json(path)
        for level in facts["levels"]:
            ours = level["service"]
            theirs = level["direct"]
            lines.append(
                f"| {SERVICES[path.stem]} | {level['concurrency']} | {ours['n']:,} | {ours['req_per_s']:.1f} | "
                f"{ours['p50_ms']:,.0f} "
                f"| {ours['p95_ms']:,.0f} | {theirs['req_per_s']:.1f} | {theirs['p50_ms']:,.0f} | "
                f"{level['service_of_direct']:.2f} "
                f"| {100 * ours['n_valid'] / ours['n']:.1f} | {level.get('memory_mib', 'not run')} |"
            )
        if facts["overload"]:
            overloads.append(overload_words(SERVICES[path.stem], facts["overload"]))
    if len(lines) == 2:
        raise UserError(f"{folder}: no manifest in it; src/measure.py service makes them")
    return "\n\n".join(["\n".join(lines), *overloads])


def overload_words(name, told):
    ends = ", ".join(f"{n:,} with {status}" for status, n in sorted(told["statuses"].items()))
    before, after = told["memory_mib"]
    return (
        f"Overload, {name}: {told['n']:,} requests at {told['rate_per_s']:.0f} a second ended {ends}; memory "
        f"{before:,.0f} MiB before, {after:,.0f} after; "
        f"the next request was answered in {told['next_answer_ms']:,.0f} ms."
    )


def cell(levels, load, key, form):
    value = levels.get(load, {}).get(key)
    return "" if value is None else format(value, form)


def head(*columns):
    """The first two lines of a table: words in the first column, numbers in the others."""
    return [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]


def shown(kpi):
    low, high = kpi["ci95"]
    return f"{kpi['value']:.2f} % ({low:.2f} to {high:.2f})"


def worth_table(folder):
    """README's six rows: what the shipped model is worth, beside what one would use instead."""
    lines = ["| measured | Steward | beside it |", "|---|---|---|"]
    for row in (
        ranking_row(folder, "transfer", "Ranking the pairs of {n} record sets that it never trained on"),
        ranking_row(folder, "blind", "The same on {n} sets that were never inspected"),
        adaptation_row(read_json(folder / "adaptation.json")),
        sentences_row(folder),
        gpu_row(folder / "h200"),
        cpu_row(read_json(folder / "speed.json")["ratios"]),
    ):
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def ranking_row(folder, kind, words):
    """Mean average precision over the sets, of every training seed; the baselines are in one of the runs."""
    found = {"model": [], "boosting": [], "splink": []}
    for path in sorted(folder.glob(f"{kind}_seed*.json")):
        sets = read_json(path)["sets"]
        for scorer, means in found.items():
            measured = [entry["scorers"].get(scorer, {}).get("metrics") for entry in sets.values()]
            if all(measured):
                means.append(statistics.mean(metrics["average_precision"]["value"] for metrics in measured))
    model = found["model"]
    return (
        words.format(n=len(sets)) + f", average precision, {len(model)} training seeds",
        f"{statistics.mean(model):.3f} ± {statistics.stdev(model):.3f}",
        f"gradient boosting {statistics.mean(found['boosting']):.3f}, Splink {statistics.mean(found['splink']):.3f}",
    )


def adaptation_row(facts):
    """Mean F1 at the default threshold before and after a fine-tuning on pairs of the set itself."""
    sets = [entry["scorers"] for entry in facts["sets"].values() if entry.get("scorers")]
    f1 = {
        scorer: statistics.mean(scorers[scorer]["metrics"]["f1"]["value"] for scorers in sets)
        for scorer in ("before", "after", "boosting")
    }
    return (
        f"After {facts['pairs']:,} labelled pairs of the set itself, F1 over {len(sets)} sets",
        f"{f1['after']:.3f}",
        f"before {f1['before']:.3f}; boosting on the same pairs {f1['boosting']:.3f}",
    )


def sentences_row(folder):
    """What its sentences say of the fields, over all rows that were imported from real sets."""
    paths = [path for path in folder.glob("faithful_*.json") if not path.stem.startswith("faithful_synthetic")]
    kpis = [read_json(path)["kpis"] for path in paths]

    def pooled(name):
        n = sum(kpi[name]["n"] for kpi in kpis)
        return sum(kpi[name]["value"] * kpi[name]["n"] for kpi in kpis) / n, n

    true, n = pooled("faithful_pct")
    valid, answers = pooled("json_valid_pct")
    return (
        f"True among {n:,} statements about fields, in {answers:,} answers on {len(kpis)} record sets",
        f"{true:.1f} %",
        f"about fields that neither record has {pooled('invented_pct')[0]:.2f} %; valid JSON {valid:.0f} %",
    )


def gpu_row(folder):
    """The guarantee's price on a GPU, beside the server's own."""

    def level(run):
        levels = read_json(folder / f"qwen3_4b_{run}.json")["levels"]
        return next(level for level in levels if level["concurrency"] == LOADS[-1])

    ours, theirs, free = level("vllm"), level("vllm_json_schema"), level("vllm_unconstrained")
    return (
        f"Qwen3-4B's shape in vLLM on one H200, {LOADS[-1]} requests at a time, JSON guaranteed",
        f"{ours['req_per_s']:.0f} answers/s",
        f"vLLM's own json_schema {theirs['req_per_s']:.0f}; no JSON asked for {free['req_per_s']:.0f}",
    )


def cpu_row(ratios):
    """Speed on a CPU, where ratios alone mean something."""
    answer = ratios["answer_batched"]
    return (
        "Full answers on two CPU cores, 16 at once, against the plain `generate` loop one at a time",
        f"{answer['speed_of_plain_loop']['median']:.1f} times as fast",
        f"gradient boosting is {answer['times_of_boosting']['median']:.0f} times as fast as that",
    )
