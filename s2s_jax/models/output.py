"""From features to logits over a vocabulary."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class TiedOutput(nnx.Module):
    """`logits = x W table^T + b`: the table of an embedding is the output matrix too (Press & Wolf, arXiv 1608.05859).

    Args:
      features: of x.
      embedding: whose table [V, E] is used; W is there only where features and E differ.
      rngs: key `params` draws W.
    """

    def __init__(self, features: int, embedding: nnx.Embed, *, rngs: nnx.Rngs):
        self.embedding = embedding
        same = features == embedding.features
        self.narrow = None if same else nnx.Linear(features, embedding.features, use_bias=False, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(embedding.num_embeddings))

    def __call__(self, x: Float[Array, "... F"]) -> Float[Array, "... V"]:
        x = x if self.narrow is None else self.narrow(x)
        # Not `x @ table.T`: for a single row XLA would transpose the table each time on a CPU, which takes ten times as long.
        logits = jax.lax.dot_general(x, self.embedding.embedding[...], (((x.ndim - 1,), (1,)), ((), ())))
        return logits + self.bias[...].reshape((1,) * (x.ndim - 1) + (-1,))


def output_layer(features: int, vocabulary_size: int, tied_to: nnx.Embed | None, rngs: nnx.Rngs) -> nnx.Module:
    """A linear layer of its own, or one that shares the table of `tied_to`."""
    if tied_to is None:
        return nnx.Linear(features, vocabulary_size, rngs=rngs)
    return TiedOutput(features, tied_to, rngs=rngs)
