"""Each cell and each option against implementations that are not ours, and what their initialisers draw."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2s_jax import cells, unroll
from s2s_jax.types import Unrolled
from tests import oracles
from tests.samples import LIBRARY_CELLS, TOLERANCE, Gradients, assert_close, assert_equal, run, sample

TORCH = ("rnn", "rnn_relu", "rnn_no_bias", "lstm", "lstm_no_bias", "lstm_projection", "gru", "gru_no_bias")
KERAS = (
    *("rnn", "rnn_relu", "rnn_no_bias", "lstm", "lstm_relu", "lstm_no_bias"),
    *("gru", "gru_relu", "gru_no_bias", "gru_before", "gru_before_relu", "gru_before_no_bias"),
)
ONNX = (
    *("rnn", "rnn_relu", "rnn_no_bias", "lstm", "lstm_relu", "lstm_no_bias", "lstm_peepholes"),
    *("gru", "gru_relu", "gru_no_bias", "gru_before", "gru_before_relu", "gru_before_no_bias"),
)
TORCH_LOOP = ("lstm", "lstm_peepholes", "lstm_layer_norm", "lstm_layer_norm_no_bias", "lstm_everything")
forward_and_reverse = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


@functools.cache
def drawn(name, reverse, seed=0):
    """A sample of drawn shape. Seeded by the case, so that all oracles of one case share what is compiled."""
    rng = np.random.default_rng([sorted(LIBRARY_CELLS).index(name), reverse, seed])
    batch_size, time, in_features, hidden_features = rng.integers((3, 3, 1, 4), (6, 9, 5, 6)).tolist()
    if "norm" in name or "everything" in name:
        in_features += 1  # the norm of x w with one feature is its sign, and what is left of the gradient is rounding
    return sample(name, batch_size, time, in_features, hidden_features, seed)


@functools.cache
def torch_answer(name, reverse):
    given = drawn(name, reverse)
    weights = Unrolled(given.weights.outputs, ((given.weights.state,),))
    nested = [[given.params]], given.xs, [[given.state]], given.lengths, weights
    done, gradients = oracles.torch_stack(given.cell, *nested, directions=("backward",) if reverse else ("forward",))
    return Unrolled(done.outputs, done.state[0][0]), Gradients(gradients.params[0][0], gradients.xs, gradients.state[0][0])


@functools.cache
def keras_answer(name, reverse):
    given = drawn(name, reverse)
    return tuple(oracles.keras_layer(given.cell, *given[1:6], reverse=reverse))


@functools.cache
def plain_answer(name, reverse):
    given = drawn(name, reverse)
    done = oracles.plain(given.cell, *given[1:5], reverse=reverse)
    return done, oracles.plain_gradients(given.cell, *given[1:6], reverse=reverse)


@functools.cache
def ours(name, reverse, dtype):
    return run(drawn(name, reverse), dtype, reverse=reverse)


@forward_and_reverse
@pytest.mark.parametrize("name", TORCH)
def test_agrees_with_pytorch(name, reverse, dtype):
    assert_close(ours(name, reverse, dtype), torch_answer(name, reverse), TOLERANCE[dtype])


@forward_and_reverse
@pytest.mark.parametrize("name", KERAS)
def test_agrees_with_keras(name, reverse, dtype):
    assert_close(ours(name, reverse, dtype), keras_answer(name, reverse), TOLERANCE[dtype])


@forward_and_reverse
@pytest.mark.parametrize("name", ONNX)
def test_agrees_with_onnx_runtime(name, reverse):
    given = drawn(name, reverse)
    direction = "reverse" if reverse else "forward"
    want = oracles.onnx_layer(given.cell, [given.params], given.xs, [given.state], given.lengths, direction)
    assert_close(ours(name, reverse, "float32")[0], Unrolled(want.outputs, want.state[0]), TOLERANCE["float32"])


@forward_and_reverse
@pytest.mark.parametrize("name", LIBRARY_CELLS)
def test_agrees_with_the_plain_equations(name, reverse, dtype):
    """The reference for what no other implementation has; itself held against the others by the tests above and below."""
    assert_close(ours(name, reverse, dtype), plain_answer(name, reverse), TOLERANCE[dtype])


@forward_and_reverse
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("name", TORCH_LOOP)
def test_agrees_with_a_loop_in_pytorch(name, masked, reverse, dtype):
    given = drawn(name, reverse)
    if masked:
        rng = np.random.default_rng(0)
        given = given._replace(context=1.5 * rng.integers(0, 2, (len(given.xs), given.params.u.shape[0])).astype(np.float32))
    want = oracles.torch_loop(given.cell, *given[1:6], reverse=reverse, mask=given.context)
    assert_close(run(given, dtype, reverse=reverse), want, TOLERANCE[dtype])


@pytest.mark.parametrize("name", LIBRARY_CELLS)
def test_what_init_gives_is_what_unroll_takes_in_float64_too(name, float64):
    cell = LIBRARY_CELLS[name]
    params = cell.init(jax.random.key(0), 3, 4)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    assert unroll(cell, params, jnp.ones((2, 5, 3))).outputs.dtype == float64


@functools.cache
def masked_answer(name):
    given = drawn(name, False)
    mask = 1.5 * np.random.default_rng(0).integers(0, 2, (len(given.xs), given.params.u.shape[0])).astype(np.float32)
    want = oracles.plain(given.cell, *given[1:5], mask=mask), oracles.plain_gradients(given.cell, *given[1:6], mask=mask)
    return given._replace(context=mask), want


@pytest.mark.parametrize("name", ["rnn", "lstm_projection", "gru", "gru_before"])
def test_recurrent_dropout_mask_scales_h_in_the_matrix_product_only(name, dtype):
    given, want = masked_answer(name)
    assert_close(run(given, dtype), want, TOLERANCE[dtype])


def test_bias_inside_the_reset_gate_is_no_second_input_bias():
    """Flax 0.12.8: `nnx.GRUCell` has dense_i.kernel, dense_i.bias and dense_h.kernel alone, nothing to put `b_n` in."""
    given = drawn("gru", False)
    features = len(given.params.b_n)
    moved = given.params.b.copy()
    moved[2 * features :] += given.params.b_n
    outside = run(given._replace(params=given.params._replace(b=moved, b_n=np.zeros_like(given.params.b_n))))[0]
    inside, gradients = ours("gru", False, "float32")
    assert np.abs(inside.outputs - outside.outputs).max() > 1e-2
    assert np.all(gradients.params.b_n != 0)


def test_bias_inside_the_reset_gate_is_unused_with_reset_before():
    given = drawn("gru_before", False)
    assert np.all(given.params.b_n != 0)
    done, gradients = ours("gru_before", False, "float32")
    without = run(given._replace(params=given.params._replace(b_n=np.zeros_like(given.params.b_n))))[0]
    np.testing.assert_array_equal(done.outputs, without.outputs)
    np.testing.assert_array_equal(gradients.params.b_n, 0)


def test_activation_may_be_any_function():
    given = drawn("rnn", False)
    cell = cells.make_rnn(activation=jnp.sin)
    done, _ = run(given._replace(cell=cell, lengths=None))
    h = given.state
    for t in range(given.xs.shape[1]):
        h = np.sin(given.xs[:, t] @ given.params.w + h @ given.params.u + given.params.b)
        assert_close(done.outputs[:, t], h, TOLERANCE["float32"])


# What the initialisers draw ---------------------------------------------------------------------------------------------


GATES = {"rnn": 1, "lstm": 4, "gru": 3}
FACTORIES = {"rnn": cells.make_rnn, "lstm": cells.make_lstm, "gru": cells.make_gru}
families = pytest.mark.parametrize("family", FACTORIES)


def init(cell, in_features=8, hidden_features=16, seed=0):
    return jax.tree.map(np.asarray, cell.init(jax.random.key(seed), in_features, hidden_features))


@families
@pytest.mark.parametrize("field", ["w", "u"])
def test_orthogonal_gate_by_gate(family, field):
    """Flax 0.12.8: the singular values of a gate's block of `nnx.OptimizedLSTMCell(2, 256)` lie between 0.0001 and 0.87."""
    params = init(FACTORIES[family](kernel_init="orthogonal", recurrent_init="orthogonal"))
    blocks = np.split(getattr(params, field), GATES[family], axis=1)
    for block in blocks:
        np.testing.assert_allclose(np.linalg.svd(block, compute_uv=False), 1, atol=1e-5)
    assert all(np.abs(a - b).max() > 0.1 for a, b in itertools.combinations(blocks, 2))


def test_orthogonal_gate_by_gate_with_a_projection():
    for block in np.split(init(cells.make_lstm(projection=5)).u, 4, axis=1):
        np.testing.assert_allclose(block @ block.T, np.eye(5), atol=1e-5)


@families
def test_uniform_within_one_over_root_hidden(family):
    options = {"kernel_init": "uniform", "recurrent_init": "uniform", "bias_init": "uniform"}
    options |= {"forget_bias": 0.0, "peepholes": True, "projection": 20} if family == "lstm" else {}
    bound = 64**-0.5
    for name, leaf in init(FACTORIES[family](**options), 8, 64)._asdict().items():
        if leaf is not None:
            assert 0.9 * bound < np.abs(leaf).max() <= bound, name
            assert abs(leaf.mean()) < 0.3 * bound, name


@families
def test_glorot_uniform_by_gate(family):
    bound = (6 / (8 + 16)) ** 0.5
    w = init(FACTORIES[family]()).w
    assert 0.9 * bound < np.abs(w).max() <= bound


@families
def test_initialisers_may_be_functions_of_one_gate(family):
    asked = []

    def numbered(key, shape, dtype):
        asked.append(shape)
        return jnp.full(shape, len(asked), dtype)

    params = init(FACTORIES[family](recurrent_init=numbered))
    assert asked == [(16, 16)] * GATES[family]
    np.testing.assert_array_equal(params.u[0], np.repeat(np.arange(GATES[family]) + 1, 16))


@pytest.mark.parametrize("make", [cells.make_lstm, cells.make_gru])
@pytest.mark.parametrize("memory", [2, 10, 784])
def test_memory_is_how_many_steps_the_units_remember(make, memory, float64):
    """Without input or weights a state decays at a constant rate: to 1/e in 1 to `memory` steps, evenly spread over units."""
    features = 4000
    cell = make(kernel_init="zeros", recurrent_init="zeros", memory=memory)
    params = cell.init(jax.random.key(0), 1, features)
    state = jax.tree.map(jnp.ones_like, cell.initial_state(params, 1, jnp.float64))
    _, state = unroll(cell, params, jnp.zeros((1, 3, 1)), state, backend="scan")
    steps = -3 / np.log((state.c if make is cells.make_lstm else state)[0])
    assert 1.4 <= steps.min() <= steps.max() <= memory  # 1 / ln 2 at least
    if memory > 2:
        quartiles = 1.5 + (memory - 2) * np.array([0.25, 0.5, 0.75])
        np.testing.assert_allclose(np.quantile(steps, [0.25, 0.5, 0.75]), quartiles, rtol=0.05)


@pytest.mark.parametrize(
    ("make", "drawn"),
    [(functools.partial(cells.make_lstm, peepholes=True), (0, 1)), (cells.make_gru, (1,))],
    ids=["lstm", "gru"],
)
def test_memory_draws_its_own_biases_and_leaves_all_else(make, drawn):
    plain, params = (init(make(bias_init="uniform", **options)) for options in ({}, {"memory": 9}))
    ours, others = (np.asarray(each.b).reshape(-1, 16) for each in (params, plain))
    for gate in range(len(ours)):
        assert np.array_equal(ours[gate], others[gate]) == (gate not in drawn)
    if len(drawn) == 2:
        np.testing.assert_array_equal(ours[0], -ours[1])
    assert_equal(params._replace(b=None), plain._replace(b=None))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(plain))


@pytest.mark.parametrize("make", [cells.make_lstm, cells.make_gru])
def test_memory_needs_two_steps_and_biases(make):
    with pytest.raises(ValueError, match="memory: expected at least 2 steps, got 1"):
        make(memory=1)
    with pytest.raises(ValueError, match="memory: expected bias=True with it, got 5 without"):
        make(memory=5, bias=False)


def test_memory_and_a_forget_bias_exclude_each_other():
    with pytest.raises(ValueError, match=r"forget_bias: expected none with memory=5, which draws it, got 0\.5"):
        cells.make_lstm(memory=5, forget_bias=0.5)


@pytest.mark.parametrize("forget_bias", [1.0, 0.0, -0.5])
def test_forget_bias_is_added_to_the_forget_gate_alone(forget_bias):
    np.testing.assert_array_equal(init(cells.make_lstm(forget_bias=forget_bias)).b, np.repeat([0, forget_bias, 0, 0], 16))
    drawn_too = [init(cells.make_lstm(forget_bias=f, bias_init="uniform")).b for f in (forget_bias, 0.0)]
    np.testing.assert_allclose(drawn_too[0] - drawn_too[1], np.repeat([0, forget_bias, 0, 0], 16), atol=1e-7)


SHAPES = [
    ("rnn", {"w": (8, 16), "u": (16, 16), "b": (16,)}),
    ("rnn_no_bias", {"w": (8, 16), "u": (16, 16)}),
    ("lstm", {"w": (8, 64), "u": (16, 64), "b": (64,)}),
    ("lstm_no_bias", {"w": (8, 64), "u": (16, 64)}),
    ("lstm_projection", {"w": (8, 64), "u": (2, 64), "b": (64,), "projection": (16, 2)}),
    ("lstm_peepholes", {"w": (8, 64), "u": (16, 64), "b": (64,), "peephole": (48,)}),
    (
        "lstm_layer_norm_no_bias",
        {"w": (8, 64), "u": (16, 64), "norm_w": (64,), "norm_u": (64,), "norm_c": (16,), "norm_b": (16,)},
    ),
    ("gru", {"w": (8, 48), "u": (16, 48), "b": (48,), "b_n": (16,)}),
    ("gru_no_bias", {"w": (8, 48), "u": (16, 48)}),
    ("gru_before", {"w": (8, 48), "u": (16, 48), "b": (48,), "b_n": (16,)}),
]


@pytest.mark.parametrize(("name", "shapes"), SHAPES, ids=[name for name, _ in SHAPES])
def test_fields_without_their_option_are_none(name, shapes):
    params = init(LIBRARY_CELLS[name])
    assert {field: leaf.shape for field, leaf in params._asdict().items() if leaf is not None} == shapes
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}


def test_biases_start_at_zero_and_norms_at_the_identity():
    params = init(LIBRARY_CELLS["lstm_everything"])
    for field, value in (("peephole", 0), ("norm_w", 1), ("norm_u", 1), ("norm_c", 1), ("norm_b", 0)):
        np.testing.assert_array_equal(getattr(params, field), value)
    for leaf in (init(cells.rnn).b, init(cells.gru).b, init(cells.gru).b_n):
        np.testing.assert_array_equal(leaf, 0)
    np.testing.assert_array_equal(init(cells.make_gru(reset="before", bias_init="uniform")).b_n, 0)


@families
def test_the_key_decides(family):
    a, b, c = (init(FACTORIES[family](), seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a.w, b.w)
    assert np.all(a.w != c.w)


def test_same_options_give_the_same_object():
    assert cells.make_rnn() is cells.rnn
    assert cells.make_rnn(activation="tanh", bias=True, bias_init="zeros") is cells.rnn
    assert cells.make_lstm(forget_bias=1) is cells.make_lstm(forget_bias=1.0) is cells.make_lstm(projection=None) is cells.lstm
    assert cells.make_gru(reset="after") is cells.gru
    a = cells.make_lstm(projection=2, peepholes=True, kernel_init="uniform", activation="relu")
    b = cells.make_lstm(activation="relu", kernel_init="uniform", peepholes=True, projection=2)
    assert a is b
    assert cells.make_gru(activation=jnp.sin) is cells.make_gru(activation=jnp.sin)
    assert len(set(LIBRARY_CELLS.values())) == len(LIBRARY_CELLS)


@families
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "sine"}, "activation: expected one of tanh, relu or a function, got 'sine'"),
        ({"kernel_init": "normal"}, "kernel_init: expected one of uniform, orthogonal, .* or a function, got 'normal'"),
        ({"recurrent_init": "normal"}, "recurrent_init: expected one of .*, got 'normal'"),
        ({"bias_init": "orthogonal"}, "bias_init: expected one of uniform, zeros or a function, got 'orthogonal'"),
    ],
)  # fmt: skip
def test_unknown_names_raise(family, options, message):
    with pytest.raises(ValueError, match=message):
        FACTORIES[family](**options)


def test_other_options_that_raise():
    with pytest.raises(ValueError, match='reset: expected "after" or "before", got \'middle\''):
        cells.make_gru(reset="middle")
    for projection in (0, -2):
        with pytest.raises(ValueError, match=f"projection: expected a positive number of features, got {projection}"):
            cells.make_lstm(projection=projection)
    with pytest.raises(ValueError, match="projection: expected at most hidden_features = 4, got 5"):
        init(cells.make_lstm(projection=5), 3, 4)
    with pytest.raises(TypeError, match="activations"):
        cells.make_lstm(activations="relu")


@families
@pytest.mark.parametrize(("sizes", "message"), [((0, 4), "in_features: .* got 0"), ((3, -1), "hidden_features: .* got -1")])
def test_sizes_below_one_raise(family, sizes, message):
    with pytest.raises(ValueError, match=message):
        init(FACTORIES[family](), *sizes)
