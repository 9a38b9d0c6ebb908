"""What holds for every cell that is carried along time, the cells of a user too."""

import functools

import jax
import jax.export
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import s2s_jax
from s2s_jax import cells
from s2s_jax.masks import reverse_sequence
from s2s_jax.recurrence.choice import BACKENDS, traced_backends
from s2s_jax.types import Cell, LSTMState
from tests.samples import (
    CELLS,
    FEW_CELLS,
    TOLERANCE,
    B,
    H,
    T,
    assert_close,
    assert_equal,
    cast,
    fill_padding,
    ragged_lengths,
    random_like,
    random_params,
    rows,
    run,
    sample,
    times,
    weighted_sum,
)

every_cell = pytest.mark.parametrize("name", CELLS)
few_cells = pytest.mark.parametrize("name", FEW_CELLS)
# Where both directions go through the same code: every other cell in each.
one_direction = pytest.mark.parametrize(
    ("name", "reverse"),
    [pytest.param(name, k % 2 == 0, id=f"{name}-{'forward' if k % 2 else 'reverse'}") for k, name in enumerate(CELLS)],
)
forward_and_reverse = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


@functools.cache
def standard(name):
    return sample(name)


@functools.cache
def ran(name, reverse=False):
    """The sample of that name, its values and its gradients, which most properties are a statement about."""
    return standard(name), *run(standard(name), reverse=reverse)


@functools.partial(jax.jit, static_argnames=("cell", "reverse", "remat"))
def unrolled(cell, params, xs, state, lengths=None, *, reverse=False, remat=None):
    return s2s_jax.unroll(cell, params, xs, state, lengths=lengths, reverse=reverse, remat=remat)


@functools.partial(jax.jit, static_argnames="cell")
def one_step(cell, params, state, x):
    return cell.step(params, state, cell.project(params, x), None)


def by_hand(given, reverse=False):
    """Outputs, final state and all states by one call of the cell for each step, in Python; a row stops at its length."""
    time = jax.tree.leaves(given.xs)[0].shape[1]
    lengths = np.full(B, time) if given.lengths is None else given.lengths
    state, outputs, states = given.state, [None] * time, [given.state]
    for t in reversed(range(time)) if reverse else range(time):
        valid = t < lengths
        safe = jax.tree.map(lambda x: np.where(valid.reshape(B, *[1] * (x.ndim - 1)), x, 0), times(given.xs, t))  # noqa: B023
        new, y = jax.tree.map(np.asarray, one_step(given.cell, given.params, state, safe))
        keep = lambda a, b: np.where(valid.reshape(B, *[1] * (a.ndim - 1)), a, b)  # noqa: B023, E731
        state = jax.tree.map(keep, new, state)
        outputs[t] = jax.tree.map(lambda leaf: keep(leaf, np.zeros_like(leaf)), y)  # noqa: B023
        states.append(state)
    stacked = lambda parts: jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *parts)  # noqa: E731
    return stacked(outputs), state, stacked(states[::-1] if reverse else states)


# Steps and sequences ----------------------------------------------------------------------------------------------------


@every_cell
@forward_and_reverse
def test_one_step_at_a_time_equals_the_sequence(name, reverse):
    given, done, _ = ran(name, reverse)
    outputs, state, _ = by_hand(given, reverse)
    assert_equal(tuple(done), (outputs, state))


@one_direction
def test_history_is_every_state_and_the_initial_one(name, reverse):
    given, done, _ = ran(name, reverse)
    history = s2s_jax.unroll_with_history(*given[:4], lengths=given.lengths, reverse=reverse)
    _, state, states = by_hand(given, reverse)
    assert_equal(jax.tree.map(np.asarray, (history.outputs, history.state, history.states)), (done.outputs, state, states))
    assert_equal(times(history.states, 0 if not reverse else T), given.state)
    assert_equal(times(history.states, T if not reverse else 0), history.state)


@one_direction
def test_splitting_and_carrying_the_state_equals_the_whole(name, reverse):
    given, done, _ = ran(name, reverse)
    half = T // 2
    parts = [slice(0, half), slice(half, T)]
    state, outputs = given.state, {}
    for k in (1, 0) if reverse else (0, 1):
        lengths = np.clip(given.lengths - parts[k].start, 0, half)
        outputs[k], state = unrolled(given.cell, given.params, times(given.xs, parts[k]), state, lengths, reverse=reverse)
    joined = jax.tree.map(lambda a, b: np.concatenate([a, b], axis=1), outputs[0], outputs[1])
    assert_equal((joined, state), tuple(done))


@every_cell
@pytest.mark.parametrize("padding", [np.nan, np.inf])
def test_padding_reaches_no_output_state_or_gradient(name, padding):
    """Flax 0.12.8, `nnx.RNN(nnx.LSTMCell(2, 4))`, lengths [0, 1, 5] and T = 5, NaN in the padding, a loss on the final
    states of the rows that have any step: 20 of 30 gradients of the inputs and all 112 of the parameters are NaN.
    """
    for reverse in (False, True):
        given, done, gradients = ran(name, reverse)
        filled = given._replace(xs=fill_padding(given.xs, given.lengths, padding))
        got = run(filled, reverse=reverse)
        jax.tree.map(np.testing.assert_array_equal, got, (done, gradients))
        if gradients.xs is not None and name != "embedding":
            for leaf in jax.tree.leaves(got[1].xs):
                np.testing.assert_array_equal(leaf[np.arange(T)[None] >= given.lengths[:, None]], 0)


@every_cell
def test_outputs_are_exactly_zero_past_the_length(name):
    """Flax 0.12.8, `nnx.RNN(nnx.LSTMCell(2, 4))`, length 1 of T = 5: the outputs past the length are as large as 0.59."""
    for reverse in (False, True):
        given, done, _ = ran(name, reverse)
        for leaf in jax.tree.leaves(done.outputs):
            np.testing.assert_array_equal(leaf[np.arange(T)[None] >= given.lengths[:, None]], 0)
            assert np.any(leaf != 0)


@every_cell
def test_length_zero_gives_the_initial_state_back(name):
    """Flax 0.12.8, `nnx.RNN(nnx.LSTMCell(2, 4))`, length 0 of T = 5: the state after the padding, h up to 0.44."""
    for reverse in (False, True):
        given, done, gradients = ran(name, reverse)
        empty = given.lengths == 0
        assert np.any(empty)
        jax.tree.map(np.testing.assert_array_equal, rows(done.state, empty), rows(given.state, empty))
        for gradient, weight in zip(jax.tree.leaves(gradients.state), jax.tree.leaves(given.weights.state), strict=True):
            if gradient.dtype != jax.dtypes.float0:
                np.testing.assert_array_equal(gradient[empty], weight[empty])


@one_direction
def test_more_padding_changes_nothing(name, reverse):
    given, done, gradients = ran(name, reverse)

    def padded(tree, value):
        return jax.tree.map(lambda x: np.pad(x, [(0, 0), (0, 3)] + [(0, 0)] * (x.ndim - 2), constant_values=value), tree)

    longer = given._replace(xs=padded(given.xs, 5), weights=given.weights._replace(outputs=padded(given.weights.outputs, 5)))
    more, more_gradients = run(longer, reverse=reverse)
    if name == "embedding":
        assert_equal((more, more_gradients[::2]), (done._replace(outputs=padded(done.outputs, 0)), gradients[::2]))
    else:
        want = done._replace(outputs=padded(done.outputs, 0)), gradients._replace(xs=padded(gradients.xs, 0))
        assert_equal((more, more_gradients), want)


@every_cell
def test_permuting_the_batch_permutes_the_results(name):
    given, done, gradients = ran(name)
    order = np.array([2, 0, 3, 1])
    moved = given._replace(
        xs=rows(given.xs, order),
        state=rows(given.state, order),
        lengths=given.lengths[order],
        weights=rows(given.weights, order),
    )
    want = rows(done, order), gradients._replace(xs=rows(gradients.xs, order), state=rows(gradients.state, order))
    assert_equal(run(moved), want)


@pytest.mark.parametrize("yes", [np.True_, np.array(True), 1], ids=["scalar", "array", "number"])
def test_reverse_may_be_a_boolean_of_numpy(yes):
    given = sample("gru")
    want = s2s_jax.unroll(*given[:4], lengths=given.lengths, reverse=True)
    assert_close(s2s_jax.unroll(*given[:4], lengths=given.lengths, reverse=yes), want, 0.0)
    assert s2s_jax.explain_backend(*given[:4], reverse=yes).backend


@every_cell
def test_reverse_is_forward_over_the_turned_valid_part(name):
    given, done, _ = ran(name, reverse=True)
    turn = lambda tree: jax.tree.map(lambda x: np.asarray(reverse_sequence(x, given.lengths)), tree)  # noqa: E731
    forward, _ = run(given._replace(xs=turn(given.xs)))
    assert_equal(forward._replace(outputs=turn(forward.outputs)), done)
    assert_equal(run(given._replace(xs=turn(turn(given.xs))), reverse=True)[0], done)


@one_direction
def test_rematerialisation_changes_nothing(name, reverse):
    """In chunks of four, which do not divide T = 6."""
    given, done, gradients = ran(name, reverse)
    assert_equal(run(given, reverse=reverse, remat=4), (done, gradients))


@few_cells
@forward_and_reverse
@pytest.mark.parametrize("remat", [1, 2, 5, 6, 9])
def test_rematerialisation_in_chunks_of_any_size_keeps_the_history(name, remat, reverse):
    given = standard(name)
    _, _, states = by_hand(given, reverse)
    history = s2s_jax.unroll_with_history(*given[:4], lengths=given.lengths, reverse=reverse, remat=remat)
    assert_equal(history.states, states)
    assert_equal((history.outputs, history.state), tuple(ran(name, reverse)[1]))


def test_rematerialisation_saves_memory():
    """2.1 MB of states and gates a step without; T / remat + remat steps of it with."""

    def temporary(remat):
        def loss(params, xs):
            return jnp.sum(s2s_jax.unroll(cells.lstm, params, xs, remat=remat).state.h)

        params = jax.eval_shape(lambda key: cells.lstm.init(key, 64, 64), jax.random.key(0))
        xs = jax.ShapeDtypeStruct((32, 256, 64), jnp.float32)
        return jax.jit(jax.grad(loss)).lower(params, xs).compile().memory_analysis().temp_size_in_bytes

    assert temporary(16) < temporary(None) / 3


@every_cell
def test_full_lengths_equal_no_lengths(name):
    given = standard(name)._replace(lengths=np.full(B, T, np.int32))
    if name in FEW_CELLS:
        assert_equal(run(given._replace(lengths=None)), run(given))
    else:
        assert_equal(unrolled(*given[:4]), run(given)[0])


@few_cells
@settings(max_examples=30)
@for_all(lengths=st.lists(st.integers(0, T), min_size=B, max_size=B), seed=st.integers(0, 2**16), reverse=st.booleans())
def test_any_lengths_and_inputs(name, lengths, seed, reverse):
    """The steps by hand, on drawn lengths and numbers; nothing is compiled anew."""
    fixed = standard(name)
    given = fixed._replace(
        params=random_like(fixed.params, seed),
        xs=random_like(fixed.xs, seed + 1),
        state=random_like(fixed.state, seed + 2),
        lengths=np.array(lengths, np.int32),
    )
    done, _ = run(given, reverse=reverse)
    assert_close(tuple(done), by_hand(given, reverse)[:2], TOLERANCE["float32"])


@every_cell
@pytest.mark.parametrize(("batch_size", "time"), [(3, 0), (0, 4), (1, 1)])
def test_empty_and_single_sizes(name, batch_size, time):
    given = sample(name, batch_size, time)
    reverse = list(CELLS).index(name) % 2 == 0
    for lengths in (None, np.full(batch_size, time)) if name in FEW_CELLS else (np.full(batch_size, time),):
        history = s2s_jax.unroll_with_history(*given[:4], lengths=lengths, reverse=reverse)
        assert all(leaf.shape[:2] == (batch_size, time) for leaf in jax.tree.leaves(history.outputs))
        assert all(leaf.shape[:2] == (batch_size, time + 1) for leaf in jax.tree.leaves(history.states))
        if batch_size * time == 0:
            assert_equal(history.state, given.state)
        else:
            state, y = one_step(given.cell, given.params, given.state, times(given.xs, 0))
            assert_equal((times(history.outputs, 0), history.state), (y, state))


@few_cells
def test_gradients_where_there_is_no_step(name):
    given = sample(name, 3, 0)
    _, gradients = run(given)
    for leaf in jax.tree.leaves(gradients.params):
        np.testing.assert_array_equal(leaf, 0)
    _, gradients = run(sample(name, 0, 4))
    for leaf in jax.tree.leaves(gradients.params):
        np.testing.assert_array_equal(leaf, 0)


@every_cell
def test_no_state_is_the_cells_own_initial_state(name):
    given = standard(name)
    start = given.cell.initial_state(given.params, B, jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, start, jax.tree.map(np.zeros_like, given.state))
    assert_equal(s2s_jax.unroll(*given[:3], lengths=given.lengths), run(given._replace(state=start))[0])


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_truncated_back_propagation(name):
    """Two parts, the state handed on without its gradient: the sum of each part's own gradient at its own start."""
    given = standard(name)
    parts = [slice(0, 3), slice(3, T)]

    @functools.partial(jax.jit, static_argnames="k")
    def part_loss(params, state, k):
        lengths = jnp.clip(given.lengths - parts[k].start, 0, 3)
        done = s2s_jax.unroll(given.cell, params, times(given.xs, parts[k]), state, lengths=lengths)
        return weighted_sum(done.outputs, times(given.weights.outputs, parts[k])), done.state

    def truncated(params):
        first, state = part_loss(params, given.state, 0)
        second, _ = part_loss(params, jax.lax.stop_gradient(state), 1)
        return first + second

    first, state = jax.grad(part_loss, has_aux=True)(given.params, given.state, 0)
    second, _ = jax.grad(part_loss, has_aux=True)(given.params, state, 1)
    got = jax.grad(truncated)(given.params)
    assert_close(got, jax.tree.map(np.add, first, second), TOLERANCE["float32"])
    whole = given._replace(weights=given.weights._replace(state=jax.tree.map(np.zeros_like, given.state)))
    full = run(whole)[1].params
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(full), strict=True))


# Transformations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "remat"),
    [
        ("rnn", None),
        ("lstm_everything", None),
        ("gru", None),
        ("counting", None),
        ("gru", 3),
    ],
)
def test_forward_mode_and_second_derivatives(name, remat, float64):
    """Along a random direction: forward against reverse mode, each over each, and all against finite differences."""
    given = sample(name, 2, 4, 2, 4)
    lengths, reverse = np.array([4, 2]), name.startswith("gru")
    integers = {"steps": given.state["steps"]} if name == "counting" else {}
    floating = {"h": given.state["h"]} if integers else given.state
    point = cast((given.params, given.xs, floating), "float64")
    along = cast(random_like(jax.tree.map(lambda leaf: leaf.astype(np.float32), point), 9), "float64")

    def loss(point):
        params, xs, state = point
        state = state | integers if integers else state
        done = s2s_jax.unroll(given.cell, params, xs, state, lengths=lengths, reverse=reverse, remat=remat)
        return weighted_sum(done, given.weights)

    def slope(point):
        return jax.jvp(loss, (point,), (along,))[1]

    def gradient_slope(point):
        products = jax.tree.map(lambda g, v: jnp.sum(g * v), jax.grad(loss)(point), along)
        return sum(jax.tree.leaves(products))

    @jax.jit
    def first_and_second(point):
        return (slope(point), gradient_slope(point)), (
            jax.jvp(slope, (point,), (along,))[1],
            jax.jvp(gradient_slope, (point,), (along,))[1],
            sum(jax.tree.leaves(jax.tree.map(lambda g, v: jnp.sum(g * v), jax.grad(gradient_slope)(point), along))),
        )

    small = 1e-5
    moved = [jax.tree.map(lambda a, v: a + step * v, point, along) for step in (-small, small)]  # noqa: B023
    values = [float(jax.jit(loss)(p)) for p in moved]
    (forward, backward), second = first_and_second(point)
    np.testing.assert_allclose(forward, backward, rtol=1e-11)
    np.testing.assert_allclose(forward, (values[1] - values[0]) / (2 * small), rtol=1e-6)
    np.testing.assert_allclose(second, second[0], rtol=1e-10)
    slopes = [float(first_and_second(p)[0][1]) for p in moved]
    np.testing.assert_allclose(second[0], (slopes[1] - slopes[0]) / (2 * small), rtol=1e-6)


@few_cells
@forward_and_reverse
def test_vmap_over_params_and_over_inputs(name, reverse):
    given = standard(name)
    several = [given, *(sample(name, seed=seed) for seed in (10, 20))]
    params, xs, states = (jax.tree.map(lambda *leaves: np.stack(leaves), *[s[k] for s in several]) for k in (1, 2, 3))
    lengths = np.stack([s.lengths for s in several])
    run_one = functools.partial(unrolled, given.cell, reverse=reverse)
    over_params = jax.vmap(lambda p: run_one(p, given.xs, given.state, given.lengths))(params)
    over_inputs = jax.vmap(lambda x, s, n: run_one(given.params, x, s, n))(xs, states, lengths)
    for k, s in enumerate(several):
        assert_close(rows(over_params, k), run_one(s.params, given.xs, given.state, given.lengths), TOLERANCE["float32"])
        assert_close(rows(over_inputs, k), run_one(given.params, s.xs, s.state, s.lengths), TOLERANCE["float32"])


@pytest.mark.parametrize(
    ("name", "with_lengths", "remat"),
    [*((name, True, None) for name in FEW_CELLS), ("gru", False, None), ("counting", False, None), ("gru", True, 4)],
)
def test_shard_map_over_the_batch(name, with_lengths, remat):
    """Eight devices, two rows each; the initial state is handed in for some cells, and made inside from nothing for others."""
    given = sample(name, 16)
    lengths = ragged_lengths(16, T) if with_lengths else None
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices("cpu")[:8])
    with_state = name in ("lstm_everything", "counting")
    state = given.state if with_state else None

    def forward(params, xs, state, lengths):
        return s2s_jax.unroll(given.cell, params, xs, state, lengths=lengths, remat=remat)

    sharded = jax.shard_map(forward, mesh=mesh, in_specs=(P(), P("batch"), P("batch"), P("batch")), out_specs=P("batch"))

    def gradients(f):
        def loss(params, xs):
            done = f(params, xs, state, lengths)
            return weighted_sum(done, given.weights), done

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))

    assert_close(gradients(sharded)(given.params, given.xs), gradients(forward)(given.params, given.xs), TOLERANCE["float32"])


@pytest.mark.parametrize("name", FEW_CELLS)
def test_a_mesh_with_explicit_axes(name):
    """Where the split of an array is part of its type, the state made inside is split as the inputs are."""
    given = sample(name, 16)
    lengths = ragged_lengths(16, T)
    want = s2s_jax.unroll(*given[:3], lengths=lengths)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Explicit,), devices=jax.devices("cpu")[:8])
    with jax.set_mesh(mesh):
        split = NamedSharding(mesh, P("batch"))
        xs, lengths = jax.device_put((given.xs, lengths), split)
        for remat in (None, 4):
            got = s2s_jax.unroll(*given[:2], xs, lengths=lengths, remat=remat)
            assert got.outputs.sharding.spec[0] == "batch"
            assert_close(jax.tree.map(np.asarray, tuple(got)), tuple(want), TOLERANCE["float32"])


COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: COMPILED.append(event) if event.endswith("backend_compile_duration") else None
)


@pytest.mark.parametrize(
    ("name", "function"), [(name, "unroll") for name in FEW_CELLS] + [("lstm", "unroll_with_history"), ("lstm", "grad")]
)
def test_compiled_once_for_each_shape(name, function):
    calls = {
        "unroll": lambda given: s2s_jax.unroll(*given[:4], lengths=given.lengths),
        "unroll_with_history": lambda given: s2s_jax.unroll_with_history(*given[:4], lengths=given.lengths),
        "grad": run,
    }
    first, second, third = (sample(name, B, time, seed=seed) for time, seed in ((7, 0), (7, 1), (8, 0)))
    for given, compiles in ((first, None), (second, 0), (first, 0), (third, None), (third, 0)):
        before = len(COMPILED)
        calls[function](given)
        after = len(COMPILED) - before
        assert after == compiles if compiles is not None else after > 0


def test_a_second_call_traces_nothing():
    traced = []

    def step(params, state, z, context):
        traced.append(None)
        return cells.rnn.step(params, state, z, context)

    cell = cells.rnn._replace(step=step, spec=None)
    given = standard("rnn")
    s2s_jax.unroll(cell, *given[1:4])
    once = len(traced)
    for seed in range(3):
        s2s_jax.unroll(cell, given.params, given.xs + seed, given.state)
    assert len(traced) == once > 0
    s2s_jax.unroll(cell, given.params, given.xs[:, :3], given.state)
    assert len(traced) == 2 * once


@pytest.mark.parametrize("name", CELLS)
def test_lowers_for_cpu_cuda_and_tpu(name):
    given = standard(name)

    def forward_and_gradient(params, xs, state, lengths):
        def loss(params, state):
            done = s2s_jax.unroll(given.cell, params, xs, state, lengths=lengths)
            return weighted_sum(done, given.weights), done

        return jax.grad(loss, argnums=(0, 1), has_aux=True, allow_int=True)(params, state)[1], jax.grad(
            lambda params: loss(params, state)[0]
        )(params)

    exported = jax.export.export(jax.jit(forward_and_gradient), platforms=("cpu", "cuda", "tpu"))(*given[1:5])
    assert exported.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_lengths_take_at_most_three_mebibytes_more(name):
    """Flax 0.12.8, `nnx.RNN(nnx.LSTMCell(256, 256), return_carry=True)` here: 96.5 MiB with seq_lengths, 32.5 without."""
    cell = CELLS[name]
    params = jax.eval_shape(lambda key: cell.init(key, 256, 256), jax.random.key(0))
    xs = jax.ShapeDtypeStruct((64, 512, 256), jnp.float32)

    def temporary(lengths):
        compiled = jax.jit(lambda *args: s2s_jax.unroll(cell, *args[:2], lengths=args[2])).lower(params, xs, lengths).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 2**20

    without = temporary(None)
    assert without <= 2 * 32 + 3  # input and output, time-major, and what one step needs: no history of states
    assert temporary(jax.ShapeDtypeStruct((64,), jnp.int32)) <= without + 3


@pytest.mark.parametrize("name", CELLS)
def test_survives_strict_rank_promotion(name):
    given = standard(name)
    with jax.numpy_rank_promotion("raise"):
        done = s2s_jax.unroll(*given[:4], lengths=given.lengths)
    assert_equal(jax.tree.map(np.asarray, tuple(done)), tuple(ran(name)[1]))


# Precision --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "narrow"),
    [(name, "bfloat16") for name in CELLS if name != "embedding"] + [(name, "float16") for name in FEW_CELLS],
)
def test_narrow_inputs(name, narrow):
    """Outputs in the dtype of the input, state and accumulation in float32: the error stays within six roundings of it."""
    given, done, _ = ran(name)
    xs = jax.tree.map(lambda leaf: jnp.asarray(leaf, narrow), given.xs)
    got = s2s_jax.unroll(given.cell, given.params, xs, given.state, lengths=given.lengths)
    for leaf in jax.tree.leaves(got.outputs):
        assert leaf.dtype == narrow or jnp.issubdtype(leaf.dtype, jnp.integer)
    for leaf, want in zip(jax.tree.leaves(got.state), jax.tree.leaves(given.state), strict=True):
        assert leaf.dtype == want.dtype
    if name != "tree":  # an argmax is not continuous
        rounding = float(jnp.finfo(narrow).eps)
        assert_close(jax.tree.map(np.asarray, tuple(got)), tuple(done), 6 * rounding)


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_gradients_of_narrow_inputs_add_up_in_the_dtype_of_the_parameters(name):
    """Against parameters of their own for each of 96 steps, whose gradients NumPy adds up in float64.

    With parameters cast to bfloat16 before the loop the sum is in bfloat16, and loses what a step adds.
    """
    given = sample(name, 4, 96)
    cell, xs = given.cell, jnp.asarray(given.xs, jnp.bfloat16)

    def narrow(params):
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)

    def loss(outputs):
        return jnp.sum(outputs.astype(jnp.float32) * given.weights.outputs)

    def step(state, at):
        x, params = at
        state, y = cell.step(narrow(params), state, cell.project(narrow(params), x), None)
        return state, y.astype(jnp.bfloat16)

    def apart(params):
        return loss(jax.lax.scan(step, given.state, (xs.swapaxes(0, 1), params))[1].swapaxes(0, 1))

    def together(params):
        return loss(s2s_jax.unroll(cell, params, xs, given.state).outputs)

    of_steps = jax.jit(jax.grad(apart))(jax.tree.map(lambda leaf: np.stack([leaf] * 96), given.params))
    truth = jax.tree.map(lambda leaf: np.sum(np.asarray(leaf, np.float64), axis=0), of_steps)
    got = jax.grad(together)(given.params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(got)} == {"float32"}
    assert_close(got, truth, TOLERANCE["float32"])
    with pytest.raises(AssertionError, match="differs"):
        assert_close(jax.grad(lambda params: together(narrow(params)))(given.params), truth, 1e-3)


@few_cells
def test_float64_all_through(name, float64):
    given = standard(name)
    done, gradients = run(given, "float64")
    floating = [leaf for leaf in jax.tree.leaves((done, gradients.params)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype.name for leaf in floating} == {"float64"}
    narrow = s2s_jax.unroll(given.cell, cast(given.params, "float64"), given.xs)  # float32 in, float32 out
    assert narrow.outputs.dtype == jnp.float32


# Errors -----------------------------------------------------------------------------------------------------------------


def wrong(name, error, message, **changes):
    return pytest.param(name, changes, error, message, id=f"{name}-{'-'.join(changes)}-{message[:30]}")


XS = np.zeros((B, T, 3), np.float32)
HIDDEN = np.zeros((B, H), np.float32)
MASK = r"None or a recurrent dropout mask \(4, 4\)"
ERRORS = [
    *[
        wrong(name, error, message, xs=xs)
        for name in ("rnn", "lstm", "gru", "lstm_layer_norm")
        for error, message, xs in [
            (ValueError, r"xs: expected leaves \[B, T, \.\.\.\].*got \[\(4,\)\]", np.zeros(4, np.float32)),
            (ValueError, r"xs: expected \[B, T, D\], got \(4, 6\)", XS[:, :, 0]),
            (ValueError, r"xs: expected \[B, T, D\], got \(4, 6, 3, 1\)", XS[..., None]),
            (ValueError, r"xs: expected 3 features \(the rows of params.w\), got 2", XS[..., :2]),
            (TypeError, r"xs: expected floating point \[B, T, D\], got dtype int32", XS.astype(np.int32)),
            (TypeError, r"xs: expected floating point \[B, T, D\], got dtype bool", XS.astype(bool)),
            (ValueError, r"xs: expected \[B, T, D\], got \{'a'", {"a": XS}),
            (ValueError, r"xs: expected leaves .* got \[\]", {}),
        ]
    ],
    wrong(
        "lstm", TypeError, r"xs: expected arrays of JAX or NumPy in .*, got builtins\.memoryview of no dtype", xs=memoryview(XS)
    ),
    wrong("lstm", TypeError, r"in dtypes that JAX has, got numpy\.ndarray of object", xs=XS.astype(object)),
    wrong("tree", ValueError, r"xs: expected leaves .* agree on B and T, got", xs={"features": XS, "keep": XS[:, :2, :1]}),
    wrong("rnn", ValueError, r"lengths: expected values from 0 to T = 6, got 7 in row 1", lengths=np.array([1, 7, 2, 3])),
    wrong("rnn", ValueError, r"lengths: expected values from 0 to T = 6, got -1 in row 3", lengths=np.array([1, 6, 2, -1])),
    wrong("rnn", TypeError, r"lengths: expected integers \[B\], got dtype float", lengths=np.ones(4)),
    wrong("rnn", ValueError, r"lengths: expected shape \[B\] = \(4,\), got \(3,\)", lengths=np.ones(3, int)),
    wrong(
        "rnn",
        ValueError,
        r"backend: expected one of auto, scan, native, .*, parallel, got 'cuda'",
        backend="cuda",
    ),
    wrong("rnn", ValueError, r"remat: expected a positive number of steps, got 0", remat=0),
    wrong("rnn", ValueError, r"remat: expected a positive number of steps, got 2.0", remat=2.0),
    wrong("rnn", TypeError, r"cell: expected a Cell such as s2s_jax.cells.lstm, got 'lstm'", cell="lstm"),
    wrong("rnn", ValueError, r"state: expected shape \(4, 4\), got \(4, 5\)", state=np.zeros((B, 5), np.float32)),
    wrong("rnn", ValueError, r"state: expected shape \(4, 4\), got \(3, 4\)", state=HIDDEN[:3]),
    wrong("rnn", TypeError, r"state: expected dtype float32, got float16", state=HIDDEN.astype(np.float16)),
    wrong("rnn", TypeError, r"state: expected dtype float32, got int32", state=HIDDEN.astype(np.int32)),
    wrong(
        "rnn",
        ValueError,
        r"state: expected float32\[4, 4\], got LSTMState\(h=float32\[4, 4\], c=float32\[4, 4\]\)",
        state=LSTMState(HIDDEN, HIDDEN),
    ),
    wrong(
        "lstm",
        ValueError,
        r"state: expected LSTMState\(h=float32\[4, 4\], c=float32\[4, 4\]\), got float32\[4, 4\]",
        state=HIDDEN,
    ),
    wrong(
        "lstm",
        ValueError,
        r"state: expected LSTMState\(.*\), got \(float32.*\); a plain tuple is not taken for an LSTMState",
        state=(HIDDEN, HIDDEN),
    ),
    wrong("lstm", ValueError, r"state\.c: expected shape \(4, 4\), got \(4, 3\)", state=LSTMState(HIDDEN, HIDDEN[:, :3])),
    wrong("lstm_projection", ValueError, r"state\.h: expected shape \(4, 2\), got \(4, 4\)", state=LSTMState(HIDDEN, HIDDEN)),
    wrong("gru", ValueError, rf"context: expected {MASK}, got float32\[3, 4\]", context=HIDDEN[:3]),
    wrong("gru", ValueError, rf"context: expected {MASK}, got float32\[4, 5\]", context=np.zeros((B, 5), np.float32)),
    wrong("gru", ValueError, rf"context: expected {MASK}, got float32\[\]", context=np.float32(1)),
    wrong("counting", ValueError, r"context: expected .* batch axis of 4, got \(3, 4\)", context={"memory": HIDDEN[:3]}),
    wrong("gru", ValueError, r"params: expected .*GRU.*, got RNNParams\(w=\(3, 4\)", params=random_params(cells.rnn)),
    wrong("lstm", ValueError, r"params: expected .*LSTM.*, got GRUParams", params=random_params(cells.gru)),
]


@pytest.mark.parametrize(("name", "changes", "error", "message"), ERRORS)
@pytest.mark.parametrize("function", [s2s_jax.unroll, s2s_jax.unroll_with_history], ids=["unroll", "history"])
def test_bad_input_is_named(function, name, changes, error, message):
    given = standard(name)
    arguments = {"cell": given.cell, "params": given.params, "xs": given.xs} | changes
    with pytest.raises(error, match=message):
        function(**arguments)


def own_cell(step, initial_state=lambda params, batch_size, dtype: jnp.zeros((batch_size, H), dtype)):
    return Cell(lambda key, in_features, hidden_features: None, initial_state, lambda params, x: x @ params, step)


OWN = {
    "one value": (TypeError, r"cell.step: expected a tuple of two, \(state, y\), got \(4, 4\)", own_cell(lambda p, h, z, c: h)),
    "wider state": (
        ValueError,
        r"cell.step: expected a state of \(4, 4\) as it was given, got \(4, 8\)",
        own_cell(lambda p, h, z, c: (jnp.concatenate([h, h], 1), h)),
    ),
    "two states": (
        ValueError,
        r"cell.step: expected a state of \(4, 4\) as it was given, got \{'\[0\]': \(4, 4\), '\[1\]': \(4, 4\)\}",
        own_cell(lambda p, h, z, c: ((h, h), h)),
    ),
    "y without batch": (
        ValueError,
        r"cell.step: expected state and y with the same leading batch axis, got \(4, 4\) and \(\)",
        own_cell(lambda p, h, z, c: (h, h.sum())),
    ),
    "initial state without batch": (
        ValueError,
        r"cell.initial_state: expected leaves \[4, \.\.\.\], got float32\[3\]",
        own_cell(lambda p, h, z, c: (h, h), lambda params, batch_size, dtype: jnp.zeros(3, dtype)),
    ),
}


def counts_in_halves(params, state, z, context):
    return state + 0.5 * z[:, 0].astype(jnp.float32), z


OWN["integers that become fractions"] = (
    TypeError,
    r"cell.step: expected a state of int32 as it was given, got float32",
    own_cell(counts_in_halves, lambda params, batch_size, dtype: jnp.zeros(batch_size, jnp.int32)),
)
OWN["real numbers that become complex"] = (
    TypeError,
    r"cell.step: expected a state of float32 as it was given, got complex64",
    own_cell(lambda p, h, z, c: (h + 1j * z, z)),
)


@jax.tree_util.register_pytree_node_class
class OwnState:
    """A state that is a class of the user's, with no equality."""

    def __init__(self, h):
        self.h = h

    def tree_flatten(self):
        return (self.h,), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


def test_a_state_may_be_any_pytree():
    given = standard("rnn")
    wrapped = Cell(
        cells.rnn.init,
        lambda *args: OwnState(cells.rnn.initial_state(*args)),
        cells.rnn.project,
        lambda params, state, z, context: (OwnState(cells.rnn.step(params, state.h, z, context)[0]), {"h": state.h}),
    )
    done = s2s_jax.unroll(wrapped, given.params, given.xs, OwnState(given.state), lengths=given.lengths)
    assert_equal(done.state.h, s2s_jax.unroll(cells.rnn, *given[1:4], lengths=given.lengths).state)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
def test_a_wrong_cell_of_a_users_own_is_named(name, ragged):
    error, message, cell = OWN[name]
    lengths = np.array([6, 0, 1, 3]) if ragged else None
    with pytest.raises(error, match=message):
        s2s_jax.unroll(cell, np.zeros((3, H), np.float32), XS, lengths=lengths)


def test_parameters_of_mixed_dtypes_are_named():
    given = standard("lstm")
    params = given.params._replace(u=given.params.u.astype(np.float16))
    with pytest.raises(TypeError, match=r"params: expected one floating dtype, got float16, float32"):
        s2s_jax.unroll(given.cell, params, given.xs)


def test_state_must_be_float32_where_the_input_is_narrower():
    given = standard("gru")
    xs = jnp.asarray(given.xs, jnp.bfloat16)
    with pytest.raises(TypeError, match=r"state: expected dtype float32, got bfloat16"):
        s2s_jax.unroll(given.cell, given.params, xs, jnp.asarray(given.state, jnp.bfloat16))


def test_lengths_of_eight_bits_reach_beyond_255_steps():
    given = sample("rnn", 3, 300)
    lengths = np.array([255, 3, 0], np.uint8)
    want = unrolled(given.cell, *given[1:4], lengths.astype(np.int32))
    assert_equal(s2s_jax.unroll(*given[:4], lengths=lengths), want)
    assert_equal(unrolled(given.cell, *given[1:4], lengths), want)


def test_lengths_may_be_a_list_empty_or_traced():
    given = standard("rnn")
    want = s2s_jax.unroll(*given[:4], lengths=given.lengths)
    assert_equal(s2s_jax.unroll(*given[:4], lengths=given.lengths.tolist()), want)
    traced = jax.jit(lambda lengths: s2s_jax.unroll(*given[:4], lengths=list(lengths)))
    assert_equal(traced(jnp.asarray(given.lengths)), want)
    empty = s2s_jax.unroll(given.cell, given.params, given.xs[:0], lengths=[])
    assert empty.outputs.shape == (0, T, H)


def test_traced_lengths_are_clipped():
    given = standard("rnn")
    lengths = np.array([-5, 3, 60, 6], np.int32)
    assert_equal(
        unrolled(given.cell, *given[1:4], lengths), unrolled(given.cell, *given[1:4], np.clip(lengths, 0, T).astype(np.int32))
    )


def test_the_direction_reaches_what_a_backend_is_asked(monkeypatch):
    def why_not(cell, directions, *_):
        return "it runs forward only" if directions[0].reverse else None

    monkeypatch.setitem(BACKENDS, "fused", BACKENDS["fused"]._replace(why_not=why_not))
    monkeypatch.setenv("S2S_JAX_BACKEND", "fused")
    given = standard("lstm")
    chosen = [s2s_jax.explain_backend(given.cell, given.params, given.xs, reverse=reverse) for reverse in (False, True)]
    assert [choice.backend for choice in chosen] == ["fused", "scan"]
    assert chosen[1].others["fused"] == "it runs forward only"


def test_a_traced_program_tells_its_backends():
    given = standard("lstm")

    def program(params, xs):
        below = s2s_jax.unroll(given.cell, params, xs, backend="fused").outputs
        return below.sum() + s2s_jax.unroll(given.cell, params, xs, reverse=True, backend="scan").outputs.sum()

    assert traced_backends(jax.jit(jax.grad(program)).trace(given.params, given.xs).jaxpr) == ["fused", "scan"]
    assert traced_backends(jax.jit(jnp.sin).trace(given.xs).jaxpr) == []
