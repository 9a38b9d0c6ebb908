"""The keys and random streams that layers and models are given."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array


def check_key(key: Any) -> None:
    """A key of JAX, new or old style, or None.

    Raises:
      TypeError: anything else, an integer say.
    """
    dtype = getattr(key, "dtype", None)
    if key is not None and (dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32)):
        raise TypeError(f"key: expected one such as jax.random.key(0), or None, got {key!r}")


def split_key(key: Array | None, number: int = 2) -> Sequence[Array | None]:
    """So many keys made of one; without one, None so many times.

    Raises:
      TypeError: `key` is neither.
    """
    check_key(key)
    return (None,) * number if key is None else tuple(jax.random.split(key, number))


def check_rngs(rngs: Any) -> None:
    """Raises a TypeError where `rngs` is not an `nnx.Rngs`."""
    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(f"rngs: expected flax.nnx.Rngs, such as nnx.Rngs(0), got {rngs!r}")
