"""Occlusion: against a classifier whose symbols' worth is known, and against hiding one after the other by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2s_jax.models.occlusion import occlusion
from tests.samples import assert_close

WORTH = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
TOKENS = np.array([1, 4, 2, 6, 3, 3, 5, 1, 2], np.int32)


def added_up(tokens, lengths):
    """Log probabilities that are sums over the symbols, but for what makes them probabilities."""
    mask = jnp.arange(tokens.shape[1]) < lengths[:, None]
    return jnp.sum(jnp.where(mask[..., None], WORTH[tokens], 0), 1)


def log_odds(scores):
    p = jax.nn.softmax(np.asarray(scores, np.float64))
    return np.asarray(jnp.log(p / (1 - p)))


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_one_symbol_at_a_time_is_by_hand(batch_size):
    said, got = occlusion(added_up, TOKENS, blank=0, window=1, stride=1, batch_size=batch_size)
    whole = log_odds(WORTH[TOKENS].sum(0))
    assert_close(said, np.asarray(jax.nn.log_softmax(WORTH[TOKENS].sum(0))), 1e-5)
    for place in range(len(TOKENS)):
        changed = np.where(np.arange(len(TOKENS)) == place, 0, TOKENS)
        assert_close(got[place], whole - log_odds(WORTH[changed].sum(0)), 1e-5)


def test_a_sure_answer_still_tells_what_it_goes_by():
    """Of two classes log odds are a difference of logits, so that where those are sums each symbol has its own worth back."""

    def sure(tokens, lengths):
        return 100 * added_up(tokens, lengths)[:, :2]

    said, got = occlusion(sure, TOKENS, blank=0, window=1, stride=1)
    assert np.exp(said.max()) == 1
    worth = 100 * (WORTH[TOKENS] - WORTH[0])[:, :2]
    assert_close(got[:, 0], worth[:, 0] - worth[:, 1], 1e-4)


@pytest.mark.parametrize(("window", "stride"), [(4, 1), (4, 3), (3, 3), (20, 5)])
def test_windows_share_what_is_lost_evenly(window, stride):
    got = occlusion(added_up, TOKENS, blank=0, window=window, stride=stride).worth
    width = min(window, len(TOKENS))
    starts = sorted({min(start, len(TOKENS) - width) for start in range(0, len(TOKENS), stride)})
    shares = [[] for _ in TOKENS]
    for start in starts:
        changed = TOKENS.copy()
        changed[start : start + width] = 0
        lost = log_odds(WORTH[TOKENS].sum(0)) - log_odds(WORTH[changed].sum(0))
        for place in range(start, start + width):
            shares[place].append(np.asarray(lost) / width)
    assert_close(got, np.array([np.mean(of_place, 0) for of_place in shares]), 1e-5)


def test_texts_are_padded_to_few_lengths_and_one_of_nothing_is_worth_nothing():
    shapes = set()

    def watched(tokens, lengths):
        shapes.add(tokens.shape)
        return added_up(tokens, lengths)

    for length in (1, 9, 16, 17, 32):
        occlusion(watched, np.resize(TOKENS, length), blank=0)
    assert shapes == {(32, 16), (32, 32)}
    said, worth = occlusion(watched, TOKENS[:0], blank=0)
    assert_close(said, np.full(3, -np.log(3)), 1e-6)
    assert worth.shape == (0, 3)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="window, stride, batch_size: expected 1 <= stride <= window"):
        occlusion(added_up, TOKENS, blank=0, window=2, stride=3)
