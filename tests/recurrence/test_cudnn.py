"""Backend `cudnn` through `jax.experimental.rnn.lstm_ref`, what JAX says cuDNN computes; cuDNN itself needs a GPU."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import s2s_jax
from s2s_jax import cells
from s2s_jax.recurrence import cudnn
from s2s_jax.recurrence.backend import Backend, Direction, Options, Stack
from s2s_jax.recurrence.choice import BACKENDS
from s2s_jax.types import Cell
from tests.samples import (
    CELLS,
    TOLERANCE,
    B,
    D,
    H,
    T,
    assert_close,
    fill_padding,
    further_derivatives,
    ragged_lengths,
    random_inputs,
    random_like,
    random_params,
    random_state,
    sample,
    weighted_sum,
)

forward_and_reverse = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


def in_place_of_cudnn(kernel):
    def why_not(cell, directions, lengths, options):
        return cudnn.why_not_these([cell], [directions], options)

    def why_not_stack(cells, directions, lengths, options):
        return cudnn.why_not_order(directions) or cudnn.why_not_these(cells, directions, options)

    stack = Stack(functools.partial(cudnn.run_stack, kernel=kernel), why_not_stack, cudnn.features)
    return Backend(functools.partial(cudnn.run, kernel=kernel), why_not, stack)


@pytest.fixture
def by_reference(monkeypatch):
    """Name of a backend that is `cudnn` with JAX's reference in the place of cuDNN."""
    monkeypatch.setitem(BACKENDS, "reference", in_place_of_cudnn(cudnn.reference))
    return "reference"


@functools.partial(jax.jit, static_argnames=("cell", "reverse", "backend"))
def _values_and_gradients(cell, params, xs, state, lengths, weights, *, reverse, backend):
    def loss(params, xs, state):
        done = s2s_jax.unroll(cell, params, xs, state, lengths=lengths, reverse=reverse, backend=backend)
        return weighted_sum(done, weights), done

    return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(params, xs, state)


def values_and_gradients(given, backend, reverse=False):
    got = _values_and_gradients(*given[:6], reverse=reverse, backend=backend)
    return jax.tree.map(np.asarray, got)


@pytest.mark.parametrize("name", ["lstm", "lstm_no_bias"])
@forward_and_reverse
@pytest.mark.parametrize("ragged", [True, False], ids=["ragged", "full"])
def test_values_and_gradients_equal_those_of_scan(name, reverse, ragged, by_reference):
    """Ragged lengths have 0, 1 and T among them."""
    given = sample(name, seed=5)
    if not ragged:
        given = given._replace(lengths=None)
    got, want = (values_and_gradients(given, backend, reverse) for backend in (by_reference, "scan"))
    assert_close(got, want, TOLERANCE["float32"])


@forward_and_reverse
def test_padding_reaches_nothing(reverse, by_reference):
    given = sample("lstm", seed=6)
    want = values_and_gradients(given, by_reference, reverse)
    for padding in (np.nan, np.inf):
        filled = given._replace(xs=fill_padding(given.xs, given.lengths, padding))
        jax.tree.map(np.testing.assert_array_equal, values_and_gradients(filled, by_reference, reverse), want)
    padded = np.arange(T)[None] >= given.lengths[:, None]
    np.testing.assert_array_equal(want[1].outputs[padded], 0)
    np.testing.assert_array_equal(want[0][1][padded], 0)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a[given.lengths == 0], b[given.lengths == 0]), want[1].state, given.state
    )


def stack_sample(directions, in_features=D, hidden=(H, H)):
    """Parameters of layers of those sizes, their states, inputs, and ragged lengths with 0, 1 and T among them."""
    width = len(directions)
    features = [in_features, *(width * size for size in hidden[:-1])]
    params = tuple(
        tuple(random_params(cells.lstm, features[k], size, 10 * k + d) for d in range(width)) for k, size in enumerate(hidden)
    )
    states = tuple(tuple(random_state(cells.lstm, p, B, 30 + k) for k, p in enumerate(row)) for row in params)
    return params, random_inputs("lstm", B, T, in_features, 4), states, jnp.asarray(ragged_lengths(B, T, 5))


NUMBERS = itertools.count()


class Counted:
    """JAX's reference in the place of cuDNN, and how many layers each call of it had."""

    def __init__(self):
        self.layers = []

    def __call__(self, *arguments):
        self.layers.append(arguments[7])
        return cudnn.reference(*arguments)


@pytest.fixture
def counted(monkeypatch):
    """Name of a backend, one that no compiled program has been kept under, and the number of layers of each of its calls."""
    kernel = Counted()
    name = f"counted-{next(NUMBERS)}"
    monkeypatch.setitem(BACKENDS, name, in_place_of_cudnn(kernel))
    return name, kernel.layers


@pytest.mark.parametrize("directions", [("forward",), ("backward",), ("forward", "backward")], ids="-".join)
@pytest.mark.parametrize("dropout", [False, True], ids=["", "input-dropout"])
def test_a_stack_in_one_call_equals_layer_by_layer(directions, dropout, counted):
    """Two layers; the same numbers as on `scan`, with biases, states, ragged lengths, and a mask below the first layer."""
    name, calls = counted
    params, xs, states, lengths = stack_sample(directions)
    masks = (np.random.default_rng(7).binomial(1, 0.5, (B, T, D)).astype(np.float32) * 2, None) if dropout else None

    def both(backend):
        def loss(params, xs, states):
            done = s2s_jax.unroll_stack(
                cells.lstm, params, xs, states, lengths=lengths, directions=directions, dropout_masks=masks, backend=backend
            )
            weights = random_like(jax.eval_shape(lambda: done), 6, 1.0)
            return weighted_sum(done, weights), done

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(params, xs, states)

    got, want = both(name), both("scan")
    assert_close(got, want, TOLERANCE["float32"])
    assert set(calls) == {2}


@pytest.mark.parametrize(
    ("options", "hidden", "in_one"),
    [
        ({}, (H, H), True),
        ({}, (H, H + 1), False),
        ({"residual": True}, (H, H), False),
        ({"dropout_masks": (None, np.ones((B, T, H), np.float32))}, (H, H), False),
        ({"directions": ("forward", "backward"), "merge": "sum"}, (H, H), False),
        ({"directions": ("forward", "backward"), "merge": "none"}, (H, H), False),
        ({"directions": ("backward", "forward")}, (H, H), False),
    ],
    ids=["plain", "sizes", "residual", "dropout between", "sum", "apart", "order"],
)
def test_a_stack_that_does_not_go_in_one_call_goes_layer_by_layer(options, hidden, in_one, counted):
    name, calls = counted
    directions = options.get("directions", ("forward",))
    params, xs, states, lengths = stack_sample(directions, hidden=hidden)
    if "merge" in options:  # the second layer reads H, not 2 H
        params = (params[0], tuple(random_params(cells.lstm, H, H, d) for d in range(2)))

    def run(backend):
        return s2s_jax.unroll_stack(cells.lstm, params, xs, states, lengths=lengths, backend=backend, **options)

    assert_close(run(name), run("scan"), TOLERANCE["float32"])
    assert (2 in calls) == in_one


def test_a_stack_above_which_stand_cells_of_a_user_goes_layer_by_layer(counted, monkeypatch):
    name, calls = counted
    monkeypatch.setenv("S2S_JAX_BACKEND", name)
    params, xs, _, lengths = stack_sample(("forward",))
    pair = cells.rnn._replace(spec=None, step=lambda p, h, z, context: (h, {"a": z, "b": z}))
    last = Cell(cells.rnn.init, cells.rnn.initial_state, lambda p, x: x["a"] @ p.w, lambda p, h, z, context: (h + z, h), None)
    of_rnn = [(random_params(cells.rnn, H, H, seed),) for seed in range(2)]

    def run(backend):
        stack = cells.lstm, pair, last
        return s2s_jax.unroll_stack(stack, [params[0], *of_rnn], xs, lengths=lengths, backend=backend)

    assert_close(run("auto"), run("scan"), TOLERANCE["float32"])
    assert calls == [1]


def test_a_stack_checks_the_layers_above_the_first(counted):
    params, xs, states, lengths = stack_sample(("forward",))
    wrong = (params[0], (random_params(cells.lstm, H + 2, H),))
    with pytest.raises(ValueError, match=r"params\[1\]\[0\]: expected"):
        s2s_jax.unroll_stack(cells.lstm, (params[0], ({"w": 1},)), xs, states, lengths=lengths, backend=counted[0])
    with pytest.raises(ValueError, match=r"expected 6 features \(the rows of params\[1\]\[0\].w\), got 4"):
        s2s_jax.unroll_stack(cells.lstm, wrong, xs, states, lengths=lengths, backend=counted[0])


def test_packed_weights_are_as_jax_lays_them_out():
    """What JAX unpacks is ours turned, gates in the same order, our bias first and zero for the second."""
    params = tuple(
        tuple(random_params(cells.lstm, features, H, 10 * layer + d) for d in range(2))
        for layer, features in enumerate((D, 2 * H))
    )
    packed = cudnn.pack(params)
    assert packed.shape == (rnn.get_num_params_in_lstm(D, H, 2, True),)
    assert packed.dtype == jnp.float32
    w, u, b, zero = rnn.unpack_lstm_weights(packed, D, H, 2, True)
    for k, p in enumerate(p for of_layer in params for p in of_layer):
        np.testing.assert_array_equal(w[k], p.w.T)
        np.testing.assert_array_equal(u[k], p.u.T)
        np.testing.assert_array_equal(b[k], p.b)
        np.testing.assert_array_equal(zero[k], 0)
    assert w[2].shape == (4 * H, 2 * H)


def test_cudnn_never_sees_a_length_of_zero(monkeypatch):
    def kernel(x, h, c, weights, lengths, *sizes):
        y, h, c = cudnn.reference(x, h, c, weights, lengths, *sizes)
        return jnp.where(jnp.any(lengths == 0), jnp.nan, y), h, c

    monkeypatch.setitem(BACKENDS, "strict", in_place_of_cudnn(kernel))
    given = sample("lstm")
    assert 0 in given.lengths
    outputs = s2s_jax.unroll(*given[:4], lengths=given.lengths, backend="strict").outputs
    assert np.all(np.isfinite(outputs))
    assert np.any(outputs != 0)


def test_other_derivatives_and_vmap(by_reference):
    """Forward mode and second derivatives are those of `scan`; under `vmap` there is one call after the other."""
    given = sample("lstm", 3, 4)
    assert_close(further_derivatives(given, by_reference), further_derivatives(given, "scan"), TOLERANCE["float32"])


def _opaque(monkeypatch):
    """In place of JAX's two calls of cuDNN others like them: no derivative, no batching, no mesh axes in their types."""

    def forward(x, h, c, w, lengths, *, sizes):
        return *cudnn.reference(x, h, c, w, lengths, *sizes), jnp.zeros(1)

    def backward(dy, dh, dc, x, h, c, w, lengths, *, sizes):
        return jax.vjp(lambda *inexact: cudnn.reference(*inexact, lengths, *sizes), x, h, c, w)[1]((dy, dh, dc))

    def primitive(name, function):
        made = Primitive(name)
        made.multiple_results = True
        made.def_impl(function)

        def types(*avals, sizes):
            shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
            found = jax.eval_shape(functools.partial(function, sizes=sizes), *shapes)
            return [jax.core.ShapedArray(leaf.shape, leaf.dtype) for leaf in found]

        made.def_abstract_eval(types)
        mlir.register_lowering(made, mlir.lower_fun(function, multiple_results=True))
        return made

    forward_p, backward_p = primitive("forward", forward), primitive("backward", backward)

    def lstm_fwd(x, h, c, w, lengths, *sizes, precision):
        *outputs, reserved = forward_p.bind(x, h, c, w, lengths, sizes=sizes)
        return tuple(outputs), (x, h, c, w, lengths, outputs[0], reserved)

    def lstm_bwd(*sizes, precision, residuals, gradients):
        found = backward_p.bind(*gradients, *residuals[:5], sizes=sizes)
        return (*found, jnp.zeros_like(residuals[4]))

    monkeypatch.setattr(rnn, "lstm_fwd", lstm_fwd)
    monkeypatch.setattr(rnn, "lstm_bwd", lstm_bwd)
    monkeypatch.setattr(cudnn, "_why_not_here", lambda: None)


@pytest.mark.parametrize("backend", ["reference", "cudnn"])
@pytest.mark.parametrize("ragged", [True, False], ids=["ragged", "full"])
def test_shard_map_over_the_batch(backend, ragged, by_reference, monkeypatch):
    if backend == "cudnn":
        _opaque(monkeypatch)
    given, lengths = sample("lstm", 16), ragged_lengths(16, T) if ragged else None
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices("cpu")[:8])

    def forward(params, xs, state, lengths, backend):
        return s2s_jax.unroll(given.cell, params, xs, state, lengths=lengths, backend=backend).outputs

    def gradients(f):
        return jax.jit(jax.grad(lambda *args: weighted_sum(f(*args), given.weights.outputs), argnums=(0, 1, 2)))

    specs = (P(), P("batch"), P("batch"), P("batch"))
    sharded = jax.shard_map(functools.partial(forward, backend=backend), mesh=mesh, in_specs=specs, out_specs=P("batch"))
    want = gradients(functools.partial(forward, backend="scan"))(*given[1:4], lengths)
    assert_close(gradients(sharded)(*given[1:4], lengths), want, TOLERANCE["float32"])


def test_what_has_neither_derivative_nor_batching_is_enough(monkeypatch):
    """Two gradients under `vmap`, and a second derivative."""
    _opaque(monkeypatch)
    given = sample("lstm", 3, 4)
    many = np.stack([given.xs, 0.5 * given.xs])

    def results(backend):
        def loss(xs):
            return weighted_sum(
                s2s_jax.unroll(given.cell, given.params, xs, given.state, lengths=given.lengths, backend=backend), given.weights
            )

        return jax.jit(lambda: (jax.vmap(jax.grad(loss))(many), jax.jvp(jax.grad(loss), (given.xs,), (given.xs,))[1]))()

    assert_close(results("cudnn"), results("scan"), TOLERANCE["float32"])


# What it does not do ----------------------------------------------------------------------------------------------------


def test_without_a_gpu_it_says_so():
    given = sample("lstm")
    with pytest.raises(ValueError, match=r"backend: cudnn does not apply: it needs an NVIDIA GPU, .* platform 'cpu'"):
        s2s_jax.unroll(*given[:4], backend="cudnn")
    time_major = jnp.swapaxes(jnp.asarray(given.xs), 0, 1)
    arguments = given.cell, [Direction(given.params, time_major, given.state, None, False)], None, Options()
    reason = cudnn.why_not(*arguments)
    assert "NVIDIA" in reason
    with jax.default_device(jax.devices("cpu")[0]):
        assert cudnn.why_not(*arguments) == reason


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        *((name, {}, "it has the LSTM only") for name in ("gru", "rnn", "counting")),
        ("lstm_projection", {}, "without projection"),
        ("lstm_peepholes", {}, "without peepholes"),
        ("lstm_layer_norm", {}, "without layer_norm"),
        ("lstm_relu", {}, "activation \"tanh\" only, not 'relu'"),
        ("lstm", {"xs": np.zeros((B, T, D), jnp.bfloat16)}, "float32, and xs is bfloat16"),
        ("lstm", {"xs": np.zeros((B, 0, D), np.float32)}, "there are no elements in xs"),
        ("lstm", {"context": np.ones((B, H), np.float32)}, "no recurrent dropout"),
        ("lstm", {"remat": 2}, "remat: "),
    ],
)
def test_what_it_does_not_do(name, changes, reason, by_reference):
    given = sample(name)
    arguments = {"xs": given.xs, "backend": by_reference} | changes
    with pytest.raises(ValueError, match=f"backend: {by_reference} does not apply: .*{reason}"):
        s2s_jax.unroll(CELLS[name], given.params, arguments.pop("xs"), given.state, **arguments)


def test_it_gives_no_history(by_reference):
    with pytest.raises(ValueError, match="history: it returns the last state only"):
        s2s_jax.unroll_with_history(*sample("lstm")[:4], backend=by_reference)
