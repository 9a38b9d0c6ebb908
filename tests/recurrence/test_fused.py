"""Backend `fused` against backend `scan`, and what it is there for."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import s2s_jax
from s2s_jax import cells
from s2s_jax.recurrence import by_hand
from s2s_jax.types import Cell
from tests.samples import (
    CELLS,
    LIBRARY_CELLS,
    TOLERANCE,
    Sample,
    T,
    assert_close,
    cast,
    fill_padding,
    ragged_lengths,
    random_like,
    sample,
    weighted_sum,
)


def _jitted(cell: Cell) -> Cell:
    """The same cell with a step that is jitted, and a weight that is turned inside of it: opaque, but for a look inside."""

    def step(params, state, z, mask):
        turned = params._replace(u=jnp.exp(params.u).T)
        return cell.step(turned._replace(u=jnp.log(turned.u).T), state, z, mask)

    return cell._replace(step=jax.jit(step), spec=None)


BY_HAND = ("rnn", "rnn_relu", "rnn_no_bias", "lstm", "lstm_relu", "lstm_no_bias")
BY_HAND += ("gru", "gru_relu", "gru_no_bias", "gru_before", "gru_before_relu", "gru_before_no_bias")
FEW = ("rnn", "lstm", "gru", "gru_before", "lstm_everything", "counting", "tree")
few_cells = pytest.mark.parametrize("name", FEW)
one_direction = pytest.mark.parametrize(
    ("name", "reverse"),
    [pytest.param(name, k % 2 == 0, id=f"{name}-{'forward' if k % 2 else 'reverse'}") for k, name in enumerate(CELLS)],
)


def unrolled(given, backend, *, reverse=False, history=False):
    """The unrolling as a function of all that it can be differentiated by."""
    function = s2s_jax.unroll_with_history if history else s2s_jax.unroll

    def carried(params, xs, state, context, lengths):
        return function(given.cell, params, xs, state, lengths=lengths, context=context, reverse=reverse, backend=backend)

    return carried


def values_and_gradients(given, backend, *, reverse=False, history=False, dtype="float32"):
    shapes = jax.eval_shape(unrolled(given, backend, history=history), *given[1:4], given.context, given.lengths)
    arrays = cast((given.params, given.xs, given.state, given.context, random_like(shapes, 7, 1.0)), dtype)
    got = _values_and_gradients(given.cell, *arrays, given.lengths, backend=backend, reverse=reverse, history=history)
    return jax.tree.map(np.asarray, got)


@functools.partial(jax.jit, static_argnames=("cell", "backend", "reverse", "history"))
def _values_and_gradients(cell, params, xs, state, context, weights, lengths, *, backend, reverse, history):
    carried = unrolled(Sample(cell, params, xs, state, lengths, weights), backend, reverse=reverse, history=history)

    def loss(*arguments):
        done = carried(*arguments, lengths)
        return weighted_sum(done, weights), done

    return jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True, allow_int=True)(params, xs, state, context)


def with_mask(given, seed=11):
    features = jax.tree.leaves(given.state)[0].shape[1] if given.cell.spec.gates != 4 else given.state.h.shape[1]
    mask = np.random.default_rng(seed).uniform(0.5, 2, (given.xs.shape[0], features)).astype(np.float32)
    return given._replace(context=mask)


def test_what_is_differentiated_by_hand():
    assert {name for name, cell in CELLS.items() if by_hand.rules_of(cell) is not None} == set(BY_HAND)


@one_direction
def test_values_and_gradients_equal_those_of_scan(name, reverse):
    """With ragged lengths 0, 1 and T; with the state given; for cells of this package with recurrent dropout."""
    given = sample(name, seed=5)
    if name in LIBRARY_CELLS:
        given = with_mask(given)
    got, want = (values_and_gradients(given, backend, reverse=reverse) for backend in ("fused", "scan"))
    assert_close(got, want, TOLERANCE["float32"])


@few_cells
def test_with_the_history_of_states(name):
    given, reverse = sample(name, seed=6), FEW.index(name) % 2 == 0
    got, want = (values_and_gradients(given, backend, reverse=reverse, history=True) for backend in ("fused", "scan"))
    assert_close(got, want, TOLERANCE["float32"])


@pytest.mark.parametrize("name", ["lstm", "gru_before", "tree"])
def test_float64_without_lengths(name, float64):
    given = sample(name, seed=8)._replace(lengths=None)
    got, want = (values_and_gradients(given, backend, reverse=True, dtype="float64") for backend in ("fused", "scan"))
    assert_close(got, want, TOLERANCE["float64"])


@few_cells
def test_padding_reaches_nothing(name):
    given, reverse = sample(name, seed=9), FEW.index(name) % 2 == 1
    want = values_and_gradients(given, "fused", reverse=reverse)
    padded = np.arange(T)[None] >= given.lengths[:, None]
    for padding in (np.nan, np.inf):
        filled = given._replace(xs=fill_padding(given.xs, given.lengths, padding))
        got = values_and_gradients(filled, "fused", reverse=reverse)
        jax.tree.map(np.testing.assert_array_equal, got, want)
        for leaf in jax.tree.leaves((got[1].outputs, got[0][1])):
            np.testing.assert_array_equal(leaf[padded], 0)


@pytest.mark.parametrize("name", ["lstm", "counting"])
def test_what_the_loss_does_with_the_padding_reaches_nothing(name):
    given = sample(name, seed=9)
    padded = np.arange(T)[None, :, None] >= given.lengths[:, None, None]

    def loss(params, xs, wrong):
        outputs = jax.tree.leaves(unrolled(given, "fused")(params, xs, given.state, None, given.lengths).outputs)[0]
        return jnp.sum(jnp.where(padded, wrong, 1) * outputs)

    got, want = (jax.jit(jax.grad(loss, argnums=(0, 1)))(given.params, given.xs, wrong) for wrong in (np.nan, 1.0))
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("name", ["lstm", "counting"])
@pytest.mark.parametrize(("batch_size", "time"), [(3, 0), (0, 4), (1, 1), (1, 2), (2, 1)])
def test_empty_and_single_sizes(name, batch_size, time):
    given = sample(name, batch_size, time)
    got, want = (values_and_gradients(given, backend, history=True) for backend in ("fused", "scan"))
    assert_close(got, want, TOLERANCE["float32"])


def test_rematerialisation_is_refused():
    given = sample("lstm")
    with pytest.raises(ValueError, match=r"backend: fused does not apply: remat"):
        s2s_jax.unroll(*given[:4], remat=2, backend="fused")


@pytest.mark.parametrize("name", ["lstm", "counting"])
def test_forward_mode_and_second_derivatives(name, float64):
    """Forward mode, and each mode over each, along random directions: those of `scan`."""
    given = with_mask(sample(name, 3, 4)) if name in ("lstm", "gru") else sample(name, 3, 4)
    integers = {"steps": given.state["steps"]} if name == "counting" else {}
    floating = {"h": given.state["h"]} if integers else given.state
    point = cast((given.params, given.xs, floating, given.context), "float64")
    along, other = (cast(random_like(jax.tree.map(np.float32, point), seed), "float64") for seed in (9, 10))

    def derivatives(backend):
        def loss(point):
            state = point[2] | integers if integers else point[2]
            done = unrolled(given, backend)(*point[:2], state, point[3], given.lengths)
            return weighted_sum(jax.tree.map(jnp.sin, done), given.weights)

        def slope(point):
            return jax.jvp(loss, (point,), (along,))[1]

        @jax.jit
        def all_of_them(point):
            forward = slope(point), jax.jvp(slope, (point,), (other,))[1], jax.grad(slope)(point)
            gradient = jax.grad(loss)
            return forward, gradient(point), jax.jvp(gradient, (point,), (along,))[1], jax.vjp(gradient, point)[1](along)[0]

        return all_of_them(point)

    got, want = derivatives("fused"), derivatives("scan")
    assert_close(got, want, 1e-10)
    assert_close(got[2], got[3], 1e-10)  # a symmetric Hessian


@pytest.mark.parametrize("name", ["lstm", "counting"])
def test_vmap_in_any_order_with_grad(name):
    """Over parameters and over inputs; the gradient of each, and the gradient of their sum."""
    given = sample(name, 3, 4)
    many = jax.tree.map(lambda leaf: np.stack([leaf, 0.5 * leaf, -leaf]), (given.params, given.xs))

    def results(backend):
        def loss(params, xs):
            return weighted_sum(unrolled(given, backend)(params, xs, given.state, None, given.lengths), given.weights)

        gradient = jax.grad(loss, argnums=(0, 1))

        @jax.jit
        def of_all():
            over = {"params": (0, None), "xs": (None, 0)}
            arguments = {"params": (many[0], given.xs), "xs": (given.params, many[1])}
            each = {key: jax.vmap(gradient, axes)(*arguments[key]) for key, axes in over.items()}
            summed = {
                key: jax.grad(lambda p, x: jnp.sum(jax.vmap(loss, axes)(p, x)), argnums=(0, 1))(*arguments[key])  # noqa: B023
                for key, axes in over.items()
            }
            moved = jax.jvp(lambda x: jax.vmap(loss, (None, 0))(given.params, x), (many[1],), (many[1],))
            return each, summed, moved

        return of_all()

    assert_close(results("fused"), results("scan"), TOLERANCE["float32"])


@pytest.mark.parametrize("name", ["lstm", "gru_before", "lstm_everything", "counting"])
def test_gradients_on_several_devices(name):
    """Inside `shard_map`, and on a mesh with explicit axes; two rows of the batch on each device."""
    given = sample(name, 16)
    lengths = ragged_lengths(16, T)
    devices = jax.devices("cpu")[:8]

    def forward(params, xs, state, lengths):
        return s2s_jax.unroll(given.cell, params, xs, state, lengths=lengths, backend="fused").outputs

    def gradients(f):
        return jax.jit(jax.grad(lambda *args: weighted_sum(f(*args), given.weights.outputs), argnums=(0, 1)))

    want = gradients(forward)(*given[1:4], lengths)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,), devices=devices)
    sharded = jax.shard_map(forward, mesh=mesh, in_specs=(P(), P("batch"), P("batch"), P("batch")), out_specs=P("batch"))
    assert_close(gradients(sharded)(*given[1:4], lengths), want, TOLERANCE["float32"])
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Explicit,), devices=devices)
    with jax.set_mesh(mesh):
        split = jax.device_put((given.xs, given.state, lengths), NamedSharding(mesh, P("batch")))
        got = gradients(forward)(given.params, *split)
        assert_close(jax.tree.map(np.asarray, got), jax.tree.map(np.asarray, want), TOLERANCE["float32"])


@pytest.mark.parametrize("name", ["lstm", "gru_before", "tree"])
def test_lowers_for_cuda_and_tpu(name):
    given = sample(name)

    def loss(params, xs):
        return weighted_sum(unrolled(given, "fused")(params, xs, given.state, None, given.lengths), given.weights)

    exported = jax.export.export(jax.jit(jax.grad(loss, argnums=(0, 1))), platforms=("cuda", "tpu"))(given.params, given.xs)
    assert exported.platforms == ("cuda", "tpu")


# What it is there for ---------------------------------------------------------------------------------------------------


def loops(jaxpr):
    """Every scan in a jaxpr, the nested ones too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from loops(inner)


def weights_in_loops(cell, backend):
    """Shapes of the weights that a loop of the gradient carries from step to step, or has once for each step.

    Sizes are such that nothing else has their shape.
    """
    batch_size, time, in_features, hidden = 11, 5, 7, 3
    shapes = jax.eval_shape(lambda key: cell.init(key, in_features, hidden), jax.random.key(0))
    xs = jax.ShapeDtypeStruct((batch_size, time, in_features), jnp.float32)
    gradient = jax.grad(lambda p, x: jnp.sum(s2s_jax.unroll(cell, p, x, backend=backend).outputs), argnums=(0, 1))
    matrices = {leaf.shape for leaf in jax.tree.leaves(shapes) if leaf.ndim == 2}
    wanted = matrices | {shape[::-1] for shape in matrices}
    found, count = set(), 0
    for loop in loops(jax.make_jaxpr(gradient)(shapes, xs).jaxpr):
        # What is carried comes out again.
        found |= {variable.aval.shape for variable in loop.outvars if variable.aval.shape in wanted}
        found |= {variable.aval.shape for variable in [*loop.invars, *loop.outvars] if variable.aval.shape[1:] in wanted}
        count += 1
    assert count >= 2
    return found


@pytest.mark.parametrize("name", [*(name for name in LIBRARY_CELLS if name not in ("rnn_relu", "gru_relu")), "jitted"])
def test_no_loop_of_the_gradient_holds_a_weight(name):
    cell = _jitted(cells.lstm) if name == "jitted" else LIBRARY_CELLS[name]
    assert weights_in_loops(cell, "scan")
    assert not weights_in_loops(cell, "fused")


def test_a_step_that_is_jitted():
    given = sample("lstm")
    want = values_and_gradients(given, "scan")
    given = given._replace(cell=given.cell._replace(step=jax.jit(given.cell.step), spec=None))
    assert_close(values_and_gradients(given, "fused"), want, TOLERANCE["float32"])


@pytest.mark.parametrize(
    ("name", "dtype"), [("lstm", "float32"), ("lstm", "bfloat16"), ("gru", "bfloat16"), ("lstm_peepholes", "bfloat16")]
)
def test_gradients_of_narrow_inputs(name, dtype):
    """In bfloat16, with parameters of either dtype, against the exact gradient at the same rounded numbers.

    `scan` adds up T gradients in the dtype of the parameters; here they are added in float32, whichever that is.
    """
    given = sample(name, 8, 96, 8, 8)._replace(lengths=None)
    params, xs = jax.tree.map(lambda x: np.asarray(jnp.asarray(0.5 * x, jnp.bfloat16), np.float32), (given.params, given.xs))

    def gradient(backend, params, xs, state):
        def loss(params, xs):
            outputs = unrolled(given, backend)(params, xs, state, None, None).outputs
            return jnp.sum(outputs.astype(jax.tree.leaves(state)[0].dtype) * given.weights.outputs)

        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), jax.jit(jax.grad(loss, argnums=(0, 1)))(params, xs))

    with jax.enable_x64(True):
        truth = gradient("scan", *cast((params, xs, given.state), "float64"))
    errors = {}
    for backend in ("fused", "scan"):
        narrow = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params), jnp.asarray(xs, jnp.bfloat16)
        got = gradient(backend, *narrow, given.state)
        assert backend == "scan" or assert_close(got, truth, 6 * float(jnp.finfo(jnp.bfloat16).eps)) is None
        error = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(got[0][:3], truth[0][:3], strict=True)]
        errors[backend] = np.array(error)
    if dtype == "bfloat16":
        assert np.all(errors["fused"] < errors["scan"])
    else:
        assert np.all(errors["fused"] < 1.5 * errors["scan"])
