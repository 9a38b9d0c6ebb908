"""Lengths and masks of right-padded sequences. A mask is a bool array, True = valid, everywhere."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped


def check_lengths(lengths: Any, batch_size: int, time: int, name: str = "lengths") -> Int[Array, " B"]:
    """Returns `lengths` as int32 [B] within 0..time.

    Concrete lengths outside that range are an error; traced ones cannot be looked at and are clipped into it.

    Raises:
      TypeError: lengths are not integers.
      ValueError: wrong shape, or a concrete length that is negative or above `time`.
    """
    if not isinstance(lengths, jax.Array):
        listed = isinstance(lengths, list | tuple)
        traced = listed and any(isinstance(length, jax.core.Tracer) for length in lengths)
        # An empty list has no dtype of its own.
        lengths = jnp.stack(lengths) if traced else np.asarray(lengths, int if listed and not lengths else None)
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
    # Clipped in their own dtype, before the cast: neither a 64-bit length nor T itself (300 as uint8) may wrap round.
    lengths = jnp.maximum(lengths, 0)
    if time < jnp.iinfo(lengths.dtype).max:
        lengths = jnp.minimum(lengths, time)
    return lengths.astype(jnp.int32)


def check_ids(ids: Any, vocabulary_size: int, name: str, mask: Any = None) -> None:
    """Raises where concrete ids, at the positions where `mask` is True, are outside 0..V-1; traced ones cannot be looked at.

    Raises:
      TypeError: ids are not integers.
      ValueError: an id outside the vocabulary.
    """
    if not isinstance(ids, jax.Array):
        ids = np.asarray(ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"{name}: expected integers, got dtype {ids.dtype}")
    if isinstance(ids, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
        return
    values = np.asarray(ids)
    wrong = (values < 0) | (values >= vocabulary_size)
    if mask is not None:
        wrong &= np.asarray(mask)
    if wrong.any():
        raise ValueError(f"{name}: expected ids from 0 to {vocabulary_size - 1}, got {int(values[wrong][0])}")


def length_mask(lengths: Int[Array, " B"], time: int) -> Bool[Array, "B T"]:
    """True at the first `lengths[b]` of `time` positions of each row."""
    return jnp.arange(time)[None, :] < jnp.asarray(lengths)[:, None]


def where_valid(valid: Bool[Array, " B"], x: Shaped[Array, "B ..."], otherwise: Shaped[Array, "..."]) -> Shaped[Array, "B ..."]:
    """`x` in the rows that are valid, `otherwise` in the rest; `valid` is broadcast over the trailing axes."""
    return jnp.where(valid.reshape(valid.shape + (1,) * (x.ndim - valid.ndim)), x, otherwise)


def check_tokens(
    tokens: Any, lengths: Any, vocabulary_size: int, name: str = "tokens", lengths_name: str = "lengths"
) -> Int[Array, " B"] | None:
    """The lengths of symbols [B, T] as of `check_lengths`, None of none; the symbols are checked too, see `check_ids`.

    Raises:
      TypeError: symbols or lengths are not integers.
      ValueError: symbols that are not [B, T]; what `check_lengths` and `check_ids` raise.
    """
    if tokens.ndim != 2:
        raise ValueError(f"{name}: expected [B, T], got {tokens.shape}")
    if lengths is not None:
        lengths = check_lengths(lengths, tokens.shape[0], tokens.shape[1], name=lengths_name)
    check_ids(tokens, vocabulary_size, name, None if lengths is None else length_mask(lengths, tokens.shape[1]))
    return lengths


def reverse_sequence(xs: Shaped[Array, "B T ..."], lengths: Int[Array, " B"] | None = None) -> Shaped[Array, "B T ..."]:
    """Each row's valid part back to front; the padding stays where it is. Lengths as in `check_lengths`."""
    if lengths is None:
        return jnp.flip(xs, axis=1)
    lengths = check_lengths(lengths, xs.shape[0], xs.shape[1])
    t = jnp.arange(xs.shape[1])[None, :]
    return _take(xs, jnp.where(t < lengths[:, None], lengths[:, None] - 1 - t, t))


def double_sequence(
    xs: Shaped[Array, "B T ..."], lengths: Int[Array, " B"] | None = None
) -> tuple[Shaped[Array, "B 2T ..."], Int[Array, " B"] | None]:
    """Each row's valid part twice in a row, [B, 2T], and the doubled lengths (Zaremba & Sutskever, arXiv 1410.4615, 3.3)."""
    if lengths is None:
        return jnp.concatenate([xs, xs], axis=1), None
    lengths = check_lengths(lengths, xs.shape[0], xs.shape[1])
    t = jnp.arange(2 * xs.shape[1])[None, :]
    wrapped = t % jnp.maximum(lengths, 1)[:, None]
    # The padding of the result is the padding of the source, so that nothing valid is seen in it.
    return _take(xs, jnp.where(t < 2 * lengths[:, None], wrapped, t // 2)), 2 * lengths


def shift_right(targets: Int[Array, "B T"], start: int) -> Int[Array, "B T"]:
    """The symbol before each of the targets', `start` before the first: what a decoder reads to predict them."""
    return jnp.concatenate([jnp.full_like(targets[:, :1], start), targets[:, :-1]], axis=1)


def _take(xs: Shaped[Array, "B T ..."], index: Int[Array, "B S"]) -> Shaped[Array, "B S ..."]:
    return jnp.take_along_axis(xs, index.reshape(index.shape + (1,) * (xs.ndim - 2)), axis=1)
