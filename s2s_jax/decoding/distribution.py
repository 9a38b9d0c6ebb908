"""The distribution over the next symbol: its normaliser and its most probable symbols, as cheaply as they are had."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_BLOCKS_FROM = 1024  # symbols; below it a plain top_k is as fast


def log_normaliser(logits: Float[Array, "N V"]) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """`highest` and `rest` of each row, so that log p = (logit - highest) - rest, in this order, is at most 0 and exact.

    That is `jax.nn.log_softmax` without its [N, V]: most searches want to know a few symbols of each row.
    """
    highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    return highest, jnp.log(jnp.sum(jnp.exp(logits - highest[:, None]), axis=-1))


def log_probs_of(logits: Float[Array, "N V"], symbols: Int[Array, " N"]) -> Float[Array, " N"]:
    """The log softmax of logits at one symbol of each row."""
    highest, rest = log_normaliser(logits)
    return jnp.take_along_axis(logits, symbols[:, None], axis=-1)[:, 0] - highest - rest


def likeliest(logits: Float[Array, "N V"], count: int) -> tuple[Float[Array, "N C"], Int[Array, "N C"]]:
    """The `count` greatest logits of each row and their symbols, best first; of equal ones those of lower numbers go first.

    A row is cut into blocks. Its C greatest are in the C blocks of greatest maxima, as each block before that of a missing one
    would have a symbol that goes before it. XLA's own top_k and argmax take 5 to 10 times as long on a CPU.
    """
    rows, vocabulary_size = logits.shape
    if vocabulary_size < max(_BLOCKS_FROM, 32 * count):
        return jax.lax.top_k(logits, count)
    wanted = math.sqrt(vocabulary_size / count)
    # One that divides the vocabulary leaves no slice of it to be copied.
    size = min(range(16, 129), key=lambda size: (vocabulary_size % size != 0, abs(size - wanted)))
    blocks = vocabulary_size // size
    maxima = jnp.max(logits[:, : blocks * size].reshape(rows, blocks, size), axis=-1)
    chosen = jnp.sort(jax.lax.top_k(maxima, count)[1], axis=-1)  # in the order of symbols, for equal ones
    symbols = (chosen[:, :, None] * size + jnp.arange(size, dtype=jnp.int32)).reshape(rows, count * size)
    remainder = jnp.arange(blocks * size, vocabulary_size, dtype=jnp.int32)
    symbols = jnp.concatenate([symbols, jnp.broadcast_to(remainder, (rows, remainder.size))], axis=-1)
    values, index = jax.lax.top_k(jnp.take_along_axis(logits, symbols, axis=-1), count)
    return values, jnp.take_along_axis(symbols, index, axis=-1)
