"""How well a model decides pairs of record sets that it never saw, beside what one would use instead.

    python src/measure.py transfer --model_path models/steward-mini --sets data/transfer --synthetic data/synthetic.jsonl --out reports/transfer.json
    python src/measure.py transfer --table reports/transfer*.json --into README.md

Each <set>.jsonl in --sets holds our rows with DUPLICATE or NO_MATCH. Every scorer answers the same rows with one score
a pair, 0 to 1. Scores are kept in transfer_kept/ beside --out under a fingerprint of all they depend on, so that
another model refits no baseline. The second form draws the table of one or several runs; several are taken for the same
model trained with other seeds.
"""

import argparse
import json
import random
from pathlib import Path

from common import UserError, WorkFailed, existing_file, read_json, row_id, sha256_file, shown_path, written_whole
from manifest import Clock, write_manifest
from report import marked_text
from report.marked_text import md, md_table

TITLES = {
    "jaro_winkler": "Mean Jaro-Winkler",
    "boosting": "Gradient boosting",
    "splink": "Splink",
    "model": "Model",
    "blend": "Model and boosting",
}
N_BOOTSTRAP = 200
RESAMPLES_AT_ONCE = 20  # of 50,000 pairs each: 8 MB a column of numbers
N_BINS = 10
SEED = 7
LEFT_OUT = "left out of this run"
KEPT = "transfer_kept"
WHAT_ANSWERS = (
    "sha256",
    "backend",
    "batch_size",
    "settings",
    "sources",
)  # of the model's facts: what its answers depend on
MARK = "transfer"


def main():
    args = parse_args()
    if args.table:
        show_table(transfer_table(args.table), args.into, args.mark)
        return
    from tasks import load_task

    clock = Clock()
    task = load_task()
    # All are read before any is scored: a wrong line in the last one should not cost the time of the others.
    sets = {path.stem: read_set(path, task, args.limit, args.seed) for path in find_sets(args.sets)}
    bench = Bench(args, task)
    found = {name: bench.measure(name, *the_set) for name, the_set in sets.items()}
    write_manifest(
        args.out,
        clock,
        task=task.name,
        model=bench.model_facts,
        sets=found,
        seed=args.seed,
        limit=args.limit,
        synthetic=bench.synthetic and {"path": shown_path(args.synthetic), "sha256": bench.synthetic.sha256},
    )
    show_table(transfer_table([args.out, *args.more]), args.into, args.mark)
    print(f"all numbers in {args.out}")
    if not any(measured(cell) for facts in found.values() for cell in facts["scorers"].values()):
        raise WorkFailed(f"no set in {args.sets} could be scored; {args.out} says why")


def parse_args():
    from constrained_decode import engine_names

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, help="folder with one <set>.jsonl a record set")
    parser.add_argument(
        "--out", type=Path, default=Path("reports/transfer.json"), help="JSON to write (default reports/transfer.json)"
    )
    parser.add_argument("--model_path", help="model folder; without one only the baselines are measured")
    parser.add_argument(
        "--config", help="the model's YAML, where its folder has no manifest.json that holds its settings"
    )
    parser.add_argument("--backend", default="hf", help=f"engine: {', '.join(engine_names())} (default hf)")
    parser.add_argument("--batch_size", type=int, help="prompts at once (default: the engine's own)")
    parser.add_argument("--synthetic", type=Path, help="labelled synthetic rows that boosting is fitted on")
    parser.add_argument(
        "--only", nargs="+", choices=list(TITLES), default=list(TITLES), help="some of the scorers (default all)"
    )
    parser.add_argument("--limit", type=int, help="only so many rows of each set, drawn with the seed")
    parser.add_argument(
        "--robustness", type=int, default=1000, help="rows of each set that are asked again with changes (default 1000)"
    )
    parser.add_argument(
        "--seed", type=int, default=SEED, help=f"draws rows, changes and Splink's random pairs (default {SEED})"
    )
    parser.add_argument(
        "--keep_scores",
        action="store_true",
        help="write every pair's scores to <out without .json>_scores/<set>.jsonl too",
    )
    parser.add_argument(
        "--more", nargs="+", type=Path, default=[], help="reports of other runs, to be in the table as well"
    )
    parser.add_argument("--table", nargs="+", type=Path, help="measure nothing; draw the table of these reports")
    parser.add_argument("--mark", default=MARK, help=f"name in the marker comments (default {MARK})")
    parser.add_argument(
        "--into",
        type=Path,
        help="file whose part between the comments transfer:begin and transfer:end becomes the table",
    )
    return checked_args(parser.parse_args())


def checked_args(args):
    if not args.table and not args.sets:
        raise UserError("give --sets with a folder of <set>.jsonl files to measure, or --table with reports to draw")
    for option, least in (("limit", 1), ("batch_size", 1), ("robustness", 0), ("seed", 0)):
        if (given := getattr(args, option)) is not None and given < least:
            raise UserError(f"--{option} {given}: at least {least}")
    if args.seed >= 2**31:
        raise UserError(f"--seed {args.seed}: at most {2**31 - 1:,}")
    for report in [*args.more, *(args.table or [])]:
        read_report(report)
    if args.into:
        marked_text.around(args.into, args.mark)
    if not args.table and "model" in args.only and args.only != list(TITLES) and not args.model_path:
        raise UserError("--only model: --model_path is missing; name the model's folder")
    return args


def find_sets(folder):
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; --sets names the folder with one <set>.jsonl a record set, see "
            "src/import_rows.py"
        )
    found = sorted(folder.glob("*.jsonl"))
    if not found:
        raise UserError(f"{folder}: there is no <set>.jsonl in it; make them with src/import_rows.py")
    return found


class Bench:
    """The scorers of one run; what they need is loaded when the first set asks for it."""

    def __init__(self, args, task):
        from measurements._transfer_baselines import Synthetic

        self.args = args
        self.task = task
        self.engine = None
        self.model_facts = None
        self.synthetic = (
            Synthetic(existing_file(args.synthetic, "make it with src/synthesize.py"), task, args.seed)
            if args.synthetic
            else None
        )
        if args.model_path and "model" in args.only:
            self.model_facts = model_facts(args)

    def measure(self, set_name, rows, facts, reason):
        """What every scorer reached on one set, or why it has no number."""
        if reason:
            print(f"{set_name}: {reason}", flush=True)
            return facts | {"scorers": {name: {"reason": reason} for name in self.args.only}}
        print(f"{set_name}: {facts['n']:,} pairs, {facts['n_positive']:,} of them matches", flush=True)
        answers = {name: self.answer(name, set_name, rows, facts) for name in self.args.only if name != "blend"}
        if "blend" in self.args.only:
            answers["blend"] = blend(answers.get("model"), answers.get("boosting"))
        truth = [is_match(row, self.task) for row in rows]
        cells = {name: cell(truth, answer, self.task) for name, answer in answers.items()}
        if self.args.keep_scores:
            keep_scores(self.args.out, set_name, rows, truth, answers)
        for name, found in cells.items():
            print(f"  {name:<13} {cell_line(found)}", flush=True)
        return facts | {"scorers": cells}

    def answer(self, name, set_name, rows, facts):
        """A Scored, or in words why there is none."""
        from measurements import _transfer_baselines as transfer_baselines

        if name == "model" and not self.args.model_path:
            return "no --model_path was given"
        if name == "boosting" and not self.synthetic:
            return "no --synthetic rows to fit it on were given"
        cases = [row["input"] for row in rows]
        kept = self.args.out.parent / KEPT / f"{set_name}.{self.kept_name(name)}.json"
        try:
            return transfer_baselines.cached(kept, self.fingerprint(name, facts), lambda: self.score(name, cases))
        except transfer_baselines.NotPossible as reason:
            return str(reason)
        except ModuleNotFoundError as error:
            return f"the package {error.name} is not installed; make setup brings it"

    def kept_name(self, name):
        """Models keep their scores side by side, so that runs at the same time cannot mix them up."""
        return f"model-{self.model_facts['sha256'][:12]}" if name == "model" else name

    def fingerprint(self, name, facts):
        from measurements._transfer_baselines import fingerprint

        synthetic = self.synthetic.sha256 if self.synthetic and name in ("jaro_winkler", "boosting") else None
        model = (
            ({key: self.model_facts[key] for key in WHAT_ANSWERS}, self.task.system_text) if name == "model" else None
        )
        steadiness = self.args.robustness if name in ("model", "boosting") else None
        return fingerprint(name, facts["sha256"], self.args.limit, self.args.seed, synthetic, model, steadiness)

    def score(self, name, cases):
        from measurements import _transfer_baselines as baselines

        args = self.args
        task = self.task
        if name == "jaro_winkler":
            return baselines.score_jaro_winkler(cases, task, self.synthetic)
        if name == "boosting":
            return baselines.score_boosting(cases, task, self.synthetic, args.robustness, args.seed)
        if name == "splink":
            return baselines.score_splink(cases, task, args.seed)
        return baselines.from_verdicts(self.probabilities, self.how(), cases, task, args.robustness, args.seed)

    def how(self):
        return f"{self.args.backend}: " + ", ".join(
            f"{key} {value}" for key, value in self.loaded_engine().facts.items()
        )

    def loaded_engine(self):
        if self.engine is None:
            from common import quiet_libraries
            from constrained_decode import load_engine
            from language_model import model_folder

            quiet_libraries()
            print(f"model: loading {self.args.model_path} ...", flush=True)
            self.engine = load_engine(self.args.backend).load(
                self.args.model_path, self.task, model_folder.model_config(self.args), batch_size=self.args.batch_size
            )
        return self.engine

    def probabilities(self, cases):
        """One row a case, one column a label, from the model's verdict position alone."""
        from scoring.predictions import in_order

        found = in_order(
            self.loaded_engine().verdicts([self.task.messages(case) for case in cases]), len(cases), "verdicts"
        )
        return [[shares[label] for label in self.task.verdict.labels] for shares in found]


def model_facts(args):
    """Which model: the hash of its weights, and the settings and sources that turn a case into its prompt."""
    from common import sha256_text
    from constrained_decode import load_engine
    from language_model import model_folder
    from scoring import predictions

    load_engine(args.backend)
    config = model_folder.model_config(args)
    folder = Path(args.model_path)
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.gguf")])
    if not weights:
        raise UserError(
            f"{folder}: holds no weights (*.safetensors, *.bin or *.gguf); name the folder of a whole model"
        )
    hashes = [sha256_file(path) for path in weights]
    return {
        "path": shown_path(folder),
        "title": config.name,
        "sha256": hashes[0] if len(hashes) == 1 else sha256_text(" ".join(hashes)),
        "bytes": sum(path.stat().st_size for path in weights),
        "backend": args.backend,
        "batch_size": args.batch_size,
        "settings": model_folder.config_text(config),
        "sources": sha256_text(" ".join(predictions.source_hashes(args.backend))),
    }


def read_set(path, task, limit, seed):
    """(rows, facts about them, why they cannot be scored or None)."""
    from rows import load_rows

    facts = {"path": shown_path(path), "sha256": sha256_file(path), "rows": 0}
    if not path.read_text(encoding="utf-8", errors="replace").strip():
        return [], facts, "the file is empty"
    rows = load_rows(path, task)
    facts["rows"] = len(rows)
    n_review = sum(row["output"][task.verdict.key] == task.verdict.review for row in rows)
    if n_review:
        return (
            [],
            facts,
            f"{n_review:,} of {len(rows):,} rows are {task.verdict.review}; only sets whose truth is match or no match "
            "can be scored",
        )
    if limit and limit < len(rows):
        rows = [rows[at] for at in sorted(random.Random(seed).sample(range(len(rows)), limit))]
    facts |= {"n": len(rows), "n_positive": sum(is_match(row, task) for row in rows)}
    if facts["n_positive"] in (0, len(rows)):
        return [], facts, f"all {len(rows):,} rows are of one class; a ranking needs both"
    return rows, facts, None


def is_match(row, task):
    return row["output"][task.verdict.key] == task.module("baseline").VERDICTS_BY_WEIGHT[0]


def blend(model, boosting):
    """Mean of the two scores; neither knows what the other looked at."""
    from measurements._transfer_baselines import Scored

    if not isinstance(model, Scored) or not isinstance(boosting, Scored):
        return "needs the scores of both the model and boosting"
    scores = [(a + b) / 2 for a, b in zip(model.scores, boosting.scores, strict=True)]
    return Scored(
        scores, "mean of the model's and boosting's scores", model.seconds_per_pair + boosting.seconds_per_pair
    )


def cell(truth, answer, task):
    """What a report says of one scorer on one set."""
    if isinstance(answer, str):
        return {"reason": answer}
    found = metrics(truth, answer.scores, answer.threshold) | {
        "seconds_per_pair": float(f"{answer.seconds_per_pair:.4g}"),
        "method": answer.method,
    }
    if answer.verdicts is not None:
        found |= {"verdicts": verdict_counts(truth, answer.verdicts, task), "robustness": answer.robustness}
    return found


def measured(found):
    return "reason" not in found


def verdict_counts(truth, verdicts, task):
    """How many matches and how many others got each most likely verdict: match, for review or neither."""
    counts = {name: {"matches": 0, "others": 0} for name in ("match", "for_review", "no_match")}
    name_of = {task.module("baseline").VERDICTS_BY_WEIGHT[0]: "match", task.verdict.review: "for_review"}
    for is_true, verdict in zip(truth, verdicts, strict=True):
        counts[name_of.get(task.verdict.labels[verdict], "no_match")]["matches" if is_true else "others"] += 1
    return counts


def keep_scores(out, set_name, rows, truth, answers):
    """One line a pair: its id, its truth and every score."""
    folder = out.with_name(f"{out.stem}_scores")
    scored = {name: answer.scores for name, answer in answers.items() if not isinstance(answer, str)}
    with written_whole(folder / f"{set_name}.jsonl") as file:
        for at, row in enumerate(rows):
            file.write(
                json.dumps(
                    {"id": row_id(row), "truth": int(truth[at])} | {name: scores[at] for name, scores in scored.items()}
                )
                + "\n"
            )


def metrics(truth, scores, threshold=None):
    """Ranking, decisions and calibration of match scores (0 to 1) against the truth, each with a 95 % bootstrap
    interval over rows.

    F1, precision and recall are those of "match when the score is at least `threshold`", None without one; best_f1 is
    F1 at the threshold that is best on these very rows.
    """
    import numpy as np

    curve = Curve(truth, scores, threshold)
    point = curve.formulas(np.ones((1, curve.n)))
    rng = np.random.default_rng(SEED)
    resampled = []
    for _ in range(0, N_BOOTSTRAP, RESAMPLES_AT_ONCE):
        resampled.append(
            curve.formulas(
                rng.multinomial(curve.n, np.full(curve.n, 1 / curve.n), size=RESAMPLES_AT_ONCE).astype(float)
            )
        )
    found = {
        name: with_interval(values[0], np.concatenate([part[name] for part in resampled]))
        for name, values in point.items()
    }
    return {
        "n": curve.n,
        "n_positive": curve.n_positive,
        "threshold": threshold,
        "best_threshold": curve.best_threshold(),
        "metrics": found,
    }


def with_interval(value, resampled):
    import numpy as np

    if np.isnan(value):
        return {"value": None, "ci95": None}
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return {"value": round(float(value), 6), "ci95": [round(float(low), 6), round(float(high), 6)]}


class Curve:
    """Pairs in falling order of their scores, so that every metric is a formula over sums of row weights."""

    def __init__(self, truth, scores, threshold):
        import numpy as np

        self.np = np
        scores = np.asarray(scores, float)
        truth = np.asarray(truth, float)
        if not len(scores) or not np.isfinite(scores).all():
            raise ValueError("the scores must be finite numbers, at least one")
        self.order = np.argsort(-scores, kind="stable")
        self.scores = scores[self.order]
        self.truth = truth[self.order]
        self.n = len(scores)
        self.n_positive = int(truth.sum())
        self.threshold = threshold
        # Equal scores are decided together: a threshold lies behind the last of them.
        self.ends = np.flatnonzero(np.append(self.scores[1:] != self.scores[:-1], True))
        self.gaps = {
            name: self._gaps(bins)
            for name, bins in (("ece_mass", self._mass_bins()), ("ece_width", self._width_bins()))
        }

    def _width_bins(self):
        return self.np.clip((self.scores * N_BINS).astype(int), 0, N_BINS - 1)

    def _mass_bins(self):
        """Bins of equally many pairs as nearly as equal scores, which stay together, allow."""
        edges = self.np.quantile(self.scores, self.np.arange(1, N_BINS) / N_BINS)
        return self.np.searchsorted(edges, self.scores, side="right")

    def _gaps(self, bins):
        """One column a bin: how far each pair's truth is above its score."""
        inside = self.np.eye(N_BINS)[bins]
        return inside * (self.truth - self.scores)[:, None]

    def formulas(self, weights):
        """Metric -> its values, for one row of weights a resample."""
        np = self.np
        weights = weights[:, self.order]
        found = np.cumsum(weights * self.truth, axis=1)[:, self.ends]
        said = np.cumsum(weights, axis=1)[:, self.ends]
        n = said[:, -1]
        n_positive = found[:, -1]
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(said > 0, found / said, 0.0)
            steps = np.diff(found, axis=1, prepend=0) / n_positive[:, None]
            found_by_name = {
                "average_precision": (precision * steps).sum(1),
                **self._at_threshold(found, said, n_positive),
                "best_f1": (2 * found / (said + n_positive[:, None])).max(1),
            }
        return found_by_name | {name: np.abs(weights @ gaps).sum(1) / n for name, gaps in self.gaps.items()}

    def _at_threshold(self, found, said, n_positive):
        np = self.np
        if self.threshold is None:
            return {name: np.full(len(found), np.nan) for name in ("f1", "precision", "recall")}
        at = int((self.scores[self.ends] >= self.threshold).sum()) - 1
        right, matches = (found[:, at], said[:, at]) if at >= 0 else (np.zeros(len(found)), np.zeros(len(found)))
        return {"f1": 2 * right / (matches + n_positive), "precision": right / matches, "recall": right / n_positive}

    def best_threshold(self):
        """The score from which on calling pairs a match has the best F1 on these rows."""
        found = self.np.cumsum(self.truth)[self.ends]
        said = self.ends + 1
        return float(self.scores[self.ends][(2 * found / (said + self.n_positive)).argmax()])


def cell_line(found):
    if not measured(found):
        return f"not run: {found['reason']}"
    ap, f1, best = (found["metrics"][name]["value"] for name in ("average_precision", "f1", "best_f1"))
    low, high = found["metrics"]["average_precision"]["ci95"]
    return (
        f"AP {ap:.4f} ({low:.3f} to {high:.3f})  F1 {shown(f1, 4)} at {shown(found['threshold'], 2)}, {best:.4f} at "
        f"{found['best_threshold']:.3f}  "
        f"ECE {found['metrics']['ece_mass']['value']:.3f}  {1000 * found['seconds_per_pair']:.3g} ms a pair"
    )


def shown(value, digits=3):
    return "-" if value is None else f"{value:.{digits}f}"


def show_table(table, into, mark):
    if into:
        marked_text.put(into, mark, table)
    else:
        print(f"\n{table}\n")


def transfer_table(paths):
    """Markdown of one run, or of several as mean ± standard deviation over them; every number comes from the reports."""
    reports = [read_report(path) for path in paths]
    names = [
        name
        for name in TITLES
        if any(name in facts["scorers"] for report in reports for facts in report["sets"].values())
    ]
    sets = list(dict.fromkeys(set_name for report in reports for set_name in report["sets"]))
    check_same_rows(reports, paths)
    table = Table(reports, names, sets)
    return "\n\n".join(part for part in (table.scores(), table.steadiness(), table.notes(), table.provenance()) if part)


def read_report(path):
    report = read_json(path)
    try:
        # What every table cell reads, so that a damaged report is named instead of half drawn.
        for facts in report["sets"].values():
            for found in facts["scorers"].values():
                _ = (
                    found["reason"]
                    if "reason" in found
                    else [
                        found["metrics"][name]["value"] for name in ("average_precision", "f1", "best_f1", "ece_mass")
                    ]
                )
        return report
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a report of src/measure.py transfer ({type(error).__name__}: {error}); make it again"
        ) from error


def check_same_rows(reports, paths):
    """Runs may share a table only where they answered the same rows."""
    seen = {}
    for report, path in zip(reports, paths, strict=True):
        for set_name, facts in report["sets"].items():
            rows = (facts["sha256"], report.get("limit"), report.get("seed") if report.get("limit") else None)
            if seen.setdefault(set_name, (rows, path))[0] != rows:
                raise UserError(
                    f"{path}: its rows of {set_name} are not those of {seen[set_name][1]}; measure both on the same "
                    "rows"
                )


class Table:
    """The reports' cells side by side: a row a set, a column a scorer."""

    def __init__(self, reports, names, sets):
        self.reports = reports
        self.names = names
        self.sets = sets
        self.reasons = []

    def cells(self, set_name, name):
        """The measured cells of all runs, and why the others are missing."""
        found = [
            report["sets"].get(set_name, {}).get("scorers", {}).get(name, {"reason": LEFT_OUT})
            for report in self.reports
        ]
        return [each for each in found if measured(each)], [each["reason"] for each in found if not measured(each)]

    def scores(self):
        """Average precision / F1 at the default threshold / F1 at the best one."""
        head = ["Set", "pairs", "matches", *(TITLES[name] for name in self.names)]
        rows = [
            self.mean_row(),
            *(
                [set_name, *self.counts(set_name), *(self.score_cell(set_name, name) for name in self.names)]
                for set_name in self.sets
            ),
        ]
        return "Average precision / F1 at the default threshold / F1 at the best threshold:\n\n" + md_table(
            head, rows, n_text=1
        )

    def counts(self, set_name):
        facts = next(report["sets"][set_name] for report in self.reports if set_name in report["sets"])
        return [f"{facts[key]:,}" if key in facts else "-" for key in ("n", "n_positive")]

    def score_cell(self, set_name, name):
        found, reasons = self.cells(set_name, name)
        if not found:
            return f"not run [{self.note(f'{TITLES[name]}, {set_name}: {reasons[0]}')}]"
        text = " / ".join(
            spread([each["metrics"][metric]["value"] for each in found])
            for metric in ("average_precision", "f1", "best_f1")
        )
        failed = [reason for reason in reasons if reason != LEFT_OUT]
        return (
            f"{text} [{self.note(f'{TITLES[name]}, {set_name}: {len(failed)} of the runs: {failed[0]}')}]"
            if failed
            else text
        )

    def note(self, reason):
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason) + 1

    def mean_row(self):
        """Mean average precision over the sets that all scorers answered: means over different sets say nothing beside
        each other.
        """
        answered = {name: [set_name for set_name in self.sets if self.cells(set_name, name)[0]] for name in self.names}
        common = [set_name for set_name in self.sets if all(set_name in those for those in answered.values() if those)]
        means = {
            name: [mean_of_sets(report, name, common) for report in self.reports] if those else []
            for name, those in answered.items()
        }
        return [
            f"**mean AP of {len(common)} set{'' if len(common) == 1 else 's'}**",
            "",
            "",
            *(f"**{spread(means[name])}**" for name in self.names),
        ]

    def steadiness(self):
        """Calibration, and the verdicts that harmless changes turn."""
        rows = []
        for set_name in self.sets:
            for name in self.names:
                found = [each for each in self.cells(set_name, name)[0] if each.get("robustness")]
                if found:
                    rows.append(
                        [
                            set_name,
                            TITLES[name],
                            *(spread(values, digits) for values, digits in steadiness_values(found)),
                        ]
                    )
        head = [
            "Set",
            "Scorer",
            "ECE",
            "for review %",
            "swapped: changed %",
            "turned round %",
            "keys shuffled: changed %",
            "turned round %",
            "match lost with a field %",
        ]
        return (
            "Calibration, and verdicts that change when the question does not:\n\n" + md_table(head, rows, n_text=2)
            if rows
            else ""
        )

    def notes(self):
        return "\n".join(f"- [{number}] {md(reason)}" for number, reason in enumerate(self.reasons, 1))

    def provenance(self):
        return "\n".join(f"- {md(run_line(report))}" for report in self.reports)


def mean_of_sets(report, name, sets):
    """Mean average precision of one run; None where it lacks one of the sets."""
    cells = [report["sets"].get(set_name, {}).get("scorers", {}).get(name, {"reason": ""}) for set_name in sets]
    values = [each["metrics"]["average_precision"]["value"] for each in cells if measured(each)]
    return sum(values) / len(values) if values and len(values) == len(sets) else None


def steadiness_values(cells):
    """(values of all runs, digits) for each column of the steadiness table."""
    columns = [([each["metrics"]["ece_mass"]["value"] for each in cells], 3), ([review_pct(each) for each in cells], 1)]
    for change, share in (
        ("swapped", "changed_pct"),
        ("swapped", "flipped_pct"),
        ("shuffled", "changed_pct"),
        ("shuffled", "flipped_pct"),
        ("field_removed", "lost_pct"),
    ):
        columns.append(([each["robustness"][change][share] for each in cells], 2))
    return columns


def review_pct(found):
    """Share of pairs whose most likely verdict hands them to a person."""
    return 100 * sum(found["verdicts"]["for_review"].values()) / found["n"]


def spread(values, digits=3):
    """The one value, or mean ± standard deviation over runs; equal values need no deviation."""
    from statistics import mean, stdev

    values = [value for value in values if value is not None]
    if not values:
        return "-"
    deviation = f" ± {stdev(values):.{digits}f}" if len(set(values)) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"


def run_line(report):
    """Where one run's numbers come from."""
    model = report.get("model")
    synthetic = report.get("synthetic")
    who = f"{model['title']} (weights {model['sha256'][:12]}, {model['backend']})" if model else "baselines only"
    boosted = any("boosting" in facts["scorers"] for facts in report["sets"].values())
    fitted = (
        f"boosting fitted on {synthetic['path']} ({synthetic['sha256'][:12]})"
        if synthetic and boosted
        else "no boosting in this run"
    )
    limit = f"at most {report['limit']:,} rows a set" if report.get("limit") else "all rows"
    return f"{who}; {fitted}; {limit}; seed {report.get('seed')}; commit {(report.get('git_commit') or 'unknown')[:12]}; {report.get('finished', '')}"
