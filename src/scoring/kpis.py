"""KPIs of a file of predictions, each with n and a 95 % bootstrap interval."""

from common import UserError, read_jsonl, shown_path

N_BOOTSTRAP = 1_000
N_BINS = 10
SEED = 7


def read_predictions(path, task):
    """What src/predict.py wrote; another file in its place is said to be one."""
    rows = read_jsonl(path)
    for number, row in enumerate(rows, 1):
        if not is_prediction(row, task):
            raise UserError(
                f"{path}:{number}: not a prediction of the task {task.name}; make it again with src/predict.py --out "
                f"{path}"
            )
    return rows


def is_prediction(row, task):
    """Whether a row holds what the KPIs read."""
    try:
        shares = [row.get(key) or task.verdict.labels for key in ("probabilities", "swapped_probabilities")]
        return (
            row["gold"][task.verdict.key] in task.verdict.labels
            and row["label"] in (None, *task.verdict.labels)
            and {"input", "raw", "answer"} <= row.keys()
            and all(set(share) == set(task.verdict.labels) for share in shares)
        )
    except (AttributeError, KeyError, TypeError):
        return False


def identity(facts, predictions):
    """Whose answers these are, from the manifest beside them."""
    kept = ("model", "title", "checkpoint", "kind", "data", "backend", "gen", "training", "precision")
    return {key: facts[key] for key in kept if key in facts} | {
        "predictions": shown_path(predictions),
        "predicted": {
            key: facts[key]
            for key in ("wall_s", "peak_memory_mib", "peak_gpu_memory_mib", "hardware", "git_commit")
            if key in facts
        },
    }


def score(predictions, task):
    """Every KPI with n and a 95 % bootstrap interval over rows, and the tables that the report draws."""
    if not predictions:
        raise UserError("there are no predictions to score")
    columns = Columns(predictions, task)
    kpis = columns.kpis(range(len(predictions)))
    return {
        "task": task.name,
        "kpis": kpis,
        "confusion": columns.confusion(),
        "calibration": columns.calibration(),
        "risk_coverage": columns.risk_coverage(),
        "slices": columns.slices(predictions),
    }


class Columns:
    """One row of numbers a prediction, so that every KPI is a formula over column sums and a resample is one matrix
    product.
    """

    def __init__(self, predictions, task):
        import numpy as np

        self.np = np
        self.task = task
        self.labels = task.verdict.labels
        self.gold = np.array([self.labels.index(row["gold"][task.verdict.key]) for row in predictions])
        # The column after the last label counts answers without a valid verdict.
        self.said = np.array(
            [self.labels.index(row["label"]) if row["label"] is not None else len(self.labels) for row in predictions]
        )
        self.p = np.array(
            [
                [row["probabilities"][label] for label in self.labels]
                if row.get("probabilities")
                else [np.nan] * len(self.labels)
                for row in predictions
            ]
        )
        self.confidence = self.p.max(1)
        self.leaning = np.where(np.isnan(self.p).any(1), -1, self.p.argmax(1))
        self.matrix = np.column_stack(list(self._columns(predictions).values()))

    def _columns(self, predictions):
        np = self.np
        n_labels = len(self.labels)
        columns = {
            f"confusion.{g}.{s}": (self.gold == g) & (self.said == s)
            for g in range(n_labels)
            for s in range(n_labels + 1)
        }
        generated = [row["raw"] is not None for row in predictions]
        columns |= {
            "generated": generated,
            "valid": [made and row["answer"] is not None for made, row in zip(generated, predictions, strict=True)],
            "cut": [row.get("finish_reason") == "length" for row in predictions],
        }
        # An engine that does not tell what the guarantee did has no share of it.
        told = {
            key: [made and row.get(key, 0) is not None for made, row in zip(generated, predictions, strict=True)]
            for key in ("overruled", "late")
        }
        columns |= {
            "told": np.logical_and(told["overruled"], told["late"]),
            "told_late": told["late"],
            "closed": [bool(row.get("late")) for row in predictions],
            "own": [
                all(known) and row["answer"] is not None and not row.get("overruled") and not row.get("late")
                for *known, row in zip(told["overruled"], told["late"], predictions, strict=True)
            ],
            "overruled": [row.get("overruled") or 0 for row in predictions],
            "tokens": [
                known * (row.get("completion_tokens") or 0)
                for known, row in zip(told["overruled"], predictions, strict=True)
            ],
        }
        columns |= self._calibration_columns() | self._swap_columns(predictions) | self._task_columns(predictions)
        self.names = {name: at for at, name in enumerate(columns)}
        return {name: np.asarray(values, float) for name, values in columns.items()}

    def _calibration_columns(self):
        np = self.np
        known = self.leaning >= 0
        self.bin = np.where(known, np.clip((np.nan_to_num(self.confidence) * N_BINS).astype(int), 0, N_BINS - 1), -1)
        right = self.leaning == self.gold
        columns = {
            "scored": known,
            "brier": np.where(known, ((np.nan_to_num(self.p) - np.eye(len(self.labels))[self.gold]) ** 2).sum(1), 0.0),
        }
        for b in range(N_BINS):
            here = self.bin == b
            columns |= {
                f"bin.{b}.n": here,
                f"bin.{b}.right": here & right,
                f"bin.{b}.confidence": np.where(here, self.confidence, 0.0),
            }
        return columns

    def _swap_columns(self, predictions):
        both = []
        changed = []
        flipped = []
        for row in predictions:
            there = bool(row.get("probabilities") and row.get("swapped_probabilities"))
            first, second = (
                max(row[key], key=row[key].get) if there else None for key in ("probabilities", "swapped_probabilities")
            )
            both.append(there)
            changed.append(first != second)
            flipped.append(first != second and self.task.verdict.review not in (first, second))
        return {"swapped": both, "swap_changed": changed, "swap_flipped": flipped}

    def _task_columns(self, predictions):
        scores = [
            self.task.module("kpis").score(row["input"], row["answer"])
            if row["answer"] is not None and row["raw"] is not None
            else {}
            for row in predictions
        ]
        names = dict.fromkeys(name for _, *parts in self.task.module("kpis").AGGREGATES.values() for name in parts)
        return {f"task.{name}": [counts.get(name, 0) for counts in scores] for name in names}

    def kpis(self, rows):
        """KPI name -> value, 95 % interval and n, over the given rows."""
        np = self.np
        matrix = self.matrix[list(rows)]
        point = self._formulas(matrix.sum(0)[None, :])
        rng = np.random.default_rng(SEED)
        sums = []
        for _ in range(0, N_BOOTSTRAP, 50):
            weights = rng.multinomial(len(matrix), np.full(len(matrix), 1 / len(matrix)), size=50)
            sums.append(weights.astype(float) @ matrix)  # integers would miss the fast matrix product
        resampled = self._formulas(np.concatenate(sums))
        return {name: self._kpi(point[name], resampled[name]) for name in point}

    def _kpi(self, point, resampled):
        np = self.np
        (value,), (n,), what = point
        if n == 0 or np.isnan(value):
            return {"value": None, "ci95": None, "n": int(n), "what": what}
        low, high = np.nanpercentile(resampled[0], [2.5, 97.5])
        return {
            "value": round(float(value), 6),
            "ci95": [round(float(low), 6), round(float(high), 6)],
            "n": int(n),
            "what": what,
        }

    def _formulas(self, sums):
        """name -> (values, n, meaning), for one row of column sums or a thousand resampled ones."""
        np = self.np
        k = len(self.labels)
        col = {name: sums[:, at] for name, at in self.names.items()}
        confusion = np.array([[col[f"confusion.{g}.{s}"] for s in range(k + 1)] for g in range(k)])
        n_gold = confusion.sum(1)
        n_said = confusion.sum(0)[:k]
        right = np.array([confusion[c, c] for c in range(k)])
        n = n_gold.sum(0)
        f1 = ratio(2 * right, n_gold + n_said)
        # A class without gold rows has no score; it does not pull the mean down.
        macro = np.nanmean(np.where(n_gold > 0, f1, np.nan), axis=0)
        found = {
            "accuracy": (
                ratio(right.sum(0), n),
                n,
                "verdicts that are right; an answer without a valid verdict is wrong",
            ),
            "macro_f1": (macro, n, "mean of the classes' F1"),
        }
        for c, label in enumerate(self.labels):
            found |= {
                f"precision_{label}": (ratio(right[c], n_said[c]), n_said[c], f"{label} verdicts that are right"),
                f"recall_{label}": (ratio(right[c], n_gold[c]), n_gold[c], f"{label} cases that are found"),
                f"f1_{label}": (f1[c], n_gold[c], f"harmonic mean of precision and recall for {label}"),
            }
        review = self.labels.index(self.task.verdict.review)
        decided = n_said.sum(0) - n_said[review]
        found |= {
            "decided_pct": (
                100 * ratio(decided, n),
                n,
                f"cases decided without a person (a verdict other than {self.task.verdict.review})",
            ),
            "decided_error_pct": (
                100 * ratio(decided - right.sum(0) + right[review], decided),
                decided,
                "decided cases that are wrong",
            ),
            "json_valid_pct": (
                100 * ratio(col["valid"], col["generated"]),
                col["generated"],
                "answers that are JSON and fit the schema",
            ),
            "json_valid_raw_pct": (
                100 * ratio(col["own"], col["told"]),
                col["told"],
                "answers that fit the schema by the model's own choices",
            ),
            "closed_at_budget_pct": (
                100 * ratio(col["closed"], col["told_late"]),
                col["told_late"],
                "answers that had to be ended for the token budget",
            ),
            "mask_overruled_pct": (
                100 * ratio(col["overruled"], col["tokens"]),
                col["tokens"],
                "tokens whose first choice broke the schema",
            ),
            "cut_at_budget_pct": (
                100 * ratio(col["cut"], col["generated"]),
                col["generated"],
                "answers cut off by the token budget",
            ),
        }
        gap = sum(np.abs(col[f"bin.{b}.right"] - col[f"bin.{b}.confidence"]) for b in range(N_BINS))
        found |= {
            "ece": (
                ratio(gap, col["scored"]),
                col["scored"],
                f"expected calibration error over {N_BINS} bins of confidence",
            ),
            "brier": (
                ratio(col["brier"], col["scored"]),
                col["scored"],
                "squared distance of the probabilities from the truth, 0 to 2",
            ),
            "swap_changed_pct": (
                100 * ratio(col["swap_changed"], col["swapped"]),
                col["swapped"],
                "verdicts that change when the records swap places",
            ),
            "swap_flipped_pct": (
                100 * ratio(col["swap_flipped"], col["swapped"]),
                col["swapped"],
                f"verdicts that swapping turns round without passing {self.task.verdict.review}",
            ),
        }
        for name, (what, part, whole) in self.task.module("kpis").AGGREGATES.items():
            found[name] = (100 * ratio(col[f"task.{part}"], col[f"task.{whole}"]), col[f"task.{whole}"], what)
        return found

    def confusion(self):
        counts = [
            [int(((self.gold == g) & (self.said == s)).sum()) for s in range(len(self.labels) + 1)]
            for g in range(len(self.labels))
        ]
        return {"labels": list(self.labels), "said": [*self.labels, "no valid verdict"], "counts": counts}

    def calibration(self):
        """Bins of confidence that hold anything: how sure, how often right."""
        found = []
        for b in range(N_BINS):
            here = self.bin == b
            if here.any():
                found.append(
                    {
                        "from": b / N_BINS,
                        "to": (b + 1) / N_BINS,
                        "n": int(here.sum()),
                        "confidence": round(float(self.confidence[here].mean()), 6),
                        "accuracy": round(float((self.leaning == self.gold)[here].mean()), 6),
                    }
                )
        return found

    def risk_coverage(self, n_points=50):
        """Share of wrong verdicts among the most confident share of cases."""
        np = self.np
        known = self.leaning >= 0
        order = np.argsort(-self.confidence[known], kind="stable")
        wrong = np.cumsum((self.said != self.gold)[known][order])
        steps = np.unique(np.linspace(1, len(order), n_points).round().astype(int)) if len(order) else []
        return [{"coverage": round(float(s / len(order)), 6), "risk": round(float(wrong[s - 1] / s), 6)} for s in steps]

    def slices(self, predictions):
        members = {}
        for at, row in enumerate(predictions):
            for name, value in self.task.module("kpis").slices(row["input"]).items():
                members.setdefault(name, {}).setdefault(value, []).append(at)
        return {
            name: {
                value: {key: self.kpis(rows)[key] for key in ("accuracy", "macro_f1")}
                for value, rows in sorted(values.items())
            }
            for name, values in sorted(members.items())
        }


def ratio(part, whole):
    """part / whole, NaN where there is nothing to divide by."""
    import numpy as np

    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def print_summary(out, kpis):
    for name in ("accuracy", "macro_f1", "json_valid_pct", "faithful_pct", "ece", "swap_changed_pct"):
        if name in kpis:
            print(f"  {name:<17} {shown(kpis[name])}")
    print(f"all KPIs in {out}")


def shown(kpi):
    if kpi["value"] is None:
        return f"not measured (n = {kpi['n']:,})"
    low, high = kpi["ci95"]
    return f"{kpi['value']:.3f}  (95 %: {low:.3f} to {high:.3f}, n = {kpi['n']:,})"
