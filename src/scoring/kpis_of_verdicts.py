"""What is scored only where a task has a verdict: right and wrong by class, how sure, and whether order matters."""

import numpy as np

from scoring import calibration
from scoring.ratios import percentages, ratio

NO_VERDICT = "no valid verdict"
SLICE_KPIS = ("accuracy", "macro_f1")


def is_prediction(row, task):
    """Whether a row holds a gold verdict, a verdict or none, and probabilities of all labels or none."""
    labels = task.verdict.labels
    shares = [row.get(key) or labels for key in ("probabilities", "swapped_probabilities")]
    return (
        row["gold"][task.verdict.key] in labels
        and row["label"] in (None, *labels)
        and all(set(share) == set(labels) for share in shares)
    )


class Verdicts:
    """The verdicts of some predictions as arrays, and the KPIs over sums of their columns."""

    def __init__(self, predictions, task):
        self.predictions = predictions
        self.verdict = task.verdict
        self.labels = task.verdict.labels
        self.gold = np.array([self.labels.index(row["gold"][task.verdict.key]) for row in predictions])
        # The number after the last label stands for answers without a valid verdict.
        self.predicted = np.array([self._number(row["label"]) for row in predictions])
        self.probabilities = np.array([self._shares(row) for row in predictions])
        self.confidence = self.probabilities.max(1)
        self.known = ~np.isnan(self.probabilities).any(1)
        self.likeliest = np.where(self.known, self.probabilities.argmax(1), -1)
        self.bins = np.where(self.known, calibration.equal_width_bins(np.nan_to_num(self.confidence)), -1)

    def _number(self, label):
        return len(self.labels) if label is None else self.labels.index(label)

    def _shares(self, row):
        shares = row.get("probabilities") or {}
        return [shares.get(label, np.nan) for label in self.labels]

    def columns(self):
        """One row of numbers a prediction, by name."""
        return self._confusion_columns() | self._calibration_columns() | self._swap_columns()

    def _confusion_columns(self):
        n_labels = len(self.labels)
        return {
            f"confusion.{g}.{p}": (self.gold == g) & (self.predicted == p)
            for g in range(n_labels)
            for p in range(n_labels + 1)
        }

    def _calibration_columns(self):
        truth = np.eye(len(self.labels))[self.gold]
        distance = ((np.nan_to_num(self.probabilities) - truth) ** 2).sum(1)
        gaps = calibration.gap_columns(self.bins, np.nan_to_num(self.confidence), self.likeliest == self.gold)
        columns = {"scored": self.known, "brier": np.where(self.known, distance, 0.0)}
        for b in range(calibration.N_BINS):
            columns[f"gap.{b}"] = np.where(self.known, gaps[:, b], 0.0)
        return columns

    def _swap_columns(self):
        """Whether the likeliest label is another when the case is asked in its other order."""
        columns = {"swapped": [], "swap_changed": [], "swap_flipped": []}
        for row in self.predictions:
            pair = [row.get(key) for key in ("probabilities", "swapped_probabilities")]
            there = all(pair)
            first, second = (max(shares, key=shares.get) if there else None for shares in pair)
            columns["swapped"].append(there)
            columns["swap_changed"].append(first != second)
            columns["swap_flipped"].append(first != second and self.verdict.review not in (first, second))
        return columns

    def decision_kpis(self, sums):
        """Right, wrong and handed to a person: name -> (values, n, meaning)."""
        k = len(self.labels)
        confusion = np.array([[sums[f"confusion.{g}.{p}"] for p in range(k + 1)] for g in range(k)])
        n_gold = confusion.sum(1)
        n_predicted = confusion.sum(0)[:k]
        right = np.array([confusion[c, c] for c in range(k)])
        n = n_gold.sum(0)
        f1 = ratio(2 * right, n_gold + n_predicted)
        # A class without gold rows has no score; it does not pull the mean down.
        macro = np.nanmean(np.where(n_gold > 0, f1, np.nan), axis=0)
        accuracy = ratio(right.sum(0), n)
        found = {
            "accuracy": (accuracy, n, "verdicts that are right; an answer without a valid verdict is wrong"),
            "macro_f1": (macro, n, "mean of the classes' F1"),
        }
        for c, label in enumerate(self.labels):
            precision = ratio(right[c], n_predicted[c])
            recall = ratio(right[c], n_gold[c])
            found |= {
                f"precision_{label}": (precision, n_predicted[c], f"{label} verdicts that are right"),
                f"recall_{label}": (recall, n_gold[c], f"{label} cases that are found"),
                f"f1_{label}": (f1[c], n_gold[c], f"harmonic mean of precision and recall for {label}"),
            }
        return found | self._review_kpis(n, n_predicted, right)

    def _review_kpis(self, n, n_predicted, right):
        review = self.labels.index(self.verdict.review)
        decided = n_predicted.sum(0) - n_predicted[review]
        wrong = decided - right.sum(0) + right[review]
        what = f"cases decided without a person (a verdict other than {self.verdict.review})"
        return {
            "decided_pct": (100 * ratio(decided, n), n, what),
            "decided_error_pct": (100 * ratio(wrong, decided), decided, "decided cases that are wrong"),
        }

    def certainty_kpis(self, sums):
        """Calibration, and what swapping changes: name -> (values, n, meaning)."""
        scored = sums["scored"]
        gaps = np.column_stack([sums[f"gap.{b}"] for b in range(calibration.N_BINS)])
        ece = calibration.expected_error(gaps, scored)
        brier = ratio(sums["brier"], scored)
        review = self.verdict.review
        swaps = {
            "swap_changed_pct": ("verdicts that change when the records swap places", "swap_changed", "swapped"),
            "swap_flipped_pct": (
                f"verdicts that swapping turns round without passing {review}",
                "swap_flipped",
                "swapped",
            ),
        }
        return {
            "ece": (ece, scored, f"expected calibration error over {calibration.N_BINS} bins of confidence"),
            "brier": (brier, scored, "squared distance of the probabilities from the truth, 0 to 2"),
            **percentages(swaps, sums),
        }

    def tables(self):
        """What the report draws beside the KPIs."""
        return {
            "confusion": self.confusion(),
            "calibration": self.calibration_curve(),
            "risk_coverage": self.risk_coverage(),
        }

    def confusion(self):
        k = len(self.labels)
        counts = [[int(((self.gold == g) & (self.predicted == p)).sum()) for p in range(k + 1)] for g in range(k)]
        return {"labels": list(self.labels), "said": [*self.labels, NO_VERDICT], "counts": counts}

    def calibration_curve(self):
        """Bins of confidence that hold anything: how sure, how often right."""
        found = []
        for b in range(calibration.N_BINS):
            here = self.bins == b
            if here.any():
                found.append(
                    {
                        "from": b / calibration.N_BINS,
                        "to": (b + 1) / calibration.N_BINS,
                        "n": int(here.sum()),
                        "confidence": round(float(self.confidence[here].mean()), 6),
                        "accuracy": round(float((self.likeliest == self.gold)[here].mean()), 6),
                    }
                )
        return found

    def risk_coverage(self, n_points=50):
        """Share of wrong verdicts among the most confident share of cases."""
        order = np.argsort(-self.confidence[self.known], kind="stable")
        wrong = np.cumsum((self.predicted != self.gold)[self.known][order])
        steps = np.unique(np.linspace(1, len(order), n_points).round().astype(int)) if len(order) else []
        return [{"coverage": round(float(s / len(order)), 6), "risk": round(float(wrong[s - 1] / s), 6)} for s in steps]
