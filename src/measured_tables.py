"""Tables of the pretraining runs from their manifests: python src/measured_tables.py --runs docs/measured --into README.md

Each run is <name>.json, the manifest that src/pretrain.py left, and <name>.transfer.json, what src/evaluate_transfer.py measured with it. In h200/ lie
manifests of src/eval_latency_throughput.py, without what names this run's folders.
"""

import argparse
import statistics
from pathlib import Path

import marked_text
from common import UserError, read_json, run

# Which setting a run of the ablation changed, in words.
ARMS = {
    "base": "all ingredients", "canonical": "records and keys in random order instead of a fixed one",
    "variety": "three plain schemas instead of thousands", "frequency": "names without frequency weighting",
    "freetext": "reasonings in free prose instead of structured", "weight": "verdict token weighted 1 instead of 6",
}

LOADS = (1, 4, 8, 16, 64)       # requests at a time


def main():
    args = parse_args()
    tables = {"pretraining": pretraining_table(args.runs), "ablation": ablation_table(args.runs), "faithful": faithful_table(args.runs),
              "gpu_speed": gpu_speed_table(args.runs / "h200")}
    for name, table in tables.items():
        marked_text.put(args.into, name, table)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("docs/measured"), help="folder of the runs (default docs/measured)")
    parser.add_argument("--into", type=Path, default=Path("README.md"), help="file with the marker comments (default README.md)")
    return parser.parse_args()


def pretraining_table(folder):
    """Wall time, speed and held-out scores of each training seed."""
    runs = [read_json(path) for path in sorted(folder.glob("pretrain_seed*.json"))]
    if not runs:
        raise UserError(f"{folder}: no pretrain_seed<n>.json in it; copy the manifests of src/pretrain.py there")
    lines = head("seed", "pairs", "wall time", "tokens/s", "of the measured matrix rate", "held-out accuracy", "macro-F1", "log loss", "ECE")
    for facts in runs:
        plan, training, held_out = facts["plan"], facts["training"], facts["held_out"]
        lines.append(f"| {plan['seed']} | {plan['pairs']:,} | {facts['wall_s']:.0f} s | {training['tokens_per_s']:,} "
                     f"| {training['model_flops_utilisation']:.1%} | {held_out['accuracy']:.4f} "
                     f"| {held_out['macro_f1']:.4f} | {held_out['log_loss']:.4f} | {held_out['ece']:.4f} |")
    gpus = sorted({facts["hardware"].get("gpu", "CPU") for facts in runs})
    return "\n".join(lines) + (f"\n\nOne {' or '.join(gpus)} a run; n = {runs[0]['held_out']['rows']:,} held-out synthetic pairs "
                               "of names, places and words that training never saw.")


def ablation_table(folder):
    """What each ingredient is worth: one short run without it."""
    if not (folder / "ablation_base.json").is_file():
        raise UserError(f"{folder}: no ablation_base.json in it")
    lines = head("run", "held-out log loss", "mean AP", "mean F1 at .5", "best F1", "swapped: verdicts changed", "keys shuffled", "match lost with a field")
    for arm, words in ARMS.items():
        facts, sets = read_json(folder / f"ablation_{arm}.json"), read_json(folder / f"ablation_{arm}.transfer.json")["sets"]
        found = [entry["scorers"]["model"] for entry in sets.values()]
        metric = {name: statistics.mean(one["metrics"][name]["value"] for one in found) for name in ("average_precision", "f1", "best_f1")}
        moved = {name: statistics.mean(one["robustness"][name][key] for one in found)
                 for name, key in (("swapped", "changed_pct"), ("shuffled", "changed_pct"), ("field_removed", "lost_pct"))}
        lines.append(f"| {words} | {facts['held_out']['log_loss']:.3f} | {metric['average_precision']:.4f} | {metric['f1']:.3f} | {metric['best_f1']:.3f} "
                     f"| {moved['swapped']:.2f} % | {moved['shuffled']:.2f} % | {moved['field_removed']:.2f} % |")
    sizes = " or ".join(f"{n:,}" for n in sorted({entry["n"] for entry in sets.values()}))
    return "\n".join(lines) + f"\n\n{facts['plan']['pairs']:,} pairs and one seed each; means over {len(sets)} record sets of {sizes} pairs."


def faithful_table(folder):
    """What src/evaluate_kpis.py found in the sentences of the shipped model, one file a set of rows."""
    paths = sorted(folder.glob("faithful_*.json"))
    if not paths:
        raise UserError(f"{folder}: no faithful_<set>.json in it; src/evaluate_kpis.py makes them")
    lines = head("rows of", "pairs", "field statements", "true", "about fields that neither record has", "valid JSON")
    for path in paths:
        kpis = read_json(path)["kpis"]
        name = path.stem.removeprefix("faithful_").replace("_", " ")
        lines.append(f"| {name} | {kpis['json_valid_pct']['n']:,} | {kpis['faithful_pct']['n']:,} | {shown(kpis['faithful_pct'])} "
                     f"| {shown(kpis['invented_pct'])} | {shown(kpis['json_valid_pct'])} |")
    return "\n".join(lines)


def gpu_speed_table(folder):
    """Every engine on every model's shape, by the benchmark's manifests."""
    paths = sorted(folder.glob("*.json"), key=lambda path: (path.stem.partition("_hf")[0].partition("_vllm")[0], path.stem))
    if not paths:
        raise UserError(f"{folder}: no manifest in it; src/eval_latency_throughput.py makes them")
    lines = head("model, engine", "p50 ms, one at a time", "times the limit", *(f"req/s at {n}" if n == 1 else f"{n}" for n in LOADS),
                 "% of the limit", "valid %", "verdicts/s", "% of the limit")
    for path in paths:
        facts = read_json(path)
        at = {level["concurrency"] or level["form"]: level for level in facts["levels"]}
        engine = {"hf": "Transformers", "vllm": "vLLM"}[facts["backend"]]
        held = {"guaranteed": "ours", "unconstrained": "as it comes, no JSON asked for"}.get(facts["decoding"], "its own json_schema")
        rates = (cell(at, n, "req_per_s", ".1f") for n in LOADS)
        lines.append(f"| {facts['title']}, {engine} {held} | {cell(at, 1, 'p50_ms', ',.0f')} | {cell(at, 1, 'p50_of_floor', '.1f')} | {' | '.join(rates)} "
                     f"| {cell(at, LOADS[-1], 'req_per_s_of_floor_pct', '.0f')} | {cell(at, max(set(LOADS) & set(at)), 'json_valid_pct', '.0f')} "
                     f"| {cell(at, 'verdicts', 'req_per_s', '.0f')} | {cell(at, 'verdicts', 'req_per_s_of_floor_pct', '.0f')} |")
    return "\n".join(lines)


def cell(levels, load, key, form):
    value = levels.get(load, {}).get(key)
    return "" if value is None else format(value, form)


def head(*columns):
    """The first two lines of a table: words in the first column, numbers in the others."""
    return [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]


def shown(kpi):
    low, high = kpi["ci95"]
    return f"{kpi['value']:.2f} % ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    run(main)
