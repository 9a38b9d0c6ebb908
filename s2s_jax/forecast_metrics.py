"""How good forecasts are: of points, of samples, of intervals; all as plain functions of NumPy arrays.

`truth` and `forecast` are [N, H, C]: windows, steps ahead, series. What is not a number in `truth` counts nowhere.
"""

import numpy as np
from jaxtyping import Float

Values = Float[np.ndarray, "N H C"]
Samples = Float[np.ndarray, "S N H C"]


def mse(forecast: Values, truth: Values) -> float:
    """Mean squared error, in squared units of the values."""
    return _mean((forecast - truth) ** 2)


def mae(forecast: Values, truth: Values) -> float:
    """Mean absolute error, in units of the values."""
    return _mean(np.abs(forecast - truth))


def smape(forecast: Values, truth: Values) -> float:
    """Symmetric percentage error 2 |f - y| / (|f| + |y|), 0 to 2; 0 where both are 0 (M4, Makridakis et al. 2020)."""
    size = np.abs(forecast) + np.abs(truth)
    return _mean(np.where(size == 0, 0, 2 * np.abs(forecast - truth) / np.where(size == 0, 1, size)))


def mase(forecast: Values, truth: Values, training: Float[np.ndarray, "T C"], season: int) -> float:
    """Absolute error over that of the seasonal naive forecast within the training part (Hyndman & Koehler 2006).

    Raises:
      ValueError: a season that is not positive, or no shorter than the training part; a training part that repeats exactly.
    """
    if not 0 < season < len(training):
        raise ValueError(f"season: expected 1 to {len(training) - 1}, got {season}")
    naive = np.nanmean(np.abs(training[season:] - training[:-season]), axis=0)
    if np.any(naive == 0):
        raise ValueError("training: expected series that do not repeat exactly after a season, by whose error is divided")
    return _mean(np.abs(forecast - truth) / naive)


def crps(samples: Samples, truth: Values) -> float:
    """Continuous ranked probability score E|X - y| - E|X - X'| / 2 of samples, the unbiased estimate, in units of the values.

    Of one sample it is the absolute error. (Gneiting & Raftery 2007, equation 21; Zamo & Naveau 2018 on the estimate.)
    """
    count = len(samples)
    apart = np.mean(np.abs(samples - truth), axis=0)
    if count > 1:
        # sum_ij |x_i - x_j| = 2 sum_i (2 i - count + 1) x_(i) over the sorted samples.
        weights = 2 * np.arange(count) - count + 1
        spread = np.tensordot(weights, np.sort(samples, axis=0), 1)
        apart = apart - spread / (count * (count - 1))
    return _mean(apart)


def quantile_loss(forecast: Values, truth: Values, level: float) -> float:
    """Mean of max(q (y - f), (q - 1) (y - f)) for the quantile of `level` q."""
    error = truth - forecast
    return _mean(np.maximum(level * error, (level - 1) * error))


def coverage(low: Values, high: Values, truth: Values) -> float:
    """Share of true values inside of their interval, bounds included."""
    inside = ((low <= truth) & (truth <= high)).astype(float)
    return _mean(np.where(np.isnan(truth), np.nan, inside))


def _mean(values: np.ndarray) -> float:
    valid = ~np.isnan(values)
    return float(values[valid].mean()) if valid.any() else float("nan")
