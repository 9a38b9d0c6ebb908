"""Metrics as sums and counts, so that batches of any size add up and padding biases nothing."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Mean(NamedTuple):
    """A mean still in two parts: add the parts of several batches up, then divide."""

    total: Any  # a scalar: of JAX, or Python's own
    count: Any

    def __add__(self, other: "Mean") -> "Mean":  # type: ignore[override]
        return Mean(self.total + other.total, self.count + other.count)

    def value(self) -> float:
        """Total / count; nan where nothing was counted."""
        return float(self.total) / float(self.count) if self.count else float("nan")

    def loss(self) -> Any:
        """Total / count as a loss, under `jit` too; 0, with gradients of 0, where nothing was counted."""
        return self.total / jnp.maximum(self.count, 1)


def mean_over(values: Float[Array, "*N"], mask: Bool[Array, "*N"] | None = None) -> Mean:
    """Sum and number of the values where `mask` is True."""
    values = jnp.asarray(values)
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    if mask is None:
        return Mean(jnp.sum(values), jnp.asarray(values.size, values.dtype))
    if mask.shape != values.shape:
        raise ValueError(f"mask: expected shape {values.shape}, got {mask.shape}")
    return Mean(jnp.sum(jnp.where(mask, values, 0)), jnp.sum(mask, dtype=values.dtype))


def token_accuracy(predicted: Int[Array, "B T"], targets: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> Mean:
    """Share of valid positions where the predicted symbol is the target's: accuracy per symbol."""
    _check_shapes(predicted, targets)
    return mean_over(predicted == targets, mask)


def exact_match(
    predicted: Int[Array, "B T"],
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    rows: Bool[Array, " B"] | None = None,
) -> Mean:
    """Share of rows whose valid positions are all right: accuracy per sequence.

    `rows` says which rows count; without it, those with a valid position.
    """
    _check_shapes(predicted, targets)
    return mean_over(jnp.all((predicted == targets) | ~mask, axis=-1), jnp.any(mask, axis=-1) if rows is None else rows)


def _check_shapes(predicted: Array, targets: Array) -> None:
    if predicted.shape != targets.shape:
        raise ValueError(f"predicted: expected the shape of targets, {targets.shape}, got {predicted.shape}")
