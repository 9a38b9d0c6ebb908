"""Search along one path: the most probable symbol of a decoder step, or a drawn one, on the device."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from s2s_jax.decoding import checks
from s2s_jax.decoding.constraints import Constraints, forbid
from s2s_jax.decoding.distribution import log_probs_of, next_symbols
from s2s_jax.masks import where_valid
from s2s_jax.sharding import varying_as
from s2s_jax.types import Context, DecoderStep, Params, State


class Found(NamedTuple):
    """Symbols [B, max_length], `pad` behind each end; lengths count the end symbol; score: sum of log probabilities.

    `finished` is False in the rows that were cut off at `max_length` before an end symbol, and in those that came no further
    as the model gave no number to go by, whose score is NaN.
    """

    tokens: Int[Array, "B T"]
    lengths: Int[Array, " B"]
    scores: Float[Array, " B"]
    finished: Bool[Array, " B"]


def greedy(
    step: DecoderStep,
    params: Params,
    context: Context,
    state: State,
    *,
    start: int,
    end: int,
    max_length: int,
    pad: int = 0,
    min_length: int | Int[Array, " B"] = 0,
    banned: Sequence[int] = (),
) -> Found:
    """Takes the most probable symbol at each step, in one `lax.while_loop` that ends when every row has ended.

    Args:
      step: `(params, context, state, tokens) -> (state, logits, aux)`; see `s2s_jax.DecoderStep`. Made once, not anew for
        each call: it is compiled for this very function.
      params, context, state: what `step` takes; leaves of `context` and `state` have a leading batch axis.
      start, end, pad: symbols.
      max_length: steps at most, end symbol included.
      min_length: the end symbol is not said before step `min_length`; it counts the end symbol. One for each row too.
      banned: symbols that are never said.

    A row goes on no further where its logits are NaN, or -inf for all symbols that may be said: `pad` stands from there on, its
    score is NaN, and it is not finished (`beam_search` leaves it out).

    Attention weights of what was found, or whatever else `aux` holds: `score_reference(..., attention=...)` of its tokens, or
    `beam_search` with a beam of 1, which finds the same.

    Raises:
      ValueError: `max_length` below 1, `min_length` above it, a state without arrays, a context or state without an axis of
        rows, a step that gives no state of the same shapes and dtypes or no logits [B, V], a symbol outside the vocabulary, or
        all symbols banned.
    """
    symbols, _, allowed = _checked(step, params, context, state, (start, end, max_length, pad), min_length, banned)
    return _unfold(step, params, context, state, None, allowed, symbols, None)


def sample(
    step: DecoderStep,
    params: Params,
    context: Context,
    state: State,
    key: Array,
    *,
    start: int,
    end: int,
    max_length: int,
    pad: int = 0,
    temperature: float | Array = 1.0,
    top_k: int | None = None,
    top_p: float | Array | None = None,
    min_length: int | Int[Array, " B"] = 0,
    banned: Sequence[int] = (),
) -> Found:
    """Draws each symbol from `softmax(logits / temperature)`, cut down to the most probable ones; otherwise as `greedy`.

    Args:
      step, params, context, state, start, end, max_length, pad, min_length, banned: see `greedy`.
      key: of the draws. Inside `jax.shard_map` hand in another one on each device.
      temperature: above 0; below 1 it sharpens, above 1 it flattens.
      top_k: only the k most probable symbols (Fan et al., arXiv 1805.04833); of equally probable ones, here and with `top_p`,
        those of lower numbers go first.
      top_p: only the fewest symbols whose probabilities sum up to at least that (Holtzman et al., arXiv 1904.09751), after
        temperature and `top_k`; the most probable one always stays.

    Returns:
      `Found`; its scores are log probabilities of the model itself, before temperature and cuts.

    Raises:
      ValueError: as `greedy`; a concrete temperature that is not positive, a top_k below 1 or above V, a top_p outside (0, 1].
    """
    options = (start, end, max_length, pad)
    symbols, vocabulary_size, allowed = _checked(step, params, context, state, options, min_length, banned)
    if top_k is not None and not 1 <= top_k <= vocabulary_size:
        raise ValueError(f"top_k: expected 1 to {vocabulary_size}, got {top_k}")
    for name, value, most in (("temperature", temperature, float("inf")), ("top_p", top_p, 1.0)):
        if value is not None and not isinstance(value, jax.core.Tracer) and not 0 < float(value) <= most:
            raise ValueError(f"{name}: expected a number above 0{'' if most > 1 else ' and at most 1'}, got {value}")
    how = _Sampling(key, jnp.asarray(temperature), None if top_p is None else jnp.asarray(top_p))
    return _unfold(step, params, context, state, how, allowed, symbols, top_k)


class _Sampling(NamedTuple):
    key: Array
    temperature: Array
    top_p: Array | None


def _checked(
    step: DecoderStep,
    params: Params,
    context: Context,
    state: State,
    options: tuple[int, int, int, int],
    min_length: int | Array,
    banned: Sequence[int],
) -> tuple[checks.Symbols, int, Constraints]:
    """What is fixed when the search is compiled, the size of the vocabulary, and what is not to be said."""
    start, end, max_length, pad = options
    max_length = checks.check_max_length(max_length)
    batch_size = checks.check_rows(context, state)
    symbols, output = checks.check_step(step, params, context, state, batch_size, start, end, max_length, pad)
    shortest = checks.check_min_length(min_length, batch_size, max_length)
    vocabulary_size = output.logits.shape[-1]
    allowed = Constraints(checks.check_banned(banned, vocabulary_size, symbols.end, shortest), shortest)
    return symbols, vocabulary_size, allowed


@functools.partial(jax.jit, static_argnums=(0, 6, 7))
def _unfold(
    step: DecoderStep,
    params: Params,
    context: Context,
    state: State,
    sampling: _Sampling | None,
    constraints: Constraints,
    symbols: checks.Symbols,
    top_k: int | None,
) -> Found:
    batch_size = jax.tree.leaves(state)[0].shape[0]

    def running(found: Found) -> Array:
        return ~(found.finished | jnp.isnan(found.scores))

    def more(carry: tuple[Array, State, Array, Found]) -> Array:
        t, _, _, found = carry
        return (t < symbols.time) & jnp.any(running(found))

    def advance(carry: tuple[Array, State, Array, Found]) -> tuple[Array, State, Array, Found]:
        t, state, tokens, found = carry
        new, logits, _ = step(params, context, state, tokens)
        logits = logits.astype(symbols.dtype)
        if sampling is None:
            best, rest = next_symbols(logits, 1, t, symbols.end, constraints)
            chosen, value = best.symbols[:, 0], best.logits[:, 0]
            gain = value - best.highest - rest
        else:
            allowed = forbid(logits, t, symbols.end, constraints)
            likely = _cut(allowed / sampling.temperature.astype(logits.dtype), top_k, sampling.top_p)
            chosen = jax.random.categorical(jax.random.fold_in(sampling.key, t), likely).astype(jnp.int32)
            value, gain = jnp.take_along_axis(likely, chosen[:, None], axis=-1)[:, 0], log_probs_of(logits, chosen)
        gain = jnp.where(value > -jnp.inf, gain, jnp.nan)  # where nothing may be said, what was chosen is banned
        gain = jnp.where(running(found), gain, 0)
        says = running(found) & ~jnp.isnan(gain)
        found = Found(
            found.tokens.at[:, t].set(jnp.where(says, chosen, symbols.pad)),
            found.lengths + says,
            found.scores + gain,
            found.finished | (says & (chosen == symbols.end)),
        )
        state = jax.tree.map(lambda a, b: where_valid(says, a, b), new, state)
        return t + 1, state, chosen, found

    nothing = Found(
        jnp.full((batch_size, symbols.time), symbols.pad, jnp.int32),
        jnp.zeros(batch_size, jnp.int32),
        jnp.zeros(batch_size, symbols.dtype),
        jnp.zeros(batch_size, bool),
    )
    first = jnp.full(batch_size, symbols.start, jnp.int32)
    _, state, first, nothing = varying_as((jnp.int32(0), state, first, nothing), (params, context, sampling, constraints))
    return jax.lax.while_loop(more, advance, (jnp.int32(0), state, first, nothing))[3]


def _cut(logits: Float[Array, "B V"], top_k: int | None, top_p: Array | None) -> Float[Array, "B V"]:
    """-inf for all but the most probable symbols. Of equally probable ones those of lower numbers stay."""
    if top_k is None and top_p is None:
        return logits
    ordered, symbols = jax.lax.top_k(logits, top_k or logits.shape[-1])
    if top_p is not None:
        probabilities = jax.nn.softmax(ordered)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities  # of the more probable ones
        # With 1 all stay, also those behind a sum that rounds to 1.
        ordered = jnp.where((before < top_p) | (top_p >= 1), ordered, -jnp.inf)
    return jnp.put_along_axis(jnp.full_like(logits, -jnp.inf), symbols, ordered, axis=-1, inplace=False)
