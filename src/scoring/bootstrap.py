"""The bootstrap: between which bounds a figure lies when the rows are drawn again."""

SEED = 7


def resamples(n_rows, n_resamples, at_once):
    """Row weights of resampled data, `at_once` resamples a matrix: how often each row was drawn."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    for _ in range(0, n_resamples, at_once):
        weights = rng.multinomial(n_rows, np.full(n_rows, 1 / n_rows), size=at_once)
        yield weights.astype(float)  # integers would miss the fast matrix product


def with_interval(value, resampled):
    """A value and its 95 % interval; None where there is nothing to measure."""
    import numpy as np

    if np.isnan(value):
        return {"value": None, "ci95": None}
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return {"value": round(float(value), 6), "ci95": [round(float(low), 6), round(float(high), 6)]}
