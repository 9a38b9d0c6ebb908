"""Lengths and masks of right-padded sequences. A mask is a bool array, True = valid, everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped


def check_lengths(lengths: Int[Array, " B"], batch_size: int, time: int, name: str = "lengths") -> Int[Array, " B"]:
    """Returns `lengths` as int32 [B] within 0..time.

    Concrete lengths outside that range are an error; traced ones cannot be looked at and are clipped into it.

    Raises:
      TypeError: lengths are not integers.
      ValueError: wrong shape, or a concrete length that is negative or above `time`.
    """
    lengths = jnp.asarray(lengths) if not isinstance(lengths, (jax.Array, np.ndarray)) else lengths
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"{name}: expected integers [B], got dtype {lengths.dtype}")
    if lengths.shape != (batch_size,):
        raise ValueError(f"{name}: expected shape [B] = ({batch_size},), got {lengths.shape}")
    if not isinstance(lengths, jax.core.Tracer):
        values = np.asarray(lengths)
        wrong = np.flatnonzero((values < 0) | (values > time))
        if wrong.size:
            row = int(wrong[0])
            raise ValueError(f"{name}: expected values from 0 to T = {time}, got {int(values[row])} in row {row}")
    # Clipped before the cast: a large unsigned or 64-bit value must not wrap round.
    return jnp.clip(lengths, 0, time).astype(jnp.int32)


def length_mask(lengths: Int[Array, " B"], time: int) -> Bool[Array, "B T"]:
    """True at the first `lengths[b]` of `time` positions of each row."""
    return jnp.arange(time)[None, :] < jnp.asarray(lengths)[:, None]


def where_valid(valid: Bool[Array, " B"], x: Shaped[Array, "B ..."], otherwise: Shaped[Array, "..."]) -> Shaped[Array, "B ..."]:
    """`x` in the rows that are valid, `otherwise` in the rest; `valid` is broadcast over the trailing axes."""
    return jnp.where(valid.reshape(valid.shape + (1,) * (x.ndim - valid.ndim)), x, otherwise)


def reverse_sequence(xs: Shaped[Array, "B T ..."], lengths: Int[Array, " B"] | None = None) -> Shaped[Array, "B T ..."]:
    """Each row's valid part back to front; the padding stays where it is."""
    if lengths is None:
        return jnp.flip(xs, axis=1)
    t = jnp.arange(xs.shape[1])[None, :]
    return _take(xs, jnp.where(t < lengths[:, None], lengths[:, None] - 1 - t, t))


def double_sequence(
    xs: Shaped[Array, "B T ..."], lengths: Int[Array, " B"] | None = None
) -> tuple[Shaped[Array, "B 2T ..."], Int[Array, " B"] | None]:
    """Each row's valid part twice in a row, [B, 2T], and the doubled lengths (Zaremba & Sutskever, arXiv 1410.4615, 3.3)."""
    if lengths is None:
        return jnp.concatenate([xs, xs], axis=1), None
    t = jnp.arange(2 * xs.shape[1])[None, :]
    wrapped = t % jnp.maximum(lengths, 1)[:, None]
    # The padding of the result is the padding of the source, so that nothing valid is seen in it.
    return _take(xs, jnp.where(t < 2 * lengths[:, None], wrapped, t // 2)), 2 * lengths


def _take(xs: Shaped[Array, "B T ..."], index: Int[Array, "B S"]) -> Shaped[Array, "B S ..."]:
    return jnp.take_along_axis(xs, index.reshape(index.shape + (1,) * (xs.ndim - 2)), axis=1)
