"""How well a model decides pairs of record sets that it never saw, beside what one would use instead.

    python src/measure.py transfer --model_path models/steward-mini --sets data/transfer \\
        --synthetic data/synthetic.jsonl --out reports/transfer.json
    python src/measure.py transfer --table reports/transfer*.json --into docs/results.md

Each <set>.jsonl in --sets holds rows that are a match or none. Every scorer answers the same rows with one score a
pair, 0 to 1. Scores are kept in transfer_kept/ beside --out under a fingerprint of all they depend on, so that another
model refits no baseline. The second form draws the table of one or several runs; several are taken for the same model
trained with other seeds.
"""

import argparse
import json
from pathlib import Path

import interruption
import locks
from common import UserError, WorkFailed, existing_file, row_id, shown_path, written_whole
from manifest import Clock, write_manifest
from measurements import verdict_task
from measurements._match_metrics import cell, cell_line, measured
from measurements._record_sets import engine_words, is_match, model_facts, read_set, verdict_probabilities
from measurements._transfer_table import MARK, TITLES, read_report, transfer_table
from report import marked_text
from tasks import DEFAULT

SEED = 7
KEPT = "transfer_kept"
# Of the model's facts what its answers depend on.
WHAT_ANSWERS = ("sha256", "backend", "batch_size", "settings", "sources")


def main():
    args = parse_args()
    if args.table:
        marked_text.show(transfer_table(args.table), args.into, args.mark)
        return
    clock = Clock()
    task = verdict_task(args.task)
    # All are read before any is scored: a wrong line in the last one should not cost the time of the others.
    sets = {path.stem: read_set(path, task, args.limit, args.seed) for path in find_sets(args.sets)}
    kept = args.out.parent / KEPT
    with locks.only_writer(args.out), interruption.keeping(lambda: kept_words(kept)):
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
    marked_text.show(transfer_table([args.out, *args.more]), args.into, args.mark)
    print(f"all numbers in {args.out}")
    if not any(measured(cell) for facts in found.values() for cell in facts["scorers"].values()):
        raise WorkFailed(f"no set in {args.sets} could be scored; {args.out} says why")


def kept_words(folder):
    """What an interrupted run goes on from; empty where no scores are there yet."""
    n = sum(1 for _ in folder.glob("*.json"))
    return f"the scores of {n:,} scorers and sets are kept in {folder}" if n else ""


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    add_row_options(parser)
    add_table_options(parser)
    return checked_args(parser.parse_args())


def add_model_options(parser):
    from constrained_decode import engine_names

    parser.add_argument("--model_path", help="model folder; without one only the baselines are measured")
    parser.add_argument(
        "--config", help="the model's YAML, where its folder has no manifest.json that holds its settings"
    )
    parser.add_argument("--backend", default="hf", help=f"engine: {', '.join(engine_names())} (default hf)")
    parser.add_argument("--batch_size", type=int, help="prompts at once (default: the engine's own)")
    parser.add_argument("--task", default=DEFAULT, help=f"a folder of src/tasks (default {DEFAULT})")


def add_row_options(parser):
    parser.add_argument("--sets", type=Path, help="folder with one <set>.jsonl a record set")
    parser.add_argument(
        "--out", type=Path, default=Path("reports/transfer.json"), help="JSON to write (default reports/transfer.json)"
    )
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


def add_table_options(parser):
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
            self.model_facts = model_facts(args, task)

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
        from measurements import _transfer_baselines as baselines

        if name == "model" and not self.args.model_path:
            return "no --model_path was given"
        if name == "boosting" and not self.synthetic:
            return "no --synthetic rows to fit it on were given"
        cases = [row["input"] for row in rows]
        kept = self.args.out.parent / KEPT / f"{set_name}.{self.kept_name(name)}.json"
        try:
            return baselines.cached(kept, self.fingerprint(name, facts), lambda: self.score(name, cases))
        except baselines.NotPossible as reason:
            return str(reason)
        except ModuleNotFoundError as error:
            return f"the package {error.name} is not installed; make setup brings it"

    def kept_name(self, name):
        """Models keep their scores side by side, so that runs at the same time cannot mix them up."""
        return f"model-{self.model_facts['sha256'][:12]}" if name == "model" else name

    def fingerprint(self, name, facts):
        from measurements._transfer_baselines import scorer_fingerprint

        synthetic = self.synthetic.sha256 if self.synthetic and name in ("jaro_winkler", "boosting") else None
        model = {key: self.model_facts[key] for key in WHAT_ANSWERS} if name == "model" else None
        steadiness = self.args.robustness if name in ("model", "boosting") else None
        args = self.args
        return scorer_fingerprint(self.task, name, facts["sha256"], args.limit, args.seed, synthetic, model, steadiness)

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
        engine = self.loaded_engine()
        return baselines.from_verdicts(
            lambda cases: verdict_probabilities(engine, task, cases),
            engine_words(args.backend, engine),
            cases,
            task,
            args.robustness,
            args.seed,
        )

    def loaded_engine(self):
        if self.engine is None:
            from common import quiet_libraries
            from constrained_decode import load_engine
            from language_model import model_folder

            quiet_libraries()
            print(f"model: loading {self.args.model_path} ...", flush=True)
            self.engine = load_engine(self.args.backend).load(
                self.args.model_path,
                self.task,
                model_folder.model_config(self.args, self.task),
                batch_size=self.args.batch_size,
            )
        return self.engine


def blend(model, boosting):
    """Mean of the two scores; neither knows what the other looked at."""
    from measurements._transfer_baselines import Scored

    if not isinstance(model, Scored) or not isinstance(boosting, Scored):
        return "needs the scores of both the model and boosting"
    scores = [(a + b) / 2 for a, b in zip(model.scores, boosting.scores, strict=True)]
    return Scored(
        scores, "mean of the model's and boosting's scores", model.seconds_per_pair + boosting.seconds_per_pair
    )


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
