"""What a beam search keeps of hypotheses, and how each is read from its end to its beginning."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from s2s_jax.decoding import checks
from s2s_jax.masks import where_valid


class Hypotheses(NamedTuple):
    """N outputs for each row, best first: those that ended, then those cut off at the maximum length.

    Where a row has fewer than N, the last ones have length 0, score and log probability -inf, and are not finished.

    Attributes:
      tokens: symbols, `pad` behind each end.
      lengths: they count the end symbol.
      scores: log probability / length penalty + coverage penalty.
      log_probs: log probability of the whole.
      token_log_probs: of each symbol, 0 in the padding.
      finished: False where a hypothesis was cut off before an end symbol.
      attention: what `attention` made of each step, [B, N, T, S], 0 in the padding; None without it.
    """

    tokens: Int[Array, "B N T"]
    lengths: Int[Array, "B N"]
    scores: Float[Array, "B N"]
    log_probs: Float[Array, "B N"]
    token_log_probs: Float[Array, "B N T"]
    finished: Bool[Array, "B N"]
    attention: Any


class Ends(NamedTuple):
    """How hypotheses [B, N] end: their last symbol, what it was worth, and the slot of the beam that it came from."""

    scores: Array
    log_probs: Array
    lengths: Array
    symbols: Array
    token_log_probs: Array
    parents: Array


class History(NamedTuple):
    """What was put into each slot of the beam at each step, [T, B, K], and the weights [T, B, K, ...] with which it was read.

    Nothing in it is moved when the beam changes its order: a hypothesis is found by its parents, from its end on.
    """

    symbols: Array
    token_log_probs: Array
    parents: Array
    attention: Any


def take(leaves: Any, index: Int[Array, "B N"]) -> Any:
    """Columns of each leaf [B, M, ...]."""
    return jax.tree.map(lambda leaf: leaf[jnp.arange(index.shape[0])[:, None], index], leaves)


def unwound(found: Ends, finished: Array, history: History, symbols: checks.Symbols) -> Hypotheses:
    """Reads each hypothesis from its end to its beginning."""
    rows = jnp.arange(len(found.scores))[:, None]
    exists = found.scores > -jnp.inf
    lengths = jnp.where(exists, found.lengths, 0)

    def back(slot: Array, at: tuple[Array, History]) -> tuple[Array, tuple[Array, Array, Any]]:
        t, then = at
        last, within = t == lengths - 1, t < lengths
        symbol = jnp.where(last, found.symbols, then.symbols[rows, slot])
        gain = jnp.where(last, found.token_log_probs, then.token_log_probs[rows, slot])
        parent = jnp.where(last, found.parents, then.parents[rows, slot])
        read = jax.tree.map(lambda leaf: leaf[rows, parent], then.attention)
        read = jax.tree.map(lambda leaf: where_valid(within, leaf, jnp.zeros_like(leaf)), read)
        return parent, (jnp.where(within, symbol, symbols.pad), jnp.where(within, gain, 0), read)

    steps = jnp.arange(symbols.time)
    _, read = jax.lax.scan(back, found.parents, (steps, history), reverse=True)
    tokens, gains, attention = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2), read)
    log_probs = jnp.where(exists, found.log_probs, -jnp.inf)
    return Hypotheses(tokens, lengths, found.scores, log_probs, gains, finished & exists, attention)
