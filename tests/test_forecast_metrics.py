"""Scores of forecasts beside closed forms, sums written out, and what is missing."""

import numpy as np
import pytest
from scipy import stats

from s2s_jax.forecast_metrics import coverage, crps, mae, mase, mse, quantile_loss, smape

TRUTH = np.array([[[1.0, 0.0], [2.0, -1.0]], [[4.0, np.nan], [0.0, 3.0]]])
FORECAST = np.array([[[2.0, 0.0], [2.0, 1.0]], [[1.0, 9.0], [0.0, 2.0]]])


def test_errors_of_points_are_sums_over_what_there_is():
    errors = [1, 0, 0, 2, 3, 0, 1]  # seven values, one is missing
    assert mae(FORECAST, TRUTH) == pytest.approx(sum(errors) / 7)
    assert mse(FORECAST, TRUTH) == pytest.approx(sum(error**2 for error in errors) / 7)
    assert smape(FORECAST, TRUTH) == pytest.approx((2 * 1 / 3 + 0 + 0 + 2 * 2 / 2 + 2 * 3 / 5 + 0 + 2 * 1 / 5) / 7)
    assert np.isnan(mae(FORECAST, np.full_like(TRUTH, np.nan)))


def test_mase_is_one_where_the_error_is_that_of_the_season_before():
    training = np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 9.0], [5.0, 5.0]])  # a season of 2: errors 2 and 4; 4 and 0
    scaled = np.array([[1 / 3, 0], [0, 2 / 2]])
    assert mase(FORECAST[:1], TRUTH[:1], training, 2) == pytest.approx(scaled.mean())
    with pytest.raises(ValueError, match="season: expected 1 to 3, got 4"):
        mase(FORECAST, TRUTH, training, 4)
    with pytest.raises(ValueError, match="training: expected series that do not repeat"):
        mase(FORECAST, TRUTH, np.ones((4, 2)), 2)


def test_crps_of_many_samples_is_that_of_the_distribution():
    """Of a normal one s (z (2 F(z) - 1) + 2 f(z) - 1 / sqrt(pi)) (Gneiting & Raftery 2007, equation 5)."""
    rng, truth = np.random.default_rng(0), np.array([[[0.3, -2.0]]])
    place, width = np.array([0.0, 1.0]), np.array([1.0, 3.0])
    z = (truth - place) / width
    want = (width * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))).mean()
    samples = place + width * rng.normal(size=(200_000, 1, 1, 2))
    assert crps(samples, truth) == pytest.approx(want, rel=0.01)


def test_crps_of_few_samples_is_the_sum_over_pairs_and_unbiased():
    rng = np.random.default_rng(1)
    samples = rng.normal(size=(5, *TRUTH.shape))
    pairs = np.mean([np.abs(samples[i] - samples[j]) for i in range(5) for j in range(5) if i != j], axis=0)
    assert crps(samples, TRUTH) == pytest.approx(np.nanmean(np.abs(samples - TRUTH).mean(0) - pairs / 2))
    assert crps(samples[:1], TRUTH) == pytest.approx(mae(samples[0], TRUTH))


def test_quantiles_and_intervals():
    assert quantile_loss(FORECAST, TRUTH, 0.5) == pytest.approx(mae(FORECAST, TRUTH) / 2)
    # Too high by 1, 2; too low by 3 and by 1.
    assert quantile_loss(FORECAST, TRUTH, 0.9) == pytest.approx((0.1 * (1 + 2) + 0.9 * (3 + 1)) / 7)
    assert coverage(FORECAST - 1, FORECAST + 1, TRUTH) == pytest.approx(5 / 7)
    assert coverage(TRUTH, TRUTH, TRUTH) == 1
