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
    return _greedy(step, params, context, state, start, end, max_length, pad, logits.dtype)


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6, 7, 8))
def _greedy(
    step: DecoderStep,
    params: Params,
    context: Context,
    state: State,
    start: int,
    end: int,
    max_length: int,
    pad: int,
    dtype: Any,
) -> Found:
    batch_size = jax.tree.leaves(state)[0].shape[0]

    def more(carry: tuple[Array, State, Array, Found]) -> Array:
        t, _, _, found = carry
        return (t < max_length) & ~jnp.all(found.finished)

    def advance(carry: tuple[Array, State, Array, Found]) -> tuple[Array, State, Array, Found]:
        t, state, tokens, found = carry
        new, logits, _ = step(params, context, state, tokens)
        log_probabilities = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
        best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        running = ~found.finished
        gain = jnp.take_along_axis(log_probabilities, best[:, None], axis=-1)[:, 0]
        found = Found(
            found.tokens.at[:, t].set(jnp.where(running, best, pad)),
            found.lengths + running,
            found.scores + jnp.where(running, gain, 0),
            found.finished | (best == end),
        )
        state = jax.tree.map(lambda a, b: where_valid(running, a, b), new, state)
        return t + 1, state, best, found

    nothing = Found(
        jnp.full((batch_size, max_length), pad, jnp.int32),
        jnp.zeros(batch_size, jnp.int32),
        jnp.zeros(batch_size, jnp.promote_types(dtype, jnp.float32)),
        jnp.zeros(batch_size, bool),
    )
    first = jnp.full(batch_size, start, jnp.int32)
    _, state, first, nothing = varying_as((jnp.int32(0), state, first, nothing), (params, context))
    return jax.lax.while_loop(more, advance, (jnp.int32(0), state, first, nothing))[3]
