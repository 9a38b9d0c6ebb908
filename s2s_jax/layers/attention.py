"""Attention as a Flax NNX module: thin, over `s2s_jax.attention`."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from s2s_jax import attention as attentions
from s2s_jax.attention import Attended, Memory
from s2s_jax.layers.parameters import Parameters


class Attention(nnx.Module):
    """An attention and its parameters.

    ```python
    attention = Attention(attentions.additive, 128, 256, 128, rngs=nnx.Rngs(0))
    memory = attention.prepare(encoded, lengths)          # once a sequence
    context, weights, seen = attention(memory, queries)   # all target steps, or the next ones with `seen`
    ```

    Args:
      attention: from `s2s_jax.attention`, or your own.
      query_features, memory_features: Q and F.
      features: A, the width of the inner layer of those that have one.
      rngs: key `params` draws the parameters.

    Raises:
      TypeError: `attention` is none.
      ValueError: a size that is not positive, or that the attention cannot have.
    """

    def __init__(
        self, attention: attentions.Attention, query_features: int, memory_features: int, features: int, *, rngs: nnx.Rngs
    ):
        if not isinstance(attention, attentions.Attention):
            raise TypeError(f"attention: expected one of s2s_jax.attention such as general, got {attention!r}")
        sizes = {"query_features": query_features, "memory_features": memory_features, "features": features}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: expected a positive number, got {size}")
        self.attention = attention
        self.parameters = Parameters(attention.init(rngs.params(), query_features, memory_features, features))

        def context(params: Any, values: Array, query: Array) -> Array:
            return attentions.attend(attention, params, attentions.prepare(attention, params, values), query).context

        shapes = [jax.ShapeDtypeStruct((1, 1, size), jnp.float32) for size in (memory_features, query_features)]
        self.out_features = jax.eval_shape(context, self.parameters(), *shapes).shape[-1]

    def prepare(
        self,
        values: Float[Array, "B S F"],
        lengths: Int[Array, " B"] | None = None,
        mask: Bool[Array, "B S"] | None = None,
    ) -> Memory:
        """See `s2s_jax.attention.prepare`."""
        return attentions.prepare(self.attention, self.parameters(), values, lengths, mask)

    def __call__(self, memory: Memory, query: Float[Array, "B T Q"], seen: Any = None) -> Attended:
        """See `s2s_jax.attention.attend`."""
        return attentions.attend(self.attention, self.parameters(), memory, query, seen)
