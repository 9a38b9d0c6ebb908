"""Search: the most probable outputs of a decoder step, on the device."""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from s2s_jax.masks import where_valid
from s2s_jax.sharding import varying_as
from s2s_jax.types import Context, DecoderStep, Params, State


class Found(NamedTuple):
    """Symbols [B, max_length], `pad` behind each end; lengths count the end symbol; score: sum of log probabilities.

    `finished` is False in the rows that were cut off at `max_length` before an end symbol.
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
) -> Found:
    """Takes the most probable symbol at each step, in one `lax.while_loop` that ends when every row has ended.

    Args:
      step: `(params, context, state, tokens) -> (state, logits, aux)`; see `s2s_jax.DecoderStep`. Made once, not anew for
        each call: it is compiled for this very function.
      params, context, state: what `step` takes; leaves of `state` have a leading batch axis.
      start, end, pad: symbols.
      max_length: steps at most, end symbol included.

    Raises:
      ValueError: `max_length` below 1, a state without arrays, or a start or end symbol outside the vocabulary.
    """
    symbols, _ = _checked(step, params, context, state, start, end, max_length, pad)
    return _unfold(step, params, context, state, None, symbols, None)


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
) -> Found:
    """Draws each symbol from `softmax(logits / temperature)`, cut down to the most probable ones; otherwise as `greedy`.

    Args:
      step, params, context, state, start, end, max_length, pad: see `greedy`.
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
    symbols, vocabulary_size = _checked(step, params, context, state, start, end, max_length, pad)
    if top_k is not None and not 1 <= top_k <= vocabulary_size:
        raise ValueError(f"top_k: expected 1 to {vocabulary_size}, got {top_k}")
    for name, value, most in (("temperature", temperature, float("inf")), ("top_p", top_p, 1.0)):
        if value is not None and not isinstance(value, jax.core.Tracer) and not 0 < float(value) <= most:
            raise ValueError(f"{name}: expected a number above 0{'' if most > 1 else ' and at most 1'}, got {value}")
    how = _Sampling(key, jnp.asarray(temperature), None if top_p is None else jnp.asarray(top_p))
    return _unfold(step, params, context, state, how, symbols, top_k)


class _Symbols(NamedTuple):
    start: int
    end: int
    pad: int
    max_length: int
    dtype: Any  # of the scores


class _Sampling(NamedTuple):
    key: Array
    temperature: Array
    top_p: Array | None


def _checked(
    step: DecoderStep, params: Params, context: Context, state: State, start: int, end: int, max_length: int, pad: int
) -> tuple[_Symbols, int]:
    """What is fixed when the search is compiled, and the size of the vocabulary."""
    max_length, start, end, pad = map(operator.index, (max_length, start, end, pad))
    if max_length < 1:
        raise ValueError(f"max_length: expected a positive number, got {max_length}")
    leaves = jax.tree.leaves(state)
    if not leaves:
        raise ValueError("state: expected arrays with a leading batch axis, got none")
    first = jax.ShapeDtypeStruct((leaves[0].shape[0],), jnp.int32)
    logits = jax.eval_shape(step, params, context, state, first)[1]
    vocabulary_size = logits.shape[-1]
    for name, symbol in (("start", start), ("end", end)):
        if not 0 <= symbol < vocabulary_size:
            raise ValueError(f"{name}: expected a symbol from 0 to {vocabulary_size - 1}, got {symbol}")
    return _Symbols(start, end, pad, max_length, jnp.promote_types(logits.dtype, jnp.float32)), vocabulary_size


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _unfold(
    step: DecoderStep,
    params: Params,
    context: Context,
    state: State,
    sampling: _Sampling | None,
    symbols: _Symbols,
    top_k: int | None,
) -> Found:
    batch_size = jax.tree.leaves(state)[0].shape[0]

    def more(carry: tuple[Array, State, Array, Found]) -> Array:
        t, _, _, found = carry
        return (t < symbols.max_length) & ~jnp.all(found.finished)

    def advance(carry: tuple[Array, State, Array, Found]) -> tuple[Array, State, Array, Found]:
        t, state, tokens, found = carry
        new, logits, _ = step(params, context, state, tokens)
        logits = logits.astype(symbols.dtype)
        if sampling is None:
            chosen = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        else:
            likely = _cut(logits / sampling.temperature.astype(logits.dtype), top_k, sampling.top_p)
            chosen = jax.random.categorical(jax.random.fold_in(sampling.key, t), likely).astype(jnp.int32)
        running = ~found.finished
        gain = jnp.take_along_axis(jax.nn.log_softmax(logits), chosen[:, None], axis=-1)[:, 0]
        found = Found(
            found.tokens.at[:, t].set(jnp.where(running, chosen, symbols.pad)),
            found.lengths + running,
            found.scores + jnp.where(running, gain, 0),
            found.finished | (chosen == symbols.end),
        )
        state = jax.tree.map(lambda a, b: where_valid(running, a, b), new, state)
        return t + 1, state, chosen, found

    nothing = Found(
        jnp.full((batch_size, symbols.max_length), symbols.pad, jnp.int32),
        jnp.zeros(batch_size, jnp.int32),
        jnp.zeros(batch_size, symbols.dtype),
        jnp.zeros(batch_size, bool),
    )
    first = jnp.full(batch_size, symbols.start, jnp.int32)
    _, state, first, nothing = varying_as((jnp.int32(0), state, first, nothing), (params, context, sampling))
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
