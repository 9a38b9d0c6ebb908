"""Batches of arrays in memory, as a pure function of seed and step."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


class ShuffledBatches:
    """The batch of each training step: epoch after epoch, each in an order of its own, none of it dropped.

    A batch at the border of two epochs takes from both. The order of an epoch depends on the seed and its number only, so a
    run can go on at any step.

    Args:
      arrays: a pytree of arrays [N, ...].
      batch_size: examples in a batch.
      seed: of the orders.

    Raises:
      ValueError: no examples, or arrays of different N.
    """

    def __init__(self, arrays: Any, batch_size: int, seed: int = 0):
        self._arrays = arrays
        self._count = _count(arrays)
        _check_batch_size(batch_size)
        self._batch_size = batch_size
        self._seed = seed
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def __call__(self, step: int) -> Any:
        """The batch of a step, counted from 0."""
        places = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        rows = [
            self._order(int(epoch))[places[places // self._count == epoch] % self._count]
            for epoch in _epochs(places, self._count)
        ]
        chosen = np.concatenate(rows)
        return jax.tree.map(lambda array: array[chosen], self._arrays)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch)).permutation(self._count)


def evaluation_batches(arrays: Any, batch_size: int) -> Iterator[tuple[Any, np.ndarray]]:
    """All examples in order, in batches of one shape, each with a mask [batch_size] of the rows that count.

    The last batch is filled up with copies of the first example, where the mask is False.
    """
    count = _count(arrays)
    _check_batch_size(batch_size)
    for start in range(0, count, batch_size):
        rows = np.arange(start, start + batch_size)
        counts = rows < count
        chosen = np.where(counts, rows, 0)
        yield jax.tree.map(lambda array, chosen=chosen: array[chosen], arrays), counts


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size: expected a positive number, got {batch_size}")


def _epochs(places: np.ndarray, count: int) -> range:
    return range(int(places[0] // count), int(places[-1] // count) + 1)


def _count(arrays: Any) -> int:
    counts = {len(array) for array in jax.tree.leaves(arrays)}
    if len(counts) != 1:
        raise ValueError(f"arrays: expected one number of examples, got {sorted(counts)}")
    (count,) = counts
    if count == 0:
        raise ValueError("arrays: expected at least one example, got none")
    return count
