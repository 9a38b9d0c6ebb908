"""Search: the most probable outputs of a decoder step, on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from s2s_jax.masks import where_valid
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
      step: `(params, context, state, tokens) -> (state, logits, aux)`; see `s2s_jax.DecoderStep`.
      params, context, state: what `step` takes; leaves of `state` have a leading batch axis.
      start, end, pad: symbols.
      max_length: steps at most, end symbol included.

    Raises:
      ValueError: `max_length` below 1, or a state without arrays.
    """
    if max_length < 1:
        raise ValueError(f"max_length: expected a positive number, got {max_length}")
    leaves = jax.tree.leaves(state)
    if not leaves:
        raise ValueError("state: expected arrays with a leading batch axis, got none")
    batch_size = leaves[0].shape[0]

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
            found.scores + jnp.where(running, gain, 0).astype(found.scores.dtype),
            found.finished | (best == end),
        )
        state = jax.tree.map(lambda a, b: where_valid(running, a, b), new, state)
        return t + 1, state, best, found

    nothing = Found(
        jnp.full((batch_size, max_length), pad, jnp.int32),
        jnp.zeros(batch_size, jnp.int32),
        jnp.zeros(batch_size, jnp.float32),
        jnp.zeros(batch_size, bool),
    )
    first = jnp.full(batch_size, start, jnp.int32)
    return jax.lax.while_loop(more, advance, (jnp.int32(0), state, first, nothing))[3]
