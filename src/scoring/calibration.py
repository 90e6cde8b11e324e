"""Expected calibration error: how far apart a share and its truth are, over bins of alike shares."""

from scoring.ratios import ratio

N_BINS = 10


def equal_width_bins(shares):
    """The bin of each share when the bins are equally wide."""
    import numpy as np

    return np.clip((np.asarray(shares) * N_BINS).astype(int), 0, N_BINS - 1)


def equal_mass_bins(shares):
    """The bin of each share when bins hold equally many rows, as nearly as equal shares, which stay together, allow."""
    import numpy as np

    edges = np.quantile(shares, np.arange(1, N_BINS) / N_BINS)
    return np.searchsorted(edges, shares, side="right")


def gap_columns(bins, shares, truth):
    """One column a bin: how far each row's truth is above its share."""
    import numpy as np

    return np.eye(N_BINS)[bins] * (np.asarray(truth, float) - shares)[:, None]


def expected_error(gap_sums, n):
    """ECE of summed gap columns, one row a resample; NaN where no row has a share."""
    import numpy as np

    return ratio(np.abs(gap_sums).sum(1), n)
