"""Loss on batches of pairs: beside sums worked out one symbol after the other, whatever stands in the padding."""

import jax
import numpy as np
import pytest
from flax import nnx

from s2s_jax.data.vocabulary import START
from s2s_jax.models import Seq2Seq
from s2s_jax.models.pair_loss import measure_pairs, nats_of_targets, pair_loss
from tests.samples import assert_close

SOURCE, TARGET = (np.random.default_rng(seed).integers(4, 9, (3, 5)).astype(np.int32) for seed in (0, 1))
LENGTHS = np.array([5, 2, 3], np.int32)


@pytest.fixture(scope="module")
def model():
    return Seq2Seq(9, 9, embedding_features=3, hidden_features=4, rngs=nnx.Rngs(0))


def batch(padding):
    filled = [np.where(np.arange(5) < LENGTHS[:, None], symbols, padding).astype(np.int32) for symbols in (SOURCE, TARGET)]
    return {"source": filled[0], "source_lengths": LENGTHS, "target": filled[1], "target_lengths": LENGTHS}


@pytest.mark.parametrize("padding", [0, 8])
def test_loss_and_accuracy_are_those_of_one_pair_and_symbol_after_the_other(model, padding):
    nats, right = [], []
    for source, target, length in zip(SOURCE, TARGET, LENGTHS, strict=True):
        read = np.array([START, *target[: length - 1]])
        log_probs = np.asarray(jax.nn.log_softmax(model(source[None, :length], None, read[None])[0]))
        nats += [-log_probs[place, symbol] for place, symbol in enumerate(target[:length])]
        right += [log_probs[place].argmax() == symbol for place, symbol in enumerate(target[:length])]
    measured = measure_pairs(model, batch(padding))
    assert measured["loss"].value() == pytest.approx(np.mean(nats), rel=1e-5)
    assert measured["token_accuracy"].value() == pytest.approx(np.mean(right))
    assert (float(measured["loss"].count), float(measured["token_accuracy"].count)) == (10, 10)
    each = jax.jit(nats_of_targets)(model, batch(padding))
    assert_close(each.total, np.array([sum(nats[:5]), sum(nats[5:7]), sum(nats[7:])]), 1e-5)
    np.testing.assert_array_equal(each.count, LENGTHS)
    value, logged = pair_loss(model, batch(padding), jax.random.key(0))
    assert_close(value, np.mean(nats), 1e-5)
    assert logged["loss"].value() == pytest.approx(np.mean(nats), rel=1e-5)


def test_options_of_the_loss_change_it(model):
    plain, smoothed, own = (
        float(pair_loss(model, batch(0), jax.random.key(0), **options)[0])
        for options in ({}, {"label_smoothing": 0.5}, {"teacher_forcing": 0.0})
    )
    assert len({plain, smoothed, own}) == 3
