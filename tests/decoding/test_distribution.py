"""The most probable symbols and the normaliser, against sorting and jax.nn.log_softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2s_jax.decoding.distribution import likeliest, log_normaliser, log_probs_of
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
    got, symbols = likeliest(jnp.asarray(logits), count)
    want, order = by_sorting(logits, count)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(symbols, order)


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
