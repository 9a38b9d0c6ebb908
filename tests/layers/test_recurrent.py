"""The Flax layers against PyTorch and Keras with the same weights; merges, residual links, dropout, streaming, training."""

import functools
import inspect
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import s2s_jax
from s2s_jax import cells, layers
from s2s_jax.types import Cell, Unrolled
from tests import oracles
from tests.samples import (
    TOLERANCE,
    Gradients,
    assert_close,
    assert_equal,
    cast,
    fill_padding,
    inputs_cell,
    ragged_lengths,
    random_like,
    random_state,
    rows,
    spying_cell,
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


@functools.partial(jax.jit, static_argnums=0)
def _values_and_gradients(graphdef, params, xs, states, lengths, weights):
    def loss(params, xs, states):
        done = nnx.merge(graphdef, params, copy=True)(xs, states, lengths=lengths)
        return weighted_sum(done, weights), done

    return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(params, xs, states)


def values_and_gradients(layer, xs, states, lengths, weights):
    """Outputs and states, and the gradients of their weighted sum in params, inputs and states."""
    graphdef, params = nnx.split(layer)
    (of_params, of_xs, of_states), done = _values_and_gradients(graphdef, params, xs, states, lengths, weights)
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


@pytest.mark.parametrize(("name", "ragged"), [(name, True) for name in TORCH] + [("lstm_two_layers_both_ways", False)])
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


def plain_tanh(x):
    """By its name, "tanh", Keras computes in float32 whatever it is given."""
    return jnp.tanh(x)


KERAS_MERGES = {"concat": "concat", "sum": "sum", "mean": "ave", "product": "mul"}


@pytest.mark.parametrize(("kind", "num_layers", "merge"), [("lstm", 1, merge) for merge in KERAS_MERGES] + [("gru", 2, "sum")])
def test_merges_agree_with_keras_bidirectional(kind, num_layers, merge, float64):
    keras = oracles.oracle("keras")
    layer = drawn(KINDS[kind], D, H, num_layers=num_layers, bidirectional=True, merge=merge, param_dtype=float64)
    xs, lengths = drawn_inputs().astype(float64), ragged_lengths(B, T)
    features = 2 * H if merge == "concat" else H
    assert layer.out_features == features
    weights = np.random.default_rng(9).normal(size=(B, T, features))
    mask = jnp.arange(T)[None] < lengths[:, None]
    theirs = []
    with keras.saving.custom_object_scope({"plain_tanh": plain_tanh}):
        for in_features in (D, features)[:num_layers]:
            one = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[kind]
            one = one(H, activation=plain_tanh, return_sequences=True, zero_output_for_mask=True, dtype=float64)
            theirs.append(keras.layers.Bidirectional(one, merge_mode=KERAS_MERGES[merge], dtype=float64))
            theirs[-1].build((B, T, in_features))

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
        ys = [s2s_jax.unroll(layer.cell, p, want, lengths=lengths, reverse=d == 1).outputs for d, p in enumerate(of_layer)]
        merged = jnp.concatenate(ys, axis=-1) if layer.merge == "concat" else sum(ys)
        want = merged + want if k else merged
    assert_equal(layer(xs, lengths=lengths).outputs, want)


def test_residual_needs_equal_widths():
    wider = spying_cell(lambda z, context: jnp.concatenate([z, z], axis=-1))
    layer = layers.Recurrent(wider, D, H, num_layers=2, residual=True, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="residual: layer 1 has 6 features in and 12 out"):
        layer(drawn_inputs())


@pytest.mark.parametrize("kind", KINDS)
def test_padding_reaches_nothing(kind):
    layer = drawn(KINDS[kind], D, H, num_layers=2)
    xs, states, lengths = drawn_inputs(), drawn_states(layer), ragged_lengths(B, T)
    weights = random_like(jax.eval_shape(layer, xs, states), 9, 1.0)
    want = values_and_gradients(layer, fill_padding(xs, lengths, 0.0), states, lengths, weights)
    assert_equal(values_and_gradients(layer, fill_padding(xs, lengths, np.nan), states, lengths, weights), want)
    assert not np.any(want[0].outputs[np.arange(T)[None] >= lengths[:, None]])
    empty = lengths == 0
    assert empty.any()
    assert_equal(rows(want[0].state, empty), rows(states, empty))


# Dropout -----------------------------------------------------------------------------------------------------------------


context_cell = spying_cell(lambda z, context: context if context is not None else jnp.zeros((z.shape[0], H)))


def shown_masks(rate, key, num_layers=1, **options):
    """What inputs of ones become, where the cell only hands them on: the product of all masks between input and output."""
    layer = layers.Recurrent(inputs_cell, 40, 40, num_layers=num_layers, rngs=nnx.Rngs(0), **{**options, **rate})
    return np.asarray(layer(jnp.ones((30, 20, 40)), key=key).outputs)


def test_without_a_key_nothing_is_dropped():
    rates = {"dropout": 0.5, "input_dropout": 0.4, "recurrent_dropout": 0.3}
    dropping = layers.LSTM(D, H, num_layers=2, rngs=nnx.Rngs(3), **rates)
    plain = layers.LSTM(D, H, num_layers=2, rngs=nnx.Rngs(3))
    xs = drawn_inputs()
    assert_close(dropping(xs), plain(xs), 0)
    one, again, other = (dropping(xs, key=jax.random.key(k)).outputs for k in (0, 0, 1))
    assert_close(one, again, 0)
    assert np.any(np.asarray(one) != np.asarray(other))
    assert np.any(np.asarray(one) != np.asarray(plain(xs).outputs))
    assert_close(plain(xs, key=jax.random.key(0)), plain(xs), 0)


@pytest.mark.parametrize("rate", [0.25, 0.6])
def test_dropout_keeps_the_stated_share_and_the_mean(rate):
    seen = shown_masks({"dropout": rate}, jax.random.key(0), num_layers=2)
    assert_close(np.unique(seen), np.array([0, 1 / (1 - rate)], np.float32), 1e-6)
    # 24,000 draws: five standard deviations.
    assert abs(np.mean(seen > 0) - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / seen.size)
    assert len({tuple(row) for row in (seen > 0).reshape(-1, 40)}) == 30 * 20  # each position has a mask of its own


@pytest.mark.parametrize(("num_layers", "masks"), [(1, 0), (2, 1), (3, 2)])
@pytest.mark.filterwarnings("ignore:dropout. acts between layers")
def test_dropout_acts_between_layers_only(num_layers, masks):
    seen = shown_masks({"dropout": 0.5}, jax.random.key(0), num_layers=num_layers)
    assert set(np.unique(seen)) == ({0.0, 2.0**masks} if masks else {1.0})
    assert abs(np.mean(seen > 0) - 0.5**masks) < 0.02


@pytest.mark.parametrize("num_layers", [1, 2])
def test_input_dropout_is_constant_in_time_and_differs_between_rows(num_layers):
    seen = shown_masks({"input_dropout": 0.5}, jax.random.key(0), num_layers=num_layers)
    assert set(np.unique(seen)) == {0.0, 2.0**num_layers}  # before every layer, the first one too
    assert np.all(seen == seen[:, :1])
    assert len({tuple(row) for row in seen[:, 0]}) == len(seen)
    assert abs(np.mean(seen[:, 0] > 0) - 0.5**num_layers) < 5 * np.sqrt(0.25 / seen[:, 0].size)


def test_dropout_and_input_dropout_together_multiply():
    seen = shown_masks({"dropout": 0.5, "input_dropout": 0.75}, jax.random.key(0), num_layers=2)
    assert set(np.unique(seen)) == {0.0, 2.0 * 4 * 4}


def test_recurrent_dropout_mask_is_constant_in_time_and_differs_between_rows_layers_and_directions():
    options = {"num_layers": 2, "bidirectional": True, "merge": "none", "recurrent_dropout": 0.25}
    key, masks = jax.random.key(0), []
    for layer in (1, 2):
        options["num_layers"] = layer  # the outputs are those of the last layer
        spy = layers.Recurrent(context_cell, H, H, rngs=nnx.Rngs(0), **options)
        masks.append(np.asarray(spy(jnp.ones((50, T, H)), key=key).outputs))
    for mask in masks:
        assert_close(np.unique(mask), np.array([0, 1 / 0.75], np.float32), 1e-6)
        assert np.all(mask == mask[:, :1])
        assert abs(np.mean(mask[:, 0] > 0) - 0.75) < 5 * np.sqrt(0.75 * 0.25 / mask[:, 0].size)
        assert len({tuple(row) for row in mask[:, 0, 0]}) > 10
        assert np.any(mask[:, :, 0] != mask[:, :, 1])
    assert np.any(masks[0] != masks[1])


@pytest.mark.parametrize(("kind", "reverse"), [("rnn", False), ("lstm", False), ("gru", False), ("lstm", True)])
def test_recurrent_dropout_agrees_with_a_numpy_loop(kind, reverse):
    layer = drawn(KINDS[kind], D, H, reverse=reverse, recurrent_dropout=0.4)
    spy = layers.Recurrent(context_cell, D, H, reverse=reverse, recurrent_dropout=0.4, rngs=nnx.Rngs(0))
    xs, lengths, key = drawn_inputs(), ragged_lengths(B, T), jax.random.key(7)
    # The same key draws the same masks, whatever the cell.
    mask = np.asarray(spy(jnp.ones((B, T, D)), key=key).outputs)[:, 0]
    ((params,),), ((state,),) = layer.params(), layer.initial_states(B)
    want = oracles.plain(layer.cell, *jax.tree.map(np.asarray, (params, xs, state)), lengths, reverse=reverse, mask=mask)
    done = layer(xs, lengths=lengths, key=key)
    assert_close(Unrolled(done.outputs, done.state[0][0]), want, 1e-5)
    assert np.any(np.asarray(done.outputs) != np.asarray(layer(xs, lengths=lengths).outputs))


# One step at a time ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 3}, {"num_layers": 2, "residual": True}], ids=["one", "three", "residual"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_one_step_at_a_time_equals_the_sequence(kind, options):
    layer = drawn(KINDS[kind], D, H, **options)
    xs, states = drawn_inputs(), drawn_states(layer)
    want = layer(xs, states)
    ys, carried = [], states
    for t in range(T):
        y, carried = layer.step(xs[:, t], carried)
        ys.append(y)
    assert_equal((jnp.stack(ys, axis=1), carried), tuple(want))
    # And without states a step starts where a call without states does; the end of one part is the start of the next.
    assert_equal(layer.step(xs[:, 0]).outputs, layer(xs).outputs[:, 0])
    first = layer(xs[:, :2])
    assert_equal(layer(xs[:, 2:], first.state).state, layer(xs).state)
    assert_equal(layer(xs, layer.initial_states(B)), layer(xs))


# Errors ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_features": 0}, "in_features: expected a positive number, got 0"),
        ({"hidden_features": -1}, "hidden_features: expected a positive number, got -1"),
        ({"num_layers": 0}, "num_layers: expected a positive number, got 0"),
        ({"dropout": 1.0}, r"dropout: expected a rate in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"^dropout: expected a rate in \[0, 1\), got -0.1"),
        ({"input_dropout": 1.5}, "input_dropout: expected a rate"),
        ({"recurrent_dropout": float("nan")}, "recurrent_dropout: expected a rate"),
        ({"merge": "add"}, "merge: expected one of concat, sum, mean, product, none, got 'add'"),
        ({"bidirectional": True, "reverse": True}, "reverse: expected False with bidirectional=True"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    sizes = {"in_features": D, "hidden_features": H}
    with pytest.raises(ValueError, match=message):
        layers.GRU(rngs=nnx.Rngs(0), **{**sizes, **options})


def test_unknown_options_and_backends_are_refused():
    with pytest.raises(TypeError, match="dropuot"):
        layers.LSTM(D, H, dropuot=0.5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="backend: expected one of auto, scan"):
        layers.LSTM(D, H, backend="cuda", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="remat: expected a positive number of steps, got 0"):
        layers.LSTM(D, H, remat=0, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"reverse": True}], ids=str)
def test_a_step_needs_a_layer_that_runs_forward(options):
    layer = layers.GRU(D, H, rngs=nnx.Rngs(0), **options)
    with pytest.raises(ValueError, match="step: expected a layer that runs forward only"):
        layer.step(jnp.zeros((B, D)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda layer: layer(jnp.zeros((B, T, D + 1))), ValueError, "xs: expected 3 features"),
        (lambda layer: layer(jnp.zeros((B, T))), ValueError, r"xs: expected \[B, T, D\]"),
        (lambda layer: layer(jnp.zeros((B, T, D), int)), TypeError, "xs: expected floating point"),
        (lambda layer: layer(jnp.zeros((B, T, D)), lengths=np.array([1, 2, T + 1, 0])), ValueError, "got 6 in row 2"),
        (lambda layer: layer(jnp.zeros((B, T, D)), lengths=np.array([1, -2, 1, 0])), ValueError, "got -2 in row 1"),
        (lambda layer: layer(jnp.zeros((B, T, D)), layer.initial_states(B + 1)), ValueError, r"state\[0\]\[0\]"),
        (lambda layer: layer(jnp.zeros((B, T, D)), layer.initial_states(B)[:1]), ValueError, "states: expected 2 layers"),
        (
            lambda layer: layer(jnp.zeros((B, T, D)), jax.tree.map(lambda h: h.astype(jnp.bfloat16), layer.initial_states(B))),
            TypeError,
            "expected dtype float32",
        ),
        (
            lambda layer: layer(jnp.zeros((B, T, D)), (jnp.zeros((B, H)), jnp.zeros((B, H)))),  # as one would call PyTorch's
            ValueError,
            r"states\[0\]: expected a sequence of 1 directions, got ArrayImpl; .* it is \(\(LSTMState\(h, c\),\),\)",
        ),
        (
            lambda layer: layer(jnp.zeros((B, T, D)), jax.tree.map(tuple, layer.initial_states(B), is_leaf=is_lstm_state)),
            ValueError,
            r"state\[0\]\[0\]: expected LSTMState.*; a plain tuple is not taken for an LSTMState",
        ),
        (
            lambda layer: layer(jnp.zeros((B, T, D)), key=0),
            TypeError,
            r"key: expected one such as jax.random.key\(0\), or None, got 0",
        ),
        (lambda layer: layer(jnp.zeros((B, T, D)), key=jnp.zeros(2)), TypeError, "key: expected one such as"),
        (lambda layer: layers.Dropout(0.5)(jnp.zeros(3), key=0), TypeError, "key: expected one such as"),
        (lambda layer: layers.GaussianNoise(0.5)(jnp.zeros(3), key=0), TypeError, "key: expected one such as"),
        (lambda layer: layers.GRU(D, H, rngs=0), TypeError, r"rngs: expected flax.nnx.Rngs, such as nnx.Rngs\(0\), got 0"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(layers.LSTM(D, H, num_layers=2, rngs=nnx.Rngs(0)))


def is_lstm_state(tree):
    return isinstance(tree, s2s_jax.LSTMState)


def test_keys_of_the_old_style_are_taken():
    layer, xs = layers.LSTM(D, H, num_layers=2, dropout=0.5, rngs=nnx.Rngs(0)), drawn_inputs()
    new, old, none = (layer(xs, key=key).outputs for key in (jax.random.key(0), jax.random.PRNGKey(0), None))
    assert_close(new, old, 0)
    assert np.any(np.asarray(new) != np.asarray(none))


@pytest.mark.parametrize("make", [layers.RNN, layers.LSTM, layers.GRU])
def test_dropout_between_layers_of_which_there_is_one_warns(make):
    with pytest.warns(
        UserWarning, match=r"dropout: acts between layers, and there is one: at a rate of 0.3 nothing is dropped"
    ):
        layer = make(D, H, dropout=0.3, rngs=nnx.Rngs(0))
    assert_close(layer(drawn_inputs(), key=jax.random.key(0)).outputs, layer(drawn_inputs()).outputs, 0)
    make(D, H, num_layers=2, dropout=0.3, rngs=nnx.Rngs(0))


def test_a_layer_is_shown_in_one_line():
    shown = repr(layers.LSTM(D, H, num_layers=2, bidirectional=True, projection=2, rngs=nnx.Rngs(0)))
    sizes = "in_features=3, hidden_features=4, num_layers=2, directions=('forward', 'backward')"
    assert shown == f"LSTM(cell=lstm(projection=2), {sizes})"
    sizes = "in_features=3, hidden_features=4, num_layers=1, directions=('backward',)"
    assert repr(layers.GRU(D, H, reverse=True, rngs=nnx.Rngs(0))) == f"GRU(cell=gru, {sizes})"
    assert repr(layers.RNN(D, H, reverse=True, activation="relu", rngs=nnx.Rngs(0))).startswith(
        "RNN(cell=rnn(activation='relu')"
    )
    assert repr(layers.Recurrent(leaky, D, H, reverse=True, rngs=nnx.Rngs(0))) == f"Recurrent(cell=leaky_step, {sizes})"


def test_displaying_a_layer_shows_its_arrays(capsys):
    nnx.display(layers.GRU(D, H, rngs=nnx.Rngs(0)))
    shown = capsys.readouterr().out
    assert all(re.search(rf"\b{name}=Param", shown) for name in ("w", "u", "b", "b_n"))


def test_a_layer_is_told_its_backend(monkeypatch):
    monkeypatch.setenv("S2S_JAX_BACKEND", "fused")
    options = {"num_layers": 2, "bidirectional": True, "recurrent_dropout": 0.5}
    layer, xs, lengths = layers.LSTM(D, H, **options, rngs=nnx.Rngs(0)), drawn_inputs(), np.array([5, 2, 1, 0])
    choices = s2s_jax.explain_backend(layer, xs, layer.initial_states(B), lengths=lengths, key=jax.random.key(0))
    assert [choice.backend for choice in choices] == ["fused", "fused"]
    assert all("dropout mask" in choice.others["native"] for choice in choices)
    assert "dropout mask" not in s2s_jax.explain_backend(layer, xs)[0].others["native"]  # nothing is dropped without a key
    layer.remat = 2
    assert [str(choice).split(":")[0] for choice in s2s_jax.explain_backend(layer, xs)] == ["scan", "scan"]
    with pytest.raises(ValueError, match="xs: expected 3 features"):
        s2s_jax.explain_backend(layer, xs[..., :2])


# A cell of one's own, and training -----------------------------------------------------------------------------------------


class LeakyParams(NamedTuple):
    w: jax.Array
    leak: jax.Array


def init_leaky(key, in_features, hidden_features):
    return LeakyParams(jax.random.normal(key, (in_features, hidden_features)), jnp.linspace(0.1, 0.9, hidden_features))


def leaky_step(params, h, z, context):
    h = params.leak * h + (1 - params.leak) * z
    return h, jnp.tanh(h)


leaky = Cell(
    init_leaky,
    lambda params, batch_size, dtype: jnp.zeros((batch_size, params.leak.shape[0]), dtype),
    lambda params, x: x @ params.w,
    leaky_step,
)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_users_own_cell_gets_lengths_layers_and_both_directions(num_layers):
    layer = layers.Recurrent(leaky, D, H, num_layers=num_layers, bidirectional=True, rngs=nnx.Rngs(0))
    xs, lengths = drawn_inputs(), ragged_lengths(B, T)
    want = xs.astype(np.float64)
    for of_layer in layer.params():
        outputs = np.zeros((B, T, 2 * H))
        for d, p in enumerate(of_layer):
            for b in range(B):
                h = np.zeros(H)
                for t in range(lengths[b])[:: 1 - 2 * d]:
                    h = p.leak * h + (1 - p.leak) * (want[b, t] @ np.asarray(p.w))
                    outputs[b, t, d * H : (d + 1) * H] = np.tanh(h)
        want = outputs
    assert layer.out_features == 2 * H
    assert_close(layer(xs, lengths=lengths).outputs, want, 1e-5)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_trains_in_plain_jax_and_compiles_once(kind):
    layer = KINDS[kind](D, H, num_layers=2, dropout=0.1, recurrent_dropout=0.1, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(layer)
    optimizer = optax.adam(3e-2)
    xs, lengths = drawn_inputs(), ragged_lengths(B, T)
    wanted = np.tanh(drawn_inputs(H, seed=8)) * (np.arange(T)[None] < lengths[:, None])[..., None]
    traced = []

    @jax.jit
    def train_step(params, opt_state, lengths, key):
        traced.append(1)

        def loss(params):
            outputs = nnx.merge(graphdef, params, copy=True)(xs, lengths=lengths, key=key).outputs
            return jnp.mean((outputs - wanted) ** 2)

        value, gradients = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state, value

    opt_state, values = optimizer.init(params), []
    for k in range(60):
        params, opt_state, value = train_step(params, opt_state, lengths, jax.random.key(k))
        values.append(float(value))
    assert np.mean(values[-5:]) < 0.6 * np.mean(values[:5])
    assert len(traced) == 1
    assert train_step._cache_size() == 1
    # The layer itself was not touched.
    assert_close(nnx.state(layer), nnx.split(KINDS[kind](D, H, num_layers=2, rngs=nnx.Rngs(0)))[1], 0)


def test_fresh_parameters_differ_between_layers_and_directions():
    layer = layers.LSTM(H, H, num_layers=2, bidirectional=True, merge="sum", rngs=nnx.Rngs(0))
    drawn_weights = [np.asarray(p.w) for of_layer in layer.params() for p in of_layer]
    assert len({w.tobytes() for w in drawn_weights}) == 4


# Cells of a user's own ------------------------------------------------------------------------------------------------------


def own(init, step):
    return Cell(init, lambda params, batch_size, dtype: jnp.zeros((batch_size, H), dtype), lambda params, x: x, step)


def test_parameters_whose_names_collide_are_refused():
    collide = own(lambda *_: {"a": {"b": jnp.ones(3)}, "a_b": jnp.ones(3)}, lambda p, h, z, c: (h, h))
    with pytest.raises(ValueError, match=r"cell\.init: expected names that differ when joined by _, got a_b, a_b"):
        layers.Recurrent(collide, D, H, rngs=nnx.Rngs(0))


def test_complex_parameters_are_trained():
    """As the diagonal of a linear recurrence is."""

    def init(key, in_features, hidden_features):
        return {"w": jnp.ones((in_features, hidden_features)), "rotation": jnp.full(hidden_features, 0.5 + 0.5j)}

    def step(params, h, z, context):
        h = jnp.real(params["rotation"] * h + z @ params["w"])
        return h, h

    layer = layers.Recurrent(own(init, step), D, H, rngs=nnx.Rngs(0))
    assert {path[-1] for path, _ in nnx.to_flat_state(nnx.state(layer, nnx.Param))} == {"w", "rotation"}
    xs = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
    graphdef, params = nnx.split(layer)
    gradient = jax.grad(lambda params: nnx.merge(graphdef, params)(xs).outputs.sum())(params)
    assert all(np.all(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradient))


def test_the_recurrent_mask_of_a_users_cell_is_as_wide_as_its_state():
    seen = []

    def step(params, h, z, mask):
        if mask is not None:
            seen.append(mask.shape)
            h = h * mask
        return h, h[:, :1]

    layer = layers.Recurrent(own(lambda *_: {"w": jnp.ones(1)}, step), D, H, recurrent_dropout=0.5, rngs=nnx.Rngs(0))
    assert layer(np.ones((B, T, D), np.float32), key=jax.random.key(0)).outputs.shape == (B, T, 1)
    assert set(seen) == {(B, H)}


def test_initial_states_are_those_of_a_call_on_narrow_inputs():
    layer = layers.GRU(D, H, num_layers=2, rngs=nnx.Rngs(0))
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, D)), jnp.bfloat16)
    assert_close(tuple(layer(xs, layer.initial_states(B, xs.dtype))), tuple(layer(xs)), 0)


def test_dropout_in_bfloat16_keeps_the_mean():
    """1 / (1 - 0.1) is 1.109375 in bfloat16, 0.16 % too little or too much for good."""
    kept = 1 / (1 - 0.1)
    xs = jnp.full((64, 50, 1), 100.0, jnp.bfloat16)
    got = np.asarray(layers.Dropout(0.1)(xs, key=jax.random.key(0)), np.float32)
    assert np.unique(got).tolist() == [0.0, float(jnp.asarray(100 * kept, jnp.bfloat16))]


@pytest.mark.parametrize(
    ("layer", "make"), [(layers.RNN, cells.make_rnn), (layers.LSTM, cells.make_lstm), (layers.GRU, cells.make_gru)]
)
def test_a_layer_takes_every_option_of_its_cell_and_hands_it_on(layer, make):
    values = {"projection": 2, "reset": "before", "activation": "relu", "forget_bias": 0.5, "memory": 9, "bias": False}
    values |= {"recurrence": "diagonal"}
    for name, option in inspect.signature(make).parameters.items():
        value = values.get(name, "uniform" if name.endswith("_init") else not option.default)
        assert make(**{name: value}) is not make()
        assert layer(3, 4, **{name: value}, rngs=nnx.Rngs(0)).cell is make(**{name: value})
