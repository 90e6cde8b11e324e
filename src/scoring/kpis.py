"""KPIs of a file of predictions, each with n and a 95 % bootstrap interval.

Every task has those of kpis_of_every_task.py and of its own kpis.py; a task with a verdict has those of
kpis_of_verdicts.py, a task without one the share of exact answers.
"""

from common import UserError, read_jsonl, sha256_file, shown_path
from scoring import bootstrap, kpis_of_every_task
from scoring.ratios import percentages

N_BOOTSTRAP = 1_000
RESAMPLES_AT_ONCE = 50
EXACT = {"exact_pct": ("answers that equal the gold answer", "exact", "rows")}
KEPT = ("model", "title", "checkpoint", "kind", "data", "backend", "gen", "training", "precision")
KEPT_OF_PREDICTING = ("wall_s", "peak_memory_mib", "peak_gpu_memory_mib", "hardware", "git_commit")


def read_predictions(path, task):
    """What src/predict.py wrote; another file in its place is an error."""
    rows = read_jsonl(path)
    for number, row in enumerate(rows, 1):
        if not is_prediction(row, task):
            raise UserError(
                f"{path}:{number}: not a prediction of the task {task.name}; make it again with src/predict.py --out "
                f"{path}"
            )
        # The intervals take lines for rows of their own, which several answers to one row are not.
        if "sample" in row:
            raise UserError(
                f"{path}:{number}: one of several answers to a row, and KPIs are made of one each; make the file again "
                "with src/predict.py without --samples"
            )
    return rows


def is_prediction(row, task):
    """Whether a row holds what the KPIs read."""
    from scoring import kpis_of_verdicts

    try:
        if not {"input", "gold", "raw", "answer"} <= row.keys():
            return False
        return kpis_of_verdicts.is_prediction(row, task) if task.verdict else not task.answer_problems(row["gold"])
    except (AttributeError, KeyError, TypeError):
        return False


def identity(facts, predictions):
    """Whose answers these are, from the manifest beside them, and which file holds them."""
    return {key: facts[key] for key in KEPT if key in facts} | {
        "predictions": shown_path(predictions),
        "predictions_sha256": sha256_file(predictions),
        "predicted": {key: facts[key] for key in KEPT_OF_PREDICTING if key in facts},
    }


def score(predictions, task):
    """Every KPI with n and a 95 % bootstrap interval over rows, and the tables that the report draws."""
    if not predictions:
        raise UserError("there are no predictions to score")
    scores = Scores(predictions, task)
    return {
        "task": task.name,
        "kpis": scores.kpis(range(len(predictions))),
        **(scores.verdicts.tables() if scores.verdicts else {}),
        "slices": scores.slices(),
    }


class Scores:
    """One row of numbers a prediction, so that every KPI is a formula over column sums and a resample is one matrix
    product.
    """

    def __init__(self, predictions, task):
        import numpy as np

        self.predictions = predictions
        self.task = task
        self.verdicts = None
        if task.verdict:
            from scoring.kpis_of_verdicts import Verdicts

            self.verdicts = Verdicts(predictions, task)
        columns = self.verdicts.columns() if self.verdicts else exact_columns(predictions, task)
        columns |= validity_columns(predictions)
        columns |= own_columns(predictions, task)
        self.names = list(columns)
        self.matrix = np.column_stack([np.asarray(values, float) for values in columns.values()])

    def kpis(self, rows):
        """KPI name -> value, 95 % interval and n, over the given rows."""
        import numpy as np

        matrix = self.matrix[list(rows)]
        point = self._formulas(matrix.sum(0)[None, :])
        sums = [weights @ matrix for weights in bootstrap.resamples(len(matrix), N_BOOTSTRAP, RESAMPLES_AT_ONCE)]
        resampled = self._formulas(np.concatenate(sums))
        return {name: kpi(point[name], resampled[name]) for name in point}

    def _formulas(self, matrix):
        """name -> (values, n, meaning), for one row of column sums or a thousand resampled ones."""
        sums = {name: matrix[:, at] for at, name in enumerate(self.names)}
        found = self.verdicts.decision_kpis(sums) if self.verdicts else percentages(EXACT, sums)
        found |= percentages(kpis_of_every_task.aggregates(self.task), sums)
        if self.verdicts:
            found |= self.verdicts.certainty_kpis(sums)
        return found | percentages(own_aggregates(self.task), sums)

    def slices(self):
        """A few KPIs over each of the named groups that the task divides its cases into."""
        groups_of = self.task.hook("kpis", "slices", lambda case: {})
        members = {}
        for at, row in enumerate(self.predictions):
            for name, value in groups_of(row["input"]).items():
                members.setdefault(name, {}).setdefault(value, []).append(at)
        return {
            name: {value: self._slice(rows) for value, rows in sorted(values.items())}
            for name, values in sorted(members.items())
        }

    def _slice(self, rows):
        found = self.kpis(rows)
        return {name: found[name] for name in slice_kpis(self.task)}


def kpi(point, resampled):
    (value,), (n,), what = point
    if n == 0:
        value = float("nan")
    return {**bootstrap.with_interval(value, resampled[0]), "n": int(n), "what": what}


def exact_columns(predictions, task):
    """Whether each answer is the gold one, read as if a model had written it."""
    return {
        "rows": [1] * len(predictions),
        "exact": [is_exact(row, task) for row in predictions],
    }


def is_exact(row, task):
    return row["answer"] is not None and same_value(row["answer"], gold_answer(row, task))


def gold_answer(row, task):
    return task.parsed(task.completion(row["gold"]))


def same_value(one, other):
    """Equality of JSON values: unlike Python's, true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_value(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_value, one, other))
    return one == other


def validity_columns(predictions):
    counts = [
        kpis_of_every_task.counts(
            row["answer"] is not None,
            row.get("overruled", 0),
            row.get("late", 0),
            row.get("completion_tokens"),
            row.get("finish_reason"),
            generated=row["raw"] is not None,
        )
        for row in predictions
    ]
    return {name: [each[name] for each in counts] for name in counts[0]}


def own_aggregates(task):
    """The task's own KPIs over the columns below."""
    return {
        name: (what, f"task.{part}", f"task.{whole}")
        for name, (what, part, whole) in task.hook("kpis", "AGGREGATES", {}).items()
    }


def own_columns(predictions, task):
    """The counts that the task's kpis.py makes of each labelled row and the answer to it; none where no text was
    written, as by a baseline.
    """
    aggregates = task.hook("kpis", "AGGREGATES", {})
    if not aggregates:
        return {}
    score_of = task.hook("kpis", "score")
    counts = [
        score_of({"input": row["input"], "output": row["gold"], "text": row["raw"]}, row["answer"])
        if row["raw"] is not None
        else {}
        for row in predictions
    ]
    names = dict.fromkeys(name for _, *parts in aggregates.values() for name in parts)
    return {f"task.{name}": [each.get(name, 0) for each in counts] for name in names}


def comparison_columns(task):
    """Title -> KPI of the comparison table: the task's own choice, or what every task of its kind has."""
    if task.columns:
        return task.columns
    first = ("accuracy", "macro_f1") if task.verdict else tuple(EXACT)
    names = (*first, f"{kpis_of_every_task.VALID[task.answer]}_pct", *task.hook("kpis", "AGGREGATES", {}))
    return {title_of(name): name for name in names}


def title_of(name):
    """json_valid_pct -> JSON valid %"""
    words = name.removesuffix("_pct").replace("_", " ").capitalize().replace("Json", "JSON")
    return f"{words} %" if name.endswith("_pct") else words


def slice_kpis(task):
    """The KPIs that are shown by slice: at most two, so that their bars can be read."""
    if task.verdict:
        from scoring.kpis_of_verdicts import SLICE_KPIS

        return SLICE_KPIS
    return tuple(comparison_columns(task).values())[:2]


def print_summary(out, kpis, task):
    names = dict.fromkeys([*comparison_columns(task).values(), "ece", "swap_changed_pct"])
    for name in names:
        if name in kpis:
            print(f"  {name:<17} {shown(kpis[name])}")
    print(f"all KPIs in {out}")


def shown(kpi):
    if kpi["value"] is None:
        return f"not measured (n = {kpi['n']:,})"
    low, high = kpi["ci95"]
    return f"{kpi['value']:.3f}  (95 %: {low:.3f} to {high:.3f}, n = {kpi['n']:,})"
