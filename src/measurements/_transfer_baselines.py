"""Match scores of pairs from what one would use instead of a model; and how steady any verdict on them is.

src/measure.py transfer asks. Every scorer turns the same cases into one score a pair, 0 (no match) to 1 (match). Scores
are kept in files named by set and scorer, each with a fingerprint of all that they depend on, so that the next model
pays for itself only.
"""

import dataclasses
import json
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter

from common import ROOT, progress, read_json, sha256_file, sha256_text, shown_path, to_json, write_json
from rows import load_rows
from scoring.baselines import NotPossible, fit_boosting, part_of, splink_model, splink_weights

SOURCES = (
    "measurements/_transfer_baselines.py",
    "scoring/baselines.py",
    "tasks/crm/baseline.py",
    "tasks/crm/fields.py",
    "tasks/crm/data.py",
)
TUNED_ON_EVERY = 10  # each tenth synthetic row sets the number of trees and the temperature, the others grow the trees
FORCED_CHOICE = 0.5  # of a score that is a probability: more likely a match than none


@dataclass(frozen=True)
class Scored:
    """What one scorer said of one set, in the order of its rows."""

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


def fingerprint(*facts):
    """A name for everything that a scorer's answer depends on, its source and the libraries' versions included."""
    sources = [sha256_file(ROOT / "src" / name) for name in SOURCES]
    libraries = [library_version(name) for name in ("scikit-learn", "splink", "rapidfuzz")]
    return sha256_text(json.dumps([*facts, sources, libraries], sort_keys=True))


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
        truth = [row["output"][self.task.verdict.key] == match_label(self.task) for row in decided]
        if len(set(truth)) < 2:
            return None
        precision, recall, thresholds = precision_recall_curve(
            truth, jaro_winkler_scores([row["input"] for row in decided], self.task)
        )
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        return float(thresholds[f1[:-1].argmax()])


def match_label(task):
    return part_of(task, "VERDICTS_BY_WEIGHT")[0]


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
    profile = part_of(task, "profile")
    scores = []
    with progress(len(cases), "pairs", "Jaro-Winkler") as bar:
        for case in cases:
            scores.append(mean_similarity(profile(case["record1"]), profile(case["record2"])))
            bar.update()
    return scores


def mean_similarity(left, right):
    """Mean over the kinds that both sides fill; 0 where there are none, as nothing then speaks for a match."""
    from rapidfuzz.distance import JaroWinkler

    both = left.keys() & right.keys()
    # A profile names a person whole and in parts; the parts would count the same evidence again.
    kinds = sorted(both - {"first_name", "last_name"} if "name" in both else both)
    return sum(JaroWinkler.similarity(left[kind], right[kind]) for kind in kinds) / len(kinds) if kinds else 0.0


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
    method = f"Splink {splink.__version__} fitted on the set without labels in {fitted - start:.0f} s: {method}, prior {prior:.2g}"
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


def robustness(probabilities_of, cases, verdicts, task, n_rows, seed):
    """How many verdicts a change that should not matter turns, over a seeded sample of the cases.

    Swapped records and shuffled keys: share of verdicts that change, and that go between match and no match without
    passing review. A field removed from one record: share of the matches that become no match.
    """
    import numpy as np

    chosen = sorted(random.Random(seed).sample(range(len(cases)), min(n_rows, len(cases))))
    before = np.array([verdicts[at] for at in chosen])
    swap = task.module("data").swap
    changed = {
        "swapped": [swap(cases[at]) for at in chosen],
        "shuffled": [keys_shuffled(cases[at], random.Random(f"{seed} keys {at}")) for at in chosen],
    }
    found = {name: turned(before, verdict_numbers(probabilities_of, others), task) for name, others in changed.items()}
    return found | {"field_removed": removal(probabilities_of, [cases[at] for at in chosen], before, task, seed)}


def verdict_numbers(probabilities_of, cases):
    import numpy as np

    return np.asarray(probabilities_of(cases)).argmax(1) if cases else np.zeros(0, int)


def turned(before, after, task):
    """n, and the shares of verdicts that changed and that turned round without passing review."""
    review = task.verdict.labels.index(task.verdict.review)
    changed = before != after
    flipped = changed & (before != review) & (after != review)
    return {"n": len(before), "changed_pct": percent(changed), "flipped_pct": percent(flipped)}


def removal(probabilities_of, cases, before, task, seed):
    """Of the matches that can spare a field: the share that is no match once one of their fields is gone."""
    match = task.verdict.labels.index(match_label(task))
    against = task.verdict.labels.index(part_of(task, "VERDICTS_BY_WEIGHT")[-1])
    matches = [case for case, verdict in zip(cases, before, strict=True) if verdict == match]
    poorer = [
        less
        for at, case in enumerate(matches)
        if (less := field_removed(case, task, random.Random(f"{seed} field {at}")))
    ]
    return {"n": len(poorer), "lost_pct": percent(verdict_numbers(probabilities_of, poorer) == against)}


def percent(flags):
    return round(100 * float(flags.mean()), 4) if len(flags) else None


def keys_shuffled(value, rng):
    """The same JSON value with the keys of its records, and of what they hold, in another order; the two records keep
    theirs.
    """
    return {name: shuffled(record, rng) for name, record in value.items()}


def shuffled(value, rng):
    if isinstance(value, list):
        return [shuffled(item, rng) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: shuffled(value[key], rng) for key in rng.sample(list(value), len(value))}


def field_removed(case, task, rng):
    """The case without one kind of field in one of its records; None unless both fill that kind and one more, so that a
    match still can be seen.
    """
    fields = task.module("fields")
    both = sorted(fields.by_kind(case["record1"]).keys() & fields.by_kind(case["record2"]).keys())
    if len(both) < 2:
        return None
    kind = rng.choice(both)
    side = rng.choice(("record1", "record2"))
    return case | {side: without_kind(case[side], kind, fields.kind_of)}


def without_kind(value, kind, kind_of, key=""):
    """A record without the values under keys of a kind, however deep."""
    if isinstance(value, dict):
        return {
            name: without_kind(item, kind, kind_of, name)
            for name, item in value.items()
            if isinstance(item, dict | list) or kind_of(name) != kind
        }
    if isinstance(value, list):
        return [
            without_kind(item, kind, kind_of, key)
            for item in value
            if isinstance(item, dict | list) or kind_of(key) != kind
        ]
    return value
