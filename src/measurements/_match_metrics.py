"""Ranking, decisions and calibration of match scores against the truth."""

import numpy as np

from measurements._record_sets import match_label
from scoring import calibration
from scoring.bootstrap import resamples, with_interval

N_RESAMPLES = 200
RESAMPLES_AT_ONCE = 20  # of 50,000 pairs each: 8 MB a column of numbers


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
    name_of = {match_label(task): "match", task.verdict.review: "for_review"}
    for is_true, verdict in zip(truth, verdicts, strict=True):
        counts[name_of.get(task.verdict.labels[verdict], "no_match")]["matches" if is_true else "others"] += 1
    return counts


def metrics(truth, scores, threshold=None):
    """Ranking, decisions and calibration of match scores (0 to 1) against the truth, each with a 95 % bootstrap
    interval over rows.

    F1, precision and recall are those of "match when the score is at least `threshold`", None without one; best_f1 is
    F1 at the threshold that is best on these very rows.
    """
    curve = Curve(truth, scores, threshold)
    point = curve.formulas(np.ones((1, curve.n)))
    resampled = [curve.formulas(weights) for weights in resamples(curve.n, N_RESAMPLES, RESAMPLES_AT_ONCE)]
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


class Curve:
    """Pairs in falling order of their scores, so that every metric is a formula over sums of row weights."""

    def __init__(self, truth, scores, threshold):
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
        bins = {
            "ece_mass": calibration.equal_mass_bins(self.scores),
            "ece_width": calibration.equal_width_bins(self.scores),
        }
        self.gaps = {name: calibration.gap_columns(those, self.scores, self.truth) for name, those in bins.items()}

    def formulas(self, weights):
        """Metric -> its values, for one row of weights a resample."""
        weights = weights[:, self.order]
        found = np.cumsum(weights * self.truth, axis=1)[:, self.ends]
        called = np.cumsum(weights, axis=1)[:, self.ends]
        n = called[:, -1]
        n_positive = found[:, -1]
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(called > 0, found / called, 0.0)
            steps = np.diff(found, axis=1, prepend=0) / n_positive[:, None]
            found_by_name = {
                "average_precision": (precision * steps).sum(1),
                **self._at_threshold(found, called, n_positive),
                "best_f1": (2 * found / (called + n_positive[:, None])).max(1),
            }
        return found_by_name | {name: calibration.expected_error(weights @ gaps, n) for name, gaps in self.gaps.items()}

    def _at_threshold(self, found, called, n_positive):
        if self.threshold is None:
            return {name: np.full(len(found), np.nan) for name in ("f1", "precision", "recall")}
        at = int((self.scores[self.ends] >= self.threshold).sum()) - 1
        right, matches = (found[:, at], called[:, at]) if at >= 0 else (np.zeros(len(found)), np.zeros(len(found)))
        return {"f1": 2 * right / (matches + n_positive), "precision": right / matches, "recall": right / n_positive}

    def best_threshold(self):
        """The score from which on calling pairs a match has the best F1 on these rows."""
        found = np.cumsum(self.truth)[self.ends]
        called = self.ends + 1
        return float(self.scores[self.ends][(2 * found / (called + self.n_positive)).argmax()])


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
