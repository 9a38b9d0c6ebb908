"""What a hypothesis must not say, or has to: banned symbols, prefixes and repetitions, a minimum length, forced prefixes.

A forbidden symbol's logit becomes -inf; the probabilities of the others are those of the model, not normalised anew.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_FEW = 16  # symbols that are looked for one by one


class Prefixes(NamedTuple):
    """Symbols [R, P], and how many of each row are valid [R]."""

    symbols: Int[Array, "R P"]
    lengths: Int[Array, " R"]


class Constraints(NamedTuple):
    """What there is of them, None for those that there are not.

    Attributes:
      banned: symbols [R] that are never said, each once.
      min_length: below it [B] the end symbol is not said; it counts the end symbol.
      banned_prefixes: no hypothesis begins with one of them.
      prefixes: one for each row of the batch; each hypothesis begins with its row's, whatever else is banned.
    """

    banned: Int[Array, " R"] | None = None
    min_length: Int[Array, " B"] | None = None
    banned_prefixes: Prefixes | None = None
    prefixes: Prefixes | None = None


class Said(NamedTuple):
    """What the constraints have to know of running hypotheses, each with a leading axis of them; None where they need not.

    Attributes:
      symbols: all so far, where n-grams must not come back.
      matches: which banned prefixes each hypothesis has said so far.
    """

    symbols: Int[Array, "N T"] | None
    matches: Bool[Array, "N R"] | None


def nothing_said(constraints: Constraints, hypotheses: int, time: int, no_repeat_ngram_size: int) -> Said:
    symbols = jnp.zeros((hypotheses, time), jnp.int32) if no_repeat_ngram_size else None
    banned = constraints.banned_prefixes
    return Said(symbols, None if banned is None else jnp.ones((hypotheses, banned.lengths.shape[0]), bool))


def say(said: Said, parents: Int[Array, " N"], chosen: Int[Array, " N"], t: Array, constraints: Constraints) -> Said:
    """After hypothesis n has gone on from `parents[n]` with a symbol at step t."""
    symbols, matches = jax.tree.map(lambda leaf: leaf[parents], said)
    if symbols is not None:
        symbols = symbols.at[:, t].set(chosen)
    if constraints.banned_prefixes is not None:
        matches &= chosen[:, None] == _at(constraints.banned_prefixes.symbols, t)
    return Said(symbols, matches)


def few_banned(constraints: Constraints, said: Said) -> int | None:
    """How many symbols at most are forbidden to a hypothesis, if they are so few that each can be looked for, else None."""
    if constraints.banned_prefixes is not None or said.symbols is not None:
        return None
    number = 0 if constraints.banned is None else constraints.banned.size
    return number + (constraints.min_length is not None) if number <= _FEW else None


def forbid_few(
    values: Float[Array, "N C"], symbols: Int[Array, "N C"], t: Array, end: int, constraints: Constraints
) -> Float[Array, "N C"]:
    """What `forbid` gives at some symbols of each hypothesis, where there are few."""
    if constraints.banned is not None:
        for banned in constraints.banned:
            values = jnp.where(symbols == banned, -jnp.inf, values)
    if constraints.min_length is not None:
        values = jnp.where(_early(t, constraints.min_length, len(values)) & (symbols == end), -jnp.inf, values)
    return values


def forbid(
    logits: Float[Array, "N V"],
    t: Array,
    end: int,
    constraints: Constraints,
    said: Said = Said(None, None),  # noqa: B008
    no_repeat_ngram_size: int = 0,
) -> Float[Array, "N V"]:
    """Logits of N = B or K * B hypotheses, slot by slot; -inf for what they must not say at step t; forced prefixes aside."""
    forbidden = None
    if constraints.banned is not None:
        forbidden = jnp.zeros((1, logits.shape[1]), bool).at[0, constraints.banned].set(True)
    if constraints.min_length is not None:
        too_early = _early(t, constraints.min_length, len(logits)) & (jnp.arange(logits.shape[1]) == end)
        forbidden = too_early if forbidden is None else forbidden | too_early
    if forbidden is not None:
        logits = jnp.where(forbidden, -jnp.inf, logits)
    if constraints.banned_prefixes is not None and said.matches is not None:
        ends_here = constraints.banned_prefixes.lengths == t + 1
        logits = _strike(logits, _at(constraints.banned_prefixes.symbols, t), said.matches & ends_here)
    if said.symbols is not None:
        logits = _strike(logits, *_repeating(said.symbols, t, no_repeat_ngram_size))
    return logits


def _early(t: Array, min_length: Int[Array, " B"], hypotheses: int) -> Bool[Array, "N 1"]:
    return jnp.tile(t + 1 < min_length, hypotheses // max(1, min_length.shape[0]))[:, None]


def _repeating(symbols: Int[Array, "N T"], t: Array, size: int) -> tuple[Int[Array, "N P"], Bool[Array, "N P"]]:
    """Symbols said from step `size - 1` on, and which of them came after the last `size - 1` symbols before step t."""
    positions = symbols.shape[1] - size + 1
    if positions <= 0:  # there is no time for two of them
        return symbols[:, :0], jnp.zeros((symbols.shape[0], 0), bool)
    came_after = jnp.arange(positions) + size - 1 < t
    same = jnp.broadcast_to(came_after, (symbols.shape[0], positions))
    for offset in range(size - 1):
        last = _at(symbols, jnp.maximum(t - size + 1 + offset, 0))
        same &= symbols[:, offset : offset + positions] == last[:, None]
    return symbols[:, size - 1 :], same


def _strike(logits: Float[Array, "N V"], symbols: Int[Array, "#N P"], which: Bool[Array, "N P"]) -> Float[Array, "N V"]:
    rows = jnp.arange(logits.shape[0])[:, None]
    # The least of all, as the same symbol may stand here twice, once to be struck and once not.
    return logits.at[rows, symbols].min(jnp.where(which, -jnp.inf, jnp.inf).astype(logits.dtype))


def _at(table: Array, t: Array) -> Array:
    """Column t, the last one where there are not as many."""
    return jax.lax.dynamic_index_in_dim(table, t, axis=1, keepdims=False)


def force(
    values: Float[Array, "B K W"],
    symbols: Int[Array, "B K W"],
    logits: Float[Array, "B K V"],
    t: Array,
    constraints: Constraints,
) -> tuple[Float[Array, "B K W"], Int[Array, "B K W"]]:
    """Candidates, of which only the forced one is left in the rows whose prefix is not yet said; `logits` is uncut."""
    if constraints.prefixes is None:
        return values, symbols
    forced = (t < constraints.prefixes.lengths)[:, None, None]
    symbol = jnp.broadcast_to(_at(constraints.prefixes.symbols, t)[:, None, None], (*symbols.shape[:2], 1))
    value = jnp.take_along_axis(logits, symbol, axis=-1)
    first = jnp.arange(values.shape[-1]) == 0
    return jnp.where(forced, jnp.where(first, value, -jnp.inf), values), jnp.where(forced, symbol, symbols)
