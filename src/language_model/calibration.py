"""Probabilities that mean what they say: one temperature, fitted on validation rows and stored with the model."""

import math
from pathlib import Path

from common import UserError, read_json, write_json

FILE = "calibration.json"
LEAST_ROWS = 50  # fewer say nothing about a temperature
RANGE = (0.2, 5.0)


def stored_temperature(folder):
    """The temperature kept in a model's folder; 1 where there is none, so that raw probabilities are shown."""
    path = Path(folder) / FILE
    if not path.is_file():
        return 1.0
    facts = read_json(path)
    value = facts.get("temperature") if isinstance(facts, dict) else None
    if not isinstance(value, int | float) or not RANGE[0] <= value <= RANGE[1]:
        raise UserError(
            f"{path}: temperature {value!r} is not a number from {RANGE[0]} to {RANGE[1]}; fit it again or remove the "
            "file"
        )
    return float(value)


def fit_temperature(probabilities, truth):
    """The temperature under which the rows' own labels are likeliest; each row of probabilities in the order of truth's
    numbers.

    Of n rows that are all right one more may still be wrong: each label is taken for sure but for 1 in n + 2 (Platt),
    or rows without a mistake would be certain beyond all bounds.
    """
    import numpy as np
    from scipy.optimize import minimize_scalar

    logits = np.log(np.clip(np.asarray(probabilities, dtype=float), 1e-12, 1))
    known = np.eye(logits.shape[1])[np.asarray(truth)]
    doubt = 1 / (len(truth) + 2)
    doubted = known * (1 - doubt) + doubt / logits.shape[1]

    def loss(log_temperature, targets):
        scaled = logits / math.exp(log_temperature)
        return float(np.mean(np.logaddexp.reduce(scaled, axis=1) - (targets * scaled).sum(1)))

    found = minimize_scalar(loss, args=(doubted,), bounds=tuple(map(math.log, RANGE)), method="bounded")
    return math.exp(found.x), loss(0.0, known), loss(found.x, known)


def store(folder, probabilities, labels, names, rows_from):
    """Fit and keep the temperature; the facts of the fit, None where there were too few rows."""
    if len(labels) < LEAST_ROWS:
        return None
    temperature, before, after = fit_temperature(
        [[row[name] for name in names] for row in probabilities], [names.index(label) for label in labels]
    )
    facts = {
        "temperature": round(temperature, 4),
        "rows": len(labels),
        "fitted_on": rows_from,
        "log_loss_before": round(before, 5),
        "log_loss_after": round(after, 5),
    }
    write_json(Path(folder) / FILE, facts)
    return facts
