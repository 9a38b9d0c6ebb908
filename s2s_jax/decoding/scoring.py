"""What a decoder step thinks of a given text, and several steps as one."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from s2s_jax.decoding import checks
from s2s_jax.decoding.distribution import log_probs_of
from s2s_jax.masks import check_ids, check_lengths, length_mask, where_valid
from s2s_jax.sharding import varying_as
from s2s_jax.types import Context, DecoderOutput, DecoderStep, Params, State


class Scored(NamedTuple):
    """Log probability of each symbol [B, T], 0 in the padding, their sums [B], and the attention weights [B, T, S] or None."""

    token_log_probs: Float[Array, "B T"]
    log_probs: Float[Array, " B"]
    attention: Any


def score_reference(
    step: DecoderStep,
    params: Params,
    context: Context,
    state: State,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"] | None = None,
    *,
    start: int,
    attention: Callable[[Any], Any] | None = None,
) -> Scored:
    """The log p(y_t | y_1 .. y_(t-1), x) of a given text, read by the step that searches use, in one `lax.scan`.

    Args:
      step, params, context, state, start: see `greedy`.
      tokens: the text, end symbol included; what a search has found, say.
      lengths: how many of each row are valid; None for all.
      attention: see `beam_search`.

    Returns:
      `Scored`. What stands in the padding is not read.

    Raises:
      ValueError: shapes that do not match, concrete symbols outside the vocabulary, concrete lengths outside 0..T, a state
        without arrays, a context or state without an axis of rows, a step as `greedy` refuses. Traced lengths are clipped.
      TypeError: tokens or lengths that are not integers.
    """
    batch_size = checks.check_rows(context, state)
    if jnp.ndim(tokens) != 2 or jnp.shape(tokens)[0] != batch_size:
        raise ValueError(f"tokens: expected [{batch_size}, T], got {jnp.shape(tokens)}")
    time = jnp.shape(tokens)[1]
    symbols, output = checks.check_step(step, params, context, state, batch_size, start, start, time, 0)
    lengths = jnp.full(batch_size, time, jnp.int32) if lengths is None else check_lengths(lengths, batch_size, time)
    check_ids(tokens, output.logits.shape[-1], "tokens", length_mask(lengths, time))
    return _score(step, params, context, state, jnp.asarray(tokens), lengths, symbols, attention)


@functools.partial(jax.jit, static_argnums=(0, 6, 7))
def _score(
    step: DecoderStep,
    params: Params,
    context: Context,
    state: State,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    symbols: checks.Symbols,
    attention: Callable[[Any], Any] | None,
) -> Scored:
    mask = length_mask(lengths, symbols.time)
    tokens = jnp.where(mask, tokens, symbols.start).astype(jnp.int32)

    def advance(carry: tuple[State, Array], at: tuple[Array, Array]) -> tuple[tuple[State, Array], tuple[Array, Any]]:
        state, before = carry
        said, valid = at
        new, logits, aux = step(params, context, state, before)
        gain = jnp.where(valid, log_probs_of(logits.astype(symbols.dtype), said), 0)
        weights = None if attention is None else attention(aux)
        state = jax.tree.map(lambda a, b: where_valid(valid, a, b), new, state)
        return (state, said), (gain, jax.tree.map(lambda leaf: where_valid(valid, leaf, jnp.zeros_like(leaf)), weights))

    first = jnp.full(tokens.shape[0], symbols.start, jnp.int32)
    first = varying_as((state, first), (params, context, tokens, lengths))
    _, read = jax.lax.scan(advance, first, (tokens.T, mask.T))
    gains, weights = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), read)
    return Scored(gains, jnp.sum(gains, axis=1), weights)


def ensemble(steps: Sequence[DecoderStep], attention: Callable[[Any], Any] | None = None) -> DecoderStep:
    """One decoder step of several models, whose probabilities it averages: log(1/M sum_m softmax(logits_m)) as logits.

    It takes a tuple of parameters, one of contexts and one of states, in the order of `steps`, and gives a tuple of states:

    ```python
    found = beam_search(ensemble([step, step]), (params, others), (context, of_others), (state, its_other), beam_size=5, ...)
    ```

    Args:
      steps: M decoder steps over one vocabulary; the same one several times where only the parameters differ.
      attention: takes the `aux` of each model and returns its weights; `aux` of the ensemble is then their mean, and
        `attention` of a search the function that returns what it gets. If None, `aux` is the tuple of theirs.

    Returns:
      A step; for the same arguments the same one, so that a search is compiled once.

    Raises:
      ValueError: no steps; when called, a tuple of another length, or vocabularies of different sizes.
    """
    steps = tuple(steps)
    if not steps:
        raise ValueError("steps: expected at least one, got none")
    return _ensemble(steps, attention)


@functools.lru_cache(maxsize=64)
def _ensemble(steps: tuple[DecoderStep, ...], attention: Callable[[Any], Any] | None) -> DecoderStep:
    def step(params: Params, context: Context, state: State, tokens: Int[Array, " B"]) -> DecoderOutput:
        for name, parts in (("params", params), ("context", context), ("state", state)):
            if not isinstance(parts, tuple) or len(parts) != len(steps):
                came = f"one of {len(parts)}" if isinstance(parts, tuple) else type(parts).__name__
                raise ValueError(f"{name}: expected a tuple of {len(steps)}, one for each model, got {came}")
        outputs = [DecoderOutput(*steps[m](params[m], context[m], state[m], tokens)) for m in range(len(steps))]
        sizes = [output.logits.shape[-1] for output in outputs]
        if len(set(sizes)) > 1:
            raise ValueError(f"steps: expected one vocabulary, got sizes {sizes}")
        logs = [jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32))) for _, logits, _ in outputs]
        auxs = tuple(output.aux for output in outputs)
        if attention is not None:
            auxs = jax.tree.map(lambda *weights: sum(weights) / len(steps), *map(attention, auxs))
        mean = functools.reduce(jnp.logaddexp, logs) - jnp.log(len(steps)).astype(logs[0].dtype)
        return DecoderOutput(tuple(output.state for output in outputs), mean, auxs)

    return step
