"""What one would use instead of a language model: majority, gradient boosting on string similarities, Splink."""

from collections.abc import Callable
from dataclasses import dataclass

from common import progress

TITLES = {
    "majority": "Majority class",
    "boosting": "Gradient boosting on string similarities",
    "splink": "Splink (DuckDB)",
}
N_TREES = 300
# 5-fold log loss on 1,600 synthetic training rows: 0.112 with these and 150 rounds, 0.202 with scikit-learn's defaults,
# too sure of themselves.
TREES = {
    "learning_rate": 0.05,
    "max_leaf_nodes": 8,
    "min_samples_leaf": 10,
    "l2_regularization": 1.0,
    "early_stopping": False,
}
LEAST_VAL_ROWS = 50  # fewer say nothing about the number of trees or the temperature
N_TREES_UNTUNED = 150
U_PAIRS = 200_000  # random pairs for Splink's u; 1,500,000 gave the same accuracy within 0.004 and took twice the time


class NotPossible(Exception):
    """This baseline has nothing to say about these rows; the others go on."""


@dataclass(frozen=True)
class Fitted:
    predict: Callable  # cases -> array of probabilities, one row a case, one column a label
    checkpoint: str
    method: str


def label_numbers(rows, task):
    import numpy as np

    return np.array([task.verdict.labels.index(row["output"][task.verdict.key]) for row in rows])


def cases_of(rows):
    return [row["input"] for row in rows]


def fit_majority(train, val, task, seed):
    """Every case gets the class shares of the training rows."""
    import numpy as np

    shares = np.bincount(label_numbers(train, task), minlength=len(task.verdict.labels)) / len(train)
    return Fitted(lambda cases: np.tile(shares, (len(cases), 1)), "class shares", "class shares of the training rows")


def fit_boosting(train, val, task, seed):
    """Gradient-boosted trees over the task's similarity features; number of trees and temperature from the validation
    rows.
    """
    import numpy as np
    import sklearn

    features = part_of(task, "features")
    x = feature_matrix(features, cases_of(train))
    y = label_numbers(train, task)
    # scikit-learn cannot bin a column without two different values.
    telling = [len(np.unique(column[~np.isnan(column)])) > 1 for column in x.T]
    if len(np.unique(y)) == 1 or not any(telling):
        print(
            "boosting: the training rows hold one class or no field that varies; every answer is their class shares",
            flush=True,
        )
        shares = fit_majority(train, val, task, seed).predict
        return Fitted(shares, f"scikit-learn {sklearn.__version__}", "class shares: nothing to learn from")
    x_val = feature_matrix(features, cases_of(val))[:, telling]
    model, n_trees, temperature = fitted_trees(x[:, telling], y, x_val, label_numbers(val, task), seed)
    untuned = "" if len(val) >= LEAST_VAL_ROWS else f" (not tuned: only {len(val)} validation rows)"
    return Fitted(
        lambda cases: tree_shares(model, feature_matrix(features, cases)[:, telling], temperature, task),
        f"scikit-learn HistGradientBoosting {sklearn.__version__}",
        f"{sum(telling)} rapidfuzz features, {n_trees} rounds of trees, temperature {temperature:.2f}{untuned}",
    )


def fitted_trees(x, y, x_val, y_val, seed):
    """(model, number of trees, temperature)"""
    from sklearn.ensemble import HistGradientBoostingClassifier

    with one_thread():
        model = HistGradientBoostingClassifier(max_iter=N_TREES, random_state=seed, **TREES).fit(x, y)
        n_trees, temperature = tuned(model, x_val, y_val)
        model.set_params(max_iter=n_trees).fit(x, y)
    return model, n_trees, temperature


def tree_shares(model, x, temperature, task):
    with one_thread():
        probabilities = model.predict_proba(x)
    return spread(probabilities ** (1 / temperature), model.classes_, task)


def one_thread():
    """OpenMP's threads wait for each other spinning: on two cores beside another busy process 300 trees over 1,600 rows
    took 56 to 104 s with all threads, 3 s with two and 0.8 s with one.
    """
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="openmp")


def part_of(task, name):
    """What the task's baseline.py says under a name."""
    found = task.hook("baseline", name)
    if found is None:
        raise NotPossible(f"src/tasks/{task.name}/baseline.py has no {name}")
    return found


def feature_matrix(features, cases):
    import numpy as np

    rows = []
    with progress(len(cases), "rows", "features") as bar:
        for case in cases:
            rows.append(features(case))
            bar.update()
    return np.array(rows)


def spread(probabilities, classes, task):
    """Columns for all labels from those of the classes that were trained on; the others get 0. Rows sum to 1."""
    import numpy as np

    found = np.zeros((len(probabilities), len(task.verdict.labels)))
    found[:, classes] = probabilities
    return found / found.sum(1, keepdims=True)


def tuned(model, x, y):
    """(number of trees, temperature) with the least log loss on the validation rows."""
    import numpy as np

    known = np.isin(y, model.classes_)
    if known.sum() < LEAST_VAL_ROWS:
        return N_TREES_UNTUNED, 1.0
    x = x[known]
    columns = np.searchsorted(model.classes_, y[known])
    stages = list(model.staged_predict_proba(x))
    best = int(np.argmin([log_loss(p, columns, 1.0) for p in stages]))
    temperatures = np.geomspace(0.5, 4, 61)
    return best + 1, float(temperatures[np.argmin([log_loss(stages[best], columns, t) for t in temperatures])])


def log_loss(p, columns, temperature):
    import numpy as np

    p = np.clip(p, 1e-12, 1) ** (1 / temperature)
    return -np.log(p[np.arange(len(p)), columns] / p.sum(1)).mean()


def fit_splink(train, val, task, seed):
    """Splink's match weight of every pair, turned into verdicts by what the training labels say at that weight."""
    import splink

    checkpoint = f"Splink {splink.__version__}"
    (model, method) = splink_model(train, task, seed)
    if model is None:
        print(
            "splink: no field is filled on both sides of a training pair; every answer is the training rows' class "
            "shares",
            flush=True,
        )
        return Fitted(fit_majority(train, val, task, seed).predict, checkpoint, method)
    to_verdicts = fit_verdicts(splink_weights(model, cases_of(train), task), label_numbers(train, task), task)
    return Fitted(
        lambda cases: to_verdicts(splink_weights(model, cases, task)),
        checkpoint,
        f"u from {U_PAIRS:,} random pairs, {method}, isotonic steps from match weight to verdicts",
    )


def splink_model(train, task, seed):
    """Splink's trained settings, None when no field is filled on both sides of any training pair; and how they were
    trained.

    m comes from expectation maximisation on the training pairs, which was more accurate than m counted on the labelled
    duplicates: 0.900 against 0.885 right on 2,000 synthetic validation rows, 0.900 against 0.860 on 200; macro-F1 0.870
    against 0.846, 0.874 against 0.836. Levels that no pair reached keep Splink's defaults.
    """
    from splink.internals.exceptions import EMTrainingException

    left, right = part_of(task, "splink_tables")(cases_of(train))
    settings = part_of(task, "splink_settings")(
        [column for column in left if (left[column].notna() & right[column].notna()).any()]
    )
    if settings is None:
        return None, "class shares: nothing to compare"
    matches = [row["output"][task.verdict.key] == part_of(task, "VERDICTS_BY_WEIGHT")[0] for row in train]
    linker = splink_linker(
        [table.assign(match=table["pair"].astype("Int64").where(matches)) for table in (left, right)], settings
    )
    linker.training.estimate_u_using_random_sampling(max_pairs=U_PAIRS, seed=seed)
    method = "m by expectation maximisation"
    try:
        (rule,) = settings["blocking_rules_to_generate_predictions"]
        linker.training.estimate_parameters_using_expectation_maximisation(rule)
    except (
        EMTrainingException,
        ValueError,
    ) as error:  # ValueError: with few pairs an m sinks to 0, which Splink refuses
        method = "m counted on the labelled matches" if any(matches) else "Splink's default m"
        if any(matches):
            linker.training.estimate_m_from_label_column("match")
        print(f"splink: expectation maximisation failed ({str(error).splitlines()[0]}); instead {method}", flush=True)
    return linker.misc.save_model_to_json(), method


def splink_linker(tables, settings):
    import logging

    from splink import DuckDBAPI, Linker

    logging.getLogger("splink").setLevel(logging.ERROR)
    database = DuckDBAPI()
    database.duckdb_con.execute("SET enable_progress_bar = false")
    return Linker(
        [
            database.register(table, dataset_display_name=side)
            for table, side in zip(tables, ("left_side", "right_side"), strict=True)
        ],
        settings,
        log_level=None,
    )


def splink_weights(model, cases, task):
    """The match weight of every case, in bits."""
    linker = splink_linker(part_of(task, "splink_tables")(cases), model)
    scored = linker.inference.predict(warning_mode="never").as_pandas_dataframe()
    return scored.set_index("unique_id_l")["match_weight"].loc[range(len(cases))].to_numpy(float)


def fit_verdicts(weights, y, task):
    """A function from match weights to probabilities under which a heavier pair is never less of a match.

    One isotonic curve for each "this verdict or a stronger one"; the verdicts' probabilities are the steps between the
    curves. On 2,000 synthetic validation rows: 0.900 right, log loss 0.281, ECE 0.009; with a logistic regression on
    the weight 0.868, 0.345, 0.049.
    """
    import numpy as np
    from sklearn.isotonic import IsotonicRegression

    order = [task.verdict.labels.index(label) for label in part_of(task, "VERDICTS_BY_WEIGHT")]
    curves = [
        IsotonicRegression(out_of_bounds="clip").fit(weights, np.isin(y, order[:n])) for n in range(1, len(order))
    ]
    shares = np.bincount(y, minlength=len(order)) / len(y)

    def to_verdicts(weights):
        upto = [np.zeros(len(weights)), *(curve.predict(weights) for curve in curves), np.ones(len(weights))]
        steps = np.empty((len(weights), len(order)))
        steps[:, order] = np.maximum(np.diff(upto, axis=0), 0).T
        # A step may be 0 because few rows were seen there, which is no proof that the verdict is impossible.
        return 0.99 * steps + 0.01 * shares

    return to_verdicts


def print_table(made, skipped, out):
    from scoring.kpis import shown

    for name, (kpis, rows_per_s) in made.items():
        print(
            f"  {name:<9} accuracy {shown(kpis['accuracy'])}  macro-F1 {shown(kpis['macro_f1'])}  {rows_per_s:,.0f} "
            "rows/s"
        )
    for name, reason in skipped.items():
        print(f"  {name:<9} skipped: {reason}")
    if made:
        print(f"all KPIs in {out}/baseline_<name>_metrics.json")
