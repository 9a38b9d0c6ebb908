"""Prefix beam search: the most probable text of frames, on the device, with a language model and a lexicon if wanted."""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from s2s_jax.ctc import check_frames, frame_log_probs
from s2s_jax.decoding.lexicon import Lexicon
from s2s_jax.sharding import varying_as
from s2s_jax.types import Context, DecoderStep, Params, State


class Language(NamedTuple):
    """A language model over the symbols of the frames, as a decoder step and what it takes.

    Attributes:
      step: `(params, context, state, tokens) -> (state, logits, aux)`: `ngram_step`, or that of a recurrent model.
      params, context, state: what it takes; leaves of `context` and `state` have a leading batch axis.
      weight: what its log probabilities count.
      bonus: what each symbol adds to the score, as a language model alone prefers short texts.
      start, end: its symbols before and behind a text; None for the blank, which stands in no text. Its vocabulary is that of
        the frames, up to the greater of these two where they are no symbols of the frames.
    """

    step: DecoderStep
    params: Params
    state: State
    context: Context = None
    weight: float | Array = 1.0
    bonus: float | Array = 0.0
    start: int | None = None
    end: int | None = None


class Texts(NamedTuple):
    """N texts for each row, best first. Where a row has fewer, the last ones have length 0 and score and probability -inf.

    `log_probs`: of all alignments that the search has followed, so at most the true ones; `scores`: with the language model.
    """

    tokens: Int[Array, "B N T"]
    lengths: Int[Array, "B N"]
    scores: Float[Array, "B N"]
    log_probs: Float[Array, "B N"]


def ctc_beam_search(
    logits: Float[Array, "B T V"],
    lengths: Int[Array, " B"] | None = None,
    *,
    blank: int = 0,
    pad: int = 0,
    beam_size: int = 16,
    n_best: int = 1,
    language: Language | None = None,
    lexicon: Lexicon | None = None,
) -> Texts:
    """Follows the K most probable beginnings of the text along the frames, each with all its alignments (Graves 2012; Hannun
    et al., arXiv 1408.2873, algorithm 1), in one `lax.scan`.

    The score of a text y is

        log p(y | frames) + weight (log p(y_1) + log p(y_2 | y_1) + .. + log p(end | y)) + bonus |y|

    Beginnings that become equal are one: a beginning in the beam that another one grows into takes its probability over. A
    beam as wide as there are beginnings finds every text, with its exact probability.

    Args:
      logits, lengths: frames before the softmax, and how many of each row are valid; None for all.
      blank, pad: the symbol that says nothing; what stands behind the last symbol.
      beam_size: K.
      n_best: N, at most K.
      language: see `Language`; its step is made once, not anew for each call.
      lexicon: only its words are said; see `make_lexicon`.

    Raises:
      ValueError: sizes out of range, symbols outside the vocabulary, concrete lengths out of range (traced ones are clipped), a
        language model or a lexicon of another vocabulary, or a language model whose state has other rows.
    """
    beam_size, n_best = operator.index(beam_size), operator.index(n_best)
    if beam_size < 1:
        raise ValueError(f"beam_size: expected at least 1, got {beam_size}")
    if not 1 <= n_best <= beam_size:
        raise ValueError(f"n_best: expected 1 to beam_size = {beam_size}, got {n_best}")
    logits, mask = check_frames(logits, lengths, blank)
    log_probs = frame_log_probs(logits)
    _, time, vocabulary_size = log_probs.shape
    if lexicon is not None and lexicon.following.shape[-1] != vocabulary_size:
        raise ValueError(f"lexicon: expected one of {vocabulary_size} symbols, got {lexicon.following.shape[-1]}")
    model = given = None
    if language is not None:
        start, end = (blank if symbol is None else operator.index(symbol) for symbol in (language.start, language.end))
        for leaf in jax.tree.leaves((language.context, language.state)):
            if jnp.shape(leaf)[:1] != log_probs.shape[:1]:
                expected = f"a context and a state of {len(log_probs)} rows, as the logits have"
                raise ValueError(f"language: expected {expected}, got an array of shape {jnp.shape(leaf)}")
        first = jax.ShapeDtypeStruct((len(log_probs),), jnp.int32)
        size = jax.eval_shape(language.step, language.params, language.context, language.state, first)[1].shape[-1]
        if size != max(vocabulary_size, start + 1, end + 1) or min(start, end) < 0:
            raise ValueError(
                f"language: expected a model of the {vocabulary_size} symbols of the frames, and of its start and end, "
                f"got {size} symbols, start {start} and end {end}"
            )
        model = _Model(language.step, start, end)
        weight, bonus = (jnp.asarray(number, log_probs.dtype) for number in (language.weight, language.bonus))
        given = _Given(language.params, language.context, language.state, weight, bonus)
    if not time:  # one frame that is not valid, so that there is something to look at
        log_probs, mask = (jnp.pad(leaf, ((0, 0), (0, 1), (0, 0))[: leaf.ndim]) for leaf in (log_probs, mask))
    found = _search(model, (blank, pad, beam_size, n_best), log_probs, mask, given, lexicon)
    return found._replace(tokens=found.tokens[:, :, :time])


class _Model(NamedTuple):
    """What of a `Language` is fixed when the search is compiled."""

    step: DecoderStep
    start: int
    end: int


class _Given(NamedTuple):
    """The rest of it."""

    params: Any
    context: Any
    state: Any
    weight: Any
    bonus: Any


class _Beam(NamedTuple):
    """K beginnings of one row's text.

    `on_blank` and `on_symbol` are the log probabilities of their alignments that end so. `extends[i, j]`: whether beginning j
    is beginning i, or starts with it; False for slots that hold none. `fused` is what the language model has given, `next` what
    it gives for each symbol and, last, for the end.
    """

    tokens: Array  # [K, T]
    lengths: Array  # [K]
    on_blank: Array
    on_symbol: Array
    extends: Array  # [K, K]
    fused: Array
    next: Any  # [K, V + 1]
    state: Any
    node: Any


@functools.partial(jax.jit, static_argnums=(0, 1))
def _search(
    model: _Model | None,
    options: tuple[int, int, int, int],
    log_probs: Float[Array, "B T V"],
    mask: Bool[Array, "B T"],
    given: _Given | None,
    lexicon: Lexicon | None,
) -> Texts:
    blank, pad, width, n_best = options
    _, time, vocabulary_size = log_probs.shape
    dtype = log_probs.dtype

    def advance_language(context: Context, state: State, tokens: Array) -> tuple[State, Array]:
        """The states of K beginnings after their last symbol, and what each next symbol is worth."""
        assert model is not None
        assert given is not None
        repeated = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (width, *leaf.shape)), context)
        state, logits, _ = model.step(given.params, repeated, state, tokens)
        gains = jax.nn.log_softmax(logits.astype(dtype))
        gains = jnp.where(jnp.isnan(gains), -jnp.inf, gains)  # a beginning that cannot be judged goes no further
        gains = jnp.concatenate([gains[:, :vocabulary_size], gains[:, model.end : model.end + 1]], axis=1)
        gains = jnp.where(gains == -jnp.inf, gains, gains * given.weight)  # a weight of 0 times that would be NaN
        return state, gains + jnp.where(jnp.arange(vocabulary_size + 1) < vocabulary_size, given.bonus, 0)

    def search_row(y: Array, valid: Array, context: Context, state: State) -> tuple[Array, Array, Array, Array]:
        nothing = jnp.full(width, -jnp.inf, dtype)
        first = jnp.arange(width) == 0
        gains: Any = ()
        if model is not None:
            state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (width, *leaf.shape)), state)
            state, gains = advance_language(context, state, jnp.full(width, model.start, jnp.int32))
        beam = _Beam(
            tokens=jnp.full((width, time), pad, jnp.int32),
            lengths=jnp.zeros(width, jnp.int32),
            on_blank=nothing.at[0].set(0),
            on_symbol=nothing,
            extends=first[:, None] & first,
            fused=jnp.zeros(width, dtype),
            next=gains,
            state=state,
            node=jnp.zeros(width, jnp.int32) if lexicon is not None else (),
        )
        beam = varying_as(beam, (y, valid, given, lexicon))
        beam, _ = jax.lax.scan(lambda beam, at: (advance(context, beam, *at), None), beam, (y, valid))
        log_prob = jnp.logaddexp(beam.on_blank, beam.on_symbol)
        score = log_prob + beam.fused
        if model is not None:
            score += beam.next[:, -1]
        if lexicon is not None:
            score = jnp.where(lexicon.ends[beam.node], score, -jnp.inf)
        score, best = jax.lax.top_k(score, n_best)
        exists = score > -jnp.inf
        tokens = jnp.where(exists[:, None], beam.tokens[best], pad)
        return tokens, jnp.where(exists, beam.lengths[best], 0), score, jnp.where(exists, log_prob[best], -jnp.inf)

    def advance(context: Context, beam: _Beam, y: Array, valid: Array) -> _Beam:
        slots, symbols = jnp.arange(width), jnp.arange(vocabulary_size)
        total = jnp.logaddexp(beam.on_blank, beam.on_symbol)
        empty = beam.lengths == 0
        last = jnp.where(empty, -1, beam.tokens[slots, jnp.maximum(beam.lengths - 1, 0)])
        # A symbol that was said last is said anew behind a blank alone.
        grown = jnp.where(symbols == last[:, None], beam.on_blank[:, None], total[:, None]) + y
        grown = jnp.where(symbols == blank, -jnp.inf, grown)
        if lexicon is not None:
            grown = jnp.where(lexicon.following[beam.node] >= 0, grown, -jnp.inf)
        # Beginning i grows into j, which is in the beam already.
        parent = beam.extends & (beam.lengths[:, None] + 1 == beam.lengths)
        joining = jnp.max(jnp.where(parent, grown[:, last], -jnp.inf), axis=0)
        onto = jnp.any(parent[:, :, None] & (last[:, None] == symbols), axis=1)
        grown = jnp.where(onto, -jnp.inf, grown)
        on_blank = total + y[blank]
        on_symbol = jnp.logaddexp(jnp.where(empty, -jnp.inf, beam.on_symbol + y[last]), joining)

        scores = (grown + beam.fused[:, None] + (beam.next[:, :-1] if model is not None else 0)).reshape(-1)
        scores = jnp.concatenate([jnp.logaddexp(on_blank, on_symbol) + beam.fused, scores])
        best, chosen = jax.lax.top_k(jnp.where(jnp.isnan(scores), -jnp.inf, scores), width)
        stays = chosen < width
        origin = jnp.where(stays, chosen, (chosen - width) // vocabulary_size)
        said = jnp.where(stays, -1, (chosen - width) % vocabulary_size)
        alive = best > -jnp.inf

        before = beam.lengths[origin]
        # What stands in b's origin where a's ends, and whether the one extends the other there.
        after = beam.tokens[origin[None, :], jnp.minimum(before, time - 1)[:, None]]
        within = beam.extends[origin[:, None], origin]
        longer = before[:, None] < before
        same = origin[:, None] == origin
        extends = jnp.where(
            stays[:, None],
            within,
            (within & longer & (after == said[:, None])) | (same & (said[:, None] == said)),
        )
        new = _Beam(
            tokens=jnp.where(~stays[:, None] & (jnp.arange(time) == before[:, None]), said[:, None], beam.tokens[origin]),
            lengths=before + ~stays,
            on_blank=jnp.where(alive & stays, on_blank[origin], -jnp.inf),
            on_symbol=jnp.where(alive, jnp.where(stays, on_symbol[origin], grown[origin, said]), -jnp.inf),
            extends=extends & alive[:, None] & alive,
            fused=beam.fused[origin],
            next=beam.next,
            state=beam.state,
            node=beam.node,
        )
        if model is not None:
            kept = jax.tree.map(lambda leaf: leaf[origin], (beam.state, beam.next))
            moved = advance_language(context, kept[0], jnp.maximum(said, 0))

            def choose(a: Array, b: Array) -> Array:
                return jnp.where(stays.reshape(-1, *[1] * (a.ndim - 1)), a, b)

            state, gains = jax.tree.map(choose, kept, moved)
            fused = new.fused + jnp.where(stays, 0, kept[1][slots, said])
            new = new._replace(fused=fused, next=gains, state=state)
        if lexicon is not None:
            node = beam.node[origin]
            new = new._replace(node=jnp.where(stays, node, lexicon.following[node, said]))
        return jax.tree.map(lambda a, b: jnp.where(valid, a, b), new, beam)

    context, state = ((), ()) if given is None else (given.context, given.state)
    return Texts(*jax.vmap(search_row)(log_probs, mask, context, state))
