"""SmolLM2-135M beside Steward mini and the baselines, and its micro-batches: tables from the measured runs.

In smollm2/ lie, for each model, <model>.transfer.json and <model>.synthetic.json of `measure.py transfer`, and four
metrics files of evaluate_kpis.py, <model>_<rows>_<raw or grammar>_metrics.json. In micro_batches/ lies one report of
`measure.py micro_batches` a model.
"""

import math
from statistics import mean

from common import UserError, read_json
from report.marked_text import md_table

MODELS = {
    "base": "SmolLM2-135M as it comes",
    "seed42": "fine-tuned, seed 42",
    "seed43": "fine-tuned, seed 43",
    "seed44": "fine-tuned, seed 44",
    "shipped": "the adapter that ships: seed 43 in float16",
    "mini": "Steward mini",
}
BASELINES = {"boosting": "Gradient boosting", "splink": "Splink"}
BASELINES_IN = "mini"  # whose run scored them too
ROWS = ("synthetic", "public")
AP = "average_precision"
Z = 1.96  # normal deviates in half a 95 % interval


def models_table(folder):
    """What each model makes of the same rows: two tables, of everything and of average precision set by set."""
    models = {name: Measured(folder, name) for name in MODELS}
    scored = [(MODELS[name], model, "model") for name, model in models.items()]
    scored += [(title, models[BASELINES_IN], scorer) for scorer, title in BASELINES.items()]
    head = [
        "",
        f"mean AP, {len(models[BASELINES_IN].sets)} sets",
        "AP, synthetic",
        "macro-F1, synthetic",
        "the same, no grammar",
        "valid JSON, no grammar, %",
        "true statements, synthetic, %",
        "true statements, the sets, %",
    ]
    rows = [
        [title, model.mean_ap(scorer), model.synthetic_ap(scorer), *model.answers(scorer)]
        for title, model, scorer in scored
    ]
    by_set = [[title, *model.ap_by_set(scorer)] for title, model, scorer in scored]
    sets = [name.replace("_", " ") for name in models[BASELINES_IN].sets]
    return "\n\n".join(
        (
            md_table(head, rows, n_text=1),
            models[BASELINES_IN].sizes(),
            "Average precision, set by set:",
            md_table(["", *sets], by_set, n_text=1),
        )
    )


class Measured:
    """The runs of one model."""

    def __init__(self, folder, name):
        self.name = name
        self.sets = dict(sorted(read_json(folder / f"{name}.transfer.json")["sets"].items()))
        # Where the rows of all sets were scored in one run, the synthetic ones are among them.
        apart = folder / f"{name}.synthetic.json"
        self.synthetic = read_json(apart)["sets"]["synthetic"] if apart.is_file() else None
        self.synthetic = self.sets.pop("synthetic", None) if self.synthetic is None else self.synthetic
        self.sets.pop("synthetic", None)
        if self.synthetic is None:
            raise UserError(f"{folder}: neither {name}.synthetic.json nor synthetic rows in {name}.transfer.json")
        self.kpis = {
            (rows, how): read_json(folder / f"{name}_{rows}_{how}_metrics.json")["kpis"]
            for rows in ROWS
            for how in ("raw", "grammar")
        }
        boosting = folder / "boosting_metrics.json"
        self.of_boosting = read_json(boosting)["kpis"] if boosting.is_file() else None

    def mean_ap(self, scorer):
        """The mean over the sets, which are independent of each other, and its interval."""
        found = [entry["scorers"][scorer]["metrics"][AP] for entry in self.sets.values()]
        errors = [(high - low) / (2 * Z) for low, high in (one["ci95"] for one in found)]
        middle = mean(one["value"] for one in found)
        half = Z * math.sqrt(sum(error**2 for error in errors)) / len(found)
        return f"{middle:.4f} ± {half:.4f}"

    def synthetic_ap(self, scorer):
        return with_interval(self.synthetic["scorers"][scorer]["metrics"][AP], 3)

    def ap_by_set(self, scorer):
        return [with_interval(entry["scorers"][scorer]["metrics"][AP], 3) for entry in self.sets.values()]

    def answers(self, scorer):
        """What whole answers show: of a baseline the verdicts alone."""
        if scorer != "model":
            found = self.of_boosting if scorer == "boosting" else None
            return [with_interval(found["macro_f1"], 3) if found else "-", *["-"] * 4]
        return [
            with_interval(self.kpis["synthetic", "grammar"]["macro_f1"], 3),
            with_interval(self.kpis["synthetic", "raw"]["macro_f1"], 3),
            with_interval(self.pooled_valid(), 2),
            with_interval(self.kpis["synthetic", "grammar"]["faithful_pct"], 1),
            with_interval(self.kpis["public", "grammar"]["faithful_pct"], 1),
        ]

    def pooled_valid(self):
        """Valid JSON of all rows that were answered without a grammar; all or none leave no interval but Wilson's."""
        found = [self.kpis[rows, "raw"]["json_valid_raw_pct"] for rows in ROWS]
        n = sum(one["n"] for one in found)
        share = sum(one["value"] * one["n"] for one in found) / n / 100
        middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
        return {"value": 100 * share, "ci95": [100 * max(0.0, middle - half), 100 * min(1.0, middle + half)]}

    def sizes(self):
        pairs = sum(entry["n"] for entry in self.sets.values())
        answered = {rows: self.kpis[rows, "grammar"]["json_valid_pct"]["n"] for rows in ROWS}
        return (
            f"AP is average precision: {pairs:,} pairs of the sets, and the {self.synthetic['n']:,} synthetic pairs "
            f"that are decided. Whole answers: {answered['synthetic']:,} synthetic pairs, {answered['public']:,} of "
            "the sets. In brackets 95 % intervals; the mean's comes from those of the sets."
        )


def with_interval(found, digits):
    low, high = found["ci95"]
    return f"{found['value']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def micro_batches_table(folder):
    """The size that the probe chose, its memory, and what it is worth."""
    reports = [read_json(path) for path in sorted(folder.glob("*.json"))]
    if not reports:
        raise UserError(f"{folder}: no report of src/measure.py micro_batches in it")
    head = ["model", "weights", "bins a step", "chosen", "predicted GB", "used GB", "tokens/s", "batch_size", "used GB"]
    head += ["tokens/s", "times as fast"]
    rows = []
    for report in reports:
        for case, facts in report["cases"].items():
            chosen = facts["chosen"]
            literal = facts["literal"]
            rows.append(
                [
                    f"{case}{batch_words(report)}",
                    facts["weights"],
                    str(facts["a_step"]),
                    ", ".join(map(str, facts["chosen_in_all_starts"])),
                    f"{facts['choice']['predicted_gb']:.1f}",
                    f"{chosen['used_gb']:.1f}",
                    f"{chosen['tokens_per_s']:,.0f}",
                    str(literal["size"]),
                    f"{literal['used_gb']:.1f}",
                    f"{literal['tokens_per_s']:,.0f}",
                    f"{chosen['tokens_per_s'] / literal['tokens_per_s']:.2f}",
                ]
            )
    return md_table(head, rows, n_text=2) + (
        f"\n\nOne {' or '.join(sorted({report['hardware']['gpu'] for report in reports}))} a run; "
        f"{reports[0]['starts']} starts of the probe, {reports[0]['passes']} timed passes."
    )


def batch_words(report):
    """The setting of the batch where it was not the config's own."""
    words = report["command"].split()
    return f", {' '.join(words[words.index('--set') + 1 : words.index('--out')])}" if "--set" in words else ""
