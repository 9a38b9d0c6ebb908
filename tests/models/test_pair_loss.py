"""Loss on batches of pairs: beside sums worked out one symbol after the other, whatever stands in the padding."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from scipy.stats import entropy

from s2s_jax import attention
from s2s_jax.data.vocabulary import PAD, START
from s2s_jax.models import Seq2Seq
from s2s_jax.models.pair_loss import measure_pairs, nats_of_targets, pair_loss
from s2s_jax.types import DecoderOutput
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


def log_probs_of(model, source, read):
    """Log probabilities [T, V] of one pair, in float64."""
    logits = np.asarray(model(source[None], None, np.array([read]))[0], np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_label_smoothing_spreads_its_share_over_all_symbols(model):
    """-sum_v q_v log p_v with q = 0.7 onehot + 0.3 / V (Szegedy et al., arXiv 1512.00567, section 7)."""
    nats = []
    for source, target, length in zip(SOURCE, TARGET, LENGTHS, strict=True):
        wanted = 0.7 * np.eye(9)[target[:length]] + 0.3 / 9
        nats += (-wanted * log_probs_of(model, source[:length], [START, *target[: length - 1]])).sum(-1).tolist()
    value, logged = pair_loss(model, batch(8), jax.random.key(0), label_smoothing=0.3)
    assert_close(value, np.mean(nats), 1e-5)
    assert logged["loss"].value() == pytest.approx(np.mean(nats), rel=1e-5)
    assert abs(value - measure_pairs(model, batch(8))["loss"].value()) > 1e-4  # validation is without it


def test_without_teacher_forcing_the_model_reads_its_own_symbols(model):
    """The truth is what is asked for, and never read."""
    nats, own = [], []
    for source, target, length in zip(SOURCE, TARGET, LENGTHS, strict=True):
        read = [START]
        for symbol in target[:length]:
            log_probs = log_probs_of(model, source[:length], read)[-1]
            nats.append(-log_probs[symbol])
            read.append(log_probs.argmax())
        own += [(read[place + 1], symbol) for place, symbol in enumerate(target[: length - 1])]
    assert any(said != symbol for said, symbol in own)
    value, logged = pair_loss(model, batch(8), jax.random.key(0), teacher_forcing=0.0)
    assert_close(value, np.mean(nats), 1e-5)
    assert logged["loss"].value() == pytest.approx(np.mean(nats), rel=1e-5)
    assert abs(value - pair_loss(model, batch(8), jax.random.key(0))[0]) > 1e-4


def test_word_dropout_hides_what_is_read_and_never_what_is_asked_for():
    """Seen by a model that keeps what it is given; over 4,000 symbols the share is the rate within four standard errors."""
    given = {}

    def decode(source, lengths, inputs, **options):
        given.update(source=np.asarray(source), inputs=np.asarray(inputs))
        return DecoderOutput((), jax.nn.one_hot(inputs, 9), ())

    model = SimpleNamespace(decode=decode, attends=False)
    ids = np.random.default_rng(2).integers(4, 9, (2, 40, 101)).astype(np.int32)
    lengths = np.full(40, 101, np.int32)
    wide = {"source": ids[0], "source_lengths": lengths, "target": ids[1], "target_lengths": lengths}
    value, _ = pair_loss(model, wide, jax.random.key(3), word_dropout=0.3)
    hidden = {"source": given["source"] == PAD, "inputs": given["inputs"] == PAD}
    assert (given["inputs"][:, 0] == START).all()
    for side, true in (("source", ids[0]), ("inputs", np.pad(ids[1][:, :-1], ((0, 0), (1, 0)), constant_values=START))):
        np.testing.assert_array_equal(given[side], np.where(hidden[side], PAD, true))
        assert abs(hidden[side].mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000) + 0.3 / 101  # the start symbol is never hidden
    alike = (hidden["source"][:, :-1] == hidden["inputs"][:, 1:]).mean()
    assert abs(alike - (0.3**2 + 0.7**2)) < 0.04  # each side has a mask of its own
    nats = np.log(8 + np.e) - (given["inputs"] == ids[1]).mean()  # of one-hot logits
    assert value == pytest.approx(nats, rel=1e-4)
    with pytest.raises(ValueError, match="word_dropout: expected a rate"):
        pair_loss(model, wide, jax.random.key(3), word_dropout=1.0)


def test_r_drop_adds_how_far_two_passes_are_apart(model):
    """Beside SciPy's divergences of a model whose dropout is known: the first half of the rows is doubled."""
    rng = np.random.default_rng(0)
    both = rng.normal(size=(2, 3, 5, 9)).astype(np.float32)

    def decode(source, lengths, inputs, **options):
        assert len(source) == 6
        return DecoderOutput((), both.reshape(6, 5, 9), ())

    drawn = SimpleNamespace(decode=decode, attends=False)
    value, logged = pair_loss(drawn, batch(8), jax.random.key(0), r_drop=2.0)
    p, q = (np.exp(half - half.max()) for half in both.astype(np.float64))
    p, q = (half / half.sum(-1, keepdims=True) for half in (p, q))
    divergences = entropy(p, q, axis=-1) + entropy(q, p, axis=-1)
    valid = np.arange(5) < LENGTHS[:, None]
    nats = -np.log(np.stack([np.take_along_axis(half, TARGET[..., None], -1)[..., 0] for half in (p, q)]))
    assert logged["loss"].value() == pytest.approx(nats[:, valid].mean(), rel=1e-5)
    of_paper = nats[:, valid].sum(0) + 2.0 / 2 * divergences[valid]  # equation 4 of arXiv 2106.14448, of each symbol
    assert value == pytest.approx(of_paper.mean() / 2, rel=1e-5)
    # A model without dropout says the same twice.
    assert_close(*(pair_loss(model, batch(8), jax.random.key(0), r_drop=weight)[0] for weight in (0.0, 3.0)), 1e-6)
    with pytest.raises(ValueError, match="r_drop: expected a weight from 0, got -1"):
        pair_loss(model, batch(8), jax.random.key(0), r_drop=-1.0)


@pytest.mark.parametrize("teacher_forcing", [1.0, 0.99])
def test_coverage_adds_what_the_attention_reads_again(teacher_forcing):
    """Of weights that the search for these very texts tells, by a loop over steps."""
    options = {"decoder": "attention", "attention": attention.make_additive(coverage=True)}
    model = Seq2Seq(9, 9, embedding_features=3, hidden_features=4, rngs=nnx.Rngs(1), **options)
    of_pairs, again = batch(8), []
    key = jax.random.key(5)
    given = np.pad(of_pairs["target"][:, :-1], ((0, 0), (1, 0)), constant_values=START)
    decoded = model.decode(of_pairs["source"], LENGTHS, given, key=key, teacher_forcing=teacher_forcing)
    weights = np.asarray(decoded.aux, np.float64)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    for row, length in enumerate(LENGTHS):
        assert not weights[row, :, length:].any()
        again += [np.minimum(weights[row, t], weights[row, :t].sum(0)).sum() for t in range(length)]
    how = {"teacher_forcing": teacher_forcing}
    plain, logged = pair_loss(model, of_pairs, key, **how)
    value, also = pair_loss(model, of_pairs, key, coverage=0.5, **how)
    assert np.mean(again) > 0.1
    assert value == pytest.approx(float(plain) + 0.5 * np.mean(again), rel=1e-5)
    assert also["coverage_loss"].value() == pytest.approx(np.mean(again), rel=1e-5)
    assert also["loss"] == logged["loss"]


def test_coverage_needs_an_attention_and_a_weight(model):
    with pytest.raises(ValueError, match=r"coverage: expected 0 without attention, got 0\.1"):
        pair_loss(model, batch(8), jax.random.key(0), coverage=0.1)
    with pytest.raises(ValueError, match="coverage: expected a weight from 0, got -1"):
        pair_loss(model, batch(8), jax.random.key(0), coverage=-1.0)


def test_targets_without_a_symbol_cost_nothing(model):
    empty = {**batch(8), "target_lengths": np.zeros(3, np.int32)}
    assert pair_loss(model, empty, jax.random.key(0))[0] == 0
