"""Metrics as sums and counts: padding and last batches bias nothing, and each name says what is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2s_jax.metrics import Mean, exact_match, mean_over, token_accuracy

PREDICTED = np.array([[3, 4, 2, 0], [3, 4, 2, 0], [5, 2, 0, 0], [9, 9, 9, 9]])
TARGETS = np.array([[3, 4, 2, 0], [3, 5, 2, 0], [5, 2, 7, 7], [1, 1, 1, 1]])
MASK = np.array([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], bool)


def test_accuracy_of_symbols_and_exact_match_are_different_things():
    symbols = token_accuracy(PREDICTED, TARGETS, MASK)
    assert (float(symbols.total), float(symbols.count)) == (7, 8)
    rows = exact_match(PREDICTED, TARGETS, MASK, np.array([True, True, True, False]))
    assert (float(rows.total), float(rows.count)) == (2, 3)


def test_a_row_without_a_valid_symbol_is_neither_right_nor_wrong():
    rows = exact_match(PREDICTED, TARGETS, MASK)
    assert (float(rows.total), float(rows.count)) == (2, 3)


@pytest.mark.parametrize("metric", [token_accuracy, exact_match])
def test_agrees_with_a_slow_loop_and_ignores_the_padding(metric):
    rng = np.random.default_rng(0)
    predicted, targets = rng.integers(2, size=(2, 30, 5))
    lengths = rng.integers(1, 6, 30)
    mask = np.arange(5)[None] < lengths[:, None]
    pairs = [[p == t for p, t in zip(predicted[b, :n], targets[b, :n], strict=True)] for b, n in enumerate(lengths)]
    flat = [right for row in pairs for right in row] if metric is token_accuracy else [all(row) for row in pairs]
    got = jax.jit(metric)(predicted, targets, mask)
    assert got.value() == pytest.approx(np.mean(flat), rel=1e-6)
    assert got.count == len(flat)
    wider = [np.pad(a, ((0, 0), (0, 3)), constant_values=v) for a, v in ((predicted, 1), (targets, 0), (mask, False))]
    assert metric(*wider) == got


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10, 30])
def test_batches_of_any_size_give_the_value_of_the_whole_split(batch_size):
    rng = np.random.default_rng(1)
    values, mask = rng.normal(size=10).astype(np.float32), rng.random(10) < 0.7
    total = Mean(jnp.float32(0), jnp.float32(0))
    for start in range(0, 10, batch_size):
        # The last batch is filled up with rows that do not count.
        rows = np.arange(start, start + batch_size)
        total = total + mean_over(values[rows % 10], mask[rows % 10] & (rows < 10))
    assert total.value() == pytest.approx(values[mask].mean(), rel=1e-5)
    assert total.count == mask.sum()


def test_nothing_counted_is_nan_and_not_zero():
    assert np.isnan(mean_over(np.ones(3), np.zeros(3, bool)).value())
    assert np.isnan(mean_over(np.ones(0)).value())
    assert mean_over(np.array([np.nan, 2.0]), np.array([False, True])).value() == 2


def test_without_a_mask_all_values_count():
    assert mean_over(np.array([[1, 2], [3, 6]])).value() == 3
    assert mean_over(np.array([True, False, False, True])).value() == 0.5


@pytest.mark.parametrize("metric", [token_accuracy, exact_match])
def test_predictions_of_another_shape_are_refused(metric):
    with pytest.raises(ValueError, match=r"predicted: expected the shape of targets, \(4, 4\), got \(4, 1\)"):
        metric(PREDICTED[:, :1], TARGETS, MASK)


@pytest.mark.parametrize(
    "call",
    [
        lambda: mean_over(np.ones(3), np.ones((3, 1), bool)),
        lambda: token_accuracy(PREDICTED, TARGETS, MASK[:, :3]),
        lambda: exact_match(PREDICTED, TARGETS, MASK, np.ones((4, 4), bool)),
    ],
)
def test_a_mask_of_another_shape_is_refused(call):
    with pytest.raises(ValueError, match=r"mask: expected shape \(.*\), got"):
        call()


def test_means_in_float64_are_exact_to_it(float64):
    """Each value is off from one by what float32 cannot hold."""
    values = jnp.full(1000, 1 + 1e-12, jnp.float64)
    mean = mean_over(values, jnp.arange(1000) % 3 == 0)
    assert mean.total.dtype == mean.count.dtype == jnp.float64
    assert mean.value() == pytest.approx(1 + 1e-12, abs=1e-15)


def test_a_loss_is_the_mean_and_nothing_where_nothing_was_counted():
    values = jnp.array([1.0, 2.0, 6.0])
    for mask, mean, slope in (([True, False, True], 3.5, 0.5), ([False] * 3, 0.0, 0.0)):
        found, gradient = jax.value_and_grad(lambda x, mask=mask: mean_over(x, np.array(mask)).loss())(values)
        assert float(found) == mean
        np.testing.assert_array_equal(gradient, slope * np.array(mask))
