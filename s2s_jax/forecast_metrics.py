"""How good forecasts are: of points, of samples, of intervals; all as plain functions of NumPy arrays.

`truth` and `forecast` are [N, H, C]: windows, steps ahead, series. What is not a number in `truth` counts nowhere; a forecast
that is none, where there is truth, makes the whole score none.
"""

import numpy as np
from jaxtyping import Float

Values = Float[np.ndarray, "N H C"]
Samples = Float[np.ndarray, "S N H C"]


def mse(forecast: Values, truth: Values) -> float:
    """Mean squared error, in squared units of the values."""
    return _mean((forecast - truth) ** 2, truth)


def mae(forecast: Values, truth: Values) -> float:
    """Mean absolute error, in units of the values."""
    return _mean(np.abs(forecast - truth), truth)


def smape(forecast: Values, truth: Values) -> float:
    """Symmetric percentage error 2 |f - y| / (|f| + |y|), 0 to 2; 0 where both are 0 (M4, Makridakis et al. 2020)."""
    size = np.abs(forecast) + np.abs(truth)
    return _mean(np.where(size == 0, 0, 2 * np.abs(forecast - truth) / np.where(size == 0, 1, size)), truth)


def seasonal_error(training: Float[np.ndarray, "T C"], season: int) -> Float[np.ndarray, " C"]:
    """Mean absolute error of the seasonal naive forecast within the training part, of each series.

    Raises:
      ValueError: a season that is not positive, or no shorter than the training part.
    """
    if not 0 < season < len(training):
        raise ValueError(f"season: expected 1 to {len(training) - 1}, got {season}")
    errors = np.abs(training[season:] - training[:-season])
    there = ~np.isnan(errors)
    return np.where(there, errors, 0).sum(0) / np.maximum(there.sum(0), 1)


def mase(forecast: Values, truth: Values, error: Float[np.ndarray, " C"]) -> float:
    """Absolute error over that of the seasonal naive forecast in training, `seasonal_error` (Hyndman & Koehler 2006).

    Raises:
      ValueError: an error that is not positive: of a series that repeats exactly there is no such score.
    """
    if not np.all(error > 0):
        raise ValueError(f"error: expected positive numbers, by which is divided, got {error}")
    return _mean(np.abs(forecast - truth) / error, truth)


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
    return _mean(apart, truth)


def coverage(low: Values, high: Values, truth: Values) -> float:
    """Share of true values inside of their interval, bounds included."""
    inside = ((low <= truth) & (truth <= high)).astype(float)
    return _mean(np.where(np.isnan(low) | np.isnan(high), np.nan, inside), truth)


def _mean(values: np.ndarray, truth: np.ndarray) -> float:
    valid = ~np.isnan(truth)
    return float(values[valid].mean()) if valid.any() else float("nan")
