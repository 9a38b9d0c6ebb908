"""Convolutions and pooling along time over sequences whose lengths differ: what stands behind a length reaches nothing."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from s2s_jax.layers.keys import check_rngs
from s2s_jax.layers.regularization import BatchNorm
from s2s_jax.masks import check_lengths, length_mask


class Frames(NamedTuple):
    """Features [B, T, F], zero behind the lengths [B]; lengths are None where all positions are valid."""

    features: Float[Array, "B T F"]
    lengths: Int[Array, " B"] | None

    @property
    def mask(self) -> Bool[Array, "B T"] | None:
        return None if self.lengths is None else length_mask(self.lengths, self.features.shape[1])


class SequenceConvolution(nnx.Module):
    """y[t] = relu(norm(sum_i x[t + i - K // 2] kernel[i] + bias)), as many positions as there were, zeros outside of x.

    Args:
      in_features, features: of x and y.
      size: K, odd.
      batch_norm: over the valid positions, in place of the bias.
      stddev: of the kernel's normal draw; None: He et al.'s (arXiv 1502.01852).
      rngs: key `params` draws the parameters.

    Raises:
      ValueError: a size that is not odd, or a number that is not positive.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        size: int,
        *,
        batch_norm: bool = False,
        stddev: float | None = None,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        if size < 1 or size % 2 == 0:
            raise ValueError(f"size: expected an odd number, got {size}")
        if in_features < 1 or features < 1:
            raise ValueError(f"in_features, features: expected positive numbers, got {in_features} and {features}")
        init = jax.nn.initializers.he_normal() if stddev is None else jax.nn.initializers.normal(stddev)
        self.kernel = nnx.Param(init(rngs.params(), (size, in_features, features), jnp.float32))
        self.norm = BatchNorm(features) if batch_norm else None
        self.bias = None if batch_norm else nnx.Param(jnp.zeros(features, jnp.float32))

    def __call__(self, frames: Frames, *, training: bool = False, relu: bool = True) -> Frames:
        """`training`: whether batch norm goes by the batch, and learns from it; `relu=False` leaves the last step out."""
        return self._finished(convolve_sequence(frames.features, self.kernel[...]), frames.lengths, training, relu)

    def of_symbols(self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"] | None, *, training: bool = False) -> Frames:
        """What it gives of symbols one-hot, 0 to C - 1 for C features: a sum of rows of the kernel, many times faster.

        Any other symbol is all zeros, as it is one-hot.
        """
        kernel = self.kernel[...]
        size, symbols, features = kernel.shape
        rows = jnp.pad(kernel, ((0, 0), (0, 1), (0, 0)))  # the last is of what stands outside of a text
        rows = rows.astype(jnp.promote_types(kernel.dtype, jnp.float32))  # gradients of rows are long sums, too
        time, around = tokens.shape[1], size // 2
        known = (tokens >= 0) & (tokens < symbols)
        if lengths is not None:
            known &= length_mask(lengths, time)
        tokens = jnp.pad(jnp.where(known, tokens, symbols), ((0, 0), (around, around)), constant_values=symbols)
        near = jnp.stack([tokens[:, place : place + time] for place in range(size)])
        # A loop, as XLA would put a sum of several rows into every operation that reads it, and sum them anew in each.
        zeros = jnp.zeros((*near.shape[1:], features), rows.dtype)
        y, _ = jax.lax.scan(lambda y, at: (y + jnp.take(at[0], at[1], axis=0, mode="clip"), None), zeros, (rows, near))
        y = y.astype(kernel.dtype)
        return self._finished(y, lengths, training, True)

    def _finished(self, y: Array, lengths: Array | None, training: bool, relu: bool) -> Frames:
        mask = None if lengths is None else length_mask(lengths, y.shape[1])
        if self.norm is not None:
            y = self.norm(y, mask=mask, training=training)
        elif self.bias is not None:
            y = y + self.bias[...].astype(y.dtype)
        return Frames(zeroed(jax.nn.relu(y) if relu else y, mask), lengths)


def frames_of(x: Float[Array, "B T F"], lengths: Int[Array, " B"] | None = None) -> Frames:
    """Frames of x, zeroed behind the lengths.

    Raises:
      ValueError: lengths that do not fit, where they are concrete.
    """
    if lengths is not None:
        lengths = check_lengths(lengths, x.shape[0], x.shape[1])
        x = zeroed(x, length_mask(lengths, x.shape[1]))
    return Frames(x, lengths)


def zeroed(x: Float[Array, "B T F"], mask: Bool[Array, "B T"] | None) -> Float[Array, "B T F"]:
    return x if mask is None else jnp.where(mask[..., None], x, 0)


def convolve_sequence(x: Float[Array, "B T C"], kernel: Float[Array, "K C F"]) -> Float[Array, "B T F"]:
    """y[t] = sum_i x[t + i - K // 2] kernel[i], with zeros outside of x, in the dtype of x."""
    around = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (1,), ((around, around),), dimension_numbers=("NWC", "WIO", "NWC")
    )


def max_pool_sequence(frames: Frames, window: int, stride: int | None = None) -> Frames:
    """The greatest of positions s t to s t + window - 1, for each t up to ceil(length / s).

    A window that goes beyond the length holds fewer, so that no symbol is lost of a text, however short.

    Args:
      frames: see `Frames`.
      window: W positions.
      stride: s, from one window to the next; W if not given.

    Raises:
      ValueError: a window or stride that is not positive, or a stride that leaves positions out.
    """
    stride = window if stride is None else stride
    if not 1 <= stride <= window:
        raise ValueError(f"window, stride: expected 1 <= stride <= window, got {window} and {stride}")
    x, mask = frames.features, frames.mask
    steps = -(-x.shape[1] // stride)
    lowest = jnp.finfo(x.dtype).min
    x = x if mask is None else jnp.where(mask[..., None], x, lowest)
    x = jnp.pad(x, ((0, 0), (0, steps * stride + window - stride - x.shape[1]), (0, 0)), constant_values=lowest)
    places = [x[:, first : first + steps * stride : stride] for first in range(window)]
    pooled = functools.reduce(jnp.maximum, places)
    lengths = None if frames.lengths is None else -(-frames.lengths // stride)
    return Frames(zeroed(pooled, None if lengths is None else length_mask(lengths, steps)), lengths)


def k_max_pool(frames: Frames, k: int) -> Float[Array, "B k F"]:
    """The k greatest of each feature over all valid positions, in the order they come in (Kalchbrenner et al., arXiv
    1404.2188, section 3.3); zeros behind them where there are fewer.

    Raises:
      ValueError: a k that is not positive.
    """
    if k < 1:
        raise ValueError(f"k: expected a positive number, got {k}")
    x, mask = frames.features, frames.mask
    x = jnp.pad(x, ((0, 0), (0, max(0, k - x.shape[1])), (0, 0)))
    valid = jnp.arange(x.shape[1]) < frames.features.shape[1]
    valid = valid[None] if mask is None else jnp.pad(mask, ((0, 0), (0, x.shape[1] - mask.shape[1])))
    # Of equal values top_k takes the first, and so what is valid before what is not.
    ranked = jnp.where(valid[..., None], x, -jnp.inf)
    _, places = jax.lax.top_k(jnp.swapaxes(ranked, 1, 2), k)
    places = jnp.swapaxes(jnp.sort(places, axis=-1), 1, 2)
    kept = jnp.take_along_axis(x, places, axis=1)
    return jnp.where(jnp.take_along_axis(jnp.broadcast_to(valid[..., None], x.shape), places, axis=1), kept, 0)
