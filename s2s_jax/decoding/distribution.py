"""The distribution over the next symbol: its normaliser and its most probable symbols, as cheaply as they are had."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from s2s_jax.decoding.constraints import Constraints, Said, few_banned, forbid, forbid_few

_BLOCKS_FROM = 1024  # symbols; below it a plain top_k is as fast


class Likeliest(NamedTuple):
    """The greatest logits of each row and their symbols, best first; of equal ones those of lower numbers go first.

    `highest` is the greatest of all, also where it is forbidden.
    """

    logits: Float[Array, "N C"]
    symbols: Int[Array, "N C"]
    highest: Float[Array, " N"]


def log_normaliser(
    logits: Float[Array, "N V"], highest: Float[Array, " N"] | None = None
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """`highest` and `rest` of each row, so that log p = (logit - highest) - rest, in this order, is at most 0 and exact.

    That is `jax.nn.log_softmax` without its [N, V]: most searches want to know a few symbols of each row. `highest` is computed
    where it is not given.
    """
    highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1)) if highest is None else highest
    return highest, jnp.log(jnp.sum(jnp.exp(logits - highest[:, None]), axis=-1))


def log_probs_of(logits: Float[Array, "N V"], symbols: Int[Array, " N"]) -> Float[Array, " N"]:
    """The log softmax of logits at one symbol of each row."""
    highest, rest = log_normaliser(logits)
    return jnp.take_along_axis(logits, symbols[:, None], axis=-1)[:, 0] - highest - rest


def next_symbols(
    logits: Float[Array, "N V"],
    count: int,
    t: Array,
    end: int,
    constraints: Constraints,
    said: Said = Said(None, None),  # noqa: B008
    no_repeat_ngram_size: int = 0,
) -> tuple[Likeliest, Float[Array, " N"]]:
    """The most probable symbols of N hypotheses that they may say at step t; and `rest`, see `log_normaliser`, of them all."""
    few = few_banned(constraints, said)
    if few is None or not _in_blocks(logits.shape[1], count + few):
        highest, rest = log_normaliser(logits)
        allowed = likeliest(forbid(logits, t, end, constraints, said, no_repeat_ngram_size), count)
        return allowed._replace(highest=highest), rest

    def without(values: Array, symbols: Array) -> Array:
        return forbid_few(values, symbols, t, end, constraints)

    best = likeliest(logits, count, without, few)
    return best, log_normaliser(logits, best.highest)[1]


def likeliest(
    logits: Float[Array, "N V"],
    count: int,
    forbidden: Callable[[Array, Array], Array] | None = None,
    most_forbidden: int = 0,
) -> Likeliest:
    """The `count` greatest logits of each row that are not forbidden.

    `forbidden(logits, symbols)`, both [N, C], puts -inf for those of at most `most_forbidden` symbols of a row.

    A row is cut into blocks. The C greatest are in the C blocks of greatest maxima, as each block before that of a missing one
    would have a symbol that goes before it; or in so many more blocks as maxima may be forbidden. XLA's own top_k and argmax
    take 5 to 10 times as long on a CPU.
    """
    rows, vocabulary_size = logits.shape
    wanted = count + most_forbidden
    if not _in_blocks(vocabulary_size, wanted):
        symbols = jnp.broadcast_to(jnp.arange(vocabulary_size, dtype=jnp.int32), logits.shape)
        values, index = jax.lax.top_k(logits if forbidden is None else forbidden(logits, symbols), count)
        return Likeliest(values, index, jnp.max(logits, axis=-1))
    even = math.sqrt(vocabulary_size / wanted)
    # One near it that divides the vocabulary leaves no slice of it to be copied.
    near = range(max(16, int(even / 2)), max(17, min(129, int(2 * even) + 1, vocabulary_size // wanted + 1)))
    size = min(near, key=lambda size: (vocabulary_size % size != 0, abs(size - even)))
    blocks = vocabulary_size // size
    maxima = jnp.max(logits[:, : blocks * size].reshape(rows, blocks, size), axis=-1)
    highest = jnp.max(maxima, axis=-1)
    if blocks * size < vocabulary_size:
        highest = jnp.maximum(highest, jnp.max(logits[:, blocks * size :], axis=-1))
    chosen = jnp.sort(jax.lax.top_k(maxima, wanted)[1], axis=-1)  # in the order of symbols, for equal ones
    symbols = (chosen[:, :, None] * size + jnp.arange(size, dtype=jnp.int32)).reshape(rows, wanted * size)
    remainder = jnp.arange(blocks * size, vocabulary_size, dtype=jnp.int32)
    symbols = jnp.concatenate([symbols, jnp.broadcast_to(remainder, (rows, remainder.size))], axis=-1)
    values = jnp.take_along_axis(logits, symbols, axis=-1)
    values, index = jax.lax.top_k(values if forbidden is None else forbidden(values, symbols), count)
    return Likeliest(values, jnp.take_along_axis(symbols, index, axis=-1), highest)


def _in_blocks(vocabulary_size: int, wanted: int) -> bool:
    return vocabulary_size >= max(_BLOCKS_FROM, 32 * wanted)
