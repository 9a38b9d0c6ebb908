"""Prefix beam search against the same search in plain Python, with a language model, a lexicon, and narrow beams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from s2s_jax.decoding.ctc import Language, ctc_align, ctc_beam_search, ctc_greedy
from s2s_jax.decoding.lexicon import make_lexicon
from s2s_jax.decoding.ngrams import fit_ngrams, ngram_step
from s2s_jax.models import LanguageModel, decoder_step
from tests import oracles
from tests.decoding.ctc.paths import drawn, texts_of
from tests.decoding.ctc.test_brute_force import listed

B, T, V = 5, 9, 4
LENGTHS = np.array([9, 6, 1, 0, 7])
TEXTS = [(1, 2), (1, 2, 2, 3), (2, 2), (3, 1, 2), (1,), ()]


def searched(log_probs, width, blank=0, gain=lambda text, symbol: 0.0, end=lambda text: 0.0, allowed=lambda text: True):
    """The same in plain Python: beginnings in a dictionary, the best `width` of them kept at each frame."""
    beam = {(): (0.0, -np.inf)}
    fused = {(): 0.0}

    def score(text, ends):
        return np.logaddexp(*ends) + fused[text]

    for y in log_probs:
        grown = {}

        def add(text, blank_part, symbol_part, grown=grown):
            before = grown.get(text, (-np.inf, -np.inf))
            grown[text] = np.logaddexp(before[0], blank_part), np.logaddexp(before[1], symbol_part)

        for text, (on_blank, on_symbol) in beam.items():
            add(text, np.logaddexp(on_blank, on_symbol) + y[blank], on_symbol + y[text[-1]] if text else -np.inf)
            for symbol in range(len(y)):
                longer = (*text, symbol)
                if symbol == blank or not allowed(longer):
                    continue
                fused[longer] = fused[text] + gain(text, symbol)
                before = on_blank if text and text[-1] == symbol else np.logaddexp(on_blank, on_symbol)
                add(longer, -np.inf, before + y[symbol])
        ranked = sorted(grown.items(), key=lambda item: -score(*item))
        beam = {text: ends for text, ends in ranked[:width] if score(text, ends) > -np.inf}
    last = {text: score(text, ends) + end(text) for text, ends in beam.items()}
    return {text: value for text, value in last.items() if value > -np.inf}


def assert_finds(found, wanted):
    for row, want in enumerate(wanted):
        best = sorted(want, key=lambda text: -want[text])
        count = int(np.sum(np.asarray(found.scores[row]) > -np.inf))
        assert count == min(len(want), found.scores.shape[1])
        got = [tuple(np.asarray(found.tokens[row, n])[: int(found.lengths[row, n])].tolist()) for n in range(count)]
        assert got == best[:count]
        np.testing.assert_allclose(found.scores[row, :count], [want[text] for text in got], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [1, 2, 3, 8])
@pytest.mark.parametrize("blank", [0, 3])
def test_narrow_beams_keep_what_the_plain_search_keeps(width, blank):
    for seed in range(3):
        logits, log_probs = drawn(np.random.default_rng(seed), B, T, V)
        found = ctc_beam_search(logits, LENGTHS, blank=blank, beam_size=width, n_best=width)
        assert_finds(found, [searched(y[:n], width, blank) for y, n in zip(log_probs, LENGTHS, strict=True)])


def of_texts(order=3, weight=0.7, bonus=0.4):
    params = fit_ngrams(TEXTS, V, order=order)
    nodes = jnp.zeros(B, jnp.int32)
    language = Language(ngram_step, params, nodes, weight=weight, bonus=bonus)

    def log_prob(text, symbol):
        state = jnp.zeros(1, jnp.int32)
        for said in (0, *text):
            state, logits, _ = ngram_step(params, None, state, jnp.array([said]))
        return float(logits[0, symbol])

    return language, lambda text, symbol: weight * log_prob(text, symbol) + bonus, lambda text: weight * log_prob(text, 0)


@pytest.mark.parametrize("width", [2, 6])
def test_language_model_is_fused_as_the_score_says(width):
    logits, log_probs = drawn(np.random.default_rng(3), B, T, V)
    language, gain, end = of_texts()
    found = ctc_beam_search(logits, LENGTHS, beam_size=width, n_best=width, language=language)
    assert_finds(found, [searched(y[:n], width, gain=gain, end=end) for y, n in zip(log_probs, LENGTHS, strict=True)])
    free = ctc_beam_search(logits, LENGTHS, beam_size=width, n_best=width)
    assert np.any(np.asarray(found.tokens) != np.asarray(free.tokens))


def test_a_weight_of_zero_changes_nothing():
    logits, _ = drawn(np.random.default_rng(4), B, T, V)
    language, _, _ = of_texts(weight=0.0, bonus=0.0)
    found = ctc_beam_search(logits, LENGTHS, beam_size=4, n_best=4, language=language)
    free = ctc_beam_search(logits, LENGTHS, beam_size=4, n_best=4)
    jax.tree.map(np.testing.assert_array_equal, found, free)


def test_wide_beams_with_a_language_model_find_the_best_of_all_texts():
    logits, log_probs = drawn(np.random.default_rng(5), B, 5, 3)
    params = fit_ngrams([(1, 2, 1), (2, 2)], 3, order=2)
    found = ctc_beam_search(
        logits, beam_size=40, n_best=40, language=Language(ngram_step, params, jnp.zeros(B, jnp.int32), weight=2.0, bonus=0.1)
    )

    def of(text):
        value, state = 0.0, jnp.zeros(1, jnp.int32)
        for before, symbol in zip((0, *text), (*text, 0), strict=True):
            state, logits, _ = ngram_step(params, None, state, jnp.array([before]))
            value += 2.0 * float(logits[0, symbol])
        return value + 0.1 * len(text)

    assert_finds(found, [{text: value + of(text) for text, value in texts_of(y).items()} for y in log_probs])


@pytest.mark.parametrize("width", [3, 30])
def test_lexicon_lets_its_words_alone_pass(width):
    words, space = [(1, 2), (2,), (2, 2, 1)], 3
    lexicon = make_lexicon(words, V, separators=[space])
    logits, log_probs = drawn(np.random.default_rng(6), B, T, V)
    found = ctc_beam_search(logits, LENGTHS, beam_size=width, n_best=width, lexicon=lexicon)

    def parts(text):
        cut = [[]]
        for symbol in text:
            if symbol == space:
                cut.append([])
            else:
                cut[-1].append(symbol)
        return [tuple(part) for part in cut]

    def allowed(text):
        *whole, last = parts(text)
        return all(part in [*words, ()] for part in whole) and any(word[: len(last)] == last for word in words)

    def end(text):
        return 0.0 if parts(text)[-1] in [*words, ()] else -np.inf

    assert_finds(found, [searched(y[:n], width, end=end, allowed=allowed) for y, n in zip(log_probs, LENGTHS, strict=True)])


def test_recurrent_language_model_is_a_language_too():
    logits, log_probs = drawn(np.random.default_rng(7), 2, 6, V)
    model = LanguageModel(V + 2, embedding_features=4, hidden_features=5, rngs=nnx.Rngs(0))
    step, params = decoder_step(model)
    state = model.initial_states(2, jnp.float32)
    language = Language(step, params, state, weight=0.5, start=V, end=V + 1)
    found = ctc_beam_search(logits, beam_size=5, n_best=5, language=language)

    def log_probs_after(text):
        state = model.initial_states(1, jnp.float32)
        for said in (V, *text):
            state, logits, _ = step(params, None, state, jnp.array([said]))
        return np.asarray(jax.nn.log_softmax(logits[0]))

    def gain(text, symbol):
        return 0.5 * float(log_probs_after(text)[symbol])

    assert_finds(found, [searched(y, 5, gain=gain, end=lambda text: gain(text, V + 1)) for y in log_probs])


def test_best_text_is_not_the_best_alignment():
    # Two frames that say the blank with 0.6: the empty text has 0.36, "1" has 0.64 (Graves 2012, figure 7.6).
    logits = np.log(np.array([[[0.6, 0.4], [0.6, 0.4]]], np.float32))
    assert ctc_greedy(logits).lengths[0] == 0
    found = ctc_beam_search(logits, beam_size=2, n_best=2)
    assert listed(found, 0) == pytest.approx({(1,): np.log(0.64), (): np.log(0.36)}, rel=1e-5)


def test_values_that_keras_own_test_holds():
    # keras/src/ops/nn_test.py, test_ctc_decode.
    logits = np.array(
        [
            [[0.1, 0.4, 0.2, 0.4], [0.3, -0.3, 0.4, 0.2], [0.3, 0.2, 0.4, 0.3]],
            [[0.7, 0.4, 0.3, 0.2], [0.3, 0.3, 0.4, 0.1], [0.6, -0.1, 0.1, 0.5]],
            [[0.1, 0.4, 0.2, 0.7], [0.3, 0.3, -0.2, 0.7], [0.3, 0.2, 0.4, 0.1]],
        ],
        np.float32,
    )
    lengths = np.array([3, 3, 1])
    read = ctc_greedy(logits, lengths, pad=-1)
    np.testing.assert_array_equal(read.tokens, [[1, 2, -1], [2, -1, -1], [3, -1, -1]])
    found = ctc_beam_search(logits, lengths, pad=-1, beam_size=4, n_best=2)
    best = [[[1, 2, -1], [2, -1, -1]], [[2, -1, -1], [3, -1, -1]], [[3, -1, -1], [1, -1, -1]]]
    np.testing.assert_array_equal(found.tokens, best)
    scores = [[-2.426537, -2.435596], [-2.127681, -2.182338], [-1.063386, -1.363386]]
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6)


def test_agrees_with_keras():
    oracles.oracle("keras")
    from keras import ops

    logits, _ = drawn(np.random.default_rng(8), B, T, V)
    lengths = np.maximum(LENGTHS, 1)
    options = {"sequence_lengths": lengths, "mask_index": 0}
    found = ctc_beam_search(logits, lengths, beam_size=50, n_best=3, pad=-1)
    texts, scores = ops.ctc_decode(logits, strategy="beam_search", beam_width=50, top_paths=3, **options)
    exists = np.asarray(found.scores) > -np.inf
    np.testing.assert_allclose(np.where(exists, found.scores, 0), np.where(exists, np.asarray(scores), 0), rtol=1e-4, atol=1e-4)
    theirs = np.moveaxis(np.asarray(texts), 0, 1)
    np.testing.assert_array_equal(np.asarray(found.tokens)[exists][:, : theirs.shape[2]], theirs[exists])
    texts, _ = ops.ctc_decode(logits, strategy="greedy", merge_repeated=True, **options)
    np.testing.assert_array_equal(ctc_greedy(logits, lengths, pad=-1).tokens, np.asarray(texts)[0])


def test_under_jit_and_in_half_precision():
    logits, _ = drawn(np.random.default_rng(9), B, T, V)
    language, _, _ = of_texts()
    lexicon = make_lexicon([(1,), (2, 2)], V, separators=[3])

    def search(logits, lengths, language, lexicon):
        language = Language(ngram_step, *language[1:])
        return ctc_beam_search(logits, lengths, beam_size=4, language=language, lexicon=lexicon)

    want = search(logits, LENGTHS, language, lexicon)
    got = jax.jit(search)(logits, LENGTHS, language._replace(step=None), lexicon)
    np.testing.assert_array_equal(got.tokens, want.tokens)
    halved = search(logits.astype(jnp.bfloat16), LENGTHS, language, lexicon)
    assert halved.scores.dtype == jnp.float32
    np.testing.assert_array_equal(halved.lengths, want.lengths)


def test_in_float64():
    with jax.enable_x64(True):
        logits, _ = drawn(np.random.default_rng(9), B, T, V)
        language, _, _ = of_texts(weight=np.float64(0.5))
        found = ctc_beam_search(logits, LENGTHS, beam_size=4, language=language)
        assert found.scores.dtype == np.float32
        aligned = ctc_align(logits, LENGTHS, found.tokens[:, 0], found.lengths[:, 0])
        assert aligned.log_probs.dtype == np.float32
        assert ctc_greedy(logits, LENGTHS).log_probs.dtype == np.float32


def test_rows_split_over_devices():
    logits, _ = drawn(np.random.default_rng(9), 8, T, V)
    lengths = np.array([9, 6, 1, 0, 7, 9, 9, 4])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")

    def search(logits, lengths):
        found = ctc_beam_search(logits, lengths, beam_size=4, n_best=2)
        return found, ctc_align(logits, lengths, found.tokens[:, 0], found.lengths[:, 0])

    split = jax.jit(jax.shard_map(search, mesh=mesh, in_specs=(spec, spec), out_specs=spec))(logits, lengths)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), split, search(logits, lengths))


def test_what_cannot_be_judged_goes_no_further():
    logits, _ = drawn(np.random.default_rng(11), B, T, V)

    def step(params, context, state, tokens):  # NaN behind a 2
        return (
            jnp.where(tokens == 2, jnp.nan, state),
            jnp.zeros((len(tokens), V)) + jnp.where(tokens == 2, jnp.nan, 0)[:, None],
            None,
        )

    language = Language(step, None, jnp.zeros(B))
    found = ctc_beam_search(logits, LENGTHS, beam_size=6, n_best=6, language=language)
    exists = np.asarray(found.scores) > -np.inf
    assert not np.isnan(found.scores).any()
    assert exists[:, 0].all()
    # A 2 may be the last symbol of none: what comes behind it, the end too, is not a number.
    assert not np.any((np.asarray(found.tokens) == 2) & exists[:, :, None])


def test_what_may_change_compiles_nothing_anew():
    from s2s_jax.decoding.ctc import beam

    logits, _ = drawn(np.random.default_rng(10), B, T, V)
    language, _, _ = of_texts()
    ctc_beam_search(logits, LENGTHS, beam_size=4, language=language)
    compiled = beam._search._cache_size()
    ctc_beam_search(logits, LENGTHS[::-1], beam_size=4, language=language._replace(weight=0.1, bonus=0.3))
    assert beam._search._cache_size() == compiled


def test_no_rows_and_no_frames():
    none = ctc_beam_search(np.zeros((0, T, V), np.float32), beam_size=3, n_best=2)
    assert none.tokens.shape == (0, 2, T)
    empty = ctc_beam_search(np.zeros((2, 0, V), np.float32), beam_size=3, n_best=2)
    assert empty.tokens.shape == (2, 2, 0)
    np.testing.assert_array_equal(empty.scores, [[0, -np.inf]] * 2)
    assert ctc_greedy(np.zeros((0, T, V), np.float32)).tokens.shape == (0, T)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size: expected at least 1, got 0"),
        ({"beam_size": 2, "n_best": 3}, "n_best: expected 1 to beam_size = 2, got 3"),
        ({"blank": V}, "blank: expected a symbol from 0 to 3, got 4"),
        ({"lengths": [1, 2, 3, 4, 10]}, "lengths: expected values from 0 to T = 9"),
        ({"lexicon": make_lexicon([(1,)], 3)}, "lexicon: expected one of 4 symbols, got 3"),
        (
            {"language": Language(ngram_step, fit_ngrams([(1,)], 3, order=1), jnp.zeros(B, jnp.int32))},
            "language: expected a model of the 4 symbols of the frames, .* got 3 symbols",
        ),
        (
            {"language": Language(ngram_step, fit_ngrams([(1,)], 5, order=1), jnp.zeros(B, jnp.int32))},
            "language: expected a model of the 4 symbols of the frames, .* got 5 symbols",
        ),
        (
            {"language": Language(ngram_step, fit_ngrams([(1,)], 4, order=1), jnp.zeros(B + 1, jnp.int32))},
            rf"language: expected a context and a state of {B} rows, .* shape \({B + 1},\)",
        ),
    ],
)
def test_errors_name_the_argument(options, message):
    with pytest.raises(ValueError, match=message):
        ctc_beam_search(np.zeros((B, T, V), np.float32), **options)
