"""The Flax layers against PyTorch and Keras with the same weights; merges, residual links, dropout, streaming, training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import s2s_jax
from s2s_jax import layers
from s2s_jax.types import Cell, Unrolled
from tests import oracles
from tests.samples import (
    TOLERANCE,
    Gradients,
    assert_close,
    assert_equal,
    cast,
    fill_padding,
    ragged_lengths,
    random_like,
    random_state,
    rows,
    weighted_sum,
)

B, T, D, H = 4, 5, 3, 4
KINDS = {"rnn": layers.RNN, "lstm": layers.LSTM, "gru": layers.GRU}


def drawn(make, *args, seed=0, **options):
    """A layer all of whose parameters are drawn, biases too."""
    graphdef, params = nnx.split(make(*args, rngs=nnx.Rngs(0), **options))
    values = cast(random_like(params, seed), jax.tree.leaves(params)[0].dtype.name)
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, values))


def drawn_states(layer, batch_size=B, seed=5):
    return tuple(
        tuple(random_state(layer.cell, p, batch_size, seed + 10 * k + d) for d, p in enumerate(of_layer))
        for k, of_layer in enumerate(layer.params())
    )


def drawn_inputs(features=D, seed=1):
    return np.random.default_rng(seed).normal(size=(B, T, features)).astype(np.float32)


def values_and_gradients(layer, xs, states, lengths, weights):
    """Outputs and states, and the gradients of their weighted sum in params, inputs and states."""
    graphdef, params = nnx.split(layer)

    @jax.jit
    def both(params, xs, states, lengths):
        def loss(params, xs, states):
            done = nnx.merge(graphdef, params, copy=True)(xs, states, lengths=lengths)
            return weighted_sum(done, weights), done

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(params, xs, states)

    (of_params, of_xs, of_states), done = both(params, xs, states, lengths)
    return jax.tree.map(np.asarray, (done, Gradients(nnx.merge(graphdef, of_params).params(), of_xs, of_states)))


TORCH = {
    "rnn": ("rnn", {}),
    "rnn_relu_two_layers": ("rnn", {"num_layers": 2, "activation": "relu"}),
    "rnn_two_layers_both_ways": ("rnn", {"num_layers": 2, "bidirectional": True}),
    "rnn_backward": ("rnn", {"reverse": True}),
    "lstm": ("lstm", {}),
    "lstm_three_layers": ("lstm", {"num_layers": 3}),
    "lstm_two_layers_both_ways": ("lstm", {"num_layers": 2, "bidirectional": True}),
    "lstm_backward": ("lstm", {"reverse": True}),
    "lstm_projection": ("lstm", {"projection": 2, "num_layers": 2, "bidirectional": True}),
    "gru_two_layers": ("gru", {"num_layers": 2}),
    "gru_two_layers_both_ways": ("gru", {"num_layers": 2, "bidirectional": True}),
    "gru_no_bias": ("gru", {"bias": False}),
}


@pytest.mark.parametrize("ragged", [True, False], ids=["ragged", "whole"])
@pytest.mark.parametrize("name", TORCH)
def test_agrees_with_pytorch(name, ragged, dtype):
    kind, options = TORCH[name]
    layer = drawn(KINDS[kind], D, H, param_dtype=dtype, **options)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(layer))} == {dtype}
    xs, states, lengths = drawn_inputs(), drawn_states(layer), ragged_lengths(B, T) if ragged else None
    weights = random_like(jax.eval_shape(lambda xs, states: layer(xs, states), *cast((xs, states), dtype)), 9, 1.0)
    got = values_and_gradients(layer, *cast((xs, states, lengths, weights), dtype))
    params = jax.tree.map(np.asarray, layer.params())
    want = oracles.torch_stack(layer.cell, params, xs, states, lengths, weights, layer.directions)
    assert_close(got, tuple(want), TOLERANCE[dtype])


KERAS_MERGES = {"concat": "concat", "sum": "sum", "mean": "ave", "product": "mul"}


@pytest.mark.parametrize("merge", KERAS_MERGES)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_merges_agree_with_keras_bidirectional(kind, merge, float64):
    keras = oracles.oracle("keras")
    layer = drawn(KINDS[kind], D, H, num_layers=2, bidirectional=True, merge=merge, param_dtype=float64)
    xs, lengths = drawn_inputs().astype(float64), ragged_lengths(B, T)
    features = 2 * H if merge == "concat" else H
    assert layer.out_features == features
    weights = np.random.default_rng(9).normal(size=(B, T, features))
    mask = jnp.arange(T)[None] < lengths[:, None]
    theirs = []
    for of_layer in range(2):
        one = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[kind]
        # JAX' own tanh: by name Keras computes it in float32.
        one = one(H, activation=jnp.tanh, return_sequences=True, zero_output_for_mask=True, dtype=float64)
        theirs.append(keras.layers.Bidirectional(one, merge_mode=KERAS_MERGES[merge], dtype=float64))
        theirs[-1].build((B, T, D if of_layer == 0 else features))

    @jax.jit
    def loss(params, xs):
        for keras_layer, of_layer in zip(theirs, params, strict=True):
            given = [w for p in of_layer for w in oracles._keras_weights(layer.cell.spec, p)]
            rest = [variable.value for variable in keras_layer.non_trainable_variables]
            xs, _ = keras_layer.stateless_call(given, rest, xs, mask=mask, training=False)
        return jnp.sum(xs * weights), xs

    gradients, outputs = jax.grad(loss, argnums=(0, 1), has_aux=True)(layer.params(), xs)
    states = jax.tree.map(lambda leaf: np.asarray(leaf, float64), layer.initial_states(B, float64))
    nothing = jax.tree.map(np.zeros_like, states)
    done, got = values_and_gradients(layer, xs, states, lengths, Unrolled(weights, nothing))
    assert_close((done.outputs, got.params, got.xs), (np.asarray(outputs), *gradients), TOLERANCE[float64])


@pytest.mark.parametrize("kind", KINDS)
def test_merge_none_is_two_separate_stacks(kind):
    both = drawn(KINDS[kind], D, H, num_layers=2, bidirectional=True, merge="none")
    xs, states, lengths = drawn_inputs(), drawn_states(both), ragged_lengths(B, T)
    got = both(xs, states, lengths=lengths)
    assert got.outputs.shape == (B, T, 2, H)
    for d, reverse in enumerate([False, True]):
        alone = KINDS[kind](D, H, num_layers=2, reverse=reverse, rngs=nnx.Rngs(1))
        for k in range(2):
            alone.layers[k] = nnx.List([both.layers[k][d]])
        want = alone(xs, tuple((of_layer[d],) for of_layer in states), lengths=lengths)
        of_direction = Unrolled(got.outputs[:, :, d], tuple((of_layer[d],) for of_layer in got.state))
        assert_equal(of_direction, want)


@pytest.mark.parametrize(
    ("options", "in_features"),
    [({}, H), ({}, D), ({"bidirectional": True, "merge": "sum"}, H), ({"bidirectional": True}, D)],
    ids=["equal widths", "wider than the input", "both ways", "both ways side by side"],
)
def test_residual_adds_the_input_of_every_layer_but_the_first(options, in_features):
    layer = drawn(layers.GRU, in_features, H, num_layers=3, residual=True, **options)
    xs, lengths = drawn_inputs(in_features), ragged_lengths(B, T)
    want = jnp.asarray(xs)
    for k, of_layer in enumerate(layer.params()):
        ys = [
            s2s_jax.unroll(layer.cell, p, want, lengths=lengths, reverse=d == 1).outputs for d, p in enumerate(of_layer)
        ]
        merged = jnp.concatenate(ys, axis=-1) if layer.merge == "concat" else sum(ys)
        want = merged + want if k else merged
    assert_equal(layer(xs, lengths=lengths).outputs, want)


def test_residual_needs_equal_widths():
    layer = layers.LSTM(D, H, projection=2, num_layers=2, bidirectional=True, merge="none", residual=True, rngs=nnx.Rngs(0))
    assert layer(drawn_inputs()).outputs.shape == (B, T, 2, 2)  # projected: 2 features into the second layer, and 2 out of it

    def growing(params, x):
        return jnp.concatenate([x, x], axis=-1)

    wider = Cell(lambda key, d, h: {}, lambda p, b, t: jnp.zeros((b, 1), t), growing, lambda p, s, z, c: (s, z))
    layer = layers.Recurrent(wider, D, H, num_layers=2, residual=True, rngs=nnx.Rngs(0)) if False else None
    assert layer is None


@pytest.mark.parametrize("kind", KINDS)
def test_padding_reaches_nothing(kind):
    layer = drawn(KINDS[kind], D, H, num_layers=2, bidirectional=True)
    xs, states, lengths = drawn_inputs(), drawn_states(layer), ragged_lengths(B, T)
    weights = random_like(jax.eval_shape(layer, xs, states), 9, 1.0)
    want = values_and_gradients(layer, fill_padding(xs, lengths, 0.0), states, lengths, weights)
    assert_equal(values_and_gradients(layer, fill_padding(xs, lengths, np.nan), states, lengths, weights), want)
    assert not np.any(want[0].outputs[np.arange(T)[None] >= lengths[:, None]])
    empty = lengths == 0
    assert empty.any()
    assert_equal(rows(want[0].state, empty), rows(states, empty))


# Dropout -----------------------------------------------------------------------------------------------------------------


class Nothing(dict):
    """Parameters of the two cells below."""


def spying_cell(what):
    """A cell whose output is its input ("inputs"), or the context that it was given ("context"): it shows the masks."""

    class Params(tuple):
        pass

    def step(params, state, z, context):
        return state, z if what == "inputs" else (jnp.zeros_like(state) if context is None else context)

    return Cell(
        lambda key, in_features, hidden_features: s2s_jax.cells.RNNParams(jnp.eye(in_features), jnp.eye(hidden_features), None),
        lambda params, batch_size, dtype: jnp.zeros((batch_size, params.u.shape[0]), dtype),
        lambda params, x: x,
        step,
    )
