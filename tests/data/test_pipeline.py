"""Batches as a pure function of seed and step."""

import collections

import numpy as np
import pytest

from s2s_jax.data.pipeline import ShuffledBatches, evaluation_batches


def arrays(count):
    return {"x": np.arange(count), "y": (10 * np.arange(count))[:, None]}


@pytest.mark.parametrize(("count", "batch_size"), [(10, 5), (10, 3), (7, 4), (3, 8), (1, 1), (1, 5)])
def test_every_example_comes_exactly_once_an_epoch(count, batch_size):
    batches = ShuffledBatches(arrays(count), batch_size, seed=3)
    epochs = 6
    # As many steps as make whole epochs; batches straddle their borders.
    seen = [batches(step) for step in range(count * epochs // np.gcd(count, batch_size) * 1)]
    assert all(batch["x"].shape == (batch_size,) for batch in seen)
    stream = np.concatenate([batch["x"] for batch in seen])
    for epoch in range(epochs):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))
    for batch in seen:
        np.testing.assert_array_equal(batch["y"][:, 0], 10 * batch["x"])


def test_a_batch_is_a_function_of_seed_and_step_only():
    first, again = ShuffledBatches(arrays(20), 6, seed=1), ShuffledBatches(arrays(20), 6, seed=1)
    in_order = [first(step)["x"].tolist() for step in range(12)]
    # Any order of asking, as a run that goes on asks.
    for step in (11, 0, 7, 3, 7):
        assert again(step)["x"].tolist() == in_order[step]
    other = ShuffledBatches(arrays(20), 6, seed=2)
    assert [other(step)["x"].tolist() for step in range(12)] != in_order


def test_epochs_have_orders_of_their_own():
    batches = ShuffledBatches(arrays(30), 30)
    orders = {tuple(batches(step)["x"].tolist()) for step in range(5)}
    assert len(orders) == 5
    assert tuple(range(30)) not in orders


def test_the_first_place_is_uniform():
    counts = collections.Counter(int(ShuffledBatches(arrays(4), 1, seed)(0)["x"][0]) for seed in range(400))
    assert min(counts.values()) > 60


@pytest.mark.parametrize(("count", "batch_size"), [(10, 5), (10, 4), (3, 8), (1, 1)])
def test_evaluation_counts_everything_once_in_order_and_in_one_shape(count, batch_size):
    batches = list(evaluation_batches(arrays(count), batch_size))
    assert all(batch["x"].shape == mask.shape == (batch_size,) and mask.dtype == bool for batch, mask in batches)
    assert np.concatenate([batch["x"][mask] for batch, mask in batches]).tolist() == list(range(count))
    assert len(batches) == -(-count // batch_size)


@pytest.mark.parametrize("make", [lambda x: ShuffledBatches(x, 2), lambda x: list(evaluation_batches(x, 2))])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": np.zeros(3), "y": np.zeros(4)}, r"arrays: expected one number of examples, got \[3, 4\]"),
        ({"x": np.zeros((0, 3))}, "arrays: expected at least one example, got none"),
        ({}, r"arrays: expected one number of examples, got \[\]"),
    ],
)
def test_bad_input_is_named(make, given, message):
    with pytest.raises(ValueError, match=message):
        make(given)


@pytest.mark.parametrize(
    "make", [lambda size: ShuffledBatches(arrays(3), size), lambda size: list(evaluation_batches(arrays(3), size))]
)
@pytest.mark.parametrize("batch_size", [0, -2])
def test_a_batch_needs_a_positive_size(make, batch_size):
    with pytest.raises(ValueError, match=f"batch_size: expected a positive number, got {batch_size}"):
        make(batch_size)
