"""Beam search: the most probable outputs of a decoder step among those that a few best prefixes lead to, on the device."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from s2s_jax.decoding import checks
from s2s_jax.decoding.constraints import Constraints, Said, force, nothing_said, say
from s2s_jax.decoding.distribution import next_symbols
from s2s_jax.decoding.penalties import LENGTH_PENALTIES, coverage_penalty
from s2s_jax.decoding.penalties import length_penalty as length_penalty_of
from s2s_jax.masks import where_valid
from s2s_jax.sharding import varying_as
from s2s_jax.types import Context, DecoderOutput, DecoderStep, Params, State


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


def beam_search(
    step: DecoderStep,
    params: Params,
    context: Context,
    state: State,
    *,
    beam_size: int,
    start: int,
    end: int,
    max_length: int | Int[Array, " B"],
    pad: int = 0,
    n_best: int = 1,
    length_penalty: str = "none",
    alpha: float | Array = 1.0,
    coverage_beta: float | Array | None = None,
    attention: Callable[[Any], Any] | None = None,
    source_mask: Bool[Array, "B S"] | None = None,
    min_length: int | Int[Array, " B"] = 0,
    time: int | None = None,
    no_repeat_ngram_size: int = 0,
    banned: Sequence[int] = (),
    banned_prefixes: Sequence[Sequence[int]] = (),
    prefixes: Int[Array, "B P"] | None = None,
    prefix_lengths: Int[Array, " B"] | None = None,
) -> Hypotheses:
    """The best hypotheses among those that the K most probable prefixes of each length lead to, in one `lax.while_loop`.

    At each step the 2K most probable ways to go on are looked at. Those of the first K that end are finished; the K most
    probable others go on. A row is done when K hypotheses have finished, when it is cut off, or when it cannot matter any more
    how it goes on: log probabilities only fall, so that what runs can reach at most its log probability over the best length
    penalty still to come, without any coverage penalty. If its n_best finished ones are at least that good, they are what a
    search without this stop would return as well. A beam of 1 is `greedy`.

        score = log p(y | x) / lp(L) + beta * sum_s log min(sum_t a_ts, 1)      (Wu et al., arXiv 1609.08144, eq. 14)

    with lp(L) = ((5 + L) / 6)^alpha, or L^alpha, where L counts the end symbol.

    Args:
      step, params, context, state, start, end, pad: see `greedy`. `step` is mapped over the K slots of the beam by `jax.vmap`:
        it sees B rows, and the context as it is; of the state, rows are gathered.
      beam_size: K.
      max_length: steps at most, end symbol included; one for each row too, say `2 * source_lengths + 5`. A row of 0
        is left out.
      n_best: N, hypotheses for each row, at most K.
      length_penalty: "none", "gnmt" ((5 + L) / 6)^alpha, or "average" L^alpha.
      alpha: of the length penalty; OpenNMT's `alpha`, fairseq's `lenpen`. Another one compiles nothing new.
      coverage_beta: beta of the coverage penalty, 0 or more; None for none. It needs `attention`.
      attention: takes what `step` gives as `aux` and returns the weights [B, S] of this step, not negative; without coverage
        penalty any tree of arrays [B, ...]. They come back for each hypothesis. Made once, as `step` is.
      source_mask: which source positions the coverage penalty counts, True = valid; None for all.
      min_length: the end symbol is not said before step `min_length`; it counts the end symbol. One for each row too.
      time: T, the width of what comes back; as it is compiled for, give it (`2 * S + 5`) where `max_length` is one for each
        row. If None, the greatest of `max_length`.
      no_repeat_ngram_size: no n symbols come twice in a hypothesis; 0 for no such rule. Start and end symbol do not count.
      banned: symbols that are never said.
      banned_prefixes: lists of symbols with none of which a hypothesis may begin.
      prefixes, prefix_lengths: [B, P], and how many of each row are valid (None for all): with these symbols every hypothesis
        of the row begins, also where another rule bans them. Their log probabilities count.

    Returns:
      `Hypotheses`. A hypothesis to which the model gives NaN, or nothing but -inf, goes on no further and is not returned.

    Raises:
      ValueError: numbers out of range (`beam_size` and `n_best` below 1, `n_best` above K, `max_length` below 1, `min_length`
        above T, negative or not finite `alpha` and `coverage_beta` as far as they are concrete), an unknown length penalty,
        symbols outside the vocabulary, an empty banned prefix, shapes that do not match, a state without arrays, or a coverage
        penalty without `attention`. Traced lengths above T are clipped.
    """
    batch_size = checks.batch_size_of(state)
    time, limits = checks.check_limits(max_length, time, batch_size)
    symbols, output = checks.check_step(step, params, context, state, start, end, time, pad)
    vocabulary_size = output.logits.shape[-1]
    beam_size, n_best, no_repeat = map(operator.index, (beam_size, n_best, no_repeat_ngram_size))
    if beam_size < 1:
        raise ValueError(f"beam_size: expected a positive number, got {beam_size}")
    if not 1 <= n_best <= beam_size:
        raise ValueError(f"n_best: expected a number from 1 to beam_size = {beam_size}, got {n_best}")
    if no_repeat < 0:
        raise ValueError(f"no_repeat_ngram_size: expected 0 or more, got {no_repeat}")
    if length_penalty not in LENGTH_PENALTIES:
        raise ValueError(f"length_penalty: expected one of {', '.join(LENGTH_PENALTIES)}, got {length_penalty!r}")
    for name, number in (("alpha", alpha), ("coverage_beta", coverage_beta)):
        if number is not None and not isinstance(number, jax.core.Tracer) and not 0 <= float(number) < float("inf"):
            raise ValueError(f"{name}: expected a number from 0, got {number}")
    if attention is not None:
        weights = jax.eval_shape(attention, output.aux)
        if not all(leaf.ndim and leaf.shape[0] == batch_size for leaf in jax.tree.leaves(weights)):
            shapes = [leaf.shape for leaf in jax.tree.leaves(weights)]
            raise ValueError(f"attention: expected arrays [{batch_size}, ...], got {shapes}")
        if coverage_beta is not None:
            _check_coverage(weights, source_mask, batch_size)
    elif coverage_beta is not None:
        raise ValueError("attention: expected a function of aux with coverage_beta, got None")
    shortest = checks.check_min_length(min_length, batch_size, time)
    constraints = Constraints(
        checks.check_banned(banned, vocabulary_size, symbols.end, shortest),
        shortest,
        checks.check_banned_prefixes(banned_prefixes, vocabulary_size),
        checks.check_prefixes(prefixes, prefix_lengths, batch_size, vocabulary_size),
    )
    fixed = _Fixed(symbols, beam_size, n_best, length_penalty, no_repeat, attention)
    coverage = None if coverage_beta is None else _CoverageOptions(jnp.asarray(coverage_beta, symbols.dtype), source_mask)
    given = _Given(limits, constraints, jnp.asarray(alpha, symbols.dtype), coverage)
    return _search(step, params, context, state, fixed, given)


def _check_coverage(weights: Any, source_mask: Any, batch_size: int) -> None:
    leaves = jax.tree.leaves(weights)
    if len(leaves) != 1 or leaves[0].ndim != 2:
        raise ValueError(
            f"attention: expected weights [{batch_size}, S] with coverage_beta, got {[leaf.shape for leaf in leaves]}"
        )
    if source_mask is not None and (source_mask.shape != leaves[0].shape or source_mask.dtype != np.bool_):
        came = f"{source_mask.dtype} {source_mask.shape}"
        raise ValueError(f"source_mask: expected bool {leaves[0].shape}, as the attention weights are, got {came}")


class _Fixed(NamedTuple):
    """What is compiled for."""

    symbols: checks.Symbols
    beam_size: int
    n_best: int
    length_penalty: str
    no_repeat: int
    attention: Callable[[Any], Any] | None


class _CoverageOptions(NamedTuple):
    beta: Float[Array, ""]
    source_mask: Bool[Array, "B S"] | None


class _Given(NamedTuple):
    limits: Int[Array, " B"]
    constraints: Constraints
    alpha: Float[Array, ""]
    coverage: _CoverageOptions | None


class _Coverage(NamedTuple):
    """Sums of the attention weights of running hypotheses, and what they cost."""

    sums: Float[Array, "B K S"]
    penalties: Float[Array, "B K"]


class _Ends(NamedTuple):
    """How hypotheses [B, N] end: their last symbol, what it was worth, and the slot of the beam that it came from."""

    scores: Array
    log_probs: Array
    lengths: Array
    symbols: Array
    token_log_probs: Array
    parents: Array


class _History(NamedTuple):
    """What was put into each slot of the beam at each step, [T, B, K], and the weights [T, B * K, ...] with which it was read.

    Nothing in it is moved when the beam changes its order: a hypothesis is found by its parents, from its end on.
    """

    symbols: Array
    token_log_probs: Array
    parents: Array
    attention: Any


class _Beam(NamedTuple):
    """What the loop carries."""

    state: State
    symbols: Int[Array, "B K"]
    log_probs: Float[Array, "B K"]  # -inf in slots that nothing runs in
    coverage: _Coverage | None
    said: Said
    finished: _Ends
    counts: Int[Array, " B"]  # of all that have finished
    done: Bool[Array, " B"]
    history: _History


@functools.partial(jax.jit, static_argnums=(0, 4))
def _search(step: DecoderStep, params: Params, context: Context, state: State, fixed: _Fixed, given: _Given) -> Hypotheses:
    symbols, K = fixed.symbols, fixed.beam_size
    B, T = given.limits.shape[0], symbols.time
    rows = jnp.arange(B)[:, None]

    # Of hypotheses [B, K], what `step` sees and carries on has K * B rows, slot by slot: so what is put before and behind
    # the step by `jax.vmap` moves nothing.
    def by_slot(leaf: Array) -> Array:
        return jnp.swapaxes(leaf, 0, 1).reshape(K * B, *leaf.shape[2:])

    def by_row(leaf: Array) -> Array:
        return jnp.swapaxes(leaf.reshape(K, B, *leaf.shape[1:]), 0, 1)

    def stepped(state: State, tokens: Int[Array, " K*B"]) -> DecoderOutput:
        """Hypotheses of a row read their context together, without a copy for each."""
        state, tokens = jax.tree.map(lambda leaf: leaf.reshape(K, B, *leaf.shape[1:]), (state, tokens))
        done = DecoderOutput(*jax.vmap(lambda *of_slot: step(params, context, *of_slot))(state, tokens))
        return jax.tree.map(lambda leaf: leaf.reshape(K * B, *leaf.shape[2:]), done)

    def penalised(log_probs: Array, lengths: Array) -> Array:
        return log_probs / length_penalty_of(lengths, fixed.length_penalty, given.alpha)

    def more(carry: tuple[Array, _Beam]) -> Array:
        t, beam = carry
        return (t < T) & ~jnp.all(beam.done)

    def candidates(t: Array, logits: Array, said: Said) -> tuple[Array, Array]:
        """Log probabilities and symbols [B, K, W] by which each hypothesis may go on, best first."""
        # K that do not end, and the end.
        width = min(K + 1, logits.shape[-1])
        (values, chosen, highest), rest = next_symbols(logits, width, t, symbols.end, given.constraints, said, fixed.no_repeat)
        values, chosen = force(by_row(values), by_row(chosen), by_row(logits), t, given.constraints)
        return values - by_row(highest)[..., None] - by_row(rest)[..., None], chosen

    def advance(carry: tuple[Array, _Beam]) -> tuple[Array, _Beam]:
        t, beam = carry
        state, logits, aux = stepped(beam.state, by_slot(beam.symbols))
        gains, chosen = candidates(t, logits.astype(symbols.dtype), beam.said)
        weights: Any = None
        if fixed.attention is not None:
            weights = jax.tree.map(lambda leaf: by_row(leaf).reshape(leaf.shape), fixed.attention(aux))
        coverage = beam.coverage
        if coverage is not None and given.coverage is not None:
            sums = coverage.sums + weights.reshape(coverage.sums.shape)
            mask = given.coverage.source_mask
            penalties = coverage_penalty(sums, given.coverage.beta, None if mask is None else mask[:, None])
            coverage = _Coverage(sums, penalties)

        # The best of the beam, 2K of them. What is NaN is behind all others.
        width = gains.shape[-1]
        totals = (beam.log_probs[:, :, None] + gains).reshape(B, K * width)
        totals, index = jax.lax.top_k(jnp.where(jnp.isnan(totals), -jnp.inf, totals), min(2 * K, K * width))
        parents, chosen = index // width, jnp.take_along_axis(chosen.reshape(B, K * width), index, axis=1)
        gains = jnp.take_along_axis(gains.reshape(B, K * width), index, axis=1)
        ends = chosen == symbols.end

        scores = penalised(totals, t + 1)
        if coverage is not None:
            scores += _take(coverage.penalties, parents)
        ended = (ends & (scores > -jnp.inf) & ~beam.done[:, None])[:, :K]
        lengths = jnp.full(ended.shape, t + 1, jnp.int32)
        new = _Ends(scores[:, :K], totals[:, :K], lengths, chosen[:, :K], gains[:, :K], parents[:, :K])
        new = new._replace(scores=jnp.where(ended, new.scores, -jnp.inf))
        finished = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), beam.finished, new)
        finished = _take(finished, jax.lax.top_k(finished.scores, fixed.n_best)[1])
        counts = beam.counts + jnp.sum(ended, axis=1)

        log_probs, going = jax.lax.top_k(jnp.where(ends, -jnp.inf, totals), K)
        parents, chosen, gains = _take((parents, chosen, gains), going)
        log_probs = where_valid(beam.done, beam.log_probs, log_probs)
        if coverage is not None and beam.coverage is not None:
            penalties = where_valid(beam.done, beam.coverage.penalties, _take(coverage.penalties, parents))
            coverage = _Coverage(_take(coverage.sums, parents), penalties)

        # What runs may end at t + 2 steps or more, up to the limit; one of the two gives the least penalty.
        best = log_probs[:, 0]
        reachable = jnp.maximum(penalised(best, t + 2), penalised(best, given.limits))
        done = beam.done | (counts >= K) | (t + 1 >= given.limits) | (reachable <= finished.scores[:, -1])

        moved = by_slot(parents * B + rows)
        history = _History(chosen, gains, parents, weights)
        return t + 1, _Beam(
            jax.tree.map(lambda leaf: leaf[moved], state),
            chosen,
            log_probs,
            coverage,
            say(beam.said, moved, by_slot(chosen), t, given.constraints),
            finished,
            counts,
            done,
            jax.tree.map(lambda all, one: jax.lax.dynamic_update_index_in_dim(all, one, t, 0), beam.history, history),
        )

    state = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * K), state)
    beam = _start(stepped, state, fixed, given)
    beam = varying_as(beam, (params, context, given))
    _, beam = jax.lax.while_loop(more, advance, (jnp.int32(0), beam))

    # What was cut off, best first, stands behind what has ended.
    scores = penalised(beam.log_probs, given.limits[:, None])
    scores = scores if beam.coverage is None else scores + beam.coverage.penalties
    scores = jnp.where(beam.log_probs > -jnp.inf, scores, -jnp.inf)
    last = jnp.maximum(given.limits - 1, 0)
    history = beam.history
    cut = _Ends(
        scores,
        beam.log_probs,
        jnp.broadcast_to(given.limits[:, None], (B, K)),
        *(leaf[last, jnp.arange(B)] for leaf in (history.symbols, history.token_log_probs, history.parents)),
    )
    cut = _take(cut, jax.lax.top_k(jnp.where(jnp.isnan(scores), -jnp.inf, scores), fixed.n_best)[1])
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), beam.finished, cut)
    place, ended = jnp.arange(fixed.n_best), jnp.minimum(beam.counts, fixed.n_best)[:, None]
    found = _take(both, jnp.where(place < ended, place, fixed.n_best + place - ended))
    return _unwound(found, place < ended, history, symbols)


def _take(leaves: Any, index: Int[Array, "B N"]) -> Any:
    """Columns of each leaf [B, M, ...]."""
    return jax.tree.map(lambda leaf: leaf[jnp.arange(index.shape[0])[:, None], index], leaves)


def _start(stepped: Callable[[State, Array], DecoderOutput], state: State, fixed: _Fixed, given: _Given) -> _Beam:
    symbols, K, N = fixed.symbols, fixed.beam_size, fixed.n_best
    B, T, dtype = given.limits.shape[0], symbols.time, symbols.dtype
    first = jnp.full((B, K), symbols.start, jnp.int32)
    weights: Any = None
    if fixed.attention is not None:
        attention = fixed.attention
        weights = jax.eval_shape(lambda: attention(stepped(state, first.reshape(K * B)).aux))
    # One hypothesis to begin with; in a row that is left out, none.
    one = (jnp.arange(K) == 0) & (given.limits > 0)[:, None]
    none = jnp.full((B, N), -jnp.inf, dtype)
    nowhere = jnp.zeros((B, N), jnp.int32)
    return _Beam(
        state,
        first,
        jnp.where(one, 0, -jnp.inf).astype(dtype),
        None if given.coverage is None else _Coverage(jnp.zeros((B, K, weights.shape[1]), dtype), jnp.zeros((B, K), dtype)),
        nothing_said(given.constraints, B * K, T, fixed.no_repeat),
        _Ends(none, none, nowhere, nowhere, none, nowhere),
        jnp.zeros(B, jnp.int32),
        given.limits == 0,
        _History(
            jnp.zeros((T, B, K), jnp.int32),
            jnp.zeros((T, B, K), dtype),
            jnp.zeros((T, B, K), jnp.int32),
            jax.tree.map(lambda leaf: jnp.zeros((T, *leaf.shape), leaf.dtype), weights),
        ),
    )


def _unwound(found: _Ends, finished: Array, history: _History, symbols: checks.Symbols) -> Hypotheses:
    """Reads each hypothesis from its end to its beginning."""
    B, K = history.symbols.shape[1:]
    rows = jnp.arange(B)[:, None]
    exists = found.scores > -jnp.inf
    lengths = jnp.where(exists, found.lengths, 0)

    def back(slot: Array, at: tuple[Array, _History]) -> tuple[Array, tuple[Array, Array, Any]]:
        t, then = at
        last, within = t == lengths - 1, t < lengths
        symbol = jnp.where(last, found.symbols, then.symbols[rows, slot])
        gain = jnp.where(last, found.token_log_probs, then.token_log_probs[rows, slot])
        parent = jnp.where(last, found.parents, then.parents[rows, slot])
        read = jax.tree.map(lambda leaf: leaf[rows * K + parent], then.attention)
        read = jax.tree.map(lambda leaf: where_valid(within, leaf, jnp.zeros_like(leaf)), read)
        return parent, (jnp.where(within, symbol, symbols.pad), jnp.where(within, gain, 0), read)

    steps = jnp.arange(symbols.time)
    _, read = jax.lax.scan(back, found.parents, (steps, history), reverse=True)
    tokens, gains, attention = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2), read)
    log_probs = jnp.where(exists, found.log_probs, -jnp.inf)
    return Hypotheses(tokens, lengths, found.scores, log_probs, gains, finished & exists, attention)
