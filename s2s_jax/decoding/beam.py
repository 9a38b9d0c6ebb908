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
from s2s_jax.decoding.hypotheses import Beam, Coverage, Ends, History, Hypotheses, take, unwound
from s2s_jax.decoding.penalties import LENGTH_PENALTIES, coverage_penalty
from s2s_jax.decoding.penalties import length_penalty as length_penalty_of
from s2s_jax.masks import where_valid
from s2s_jax.sharding import varying_as
from s2s_jax.types import Context, DecoderOutput, DecoderStep, Params, State

# Rows of a step, hypotheses counted. Each halving is compiled for by itself, and with fewer there is little to be spared.
_WORTH_HALVING = 64
EARLY_STOPPING = ("exact", "enough")


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
    early_stopping: str = "exact",
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
    probable others go on. A row is done when it is cut off, or when it cannot matter any more how it goes on: log
    probabilities only fall, so that what runs can reach at most its log probability over the best length penalty still to
    come, without any coverage penalty. If its n_best finished ones are at least that good, they are what a search without this
    stop would return as well. Without length and coverage penalty a beam of 1 is `greedy`, where the logits are
    numbers.

        score = log p(y | x) / lp(L) + beta * sum_s log min(sum_t a_ts, 1)      (Wu et al., arXiv 1609.08144, eq. 14)

    with lp(L) = ((5 + L) / 6)^alpha, or L^alpha, where L counts the end symbol.

    Args:
      step, params, context, state, start, end, pad: see `greedy`. `step` is mapped over the K slots of the beam by `jax.vmap`:
        it sees B rows and the context as it is, and fewer rows of both when half of a large batch is done (on one device).
        Of the state, rows are gathered.
      beam_size: K.
      max_length: steps at most, end symbol included; one for each row too, say `2 * source_lengths + 5`. A row of 0
        is left out.
      n_best: N, hypotheses for each row, at most K.
      length_penalty: "none", "gnmt" ((5 + L) / 6)^alpha, or "average" L^alpha.
      alpha: of the length penalty; OpenNMT's `alpha`, fairseq's `lenpen`. Another one compiles nothing new.
      coverage_beta: beta of the coverage penalty, 0 or more; None for none. It needs `attention`.
      early_stopping: "exact", as above; with a length penalty it seldom stops long before the maximum length. Or "enough": a
        row is done as well when K hypotheses have finished and one of them, when it did, was the most probable of all. (K
        alone, as in fairseq, would not do: a model that is sure of its next symbols says few other texts, and that these end
        too early would end the search before the text that it is sure of.)
      attention: takes what `step` gives as `aux` and returns the weights [B, S] of this step, not negative; without coverage
        penalty any tree of arrays [B, ...]. They come back for each hypothesis. Made once, as `step` is.
      source_mask: which source positions the coverage penalty counts, True = valid; None for all.
      min_length: the end symbol is not said before step `min_length`; it counts the end symbol. One for each row too, and where
        the row's `max_length` is less, that holds.
      time: T, the width of what comes back; as it is compiled for, give it (`2 * S + 5`) where `max_length` is one for each
        row. If None, the greatest of `max_length`.
      no_repeat_ngram_size: no n symbols come twice in a hypothesis; 0 for no such rule. Start and end symbol do not count.
      banned: symbols that are never said.
      banned_prefixes: lists of symbols with none of which a hypothesis may begin.
      prefixes, prefix_lengths: [B, P], and how many of each row are valid (None for all): with these symbols every hypothesis
        of the row begins, also where another rule bans them. Their log probabilities count. Where symbols or
        lengths are traced, a prefix that goes on behind an end symbol or behind `max_length` is cut off there.

    Returns:
      `Hypotheses`. A hypothesis to which the model gives NaN, or nothing but -inf, goes on no further and is not returned;
      with a coverage penalty this holds for NaN among its attention weights too.

    Raises:
      ValueError: numbers out of range (`beam_size` and `n_best` below 1, `n_best` above K, `max_length` below 1, `min_length`
        above T, negative or not finite `alpha` and `coverage_beta` as far as they are concrete), an unknown length penalty or
        early stopping, symbols outside the vocabulary, an empty banned prefix, a prefix that goes on behind `max_length` (in a
        row that is not left out) or behind an end symbol, as far as they are concrete, shapes that do not match, a context or
        state without an axis of rows, or a coverage penalty without `attention`. Traced lengths above T are clipped.
    """
    batch_size = checks.check_rows(context, state)
    time, limits = checks.check_limits(max_length, time, batch_size)
    symbols, output = checks.check_step(step, params, context, state, batch_size, start, end, time, pad)
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
    if early_stopping not in EARLY_STOPPING:
        raise ValueError(f"early_stopping: expected one of {', '.join(EARLY_STOPPING)}, got {early_stopping!r}")
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
        checks.check_prefixes(prefixes, prefix_lengths, batch_size, vocabulary_size, symbols.end, max_length),
    )
    fixed = _Fixed(symbols, beam_size, n_best, length_penalty, early_stopping, no_repeat, attention)
    coverage = None if coverage_beta is None else _CoverageOptions(jnp.asarray(coverage_beta, symbols.dtype), source_mask)
    given = _Given(limits, constraints, jnp.asarray(alpha, symbols.dtype), coverage)
    return _search(step, params, context, state, fixed, given)


def _check_coverage(weights: Any, source_mask: Any, batch_size: int) -> None:
    if not isinstance(weights, jax.ShapeDtypeStruct) or weights.ndim != 2:
        shapes = jax.tree.map(lambda leaf: leaf.shape, weights)
        raise ValueError(f"attention: expected weights [{batch_size}, S] with coverage_beta, got {shapes}")
    if source_mask is not None and (source_mask.shape != weights.shape or source_mask.dtype != np.bool_):
        came = f"{source_mask.dtype} {source_mask.shape}"
        raise ValueError(f"source_mask: expected bool {weights.shape}, as the attention weights are, got {came}")


class _Fixed(NamedTuple):
    """What is compiled for."""

    symbols: checks.Symbols
    beam_size: int
    n_best: int
    length_penalty: str
    early_stopping: str
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

    def of(self, kept: Int[Array, " R"]) -> "_Given":
        """What holds for some rows."""
        of_rows = (
            self.limits,
            self.constraints.min_length,
            self.constraints.prefixes,
            None if self.coverage is None else self.coverage.source_mask,
        )
        limits, min_length, prefixes, mask = jax.tree.map(lambda leaf: leaf[kept], of_rows)
        constraints = self.constraints._replace(min_length=min_length, prefixes=prefixes)
        coverage = None if self.coverage is None else self.coverage._replace(source_mask=mask)
        return self._replace(limits=limits, constraints=constraints, coverage=coverage)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _search(step: DecoderStep, params: Params, context: Context, state: State, fixed: _Fixed, given: _Given) -> Hypotheses:
    symbols, K = fixed.symbols, fixed.beam_size
    B = given.limits.shape[0]
    weights: Any = None
    if fixed.attention is not None:
        attention, first = fixed.attention, jnp.full(B, symbols.start, jnp.int32)
        weights = jax.eval_shape(lambda: attention(step(params, context, state, first)[2]))
    state = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * K), state)
    beam = varying_as(_start(state, weights, fixed, given), (params, context, given))
    _, beam = _proceed(step, params, context, fixed, given, jnp.int32(0), beam)

    # What was cut off, best first, stands behind what has ended.
    scores = _penalised(beam.log_probs, given.limits[:, None], fixed, given)
    scores = scores if beam.coverage is None else scores + beam.coverage.penalties
    scores = jnp.where((beam.log_probs == -jnp.inf) | jnp.isnan(scores), -jnp.inf, scores)
    last = jnp.maximum(given.limits - 1, 0)
    history = beam.history
    cut = Ends(
        scores,
        beam.log_probs,
        jnp.broadcast_to(given.limits[:, None], (B, K)),
        *(leaf[last, jnp.arange(B)] for leaf in (history.symbols, history.token_log_probs, history.parents)),
    )
    cut = take(cut, jax.lax.top_k(scores, fixed.n_best)[1])
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), beam.finished, cut)
    place, ended = jnp.arange(fixed.n_best), jnp.minimum(beam.counts, fixed.n_best)[:, None]
    found = take(both, jnp.where(place < ended, place, fixed.n_best + place - ended))
    return unwound(found, place < ended, history, symbols)


def _penalised(log_probs: Array, lengths: Array, fixed: _Fixed, given: _Given) -> Array:
    return log_probs / length_penalty_of(lengths, fixed.length_penalty, given.alpha)


def _proceed(
    step: DecoderStep, params: Params, context: Context, fixed: _Fixed, given: _Given, t: Array, beam: Beam
) -> tuple[Array, Beam]:
    """Steps from t on until all rows are done. When half of them are, the others go on in a batch of half the size."""
    symbols, K = fixed.symbols, fixed.beam_size
    B, T = given.limits.shape[0], symbols.time
    rows = jnp.arange(B)[:, None]
    fewer = B // 2
    # Among several devices rows would have to change places.
    halves = fewer * K >= _WORTH_HALVING and jax.device_count() == 1

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
        return _penalised(log_probs, lengths, fixed, given)

    def more(carry: tuple[Array, Beam]) -> Array:
        t, beam = carry
        return (t < T) & (jnp.sum(~beam.done) > (fewer if halves else 0))

    def candidates(t: Array, logits: Array, said: Said) -> tuple[Array, Array]:
        """Log probabilities and symbols [B, K, W] by which each hypothesis may go on, best first."""
        # K that do not end, and the end.
        width = min(K + 1, logits.shape[-1])
        (values, chosen, highest), rest = next_symbols(logits, width, t, symbols.end, given.constraints, said, fixed.no_repeat)
        values, chosen = force(by_row(values), by_row(chosen), by_row(logits), t, given.constraints)
        return values - by_row(highest)[..., None] - by_row(rest)[..., None], chosen

    def advance(carry: tuple[Array, Beam]) -> tuple[Array, Beam]:
        t, beam = carry
        state, logits, aux = stepped(beam.state, by_slot(beam.symbols))
        # Several passes read the logits: XLA would repeat for each what the step does last, adding a bias say.
        logits = jax.lax.optimization_barrier(logits.astype(symbols.dtype))
        gains, chosen = candidates(t, logits, beam.said)
        weights: Any = None
        if fixed.attention is not None:
            weights = jax.tree.map(by_row, fixed.attention(aux))
        coverage = beam.coverage
        if coverage is not None and given.coverage is not None:
            sums = coverage.sums + weights.astype(symbols.dtype)
            mask = given.coverage.source_mask
            penalties = coverage_penalty(sums, given.coverage.beta, None if mask is None else mask[:, None])
            coverage = Coverage(sums, penalties)

        # The best of the beam, 2K of them. What is NaN, or was read with weights that are, goes on no further.
        width = gains.shape[-1]
        totals = beam.log_probs[:, :, None] + gains
        nan = jnp.isnan(totals) if coverage is None else jnp.isnan(totals) | jnp.isnan(coverage.penalties)[:, :, None]
        totals, index = jax.lax.top_k(jnp.where(nan, -jnp.inf, totals).reshape(B, K * width), min(2 * K, K * width))
        parents, chosen = index // width, jnp.take_along_axis(chosen.reshape(B, K * width), index, axis=1)
        gains = jnp.take_along_axis(gains.reshape(B, K * width), index, axis=1)
        ends = chosen == symbols.end

        scores = penalised(totals, t + 1)
        if coverage is not None:
            scores += take(coverage.penalties, parents)
        ended = (ends & (scores > -jnp.inf) & ~beam.done[:, None])[:, :K]
        lengths = jnp.full(ended.shape, t + 1, jnp.int32)
        new = Ends(scores[:, :K], totals[:, :K], lengths, chosen[:, :K], gains[:, :K], parents[:, :K])
        new = new._replace(scores=jnp.where(ended, new.scores, -jnp.inf))
        finished = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), beam.finished, new)
        finished = take(finished, jax.lax.top_k(finished.scores, fixed.n_best)[1])
        counts, led = beam.counts + jnp.sum(ended, axis=1, dtype=jnp.int32), beam.led | ended[:, 0]

        log_probs, going = jax.lax.top_k(jnp.where(ends, -jnp.inf, totals), K)
        parents, chosen, gains = take((parents, chosen, gains), going)
        log_probs = where_valid(beam.done, beam.log_probs, log_probs)
        if coverage is not None and beam.coverage is not None:
            penalties = where_valid(beam.done, beam.coverage.penalties, take(coverage.penalties, parents))
            coverage = Coverage(take(coverage.sums, parents), penalties)

        # What runs may end at t + 2 steps or more, up to the limit; one of the two gives the least penalty.
        best = log_probs[:, 0]
        reachable = jnp.maximum(penalised(best, t + 2), penalised(best, given.limits))
        done = beam.done | (t + 1 >= given.limits) | (reachable <= finished.scores[:, -1])
        if fixed.early_stopping == "enough":
            done |= led & (counts >= K)

        moved = by_slot(parents * B + rows)
        history = History(chosen, gains, parents, weights)
        return t + 1, Beam(
            jax.tree.map(lambda leaf: leaf[moved], state),
            chosen,
            log_probs,
            coverage,
            say(beam.said, moved, by_slot(chosen), t, given.constraints),
            finished,
            counts,
            led,
            done,
            jax.tree.map(lambda all, one: jax.lax.dynamic_update_index_in_dim(all, one, t, 0), beam.history, history),
        )

    t, beam = jax.lax.while_loop(more, advance, (t, beam))
    if not halves:
        return t, beam
    kept = jnp.argsort(beam.done)[:fewer]
    t, part = _proceed(step, params, jax.tree.map(lambda leaf: leaf[kept], context), fixed, given.of(kept), t, beam.of(kept))
    return t, beam.with_rows(kept, part)


def _start(state: State, weights: Any, fixed: _Fixed, given: _Given) -> Beam:
    symbols, K, N = fixed.symbols, fixed.beam_size, fixed.n_best
    B, T, dtype = given.limits.shape[0], symbols.time, symbols.dtype
    # One hypothesis to begin with; in a row that is left out, none.
    one = (jnp.arange(K) == 0) & (given.limits > 0)[:, None]
    none = jnp.full((B, N), -jnp.inf, dtype)
    nowhere = jnp.zeros((B, N), jnp.int32)
    return Beam(
        state,
        jnp.full((B, K), symbols.start, jnp.int32),
        jnp.where(one, 0, -jnp.inf).astype(dtype),
        None if given.coverage is None else Coverage(jnp.zeros((B, K, weights.shape[1]), dtype), jnp.zeros((B, K), dtype)),
        nothing_said(given.constraints, B * K, T, fixed.no_repeat),
        Ends(none, none, nowhere, nowhere, none, nowhere),
        jnp.zeros(B, jnp.int32),
        jnp.zeros(B, bool),
        given.limits == 0,
        History(
            jnp.zeros((T, B, K), jnp.int32),
            jnp.zeros((T, B, K), dtype),
            jnp.zeros((T, B, K), jnp.int32),
            jax.tree.map(lambda leaf: jnp.zeros((T, B, K, *leaf.shape[1:]), leaf.dtype), weights),
        ),
    )
