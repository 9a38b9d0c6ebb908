"""Character n-grams: closed forms, and the same counts in plain Python."""

from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

from s2s_jax.decoding.ngrams import fit_ngrams, ngram_step

V, END = 5, 0


def log_probs(params, text):
    """Of each symbol of the text and of its end."""
    state, found = jnp.zeros(1, jnp.int32), []
    for before, symbol in zip((END, *text), (*text, END), strict=True):
        state, logits, _ = ngram_step(params, None, state, jnp.array([before]))
        found.append(float(logits[0, symbol]))
    return found


def witten_bell(texts, context, symbol):
    """By its recursion, counting anew for each context."""
    after = Counter()
    for text in texts:
        whole = (END, *text, END)
        for at in range(1, len(whole)):
            if len(context) <= at and whole[at - len(context) : at] == context:
                after[whole[at]] += 1
    shorter = witten_bell(texts, context[1:], symbol) if context else 1 / V
    kinds, total = len(after), sum(after.values())
    return (after[symbol] + kinds * shorter) / (total + kinds) if total else shorter


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_each_probability_is_that_of_the_recursion(order):
    rng = np.random.default_rng(order)
    texts = [tuple(rng.integers(1, 4, size=rng.integers(0, 7)).tolist()) for _ in range(12)]
    params = fit_ngrams(texts, V, order=order, end=END)
    np.testing.assert_allclose(np.exp(params.log_probs).sum(-1), 1, rtol=1e-5)
    # Texts that were seen, and others: with a symbol (4) that never was.
    for text in [*texts[:4], (3, 3, 3, 3, 3), (4, 1, 4, 4, 2), ()]:
        whole = (END, *text, END)
        for at, got in enumerate(log_probs(params, text), start=1):
            context = whole[max(0, at - order + 1) : at]
            assert np.exp(got) == pytest.approx(witten_bell(texts, context, whole[at]), rel=1e-5)


def test_closed_form():
    # "a" and "ab": after the beginning a 2 of 2; p(a) = (2 + 3/5 . 3) / (5 + 3) of single symbols a, a, b, end, end.
    params = fit_ngrams([(1,), (1, 2)], V, order=2)
    single = (2 + 3 / 5) / (5 + 3)
    assert np.exp(log_probs(params, (1,))[0]) == pytest.approx((2 + 1 * single) / (2 + 1), rel=1e-6)


def test_the_end_leads_to_the_beginning():
    params = fit_ngrams([(1, 2), (2,)], V, order=3)
    first = ngram_step(params, None, jnp.array([0]), jnp.array([END]))
    node = ngram_step(params, None, first.state, jnp.array([1])).state
    np.testing.assert_array_equal(ngram_step(params, None, node, jnp.array([END])).logits, first.logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([(1,)], V, 0, 0), "order: expected at least 1, got 0"),
        ((["abc"], V, 2, 0), "texts: expected sequences of integers, got 'abc' in text 0"),
        (([(1,), (1.5,)], V, 2, 0), r"texts: expected sequences of integers, got \(1.5,\) in text 1"),
        (([1, 2], V, 2, 0), "texts: expected sequences of integers, got 1 in text 0"),
        (([], V, 2, 0), "texts: expected at least one, got none"),
        (([(1,), (1, 5)], V, 2, 0), "texts: expected symbols from 0 to 4 but 0, got 5 in text 1"),
        (([(1, 0)], V, 2, 0), "texts: expected symbols from 0 to 4 but 0, got 0 in text 0"),
        (([(1,)], V, 2, 5), "end: expected a symbol from 0 to 4, got 5"),
    ],
)
def test_errors(arguments, message):
    texts, size, order, end = arguments
    with pytest.raises(ValueError, match=message):
        fit_ngrams(texts, size, order=order, end=end)
