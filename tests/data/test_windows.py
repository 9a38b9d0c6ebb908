"""Windows of series: what is in them, series split_series and merge_series again, and ranges."""

import jax
import numpy as np
import pytest

from s2s_jax.data.windows import Table, cut, fit_scaler, merge_series, origins_of, scaling_of, split_series
from tests.samples import assert_close

T, C, F, K, L, H = 30, 3, 4, 2, 5, 2
RNG = np.random.default_rng(0)
TABLE = Table(
    RNG.normal(size=(T, C)).astype(np.float32),
    RNG.random((T, C)) < 0.8,
    RNG.normal(size=(T, F)).astype(np.float32),
    K,
)
ORIGINS = np.array([5, 11, 28], np.int32)


def test_a_window_is_what_lies_before_its_origin():
    window, truth = jax.jit(lambda origins: cut(TABLE, origins, L, H))(ORIGINS)
    for row, origin in enumerate(ORIGINS):
        before, after = slice(origin - L, origin), slice(origin, origin + H)
        np.testing.assert_array_equal(window.past[row], TABLE.values[before])
        np.testing.assert_array_equal(window.past_covariates[row], TABLE.covariates[before])
        np.testing.assert_array_equal(window.future_covariates[row], TABLE.covariates[after, :K])
        np.testing.assert_array_equal(truth.future[row], TABLE.values[after])
        np.testing.assert_array_equal(truth.observed[row], TABLE.observed[after])
        np.testing.assert_array_equal(truth.past_observed[row], TABLE.observed[before])
    assert window.static.shape == (3, 0)


def test_series_apart_are_rows_and_come_together_again():
    window, truth = cut(TABLE, ORIGINS, L, H)
    alone, came = split_series(window, truth)
    for row in range(3):
        for series in range(C):
            at = row * C + series
            np.testing.assert_array_equal(alone.past[at, :, 0], window.past[row, :, series])
            np.testing.assert_array_equal(alone.past_covariates[at], window.past_covariates[row])
            np.testing.assert_array_equal(alone.future_covariates[at], window.future_covariates[row])
            np.testing.assert_array_equal(alone.static[at], np.eye(C)[series])
            np.testing.assert_array_equal(came.observed[at, :, 0], truth.observed[row, :, series])
    known = np.arange(2 * C).reshape(C, 2)
    described, _ = split_series(window, truth, known)
    for at in range(3 * C):
        np.testing.assert_array_equal(described.static[at], [*np.eye(C)[at % C], *known[at % C]])
    np.testing.assert_array_equal(merge_series(came.future, C), truth.future)
    several = np.stack([came.future, 2 * came.future])
    np.testing.assert_array_equal(merge_series(several, C), np.stack([truth.future, 2 * truth.future]))


@pytest.mark.parametrize(
    ("begin", "end", "first", "last"),
    [(0, 30, 5, 28), (10, 20, 10, 18), (3, 7, 5, 5)],
)
def test_every_future_lies_within_its_part(begin, end, first, last):
    origins = origins_of(begin, end, L, H)
    np.testing.assert_array_equal(origins, np.arange(first, last + 1))


def test_a_part_without_a_window_is_an_error():
    with pytest.raises(ValueError, match="look_back, horizon: expected room for a look-back of 5 and a horizon of 2, got"):
        origins_of(3, 6, L, H)


def test_standard_values_are_those_of_what_was_observed():
    standard = fit_scaler(TABLE.values, TABLE.observed)
    for series in range(C):
        there = TABLE.values[TABLE.observed[:, series], series]
        assert_close(standard.into(TABLE.values)[:, series], (TABLE.values[:, series] - there.mean()) / there.std(), 1e-5)
    assert_close(standard.back(standard.into(TABLE.values)), TABLE.values, 1e-5)
    assert_close(standard.of([2]).into(TABLE.values[:, 2:]), standard.into(TABLE.values)[:, 2:], 0)
    still = fit_scaler(np.full((8640, 1), 0.1), np.ones((8640, 1), bool))  # whose deviation is not quite 0 by rounding
    assert_close(still.into(np.array([[0.1], [0.2]])) + 1, np.array([[1.0], [1.1]]), 1e-6)
    with pytest.raises(ValueError, match="observed: expected a value of every series, got none of number 1"):
        fit_scaler(TABLE.values, TABLE.observed & [True, False, True])


def test_ranges():
    past = cut(TABLE, ORIGINS, L, H)[0].past
    zeros, ones = np.zeros((3, 1, C)), np.ones((3, 1, C))
    for how, loc, scale in (
        ("none", zeros, ones),
        ("last", past[:, -1:], ones),
        ("mean", zeros, 1 + np.abs(past).mean(1, keepdims=True)),
        ("standard", past.mean(1, keepdims=True), np.sqrt(past.var(1, keepdims=True) + 1e-5)),
    ):
        found = scaling_of(past, how)
        assert_close(found, (loc, scale), 1e-6)
    with pytest.raises(ValueError, match="window_scaling: expected none, last, mean or standard, got 'Last'"):
        scaling_of(past, "Last")
