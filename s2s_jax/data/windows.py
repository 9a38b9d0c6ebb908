"""Windows of series: what is known when a forecast is made, what came after, and the range that both are brought to."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Scaling = Literal["none", "last", "mean", "standard"]


class Window(NamedTuple):
    """What is known when a forecast is made.

    Attributes:
      past: the series themselves [B, L, C].
      past_covariates: [B, L, F]; those that are known ahead come first.
      future_covariates: [B, H, K] of the K <= F that are known ahead.
      static: [B, S], constant in time.
    """

    past: Float[Array, "B L C"]
    past_covariates: Float[Array, "B L F"]
    future_covariates: Float[Array, "B H K"]
    static: Float[Array, "B S"]


class Truth(NamedTuple):
    """What came after, and where it and the past were observed."""

    future: Float[Array, "B H C"]
    observed: Bool[Array, "B H C"]
    past_observed: Bool[Array, "B L C"]


class Table(NamedTuple):
    """All steps of some series, of which windows are cut.

    Attributes:
      values, observed: [T, C].
      covariates: [T, F], of which the first `known` are known ahead.
      known: K.
      static: [C, S], what is known of each series itself; None for nothing.
    """

    values: Float[np.ndarray, "T C"]
    observed: Bool[np.ndarray, "T C"]
    covariates: Float[np.ndarray, "T F"]
    known: int
    static: Float[np.ndarray, "C S"] | None = None


class Scaler(NamedTuple):
    """Mean and deviation [C] of the training part; a series that stands still there has deviation 1."""

    mean: Float[np.ndarray, " C"]
    deviation: Float[np.ndarray, " C"]

    def into(self, values: np.ndarray) -> np.ndarray:
        return ((values - self.mean) / self.deviation).astype(np.float32)

    def back(self, values: np.ndarray) -> np.ndarray:
        return values * self.deviation + self.mean

    def of(self, columns: Sequence[int]) -> "Scaler":
        """Of some of the series."""
        return Scaler(self.mean[list(columns)], self.deviation[list(columns)])


def fit_scaler(values: Float[np.ndarray, "T C"], observed: Bool[np.ndarray, "T C"]) -> Scaler:
    """Of the values that were observed; the deviation is that of the population, as in scikit-learn's StandardScaler.

    Raises:
      ValueError: a series of which none was observed, by its number.
    """
    if not observed.any(axis=0).all():
        raise ValueError(
            f"observed: expected a value of every series, got none of number {int((~observed.any(axis=0)).argmax())}"
        )
    there = np.where(observed, values, np.nan)
    mean, deviation = np.nanmean(there, axis=0), np.nanstd(there, axis=0)
    # What is left of a constant is rounding.
    return Scaler(mean, np.where(deviation > 10 * np.finfo(np.float64).eps * np.abs(mean), deviation, 1.0))


def origins_of(begin: int, end: int, length: int, horizon: int) -> Int[np.ndarray, " N"]:
    """The first steps ahead of all windows whose futures lie in steps `begin` to `end`; the past may lie before.

    Raises:
      ValueError: there are none.
    """
    first = max(begin, length)
    if end - horizon < first:
        expected = f"room for a look-back of {length} and a horizon of {horizon}"
        raise ValueError(f"look_back, horizon: expected {expected}, got steps {begin} to {end}")
    return np.arange(first, end - horizon + 1, dtype=np.int32)


def cut(table: Table, origins: Int[Array, " B"], length: int, horizon: int) -> tuple[Window, Truth]:
    """The windows before `origins`, and what came after.

    Args:
      table: arrays in it may be NumPy's; under `jit` they become constants.
      origins: the first step ahead of each; not checked, see `origins_of`.
      length, horizon: L and H.
    """
    origins = jnp.asarray(origins)
    before, after = origins[:, None] + jnp.arange(-length, 0), origins[:, None] + jnp.arange(horizon)
    values, observed, covariates = (jnp.asarray(leaf) for leaf in table[:3])
    static = jnp.zeros((len(origins), 0), values.dtype)
    window = Window(values[before], covariates[before], covariates[after][..., : table.known], static)
    return window, Truth(values[after], observed[after], observed[before])


def split_series(window: Window, truth: Truth, static: Float[np.ndarray, "C S"] | None = None) -> tuple[Window, Truth]:
    """Each series of each row in a row of its own [B * C, L, 1]; its `static` tells a network which it is, one-hot, and what is
    known of it.
    """
    batch_size, _, series = window.past.shape
    past, future = (jnp.repeat(leaf, series, axis=0) for leaf in (window.past_covariates, window.future_covariates))
    which = jnp.eye(series, dtype=window.past.dtype)
    if static is not None:
        which = jnp.concatenate([which, jnp.asarray(static, which.dtype)], axis=1)
    which = jnp.tile(which, (batch_size, 1))
    described = jnp.concatenate([jnp.repeat(window.static, series, axis=0), which], axis=1)
    return Window(_rows(window.past), past, future, described), Truth(*map(_rows, truth))


def _rows(x: Array) -> Array:
    return jnp.swapaxes(x, 1, 2).reshape(x.shape[0] * x.shape[2], x.shape[1], 1)


def merge_series(x: Float[Array, "*S BC H 1"], series: int) -> Float[Array, "*S B H C"]:
    """What was said of rows that are `split_series`, by window again."""
    return jnp.swapaxes(x.reshape(*x.shape[:-3], x.shape[-3] // series, series, x.shape[-2]), -1, -2)


def scaling_of(past: Float[Array, "B L C"], how: Scaling) -> tuple[Float[Array, "B 1 C"], Float[Array, "B 1 C"]]:
    """What a window is moved and divided by.

    Args:
      past: its values.
      how: "none"; "last", less its last value (Zeng et al., arXiv 2205.13504, NLinear); "mean", over 1 + its mean size
        (Salinas et al., arXiv 1704.04110, section 3.3); "standard", less its mean and over its deviation, whose square is taken
        1e-5 greater (Kim et al., "Reversible instance normalization", ICLR 2022, without its learned weights).

    Raises:
      ValueError: another way.
    """
    nothing = jnp.zeros_like(past[:, :1])
    if how == "last":
        return past[:, -1:], nothing + 1
    if how == "mean":
        return nothing, 1 + jnp.mean(jnp.abs(past), axis=1, keepdims=True)
    if how == "standard":
        return jnp.mean(past, axis=1, keepdims=True), jnp.sqrt(jnp.var(past, axis=1, keepdims=True) + 1e-5)
    if how != "none":
        raise ValueError(f"window_scaling: expected none, last, mean or standard, got {how!r}")
    return nothing, nothing + 1
