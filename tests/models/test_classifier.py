"""The classifiers of sequences and of texts: what is pooled, and that padding is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from s2s_jax import cells
from s2s_jax.models import LanguageModel, SequenceClassifier, TextClassifier
from s2s_jax.training.checkpoint import named_variables
from tests import oracles
from tests.samples import assert_close, assert_equal, fill_padding, ragged_lengths, random_like

B, T, D, H, CLASSES = 4, 6, 3, 5, 7
LENGTHS = ragged_lengths(B, T)
XS = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, H, CLASSES), "in_features: expected a positive number, got 0"),
        ((D, 0, CLASSES), "hidden_features: expected a positive number, got 0"),
        ((D, H, 0), "classes: expected a positive number, got 0"),
    ],
)
def test_sizes_are_positive(sizes, message):
    with pytest.raises(ValueError, match=message):
        SequenceClassifier(*sizes, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("xs", [XS[0, 0], XS[0], XS[None]], ids=["rank 1", "rank 2", "rank 4"])
def test_the_rank_of_the_input_is_checked(xs):
    with pytest.raises(ValueError, match=r"xs: expected \[B, T, 3\], got \("):
        drawn()(xs)


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("lengths", [LENGTHS, None], ids=["ragged", "whole"])
def test_bfloat16_stays_near_float32(pooling, lengths):
    """Over 400 steps: a mean added up in bfloat16 stands still from some point on."""
    model = drawn(pooling=pooling)
    xs = 1 + np.tile(XS, (1, 400 // T, 1))
    lengths = None if lengths is None else lengths * (400 // T)
    graphdef, params = nnx.split(model)
    narrow = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))
    got = narrow(jnp.asarray(xs, jnp.bfloat16), lengths)
    assert got.dtype == jnp.bfloat16
    assert_close(np.asarray(got, np.float32), np.asarray(model(xs, lengths)), 0.04)


def drawn(**options):
    graphdef, params = nnx.split(SequenceClassifier(D, H, CLASSES, rngs=nnx.Rngs(0), **options))
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, random_like(params, 1)))


@pytest.mark.parametrize("ragged", [True, False], ids=["ragged", "whole"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both ways"])
@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("cell", [cells.make_lstm(projection=2), cells.gru], ids=["lstm", "gru"])
def test_pools_as_by_hand(cell, pooling, bidirectional, ragged):
    model = drawn(cell=cell, pooling=pooling, bidirectional=bidirectional, num_layers=2)
    lengths = LENGTHS if ragged else np.full(B, T)
    outputs = np.asarray(model.recurrent(XS, lengths=lengths).outputs)
    features = outputs.shape[-1] // (2 if bidirectional else 1)
    pooled = np.zeros((B, outputs.shape[-1]))
    for b, n in enumerate(lengths):
        if n and pooling == "mean":
            pooled[b] = outputs[b, :n].mean(0)
        elif n and pooling == "max":
            pooled[b] = outputs[b, :n].max(0)
        elif n:
            pooled[b, :features] = outputs[b, n - 1, :features]
            pooled[b, features:] = outputs[b, 0, features:]  # where the backward direction ends
    want = pooled @ np.asarray(model.output.kernel[...]) + np.asarray(model.output.bias[...])
    assert_close(model(XS, LENGTHS if ragged else None), want, 1e-5)


def test_last_is_the_final_state_and_length_zero_gives_the_bias():
    model = drawn(pooling="last", bidirectional=True)
    states = model.recurrent(XS, lengths=LENGTHS).state[-1]
    logits = model(XS, LENGTHS)
    assert_close(logits, model.output(jnp.concatenate([state.h for state in states], axis=-1)), 1e-5)
    assert_close(logits[LENGTHS == 0], model.output.bias[...][None], 1e-6)


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_padding_reaches_neither_logits_nor_gradients(pooling):
    graphdef, params = nnx.split(drawn(pooling=pooling, bidirectional=True, num_layers=2))

    @jax.jit
    def run(params, xs, lengths):
        def loss(params, xs):
            logits = nnx.merge(graphdef, params, copy=True)(xs, lengths)
            return jnp.sum(logits**2), logits

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, xs)

    (of_params, of_xs), logits = run(params, XS, LENGTHS)
    assert_equal(run(params, fill_padding(XS, LENGTHS, np.nan), LENGTHS), ((of_params, of_xs), logits))
    wider = fill_padding(np.pad(XS, ((0, 0), (0, 3), (0, 0))), LENGTHS, np.nan)
    (of_params_wider, of_xs_wider), logits_wider = run(params, wider, LENGTHS)
    assert_close((of_params_wider, of_xs_wider[:, :T], logits_wider), (of_params, of_xs, logits), 1e-5)


def test_a_key_turns_dropout_on():
    model, plain = drawn(dropout=0.5), drawn()
    assert_close(model(XS, LENGTHS), plain(XS, LENGTHS), 0)
    one, again, other = (np.asarray(model(XS, LENGTHS, key=jax.random.key(k))) for k in (0, 0, 1))
    assert_close(one, again, 0)
    assert np.any(one != other)
    assert_close(plain(XS, LENGTHS, key=jax.random.key(0)), plain(XS, LENGTHS), 0)
    # What is pooled is dropped too, and a sequence of length 0 has nothing to drop.
    assert_close(one[LENGTHS == 0], model.output.bias[...][None], 1e-6)


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match='pooling: expected "last", "mean" or "max", got \'sum\''):
        SequenceClassifier(D, H, CLASSES, pooling="sum", rngs=nnx.Rngs(0))


# Texts ------------------------------------------------------------------------------------------------------------------

VOCABULARY = 9
TOKENS = np.where(np.arange(T) < LENGTHS[:, None], np.random.default_rng(2).integers(3, VOCABULARY, (B, T)), 0).astype(np.int32)


def drawn_for_texts(**options):
    model = TextClassifier(VOCABULARY, CLASSES, embedding_features=D, hidden_features=H, rngs=nnx.Rngs(0), **options)
    graphdef, params = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, random_like(params, 1)))


@pytest.mark.parametrize("lengths", [LENGTHS, None], ids=["ragged", "whole"])
@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("cell", [cells.lstm, cells.gru], ids=["lstm", "gru"])
def test_texts_are_classified_as_by_pytorch(cell, pooling, lengths):
    model = drawn_for_texts(cell=cell, pooling=pooling, num_layers=2)
    xs = np.asarray(model.encoder.embedding.embedding[...])[TOKENS]
    states = model.encoder.recurrent.initial_states(B)
    weights = (np.zeros((B, T, H)), states)  # of a gradient that nobody asks for
    outputs = oracles.torch_stack(cell, model.encoder.recurrent.params(), xs, states, lengths, weights).done.outputs
    pooled = np.zeros((B, H))
    for b, n in enumerate([T] * B if lengths is None else lengths):
        if n:
            pooled[b] = {"mean": outputs[b, :n].mean(0), "max": outputs[b, :n].max(0), "last": outputs[b, n - 1]}[pooling]
    want = pooled @ np.asarray(model.output.kernel[...]) + np.asarray(model.output.bias[...])
    assert_close(model(TOKENS, lengths), want, 1e-5)


def test_padding_of_a_text_reaches_neither_logits_nor_gradients():
    graphdef, params = nnx.split(drawn_for_texts(pooling="mean"))

    def run(tokens):
        def loss(params):
            logits = nnx.merge(graphdef, params, copy=True)(tokens, LENGTHS)
            return jnp.sum(logits**2), logits

        return jax.grad(loss, has_aux=True)(params)

    other = np.where(np.arange(T) < LENGTHS[:, None], TOKENS, VOCABULARY - 1)
    assert_equal(run(other), run(TOKENS))


def test_dropout_of_a_text_needs_a_key():
    model, plain = drawn_for_texts(dropout=0.5), drawn_for_texts()
    assert_equal(model(TOKENS, LENGTHS), plain(TOKENS, LENGTHS))
    one, other = (np.asarray(model(TOKENS, LENGTHS, key=jax.random.key(k))) for k in (0, 1))
    assert np.any(one != other)
    assert_close(one[LENGTHS == 0], model.output.bias[...][None], 1e-6)


def test_options_of_texts_are_checked():
    with pytest.raises(ValueError, match='pooling: expected "last", "mean" or "max", got \'sum\''):
        drawn_for_texts(pooling="sum")
    with pytest.raises(ValueError, match="classes: expected a positive number, got 0"):
        TextClassifier(VOCABULARY, 0, embedding_features=D, hidden_features=H, rngs=nnx.Rngs(0))


def test_its_encoder_is_that_of_a_language_model():
    """By name and shape, so that weights go from one to the other."""
    options = {"embedding_features": D, "hidden_features": H, "num_layers": 2, "cell": cells.gru, "rngs": nnx.Rngs(0)}
    shapes = [
        {name: leaf[...].shape for name, leaf in named_variables(model).items() if name.startswith("encoder.")}
        for model in (TextClassifier(VOCABULARY, CLASSES, **options), LanguageModel(VOCABULARY, **options))
    ]
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) > 8


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_a_text_is_read_in_both_directions(pooling):
    options = {"embedding_features": D, "hidden_features": H, "bidirectional": True, "pooling": pooling}
    model = TextClassifier(11, CLASSES, **options, rngs=nnx.Rngs(0))
    tokens = np.random.default_rng(3).integers(0, 11, (B, T))
    features = SequenceClassifier(D, H, CLASSES, bidirectional=True, pooling=pooling, rngs=nnx.Rngs(0))
    features.recurrent, features.output = model.encoder.recurrent, model.output
    embedded = model.encoder.embedding.embedding[...][tokens]
    assert_close(model(tokens, LENGTHS), np.asarray(features(embedded, LENGTHS)), 1e-6)
    assert model.output.kernel[...].shape == (2 * H, CLASSES)  # side by side
