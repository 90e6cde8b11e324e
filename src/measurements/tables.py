"""The tables of measured runs, README's six rows among them, from their manifests: python src/measure.py tables --runs
docs/measured --into docs/results.md

A pretraining run is <name>.json, the manifest that src/pretrain.py left, and <name>.transfer.json, what src/measure.py
transfer measured with it. In h200/ lie manifests of src/eval_latency_throughput.py, in service/ those of src/measure.py
service; smollm2/ and micro_batches/ are described in _model_tables.py, adaptation/ in _adaptation_curve.py. In qod/ lie
training_speed_<model>.json, speed.json, judge.json and odd_requests.json of src/measure.py, serving_<run>.json of
src/eval_latency_throughput.py, and the metrics files that _phases_table.py describes.
"""

import argparse
import statistics
from pathlib import Path

from common import UserError, read_json, write_text
from measurements._adaptation_curve import curve_plot, curve_table
from measurements._judge_table import judge_table
from measurements._model_tables import micro_batches_table, models_table
from measurements._odd_requests_table import odd_requests_table
from measurements._phases_table import ablations_table, phases_table
from measurements._serving_tables import gpu_row, gpu_speed_table, requests_table, service_table
from measurements._training_table import training_table
from measurements.speed import speed_table
from report import marked_text
from report.marked_text import md_table

PLOT = "pairs.svg"  # beside the results page
# Which setting a run of the ablation changed, in words.
ARMS = {
    "base": "all ingredients",
    "canonical": "records and keys in random order instead of a fixed one",
    "variety": "three plain schemas instead of thousands",
    "frequency": "names without frequency weighting",
    "freetext": "reasonings in free prose instead of structured",
    "weight": "verdict token weighted 1 instead of 6",
}


def main():
    args = parse_args()
    tables = {
        "pretraining": pretraining_table(args.runs),
        "ablation": ablation_table(args.runs),
        "faithful": faithful_table(args.runs),
        "gpu_speed": gpu_speed_table(args.runs / "h200"),
        "models": models_table(args.runs / "smollm2"),
        "micro_batches": micro_batches_table(args.runs / "micro_batches"),
        "pairs": curve_table(args.runs / "adaptation"),
    }
    tables |= {name: table for name, table in qod_tables(args.runs / "qod").items() if table}
    for name, table in tables.items():
        marked_text.put(args.into, name, table)
    marked_text.put(args.serving, "service", service_table(args.runs / "service"))
    marked_text.put(args.readme, "worth", worth_table(args.runs))
    write_text(args.into.parent / PLOT, curve_plot(args.runs / "adaptation"))


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


def qod_tables(folder):
    """What was measured on the task qod, a table each; None in the place of what nobody measured."""
    speed = folder / "speed.json"
    return {
        "phases": phases_table(folder / "answers"),
        "ablations": ablations_table(folder / "ablations"),
        "training_speed": training_table(folder),
        "qod_serving": requests_table(folder),
        "qod_speed": speed_table(speed) if speed.is_file() else None,
        "judge": judge_table(folder),
        "odd_requests": odd_requests_table(folder),
    }


def pretraining_table(folder):
    """Wall time, speed and held-out scores of each training seed."""
    runs = [read_json(path) for path in sorted(folder.glob("pretrain_seed*.json"))]
    if not runs:
        raise UserError(f"{folder}: no pretrain_seed<n>.json in it; copy the manifests of src/pretrain.py there")
    head = ["seed", "pairs", "wall time", "tokens/s", "of the measured matrix rate", "held-out accuracy", "macro-F1"]
    rows = []
    for facts in runs:
        training = facts["training"]
        held_out = facts["held_out"]
        rows.append(
            [
                str(facts["plan"]["seed"]),
                f"{facts['plan']['pairs']:,}",
                f"{facts['wall_s']:.0f} s",
                f"{training['tokens_per_s']:,}",
                f"{training['model_flops_utilisation']:.1%}",
                *(f"{held_out[name]:.4f}" for name in ("accuracy", "macro_f1", "log_loss", "ece")),
            ]
        )
    gpus = sorted({facts["hardware"].get("gpu", "CPU") for facts in runs})
    return md_table([*head, "log loss", "ECE"], rows, n_text=1) + (
        f"\n\nOne {' or '.join(gpus)} a run; n = {runs[0]['held_out']['rows']:,} held-out synthetic pairs "
        "of names, places and words that training never saw."
    )


def ablation_table(folder):
    """What each ingredient is worth: one short run without it."""
    if not (folder / "ablation_base.json").is_file():
        raise UserError(f"{folder}: no ablation_base.json in it")
    head = ["run", "held-out log loss", "mean AP", "mean F1 at .5", "best F1"]
    head += ["swapped: verdicts changed", "keys shuffled", "match lost with a field"]
    rows = []
    for arm, words in ARMS.items():
        facts = read_json(folder / f"ablation_{arm}.json")
        sets = read_json(folder / f"ablation_{arm}.transfer.json")["sets"]
        rows.append([words, f"{facts['held_out']['log_loss']:.3f}", *ablation_cells(sets)])
    sizes = " or ".join(f"{n:,}" for n in sorted({entry["n"] for entry in sets.values()}))
    return md_table(head, rows, n_text=1) + (
        f"\n\n{facts['plan']['pairs']:,} pairs and one seed each; means over {len(sets)} record sets of {sizes} pairs."
    )


def ablation_cells(sets):
    """Means over the sets: three scores, and what three changes move."""
    found = [entry["scorers"]["model"] for entry in sets.values()]

    def score(name):
        return statistics.mean(one["metrics"][name]["value"] for one in found)

    def moved(change, key):
        return f"{statistics.mean(one['robustness'][change][key] for one in found):.2f} %"

    return [
        f"{score('average_precision'):.4f}",
        f"{score('f1'):.3f}",
        f"{score('best_f1'):.3f}",
        moved("swapped", "changed_pct"),
        moved("shuffled", "changed_pct"),
        moved("field_removed", "lost_pct"),
    ]


FAITHFUL_KPIS = ("faithful_pct", "unsupported_pct", "invented_pct", "json_valid_pct")


def faithful_table(folder):
    """What src/evaluate_kpis.py found in the sentences of the shipped model, one file a set of rows."""
    head = [
        "rows of",
        "pairs",
        "field statements",
        "true",
        "marked",
        "about fields that neither record has",
        "valid JSON",
    ]
    rows = []
    for facts in faithful_runs(folder):
        kpis = facts["kpis"]
        rows.append(
            [
                set_name(facts).replace("_", " "),
                f"{kpis['json_valid_pct']['n']:,}",
                f"{kpis['faithful_pct']['n']:,}",
                *(shown(kpis[name]) for name in FAITHFUL_KPIS),
            ]
        )
    return md_table(head, rows, n_text=1)


def faithful_runs(folder):
    runs = [read_json(path) for path in sorted(folder.glob("faithful_*.json"))]
    if not runs:
        raise UserError(f"{folder}: no faithful_<set>.json in it; src/evaluate_kpis.py makes them")
    return runs


def set_name(facts):
    return Path(facts["data"]["path"]).stem


def shown(kpi):
    low, high = kpi["ci95"]
    return f"{kpi['value']:.2f} % ({low:.2f} to {high:.2f})"


def worth_table(folder):
    """README's six rows: what the shipped model is worth, beside what one would use instead."""
    rows = [
        ranking_row(folder, "transfer", "Ranking the pairs of {n} record sets that it never trained on"),
        ranking_row(folder, "blind", "The same on {n} sets that were never inspected"),
        adaptation_row(read_json(folder / "adaptation.json")),
        sentences_row(folder),
        gpu_row(folder / "h200"),
        cpu_row(read_json(folder / "speed.json")["ratios"]),
    ]
    return md_table(["measured", "Steward", "beside it"], rows, n_text=3)


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
    kpis = [facts["kpis"] for facts in faithful_runs(folder) if not set_name(facts).startswith("synthetic")]

    def pooled(name):
        n = sum(kpi[name]["n"] for kpi in kpis)
        return sum(kpi[name]["value"] * kpi[name]["n"] for kpi in kpis) / n, n

    true, n = pooled("faithful_pct")
    marked, _ = pooled("unsupported_pct")
    valid, answers = pooled("json_valid_pct")
    return (
        f"True among {n:,} statements about fields, in {answers:,} answers on {len(kpis)} record sets",
        f"{true:.1f} %",
        f"marked, as the comparison shows another thing, {marked:.1f} %; valid JSON {valid:.0f} %",
    )


def cpu_row(ratios):
    """Speed on a CPU, where ratios alone mean something."""
    answer = ratios["answer_batched"]
    return (
        "Full answers on two CPU cores, 16 at once, against the plain `generate` loop one at a time",
        f"{answer['speed_of_plain_loop']['median']:.1f} times as fast",
        f"gradient boosting is {answer['times_of_boosting']['median']:.0f} times as fast as that",
    )
