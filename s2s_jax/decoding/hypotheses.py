"""What a beam search keeps of hypotheses, and how each is read from its end to its beginning."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from s2s_jax.decoding import checks
from s2s_jax.decoding.constraints import Said
from s2s_jax.masks import where_valid
from s2s_jax.types import State


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


class Coverage(NamedTuple):
    """Sums of the attention weights of running hypotheses, and what they cost."""

    sums: Float[Array, "B K S"]
    penalties: Float[Array, "B K"]


class Beam(NamedTuple):
    """What the loop of a search carries."""

    state: State  # of K * B hypotheses, slot by slot
    symbols: Int[Array, "B K"]
    log_probs: Float[Array, "B K"]  # -inf in slots that nothing runs in
    coverage: Coverage | None
    said: Said  # of K * B hypotheses
    finished: Ends
    counts: Int[Array, " B"]  # of all that have finished
    led: Bool[Array, " B"]  # whether one of them was the most probable of all when it did
    done: Bool[Array, " B"]
    history: History

    def of(self, kept: Int[Array, " R"]) -> "Beam":
        """The beams of some rows."""
        B, K = self.symbols.shape
        slots = (jnp.arange(K)[:, None] * B + kept).reshape(-1)
        state, said = jax.tree.map(lambda leaf: leaf[slots], (self.state, self.said))
        history = jax.tree.map(lambda leaf: leaf[:, kept], self.history)
        return Beam(state, said=said, history=history, **jax.tree.map(lambda leaf: leaf[kept], self._of_rows()))

    def with_rows(self, kept: Int[Array, " R"], rows: "Beam") -> "Beam":
        """With what has become of some rows' beams, but for their states: nothing goes on from there."""
        history = jax.tree.map(lambda all, some: all.at[:, kept].set(some), self.history, rows.history)
        merged = jax.tree.map(lambda all, some: all.at[kept].set(some), self._of_rows(), rows._of_rows())
        return self._replace(history=history, **merged)

    def _of_rows(self) -> dict[str, Any]:
        """Fields whose leaves have a leading axis of rows."""
        return {name: leaf for name, leaf in self._asdict().items() if name not in ("state", "said", "history")}


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
