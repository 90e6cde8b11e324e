"""Match scores of pairs from what one would use instead of a model.

src/measure.py transfer asks. Every scorer turns the same cases into one score a pair, 0 (no match) to 1 (match). Scores
are kept in files named by set and scorer, each with a fingerprint of all that they depend on, so that the next model
pays for itself only.
"""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter

from common import progress, read_json, sha256_file, shown_path, to_json, write_json
from manifest import fingerprint
from measurements import task_part
from measurements._record_sets import is_match, match_label
from measurements._robustness import robustness
from rows import load_rows
from scoring.baselines import NotPossible, fit_boosting, splink_model, splink_weights

TASK_MODULES = ("baseline", "measuring", "data")

TUNED_ON_EVERY = 10  # each tenth synthetic row sets the number of trees and the temperature, the others grow the trees
FORCED_CHOICE = 0.5  # of a score that is a probability: more likely a match than none


@dataclass(frozen=True)
class Scored:
    """One scorer's answers to one set, in the order of its rows."""

    scores: list
    method: str
    seconds_per_pair: float
    threshold: float | None = FORCED_CHOICE
    verdicts: list | None = None  # numbers of the task's labels, where the scorer decides between all of them
    robustness: dict | None = None


def cached(path, fingerprint, make):
    """The Scored that an earlier run kept under this fingerprint, else made now and kept."""
    if path.is_file():
        kept = read_json(path)
        if kept.get("fingerprint") == fingerprint:
            return Scored(**kept["scored"])
    scored = make()
    write_json(path, {"fingerprint": fingerprint, "scored": dataclasses.asdict(scored)})
    return scored


def scorer_fingerprint(task, *facts):
    """The name of everything that a scorer's answer depends on, its source and the libraries' versions included."""
    libraries = [library_version(name) for name in ("scikit-learn", "splink", "rapidfuzz")]
    modules = [module for name in TASK_MODULES if (module := task.module(name))]
    return fingerprint([*facts, libraries], __file__, *(module.__file__ for module in modules))


def library_version(name):
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


class Synthetic:
    """The labelled rows that boosting is fitted on, read when first needed."""

    def __init__(self, path, task, seed):
        self.path = Path(path)
        self.task = task
        self.seed = seed
        self.sha256 = sha256_file(path)

    @cached_property
    def rows(self):
        return load_rows(self.path, self.task)

    @cached_property
    def boosting(self):
        """(fitted trees, seconds that the fit took)."""
        start = perf_counter()
        print(f"boosting: fitting on {len(self.rows):,} rows of {shown_path(self.path)} ...", flush=True)
        tuning = self.rows[::TUNED_ON_EVERY]
        growing = [row for at, row in enumerate(self.rows) if at % TUNED_ON_EVERY]
        fitted = fit_boosting(growing, tuning, self.task, self.seed)
        print(f"boosting: {fitted.method}, {perf_counter() - start:.0f} s", flush=True)
        return fitted, perf_counter() - start

    @cached_property
    def jaro_winkler_threshold(self):
        """The mean similarity with the best F1 on the synthetic rows that are a match or none; None where they hold one
        of the two only.
        """
        import numpy as np
        from sklearn.metrics import precision_recall_curve

        decided = [row for row in self.rows if row["output"][self.task.verdict.key] != self.task.verdict.review]
        truth = [is_match(row, self.task) for row in decided]
        if len(set(truth)) < 2:
            return None
        precision, recall, thresholds = precision_recall_curve(
            truth, jaro_winkler_scores([row["input"] for row in decided], self.task)
        )
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        return float(thresholds[f1[:-1].argmax()])


def score_jaro_winkler(cases, task, synthetic):
    """The mean similarity of the fields; its threshold can only come from labelled rows."""
    start = perf_counter()
    scores = jaro_winkler_scores(cases, task)
    seconds = perf_counter() - start
    threshold = synthetic.jaro_winkler_threshold if synthetic else None
    source = (
        f"threshold fitted on {len(synthetic.rows):,} synthetic rows"
        if threshold is not None
        else "no threshold: no labelled rows to fit it on"
    )
    return Scored(
        scores,
        f"mean Jaro-Winkler similarity of the fields that both records fill; {source}",
        seconds / len(cases),
        threshold,
    )


def jaro_winkler_scores(cases, task):
    similarity = task_part(task, "measuring", "similarity")
    scores = []
    with progress(len(cases), "pairs", "Jaro-Winkler") as bar:
        for case in cases:
            scores.append(similarity(case))
            bar.update()
    return scores


def score_boosting(cases, task, synthetic, n_robustness, seed):
    """Gradient boosting fitted on synthetic rows: it has never seen the set either."""
    fitted, fit_s = synthetic.boosting
    method = f"{fitted.checkpoint}: {fitted.method}; fitted on {len(synthetic.rows):,} synthetic rows in {fit_s:.0f} s"
    return from_verdicts(fitted.predict, method, cases, task, n_robustness, seed)


def score_splink(cases, task, seed):
    """Splink's match probability, fitted without labels on the set's own pairs."""
    import duckdb
    import splink
    from splink.internals.exceptions import SplinkException

    start = perf_counter()
    try:
        model, method = splink_model(
            [{"input": case, "output": {task.verdict.key: None}} for case in cases], task, seed
        )
        if model is None:
            raise NotPossible("no field is filled on both sides of any pair")
        fitted = perf_counter()
        bits = splink_weights(model, cases, task)
    except (ValueError, SplinkException, duckdb.Error) as error:
        raise NotPossible(
            f"Splink {splink.__version__} stopped: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    scores, prior = match_probabilities(bits, model["probability_two_random_records_match"], n_records(cases))
    fit = f"Splink {splink.__version__} fitted on the set without labels in {fitted - start:.0f} s"
    method = f"{fit}: {method}, prior {prior:.2g}"
    return Scored(scores.tolist(), method, (perf_counter() - fitted) / len(cases))


def n_records(cases):
    """How many different records the cases are made of."""
    return len({to_json(record) for case in cases for record in case.values()})


def match_probabilities(bits, prior, n):
    """Probabilities from match weights when each of n records has one match among the others; and that prior.

    u comes from random pairs, so the prior must be that of random pairs too, however many of the given pairs match. On
    splink's fake_1000 (974 records) F1 at 0.5 is 0.82; 0.66 with Splink's own prior of 1 in 10,000; 0.54 with the share
    of matches that expectation maximisation finds among the pairs, because hard non-matches look like matches beside
    random pairs.
    """
    import numpy as np

    own_prior = 1 / max(n, 2)
    log_odds = bits - np.log2(prior / (1 - prior)) + np.log2(own_prior / (1 - own_prior))
    return 1 / (1 + np.exp2(-np.clip(log_odds, -500, 500))), own_prior


def from_verdicts(probabilities_of, method, cases, task, n_robustness, seed):
    """Scores and steadiness of a scorer that gives every verdict a probability: cases -> one row a case, one column a
    label.
    """
    import numpy as np

    start = perf_counter()
    probabilities = np.asarray(probabilities_of(cases), float)
    seconds = perf_counter() - start
    match, review = (task.verdict.labels.index(label) for label in (match_label(task), task.verdict.review))
    scores = probabilities[:, match] + probabilities[:, review] / 2
    verdicts = probabilities.argmax(1)
    steadiness = robustness(probabilities_of, cases, verdicts, task, n_robustness, seed)
    return Scored(scores.tolist(), method, seconds / len(cases), verdicts=verdicts.tolist(), robustness=steadiness)
