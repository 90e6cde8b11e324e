"""Shares of summed counts: the one form in which every KPI that is a percentage is written down.

Such a KPI is an entry of a dictionary, name -> (what it means, the count that is its part, the count that is its
whole): the shares of valid answers and a task's own AGGREGATES alike.
"""


def ratio(part, whole):
    """part / whole, NaN where there is nothing to divide by."""
    import numpy as np

    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def percentages(aggregates, sums):
    """KPI -> (values in percent, n, what it means) over column sums."""
    return {
        name: (100 * ratio(sums[part], sums[whole]), sums[whole], what)
        for name, (what, part, whole) in aggregates.items()
    }
