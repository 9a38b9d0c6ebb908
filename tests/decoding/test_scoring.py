"""Scores of a given text against those of the searches and of a slow loop, and ensembles against averaged probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from s2s_jax.decoding import beam as beam_module
from s2s_jax.decoding import beam_search, ensemble, greedy, sample, score_reference
from s2s_jax.types import DecoderOutput
from tests.decoding.scripts import END, START, Place, beginning, next_logs, script, script_step, weights_after, weights_of
from tests.samples import assert_close

B, T, V = 5, 7, 6
HOW = {"start": START, "end": END, "max_length": T}


def arrays(text):
    return jax.tree.map(jnp.asarray, text)


def score(text, tokens, lengths=None, **options):
    return score_reference(script_step, None, arrays(text), beginning(len(tokens)), tokens, lengths, start=START, **options)


def test_each_symbol_is_worth_what_a_slow_loop_says_and_the_padding_nothing():
    text = script(B, T, V)
    tokens = np.random.default_rng(0).integers(0, V, (B, T))
    lengths = np.array([7, 3, 0, 1, 5])
    padded = np.where(np.arange(T) < lengths[:, None], tokens, [[-5], [99], [-1], [V], [2**30]])
    scored = score(text, padded, lengths, attention=weights_of)
    for row, length in enumerate(lengths):
        words = tokens[row, :length].tolist()
        want = [next_logs(text, row, words[:t])[symbol] for t, symbol in enumerate(words)]
        np.testing.assert_allclose(scored.token_log_probs[row, :length], want, rtol=1e-5)
        np.testing.assert_allclose(scored.log_probs[row], sum(want), rtol=1e-5)
        assert not np.asarray(scored.token_log_probs[row, length:]).any()
        assert not np.asarray(scored.attention[row, length:]).any()
        if length:
            np.testing.assert_array_equal(scored.attention[row, :length], weights_after(text, row, words))


def test_what_a_search_found_is_worth_what_the_search_said():
    text = script(B, T, V, seed=1)
    found = beam_search(script_step, None, arrays(text), beginning(B), beam_size=4, n_best=3, attention=weights_of, **HOW)
    for n in range(3):
        scored = score(text, found.tokens[:, n], found.lengths[:, n], attention=weights_of)
        assert_close(scored.token_log_probs, found.token_log_probs[:, n], 1e-6)
        assert_close(scored.log_probs, found.log_probs[:, n], 1e-6)
        assert_close(scored.attention, found.attention[:, n], 0)
    drawn = sample(script_step, None, arrays(text), beginning(B), jax.random.key(0), **HOW)
    assert_close(score(text, drawn.tokens, drawn.lengths).log_probs, drawn.scores, 1e-6)


def test_gradients_of_a_score_are_those_of_the_sum_of_its_log_softmax():
    text = script(2, 3, V)
    tokens, lengths = jnp.array([[3, 4, END], [5, END, 0]]), jnp.array([3, 2])

    def ours(logits):
        return score(text._replace(logits=logits), tokens, lengths).log_probs.sum()

    def by_hand(logits):
        total = 0.0
        for row, length in enumerate([3, 2]):
            words = [-1, START, *np.asarray(tokens)[row].tolist()]
            for t in range(length):
                shift = 0.3 * (np.arange(V) == words[t])
                logs = jax.nn.log_softmax(logits[row, t, words[t + 1]] + shift)
                total += logs[words[t + 2]]
        return total

    logits = jnp.asarray(text.logits)
    assert_close(jax.grad(ours)(logits), jax.grad(by_hand)(logits), 1e-5)


def test_what_stands_in_the_padding_reaches_no_gradient():
    """An embedding gives NaN for a symbol outside the vocabulary, whose gradient a selection of scores would let through."""

    def step(params, context, state, tokens):
        state = jnp.tanh(state + jnp.take(params, tokens, axis=0))
        return DecoderOutput(state, state @ params.T, ())

    params = jnp.asarray(np.random.default_rng(0).normal(size=(V, 3)), jnp.float32)
    state, lengths = jnp.ones((2, 3)), jnp.array([3, 1])

    def slope(tokens):
        return jax.grad(lambda params: score_reference(step, params, None, state, tokens, lengths, start=1).log_probs.sum())(
            params
        )

    want = slope(jnp.array([[3, 4, 2, 0, 0], [2, 0, 0, 0, 0]]))
    assert_close(slope(jnp.array([[3, 4, 2, 99, -9], [2, 77, V, -7, 2**30]])), want, 1e-6)


def test_the_same_under_jit_vmap_and_shard_map_and_without_rows_or_symbols():
    text, tokens = arrays(script(4, T, V)), jnp.asarray(np.random.default_rng(0).integers(0, V, (4, T)))
    lengths = jnp.array([7, 0, 3, 5])

    def scored(text, tokens, lengths):
        return score(text, tokens, lengths, attention=weights_of)

    want = scored(text, tokens, lengths)
    assert_close(jax.jit(scored)(text, tokens, lengths), want, 1e-6)
    by_two = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), (text, tokens, lengths))
    mapped = jax.vmap(scored)(*by_two)
    assert_close(jax.tree.map(lambda leaf: leaf.reshape(4, *leaf.shape[2:]), mapped), want, 1e-6)
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    split = jax.shard_map(scored, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"))
    assert_close(jax.jit(split)(text, tokens, lengths), want, 1e-6)
    assert score(script(0, T, V), np.zeros((0, T), int)).log_probs.shape == (0,)
    assert score(script(2, T, V), np.zeros((2, 0), int)).log_probs.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("tokens", "lengths", "message"),
    [
        (np.zeros((B, T, 1), int), None, r"tokens: expected \[5, T\], got \(5, 7, 1\)"),
        (np.full((B, T), V), None, "tokens: expected ids from 0 to 5, got 6"),
        (np.zeros((B, T), int), [8, 0, 0, 0, 0], "lengths: expected values from 0 to T = 7, got 8 in row 0"),
    ],
)
def test_bad_input_is_named(tokens, lengths, message):
    with pytest.raises(ValueError, match=message):
        score(script(B, T, V), tokens, lengths)


# Ensembles -------------------------------------------------------------------------------------------------------------------


def averaged(texts):
    """A step that looks up the mean of all models' probabilities, without their state's shift."""
    logits = np.log(np.mean([np.exp(t.logits) / np.exp(t.logits).sum(-1, keepdims=True) for t in texts], axis=0))
    return texts[0]._replace(logits=logits.astype(np.float32), weights=np.mean([t.weights for t in texts], axis=0))


def plain_step(params, context, state, tokens):
    rows = jnp.arange(tokens.shape[0])
    aux = {"weights": context.weights[rows, state.t, tokens]}
    return DecoderOutput(Place(state.t + 1, tokens), context.logits[rows, state.t, tokens], aux)


def given(value):
    return value


@pytest.mark.parametrize("models", [1, 2, 3])
def test_an_ensemble_searches_by_the_mean_of_probabilities(models):
    texts = [script(B, T, V, seed=seed) for seed in range(models)]
    step, one = ensemble([plain_step] * models, attention=weights_of), averaged(texts)
    several = ((None,) * models, tuple(map(arrays, texts)), (beginning(B),) * models)
    alone = (None, arrays(one), beginning(B))
    assert_close(greedy(step, *several, **HOW), greedy(plain_step, *alone, **HOW), 1e-5)
    key = jax.random.key(1)
    assert_close(sample(step, *several, key, **HOW), sample(plain_step, *alone, key, **HOW), 1e-5)
    how = {"beam_size": 3, "n_best": 2, "coverage_beta": 0.3, **HOW}
    found = beam_search(step, *several, attention=given, **how)
    assert_close(found, beam_search(plain_step, *alone, attention=weights_of, **how), 1e-5)
    scored = score_reference(step, *several, found.tokens[:, 0], found.lengths[:, 0], start=START)
    assert_close(scored.token_log_probs, found.token_log_probs[:, 0], 1e-6)


def test_without_a_function_the_aux_of_an_ensemble_is_a_tuple_and_a_certain_model_does_not_make_nan():
    text = script(B, T, V)
    step = ensemble([plain_step, script_step])
    certain = text._replace(logits=np.where(np.arange(V) == 3, 0, -np.inf).astype(np.float32) + 0 * text.logits)
    contexts = (arrays(text), arrays(certain))
    state, logits, aux = step((None, None), contexts, (beginning(B),) * 2, jnp.full(B, START))
    assert [sorted(of_model) for of_model in aux] == [["weights"], ["weights"]]
    assert len(state) == 2
    probabilities = np.exp(np.asarray(logits))
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)
    assert np.all(probabilities[:, 3] > 0.5)
    both = (arrays(certain),) * 2
    logits = ensemble([plain_step] * 2)((None, None), both, (beginning(B),) * 2, jnp.full(B, START)).logits
    np.testing.assert_array_equal(logits, jnp.broadcast_to(jnp.where(jnp.arange(V) == 3, 0, -jnp.inf), (B, V)))


def test_an_ensemble_is_made_and_compiled_once():
    assert ensemble([plain_step, script_step]) is ensemble((plain_step, script_step))
    beam_module._search.clear_cache()
    for seed in range(2):
        texts = (arrays(script(B, T, V, seed=seed)),) * 2
        beam_search(ensemble([plain_step] * 2), (None,) * 2, texts, (beginning(B),) * 2, beam_size=2, **HOW)
    assert beam_module._search._cache_size() == 1


def test_bad_ensembles_are_named():
    with pytest.raises(ValueError, match="steps: expected at least one, got none"):
        ensemble([])
    text, step = arrays(script(B, T, V)), ensemble([plain_step] * 2)
    with pytest.raises(ValueError, match="params: expected a tuple of 2, one for each model, got NoneType"):
        greedy(step, None, (text, text), (beginning(B),) * 2, **HOW)
    with pytest.raises(ValueError, match="context: expected a tuple of 2, one for each model, got one of 1"):
        greedy(step, (None,) * 2, (text,), (beginning(B),) * 2, **HOW)
    with pytest.raises(ValueError, match=r"steps: expected one vocabulary, got sizes \[6, 4\]"):
        greedy(step, (None,) * 2, (text, arrays(script(B, T, 4))), (beginning(B),) * 2, **HOW)
