"""What the finished model is worth on synthetic rows of the test pool, whose names and words training never saw."""

from constrained_decode import hf
from language_model import calibration as temperature
from scoring import calibration
from scoring.asking import in_order

VALIDATION_SEED = 90_001
HELD_OUT_SEED = 90_002


def held_out_scores(task, out, n_rows, config):
    """Temperature from validation rows, then accuracy and calibration on other rows; both of the held-out pool."""
    (out / temperature.FILE).unlink(missing_ok=True)
    engine = hf.load(str(out), task, config)
    validation = held_out_rows(task, n_rows, VALIDATION_SEED)
    fitted = temperature.store(
        out,
        verdicts(engine, task, validation),
        labels_of(validation, task),
        task.verdict.labels,
        f"{n_rows:,} synthetic pairs, seed {VALIDATION_SEED}, test pool",
    )
    engine.temperature = fitted["temperature"]
    held_out = held_out_rows(task, n_rows, HELD_OUT_SEED)
    found = scores_of(verdicts(engine, task, held_out), labels_of(held_out, task), task)
    return found | {"temperature": fitted["temperature"], "rows": n_rows}


def held_out_rows(task, n, seed):
    synthetic = task.module("synthetic")
    return list(synthetic.rows(n, seed, recipe=synthetic.Recipe(pool="test")))


def labels_of(rows, task):
    return [task.verdict.of(row["output"]) for row in rows]


def verdicts(engine, task, rows):
    return in_order(engine.verdicts([task.messages(row["input"]) for row in rows]), len(rows), "verdicts")


def scores_of(found, labels, task):
    """Accuracy, macro-F1, calibration error over ten bins, and log loss."""
    import numpy as np
    from sklearn.metrics import f1_score

    shares = np.array([[row[label] for label in task.verdict.labels] for row in found])
    truth = np.array([task.verdict.labels.index(label) for label in labels])
    predicted = shares.argmax(1)
    confidence = shares.max(1)
    gaps = calibration.gap_columns(calibration.equal_width_bins(confidence), confidence, predicted == truth)
    return {
        "accuracy": float(np.mean(predicted == truth)),
        "macro_f1": float(f1_score(truth, predicted, average="macro")),
        "ece": float(calibration.expected_error(gaps.sum(0)[None], len(truth))[0]),
        "log_loss": float(-np.mean(np.log(np.clip(shares[np.arange(len(truth)), truth], 1e-12, 1)))),
    }
