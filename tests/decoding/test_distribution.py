"""The most probable symbols and the normaliser, against sorting and jax.nn.log_softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2s_jax.decoding.constraints import Constraints
from s2s_jax.decoding.distribution import likeliest, log_normaliser, log_probs_of, next_symbols
from tests.samples import assert_close


def by_sorting(logits, count):
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :count]
    return np.take_along_axis(logits, order, axis=-1), order


@pytest.mark.parametrize("vocabulary_size", [1, 7, 1000, 1024, 1500, 2003, 10_000])  # 2003 is prime
@pytest.mark.parametrize("count", [1, 6, 40])
@pytest.mark.parametrize("values", ["different", "equal", "few"])
def test_likeliest_is_the_beginning_of_a_stable_sort(vocabulary_size, count, values):
    count = min(count, vocabulary_size)
    generator = np.random.default_rng(vocabulary_size + count)
    logits = generator.normal(size=(5, vocabulary_size)).astype(np.float32)
    if values == "equal":
        logits = np.round(2 * logits) + 0.0  # without negative zeros, which top_k tells from others
    if values == "few":  # others are forbidden
        logits[generator.random(logits.shape) < 0.999] = -np.inf
    got, symbols, highest = likeliest(jnp.asarray(logits), count)
    want, order = by_sorting(logits, count)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(symbols, order)
    np.testing.assert_array_equal(highest, logits.max(-1))


@pytest.mark.parametrize("vocabulary_size", [7, 2003, 10_000])
@pytest.mark.parametrize("banned", [[2], [0, 3, 4], [*range(2, 22)]], ids=["one", "some", "many"])
@pytest.mark.parametrize("step", [0, 5])
def test_what_is_forbidden_is_not_among_them_but_in_the_normaliser(vocabulary_size, banned, step):
    banned, end = [symbol for symbol in banned if symbol < vocabulary_size - 1], 1
    logits = np.random.default_rng(vocabulary_size).normal(size=(6, vocabulary_size)).astype(np.float32)
    logits[:, banned] += 9  # those that would win
    logits[::2, end] += 8
    min_length = np.array([0, 3, 9], np.int32)  # of three rows, two hypotheses each, slot by slot
    constraints = Constraints(jnp.asarray(banned), jnp.asarray(min_length))
    allowed = logits.copy()
    allowed[:, banned] = -np.inf
    allowed[np.tile(step + 1 < min_length, 2), end] = -np.inf
    best, rest = next_symbols(jnp.asarray(logits), 2, jnp.int32(step), end, constraints)
    want, order = by_sorting(allowed, 2)
    np.testing.assert_array_equal(best.logits, want)
    np.testing.assert_array_equal(best.symbols[want > -np.inf], order[want > -np.inf])
    assert_close(best.highest + rest, jax.nn.logsumexp(logits, axis=-1), 1e-6)


def test_the_last_symbols_count_where_no_block_holds_them():
    logits = np.zeros((3, 2003), np.float32)
    logits[:, -1], logits[:, 0], logits[:, -2] = 3, 2, 1
    assert likeliest(jnp.asarray(logits), 3)[1].tolist() == [[2002, 0, 2001]] * 3


def test_log_probabilities_are_those_of_a_log_softmax_and_never_positive():
    logits = jnp.asarray(30 * np.random.default_rng(0).normal(size=(50, 9)), jnp.float32)
    symbols = jnp.argmax(logits, axis=-1)
    want = jnp.take_along_axis(jax.nn.log_softmax(logits), symbols[:, None], axis=-1)[:, 0]
    np.testing.assert_array_equal(log_probs_of(logits, symbols), want)
    assert np.all(np.asarray(want) <= 0)
    highest, rest = log_normaliser(logits)
    assert_close(highest + rest, jax.nn.logsumexp(logits, axis=-1), 1e-6)


def test_gradients_are_those_of_a_log_softmax():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 9)), jnp.float32)
    symbols = jnp.arange(4)
    got = jax.grad(lambda logits: log_probs_of(logits, symbols).sum())(logits)
    want = jax.grad(lambda logits: jax.nn.log_softmax(logits)[symbols, symbols].sum())(logits)
    assert_close(got, want, 1e-6)


@pytest.mark.parametrize("count", [1, 5, 10, 12, 31])
def test_every_vocabulary_has_blocks_enough(count):
    for size in (*range(1000, 1400), 2003, 10_007, 32_000):
        found = jax.eval_shape(lambda logits: likeliest(logits, count), jax.ShapeDtypeStruct((2, size), jnp.float32))
        assert found.symbols.shape == (2, count)
    logits = np.random.default_rng(0).normal(size=(3, 1143)).astype(np.float32)
    np.testing.assert_array_equal(likeliest(jnp.asarray(logits), count).symbols, np.argsort(-logits, axis=1)[:, :count])
