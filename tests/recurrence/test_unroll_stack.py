"""Stacks of layers and directions: against PyTorch, ONNX Runtime and `lstm_ref`, and against `unroll` layer by layer."""

import functools
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import s2s_jax
from s2s_jax import cells
from s2s_jax.types import Unrolled
from tests import oracles
from tests.samples import (
    CELLS,
    TOLERANCE,
    B,
    D,
    Gradients,
    H,
    T,
    assert_close,
    assert_equal,
    cast,
    fill_padding,
    ragged_lengths,
    random_like,
    random_params,
    random_state,
    times,
    weighted_sum,
)

FORWARD, BACKWARD, BOTH = ("forward",), ("backward",), ("forward", "backward")
MERGES = ("concat", "sum", "mean", "product", "none")


class Stack(NamedTuple):
    cells: tuple
    params: Any
    xs: np.ndarray
    states: Any
    lengths: np.ndarray | None
    weights: Any = None


def stack(names, directions=FORWARD, merge="concat", batch_size=B, time=T, in_features=D, hidden_features=H, seed=0):
    """Random parameters, initial states and inputs for the cells of those names; widths follow from what is below."""
    params, states, width = [], [], in_features
    for layer, name in enumerate(names):
        of_layer = [random_params(CELLS[name], width, hidden_features, seed + 10 * layer + d) for d in range(len(directions))]
        params.append(of_layer)
        states.append([random_state(CELLS[name], p, batch_size, seed + 100 + 10 * layer + d) for d, p in enumerate(of_layer)])
        width = of_layer[0].u.shape[0] * (len(directions) if merge == "concat" else 1)
    xs = np.random.default_rng(seed).normal(size=(batch_size, time, in_features)).astype(np.float32)
    given = Stack(tuple(CELLS[name] for name in names), params, xs, states, ragged_lengths(batch_size, time, seed))
    shapes = jax.eval_shape(
        lambda *args: s2s_jax.unroll_stack(given.cells, *args, directions=directions, merge=merge), params, xs, states
    )
    return given._replace(weights=random_like(shapes, seed + 5, 1.0))


@functools.partial(jax.jit, static_argnames=("cells", "directions", "merge", "residual", "remat"))
def _values_and_gradients(cells, params, xs, states, lengths, weights, masks, contexts, **how):
    def loss(params, xs, states):
        done = s2s_jax.unroll_stack(cells, params, xs, states, lengths=lengths, dropout_masks=masks, contexts=contexts, **how)
        return weighted_sum(done, weights), done

    gradients, done = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(params, xs, states)
    return done, Gradients(*gradients)


def run(given, dtype="float32", *, masks=None, contexts=None, directions=FORWARD, merge="concat", residual=False, remat=None):
    arrays = cast((*given[1:], masks, contexts), dtype)
    how = {"directions": directions, "merge": merge, "residual": residual, "remat": remat}
    return jax.tree.map(np.asarray, _values_and_gradients(given.cells, *arrays, **how))


def layer_by_layer(given, directions=FORWARD, merge="concat", residual=False, masks=None, contexts=None):
    """The same by one call of `unroll` for each layer and direction, everything between them in NumPy."""
    apart = merge == "none" and len(directions) > 1
    inputs, final = [given.xs] * len(directions), []
    for layer, cell in enumerate(given.cells):
        done = []
        for d, direction in enumerate(directions):
            x = inputs[d] * masks[layer] if masks is not None and masks[layer] is not None else inputs[d]
            context = None if contexts is None else contexts[layer][d]
            args = cell, given.params[layer][d], x, given.states[layer][d]
            done.append(s2s_jax.unroll(*args, lengths=given.lengths, context=context, reverse=direction == "backward"))
        final.append(tuple(one.state for one in done))
        ys = [np.asarray(one.outputs) for one in done]
        if not apart:
            merged = {
                "concat": lambda ys: np.concatenate(ys, axis=-1),
                "sum": sum,
                "mean": lambda ys: sum(ys) / len(ys),
                "product": lambda ys: np.prod(ys, axis=0),
                "none": lambda ys: ys[0],
            }[merge](ys)
            ys = [merged] * len(directions)
        inputs = [y + x if residual and layer > 0 else y for y, x in zip(ys, inputs, strict=True)]
    outputs = np.stack(inputs, axis=2) if apart else inputs[0]
    return jax.tree.map(np.asarray, Unrolled(outputs, tuple(final)))


# Outside implementations ------------------------------------------------------------------------------------------------


STACKS = [
    pytest.param(name, layers, directions, id=f"{name}-{layers}-{'-'.join(directions)}")
    for name, layers, directions in (
        ("rnn", 2, BOTH),
        ("rnn_relu", 3, FORWARD),
        ("lstm", 1, BOTH),
        ("lstm", 3, FORWARD),
        ("lstm", 2, BOTH),
        ("lstm_projection", 2, BOTH),
        ("gru", 3, FORWARD),
        ("gru", 2, BOTH),
        ("gru_no_bias", 1, BOTH),
    )
]


@functools.cache
def torch_answer(name, layers, directions):
    given = stack([name] * layers, directions)
    return given, tuple(oracles.torch_stack(given.cells[0], *given[1:], directions=directions))


@pytest.mark.parametrize(("name", "layers", "directions"), STACKS)
def test_agrees_with_pytorch(name, layers, directions, dtype):
    given, want = torch_answer(name, layers, directions)
    assert_close(run(given, dtype, directions=directions), want, TOLERANCE[dtype])


@functools.cache
def lstm_ref_answer(layers, directions):
    given = stack(["lstm"] * layers, directions)
    return given, tuple(oracles.lstm_ref_stack(*given[1:], directions=directions))


@pytest.mark.parametrize(("layers", "directions"), [(1, FORWARD), (3, FORWARD), (2, BOTH)], ids=str)
def test_agrees_with_lstm_ref(layers, directions, dtype):
    given, want = lstm_ref_answer(layers, directions)
    assert_close(run(given, dtype, directions=directions), want, TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["rnn", "rnn_relu", "lstm", "lstm_relu", "lstm_peepholes", "gru", "gru_before"])
def test_both_directions_agree_with_onnx_runtime(name):
    given = stack([name], BOTH)
    want = oracles.onnx_layer(given.cells[0], given.params[0], given.xs, given.states[0], given.lengths, "bidirectional")
    got = s2s_jax.unroll_stack(*given[:4], lengths=given.lengths, directions=BOTH)
    assert_close(Unrolled(got.outputs, got.state[0]), want, TOLERANCE["float32"])


# Layer by layer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("directions", [BOTH, BACKWARD], ids=["both", "backward"])
def test_merges_and_residual_links(merge, residual, directions):
    """Three layers of different cells, of which the first has no residual link."""
    given = stack(["gru", "lstm", "rnn"], directions, merge)
    done = s2s_jax.unroll_stack(*given[:4], lengths=given.lengths, directions=directions, merge=merge, residual=residual)
    assert_equal(done, layer_by_layer(given, directions, merge, residual))


def test_directions_may_come_in_any_order():
    given = stack(["gru", "gru"], BOTH, "none")
    turned = [[of_layer[::-1] for of_layer in nested] for nested in (given.params, given.states)]
    how = {"lengths": given.lengths, "merge": "none"}
    done = s2s_jax.unroll_stack(*given[:4], directions=BOTH, **how)
    other = s2s_jax.unroll_stack(given.cells, turned[0], given.xs, turned[1], directions=BOTH[::-1], **how)
    assert_equal(other.outputs[:, :, ::-1], done.outputs)
    assert_equal(tuple(of_layer[::-1] for of_layer in other.state), done.state)


@pytest.mark.parametrize("merge", ["concat", "none"])
def test_dropout_masks_and_contexts(merge):
    given = stack(["gru", "lstm"], BOTH, merge)
    rng = np.random.default_rng(0)
    keep = lambda *shape: 1.25 * (rng.random(shape) < 0.8).astype(np.float32)  # noqa: E731
    masks = [keep(B, 1, D), keep(B, T, 2 * H if merge == "concat" else H)]
    contexts = [[keep(B, H), None], [None, keep(B, H)]]
    how = {"lengths": given.lengths, "directions": BOTH, "merge": merge}
    done = s2s_jax.unroll_stack(*given[:4], dropout_masks=masks, contexts=contexts, **how)
    assert_equal(done, layer_by_layer(given, BOTH, merge, masks=masks, contexts=contexts))
    only_first = s2s_jax.unroll_stack(*given[:4], dropout_masks=[masks[0], None], **how)
    assert_equal(only_first, layer_by_layer(given, BOTH, merge, masks=[masks[0], None]))


def test_residual_link_carries_the_input_before_dropout():
    given = stack(["rnn", "rnn"])
    masks = [None, np.zeros((B, T, H), np.float32)]
    below = s2s_jax.unroll(given.cells[0], given.params[0][0], given.xs, given.states[0][0], lengths=given.lengths).outputs
    residual = s2s_jax.unroll_stack(*given[:4], lengths=given.lengths, dropout_masks=masks, residual=True)
    plain = s2s_jax.unroll_stack(*given[:4], lengths=given.lengths, dropout_masks=masks)
    assert_equal(residual.outputs, plain.outputs + below)


def test_one_cell_serves_all_layers_and_none_is_the_zero_state():
    given = stack(["lstm", "lstm"], BOTH)
    zeros = jax.tree.map(np.zeros_like, given.states)
    want = s2s_jax.unroll_stack(given.cells, given.params, given.xs, zeros, directions=BOTH)
    assert_equal(s2s_jax.unroll_stack(cells.lstm, given.params, given.xs, directions=BOTH), want)
    some = s2s_jax.unroll_stack(cells.lstm, given.params, given.xs, [[None, zeros[0][1]], zeros[1]], directions=BOTH)
    assert_equal(some, want)


def test_one_layer_equals_unroll():
    given = stack(["gru"])
    done = s2s_jax.unroll_stack(*given[:4], lengths=given.lengths)
    one = s2s_jax.unroll(cells.gru, given.params[0][0], given.xs, given.states[0][0], lengths=given.lengths)
    assert_equal(done, Unrolled(one.outputs, ((one.state,),)))


def test_users_cell_on_token_ids_below_a_cell_of_the_library():
    embedding, lstm = CELLS["embedding"], cells.lstm
    params = [[random_params(embedding)], [random_params(lstm, H)]]
    ids = np.random.default_rng(0).integers(0, 7, (B, T)).astype(np.int32)
    lengths = ragged_lengths(B, T)
    below = s2s_jax.unroll(embedding, params[0][0], ids, lengths=lengths)
    above = s2s_jax.unroll(lstm, params[1][0], below.outputs, lengths=lengths)
    done = s2s_jax.unroll_stack((embedding, lstm), params, ids, lengths=lengths)
    assert_equal(done, Unrolled(above.outputs, ((below.state,), (above.state,))))


# Properties -------------------------------------------------------------------------------------------------------------


@functools.cache
def standard():
    given = stack(["gru", "lstm_everything"], BOTH)
    return given, *run(given, directions=BOTH)


@pytest.mark.parametrize("padding", [np.nan, np.inf])
def test_padding_reaches_no_output_state_or_gradient(padding):
    given, *want = standard()
    got = run(given._replace(xs=fill_padding(given.xs, given.lengths, padding)), directions=BOTH)
    jax.tree.map(np.testing.assert_array_equal, got, tuple(want))
    padded = np.arange(T)[None] >= given.lengths[:, None]
    np.testing.assert_array_equal(got[0].outputs[padded], 0)
    np.testing.assert_array_equal(got[1].xs[padded], 0)


@pytest.mark.parametrize("merge", MERGES)
def test_outputs_are_exactly_zero_past_the_length(merge):
    """With residual links too, and whatever stands there."""
    given = stack(["gru", "rnn"], BOTH, merge)
    xs = fill_padding(given.xs, given.lengths, np.nan)
    how = {"lengths": given.lengths, "directions": BOTH, "merge": merge, "residual": True}
    done = s2s_jax.unroll_stack(given.cells, given.params, xs, given.states, **how)
    np.testing.assert_array_equal(np.asarray(done.outputs)[np.arange(T)[None] >= given.lengths[:, None]], 0)
    empty = given.lengths == 0
    for got, start in zip(jax.tree.leaves(done.state), jax.tree.leaves(given.states), strict=True):
        np.testing.assert_array_equal(got[empty], start[empty])


def test_padding_of_nan_under_a_dropout_mask():
    given = stack(["gru"])
    masks = [1.5 * np.random.default_rng(0).integers(0, 2, (B, T, D)).astype(np.float32)]
    want = run(given, masks=masks)
    got = run(given._replace(xs=fill_padding(given.xs, given.lengths, np.nan)), masks=masks)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_padding_of_nan_reaches_no_gradient_of_a_dropout_mask():
    given = stack(["gru"])
    masks = np.ones((B, T, D), np.float32)

    def gradient(xs):
        def loss(mask):
            return s2s_jax.unroll_stack(
                given.cells, given.params, xs, lengths=given.lengths, dropout_masks=[mask]
            ).outputs.sum()

        return np.asarray(jax.grad(loss)(masks))

    filled = fill_padding(given.xs, given.lengths, np.nan)
    padded = np.arange(T)[None] >= given.lengths[:, None]
    np.testing.assert_array_equal(gradient(filled)[padded], 0)
    assert_equal(gradient(filled)[~padded], gradient(given.xs)[~padded])


@pytest.mark.parametrize("merge", ["concat", "sum", "mean", "product"])
def test_outputs_that_are_pytrees_are_merged_leaf_by_leaf(merge):
    def step(params, h, z, context):
        h = jnp.tanh(z + h @ params.u)
        return h, {"h": h, "square": h * h}

    cell = cells.rnn._replace(step=step, spec=None)
    params = [[random_params(cells.rnn, seed=k) for k in range(2)]]
    xs = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
    lengths = ragged_lengths(B, T)
    both = s2s_jax.unroll_stack(cell, params, xs, lengths=lengths, directions=BOTH, merge=merge).outputs
    apart = [
        s2s_jax.unroll_stack(cell, [[p]], xs, lengths=lengths, directions=(d,)).outputs
        for p, d in zip(params[0], BOTH, strict=True)
    ]
    by_hand = {
        "concat": lambda a, b: np.concatenate([a, b], -1),
        "sum": np.add,
        "mean": lambda a, b: (a + b) / 2,
        "product": np.multiply,
    }[merge]
    assert_equal(both, {name: by_hand(apart[0][name], apart[1][name]) for name in ("h", "square")})


def test_residual_links_add_pytrees_leaf_by_leaf():
    def project(params, x):
        return (x["h"] if isinstance(x, dict) else x) @ params.w

    def step(params, h, z, context):
        h = jnp.tanh(z + h @ params.u)
        return h, {"h": h}

    cell = cells.rnn._replace(project=project, step=step, spec=None)
    params = [[random_params(cells.rnn, seed=0)], [random_params(cells.rnn, H, seed=1)]]
    xs = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
    below = s2s_jax.unroll(cell, params[0][0], xs).outputs["h"]
    above = s2s_jax.unroll(cell, params[1][0], below).outputs["h"]
    got = s2s_jax.unroll_stack(cell, params, xs, residual=True).outputs
    assert_equal(got, {"h": np.asarray(below + above)})


def test_more_padding_changes_nothing():
    given, done, gradients = standard()
    pad = functools.partial(np.pad, pad_width=((0, 0), (0, 2), (0, 0)))
    weights = given.weights._replace(outputs=pad(given.weights.outputs, constant_values=3))
    more = run(given._replace(xs=pad(given.xs, constant_values=3), weights=weights), directions=BOTH)
    assert_equal(more, (done._replace(outputs=pad(done.outputs)), gradients._replace(xs=pad(gradients.xs))))


def test_rematerialisation_changes_nothing():
    given, *want = standard()
    assert_equal(run(given, directions=BOTH, remat=4), tuple(want))


def test_splitting_and_carrying_the_states_equals_the_whole():
    given = stack(["lstm", "gru"])
    whole = s2s_jax.unroll_stack(*given[:4], lengths=given.lengths)
    states, outputs = given.states, []
    for part in (slice(0, 3), slice(3, T)):
        lengths = np.clip(given.lengths - part.start, 0, 3)
        done = s2s_jax.unroll_stack(given.cells, given.params, times(given.xs, part), states, lengths=lengths)
        outputs.append(done.outputs)
        states = done.state
    assert_equal(Unrolled(np.concatenate(outputs, axis=1), states), whole)


def test_vmap_over_params():
    given, other = stack(["gru", "lstm"], BOTH), stack(["gru", "lstm"], BOTH, seed=50)
    both = jax.tree.map(lambda a, b: np.stack([a, b]), given.params, other.params)
    one = lambda p: s2s_jax.unroll_stack(given.cells, p, *given[2:4], lengths=given.lengths, directions=BOTH)  # noqa: E731
    got = jax.vmap(one)(both)
    for k, params in enumerate((given.params, other.params)):
        assert_close(jax.tree.map(lambda leaf: leaf[k], got), one(params), TOLERANCE["float32"])  # noqa: B023


def test_shard_map_over_the_batch():
    given = stack(["lstm", "gru"], BOTH, batch_size=16)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices("cpu")[:8])

    def forward(params, xs, lengths):
        return s2s_jax.unroll_stack(given.cells, params, xs, lengths=lengths, directions=BOTH)

    sharded = jax.shard_map(forward, mesh=mesh, in_specs=(P(), P("batch"), P("batch")), out_specs=P("batch"))

    def gradients(f):
        def loss(params, xs):
            done = f(params, xs, given.lengths)
            return weighted_sum(done, given.weights), done

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(given.params, given.xs)

    assert_close(gradients(sharded), gradients(forward), TOLERANCE["float32"])


def test_lowers_for_cpu_cuda_and_tpu():
    given = stack(["lstm", "gru"], BOTH)

    def gradient(params, xs, lengths):
        def loss(params):
            return jnp.sum(s2s_jax.unroll_stack(given.cells, params, xs, lengths=lengths, directions=BOTH).outputs)

        return jax.value_and_grad(loss)(params)

    exported = jax.export.export(jax.jit(gradient), platforms=("cpu", "cuda", "tpu"))(given.params, given.xs, given.lengths)
    assert exported.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize("narrow", ["bfloat16", "float16"])
def test_narrow_inputs(narrow):
    given = stack(["lstm", "gru"], BOTH)
    done = s2s_jax.unroll_stack(
        given.cells, given.params, jnp.asarray(given.xs, narrow), given.states, lengths=given.lengths, directions=BOTH
    )
    assert done.outputs.dtype == narrow
    assert {leaf.dtype.name for leaf in jax.tree.leaves(done.state)} == {"float32"}
    want = s2s_jax.unroll_stack(*given[:4], lengths=given.lengths, directions=BOTH)
    assert_close(jax.tree.map(np.asarray, done), jax.tree.map(np.asarray, want), 8 * float(jnp.finfo(narrow).eps))


@pytest.mark.parametrize(("batch_size", "time"), [(3, 0), (0, 4), (1, 1)])
def test_empty_and_single_sizes(batch_size, time):
    given = stack(["gru", "lstm"], BOTH, batch_size=batch_size, time=time)
    done = s2s_jax.unroll_stack(*given[:4], lengths=np.full(batch_size, time), directions=BOTH)
    assert done.outputs.shape == (batch_size, time, 2 * H)
    if time == 0:
        assert_equal(done.state, tuple(map(tuple, given.states)))


# Errors -----------------------------------------------------------------------------------------------------------------


ERRORS = [
    ({"directions": ()}, ValueError, r"directions: expected a selection of \('forward', 'backward'\), got \(\)"),
    ({"directions": ("forward", "forward")}, ValueError, r"directions: .* got \('forward', 'forward'\)"),
    ({"directions": ("up",)}, ValueError, r"directions: .* got \('up',\)"),
    ({"directions": ("forward",)}, ValueError, r"params\[0\]: expected a sequence of 1 directions, got 2"),
    ({"merge": "max"}, ValueError, r"merge: expected one of concat, sum, mean, product, none, got 'max'"),
    ({"params": []}, ValueError, r"params: expected at least one layer, got none"),
    ({"cells": (cells.gru,)}, ValueError, r"cells: expected 2 layers, got tuple of 1"),
    ({"states": [[None, None]]}, ValueError, r"states: expected 2 layers, indexed states\[layer\]\[direction\], got list of 1"),
    ({"states": [[None, None], [None]]}, ValueError, r"states\[1\]: expected a sequence of 2 directions, got 1"),
    ({"contexts": [[None, None]] * 3}, ValueError, r"contexts: expected 2 layers, indexed contexts.*, got list of 3"),
    ({"contexts": [[None], [None]]}, ValueError, r"contexts\[0\]: expected a sequence of 2 directions, got 1"),
    ({"dropout_masks": [None]}, ValueError, r"dropout_masks: expected 2 layers, got list of 1"),
    (
        {"dropout_masks": [np.ones((B, T, D + 1), np.float32), None]},
        ValueError,
        r"dropout_masks\[0\]: expected \[4, 6 or 1, 3\], got \(4, 6, 4\)",
    ),
    (
        {"dropout_masks": [None, np.ones((B, 2, 2 * H), np.float32)]},
        ValueError,
        r"dropout_masks\[1\]: expected \[4, 6 or 1, 8\], got \(4, 2, 8\)",
    ),
    (
        {"dropout_masks": [np.ones((B, D), np.float32), None]},
        ValueError,
        r"dropout_masks\[0\]: expected \[4, 6 or 1, 3\], got \(4, 3\)",
    ),
    ({"residual": True}, ValueError, r"residual: layer 1 has 8 features in and 12 out; they must be equal"),
    ({"backend": "cuda"}, ValueError, r"backend: expected one of auto, scan, native, .*, parallel, got 'cuda'"),
    ({"remat": 0}, ValueError, r"remat: expected a positive number of steps, got 0"),
    ({"lengths": np.array([1, 2, 3, 7])}, ValueError, r"lengths: expected values from 0 to T = 6, got 7 in row 3"),
    ({"xs": np.zeros((B, T), np.float32)}, ValueError, r"xs: expected \[B, T, D\], got \(4, 6\)"),
    ({"xs": np.zeros((B, T, D), np.int32)}, TypeError, r"xs: expected floating point \[B, T, D\], got dtype int32"),
    (
        {"states": [[None, None], [None, np.zeros((B, H), np.float32)]]},
        ValueError,
        r"state\[1\]\[1\]: expected shape \(4, 6\), got \(4, 4\)",
    ),
    (
        {"states": [[np.zeros((B, H), np.float16), None], [None, None]]},
        TypeError,
        r"state\[0\]\[0\]: expected dtype float32, got float16",
    ),
    (
        {"contexts": [[None, np.ones((3, H), np.float32)], [None, None]]},
        ValueError,
        r"context\[0\]\[1\]: expected None or a recurrent dropout mask \(4, 4\), got float32\[3, 4\]",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "error", "message"), ERRORS, ids=lambda value: next(iter(value)) if isinstance(value, dict) else ""
)
def test_bad_input_is_named(changes, error, message):
    """A stack of width 4, then 6, in both directions: 3 features in, then 8."""
    params = [[random_params(cells.gru, D, H)] * 2, [random_params(cells.gru, 2 * H, 6)] * 2]
    arguments = {"cells": cells.gru, "params": params, "xs": np.zeros((B, T, D), np.float32), "directions": BOTH}
    with pytest.raises(error, match=message):
        s2s_jax.unroll_stack(**(arguments | changes))


def test_parameters_of_mixed_dtypes_are_named():
    wrong = random_params(cells.gru, D, H)
    wrong = wrong._replace(u=wrong.u.astype(np.float16))
    with pytest.raises(TypeError, match=r"params\[0\]\[1\]: expected one floating dtype, got float16, float32"):
        s2s_jax.unroll_stack(cells.gru, [[random_params(cells.gru), wrong]], np.zeros((B, T, D), np.float32), directions=BOTH)
