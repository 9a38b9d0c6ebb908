"""Scores of forecasts beside closed forms, sums written out, and what is missing."""

import numpy as np
import pytest
from scipy import stats

from s2s_jax.forecast_metrics import coverage, crps, mae, mase, mse, seasonal_error, smape

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
    np.testing.assert_allclose(seasonal_error(training, 2), [3, 2])
    assert mase(FORECAST[:1], TRUTH[:1], seasonal_error(training, 2)) == pytest.approx(scaled.mean())
    np.testing.assert_allclose(seasonal_error(np.where(training == 9, np.nan, training), 2), [3, 0])
    with pytest.raises(ValueError, match="season: expected 1 to 3, got 4"):
        seasonal_error(training, 4)
    with pytest.raises(ValueError, match="error: expected positive numbers"):
        mase(FORECAST, TRUTH, seasonal_error(np.ones((4, 2)), 2))


def test_a_forecast_that_is_no_number_is_no_score():
    wrong = np.where(FORECAST == 1, np.nan, FORECAST)
    for score in (mse(wrong, TRUTH), mae(wrong, TRUTH), smape(wrong, TRUTH), mase(wrong, TRUTH, np.ones(2))):
        assert np.isnan(score)
    assert np.isnan(crps(np.stack([wrong, FORECAST]), TRUTH))
    assert np.isnan(coverage(wrong, FORECAST, TRUTH))
    unknown = np.where(np.isnan(TRUTH), np.nan, FORECAST)
    assert mae(unknown, TRUTH) == mae(FORECAST, TRUTH)


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


def test_intervals_hold_a_share_of_the_truth():
    assert coverage(FORECAST - 1, FORECAST + 1, TRUTH) == pytest.approx(5 / 7)
    assert coverage(TRUTH, TRUTH, TRUTH) == 1
