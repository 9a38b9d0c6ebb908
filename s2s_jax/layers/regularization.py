"""Noise and normalisation for sequences, as Flax NNX modules."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from s2s_jax.layers.keys import check_key
from s2s_jax.layers.recurrent import dropout_mask


class Dropout(nnx.Module):
    """Zeroes each value with probability `rate` and scales the rest by 1 / (1 - rate), when called with a key."""

    def __init__(self, rate: float):
        if not 0 <= rate < 1:
            raise ValueError(f"rate: expected a rate in [0, 1), got {rate}")
        self.rate = rate

    def __call__(self, x: Float[Array, "..."], *, key: Array | None = None) -> Float[Array, "..."]:
        check_key(key)
        if key is None or self.rate == 0:
            return x
        return (x * dropout_mask(key, self.rate, x.shape, x.dtype)).astype(x.dtype)


class GaussianNoise(nnx.Module):
    """Adds noise of standard deviation `stddev` and mean 0, when called with a key."""

    def __init__(self, stddev: float):
        if stddev < 0:
            raise ValueError(f"stddev: expected a number that is not negative, got {stddev}")
        self.stddev = stddev

    def __call__(self, x: Float[Array, "..."], *, key: Array | None = None) -> Float[Array, "..."]:
        check_key(key)
        if key is None or self.stddev == 0:
            return x
        return x + self.stddev * jax.random.normal(key, x.shape, x.dtype)


class BatchNorm(nnx.Module):
    """Batch normalisation over the valid positions only (Ioffe & Szegedy, arXiv 1502.03167).

    In training, mean and (biased) variance of each feature over all valid positions of the batch normalise it, and move the
    running statistics: `running = momentum * running + (1 - momentum) * batch`, as in Keras and Flax. Otherwise the running
    statistics normalise. Padded positions come out as zero; a batch with no valid position keeps the statistics.

    Args:
      features: size of the last axis.
      momentum: share of the old running statistics that is kept.
      epsilon: added to the variance.
    """

    def __init__(self, features: int, *, momentum: float = 0.99, epsilon: float = 1e-3):
        if features < 1:
            raise ValueError(f"features: expected a positive number, got {features}")
        self.momentum = momentum
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(features, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(features, jnp.float32))

    def __call__(
        self, x: Float[Array, "*N F"], *, mask: Bool[Array, "*N"] | None = None, training: bool = False
    ) -> Float[Array, "*N F"]:
        """Normalises `x`; `mask` is True at valid positions.

        Raises:
          ValueError: the last axis of `x` or the shape of `mask` does not match.
        """
        if x.shape[-1:] != self.scale.shape:
            raise ValueError(f"x: expected {self.scale.shape[0]} features, got shape {x.shape}")
        if mask is None:
            mask = jnp.ones(x.shape[:-1], bool)
        if mask.shape != x.shape[:-1]:
            raise ValueError(f"mask: expected shape {x.shape[:-1]}, got {mask.shape}")
        dtype = x.dtype
        valid = mask[..., None]
        x = jnp.where(valid, x, 0).astype(jnp.promote_types(dtype, jnp.float32))
        mean, var = self.mean[...], self.var[...]
        if training:
            axes = tuple(range(x.ndim - 1))
            count = jnp.sum(mask)
            mean = jnp.sum(x, axes) / jnp.maximum(count, 1)
            var = jnp.sum(jnp.where(valid, (x - mean) ** 2, 0), axes) / jnp.maximum(count, 1)
            kept = jnp.where(count > 0, self.momentum, 1.0)
            for running, of_batch in ((self.mean, mean), (self.var, var)):
                old = running[...]
                running[...] = (kept * old + (1 - kept) * of_batch).astype(old.dtype)
        y = (x - mean) * jax.lax.rsqrt(var + self.epsilon) * self.scale[...] + self.bias[...]
        return jnp.where(valid, y, 0).astype(dtype)
