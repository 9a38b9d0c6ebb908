"""Forecasts that learn little: what they repeat, and least squares beside NumPy's own."""

import numpy as np
import pytest

from s2s_jax.forecast_baselines import RIDGE, Linear, naive, seasonal_naive

PAST = np.arange(12.0).reshape(1, 6, 2)


def test_the_last_value_and_the_last_season_are_repeated():
    np.testing.assert_array_equal(naive(PAST, 3)[0], [[10, 11]] * 3)
    values = np.arange(20.0).reshape(10, 2)
    np.testing.assert_array_equal(seasonal_naive(values, np.array([5]), 5, 2)[0], values[[3, 4, 3, 4, 3]])
    np.testing.assert_array_equal(seasonal_naive(values, np.array([6, 9]), 2, 6), [values[[0, 1]], values[[3, 4]]])
    with pytest.raises(ValueError, match="season: expected 1 to 5 steps before the first origin, got 6"):
        seasonal_naive(values, np.array([5, 9]), 2, 6)


def test_least_squares_is_that_of_all_windows():
    rng = np.random.default_rng(0)
    values, length, horizon = np.cumsum(rng.normal(size=(60, 2)), axis=0), 4, 3
    inputs, outputs = [], []
    for series in range(2):
        for origin in range(length, 60 - horizon + 1):
            last = values[origin - 1, series]
            inputs.append([*(values[origin - length : origin, series] - last), 1])
            outputs.append(values[origin : origin + horizon, series] - last)
    # A ridge is as many more rows, of its root.
    ridge = np.sqrt(RIDGE * len(inputs)) * np.eye(length + 1)
    weights, *_ = np.linalg.lstsq(np.concatenate([inputs, ridge]), np.concatenate([outputs, np.zeros((length + 1, horizon))]))
    past = rng.normal(size=(5, length, 2))
    want = np.stack(
        [
            np.concatenate([past[..., series] - past[:, -1:, series], np.ones((5, 1))], 1) @ weights + past[:, -1:, series]
            for series in range(2)
        ],
        axis=-1,
    )
    np.testing.assert_allclose(Linear(values, length, horizon)(past), want, rtol=1e-8)
    with pytest.raises(ValueError, match="values: expected at least 7 steps, got 6"):
        Linear(values[:6], length, horizon)
