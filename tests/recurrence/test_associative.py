"""Backend `associative` against `scan`, and the affine recurrences below it."""

import functools
import subprocess

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import s2s_jax
from s2s_jax import layers
from s2s_jax.recurrence import affine, associative, parallel
from s2s_jax.recurrence.choice import BACKENDS
from s2s_jax.types import Cell
from tests.recurrence import cuda_on_cpu
from tests.recurrence.cuda_on_cpu import nvcc
from tests.recurrence.test_fused import values_and_gradients
from tests.samples import (
    LINEAR_CELLS,
    TOLERANCE,
    T,
    assert_close,
    fill_padding,
    gradients_in_parts,
    ragged_lengths,
    sample,
    weighted_sum,
)

every_cell = pytest.mark.parametrize("name", LINEAR_CELLS)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@every_cell
def test_values_and_gradients_equal_those_of_scan(name, reverse):
    given = sample(name, time=30, seed=5)
    got, want = (values_and_gradients(given, backend, reverse=reverse) for backend in ("associative", "scan"))
    assert_close(got, want, TOLERANCE["float32"])


@pytest.mark.parametrize("name", ["min_gru", "lru"])
def test_with_the_history_of_states(name):
    given = sample(name, seed=6)
    got, want = (values_and_gradients(given, backend, reverse=True, history=True) for backend in ("associative", "scan"))
    assert_close(got, want, TOLERANCE["float32"])


@every_cell
def test_padding_reaches_nothing(name):
    given = sample(name, seed=9)
    want = values_and_gradients(given, "associative")
    for padding in (np.nan, np.inf):
        filled = given._replace(xs=fill_padding(given.xs, given.lengths, padding))
        jax.tree.map(np.testing.assert_array_equal, values_and_gradients(filled, "associative"), want)
    np.testing.assert_array_equal(want[1].outputs[np.arange(T)[None] >= given.lengths[:, None]], 0)


@pytest.mark.parametrize(("batch_size", "time"), [(3, 0), (0, 4), (1, 1), (1, 2)])
def test_empty_and_single_sizes(batch_size, time):
    given = sample("lru", batch_size, time)
    got, want = (values_and_gradients(given, backend, history=True) for backend in ("associative", "scan"))
    assert_close(got, want, TOLERANCE["float32"])


def test_second_derivatives_and_vmap(float64):
    given = sample("min_lstm", 2, 4)
    params, xs = jax.tree.map(np.float64, (given.params, given.xs))

    def results(backend):
        def loss(params, xs):
            return weighted_sum(s2s_jax.unroll(given.cell, params, xs, lengths=given.lengths, backend=backend), given.weights)

        gradient = jax.grad(loss)
        hessian = jax.jvp(lambda p: gradient(p, xs), (params,), (params,))[1]
        return hessian, jax.vmap(gradient, (None, 0))(params, np.stack([xs, -xs]))

    assert_close(results("associative"), results("scan"), 1e-10)


def test_a_linear_cell_of_ones_own():
    """Its spec says so, and need say nothing else."""

    class Leaky:
        linear_by_unit = True

    given = sample("rnn")
    leaky = Cell(
        given.cell.init,
        given.cell.initial_state,
        lambda params, x: x @ params.w,
        lambda params, state, z, context: (0.9 * state + z, state * z),
        Leaky(),
    )
    given = given._replace(cell=leaky)
    got, want = (values_and_gradients(given, backend) for backend in ("associative", "scan"))
    assert_close(got, want, TOLERANCE["float32"])
    assert "Leaky" not in repr(layers.Recurrent(leaky, 3, 4, rngs=nnx.Rngs(0)))  # nor does it raise


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@every_cell
def test_values_alone_equal_those_of_scan(name, reverse):
    """Where no gradient is asked for it goes another way on a CPU."""
    given = sample(name, time=30, seed=7)
    got, want = (
        s2s_jax.unroll(*given[:4], lengths=given.lengths, reverse=reverse, backend=backend)
        for backend in ("associative", "scan")
    )
    assert_close(tuple(got), tuple(want), TOLERANCE["float32"])


@pytest.mark.parametrize(
    "step",
    [
        lambda params, h, z, context: (0.5 * h @ params.u + z, h),
        lambda params, h, z, context: (0.98 * h + 5e-4 * jnp.roll(h, 1, axis=1) + z, h),
        lambda params, h, z, context: (jnp.tanh(h) + z, h),
    ],
    ids=["units that mix", "units that hardly mix", "not linear"],
)
def test_a_cell_that_is_not_linear_by_unit_after_all_is_carried_in_order(step):
    """Of a cell of one's own whose spec promises too much."""

    class Wrong:
        linear_by_unit = True

    given = sample("rnn", time=60)
    given = given._replace(cell=given.cell._replace(step=step, spec=Wrong()))
    got, want = (values_and_gradients(given, backend) for backend in ("associative", "scan"))
    assert_close(got, want, TOLERANCE["float32"])


@pytest.mark.parametrize("name", ["min_gru", "lru"])
def test_gradients_on_several_devices(name):
    given = sample(name, 16)
    want, sharded, gradients = gradients_in_parts(given, "associative")
    assert_close(sharded, want, TOLERANCE["float32"])
    devices, every = jax.devices("cpu")[:8], jax.sharding.PartitionSpec("batch")
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Explicit,), devices=devices)
    with jax.set_mesh(mesh):
        arrays = given.xs, given.state, ragged_lengths(16, T)
        got = gradients(given.params, *jax.device_put(arrays, jax.sharding.NamedSharding(mesh, every)))
        assert_close(jax.tree.map(np.asarray, got), jax.tree.map(np.asarray, want), TOLERANCE["float32"])


@pytest.mark.parametrize(("name", "chosen"), [("min_gru", "associative"), ("min_lstm", "associative"), ("lru", "scan")])
def test_auto_takes_it_where_it_is_faster_on_a_cpu(name, chosen):
    given = sample(name)
    told = s2s_jax.explain_backend(*given[:3])
    assert told.backend == chosen
    assert chosen != "scan" or "slower" in told.others["associative"]


def test_for_what_it_does_not_apply():
    given = sample("gru")
    with pytest.raises(ValueError, match="associative does not apply: the cell is not linear in its state"):
        s2s_jax.unroll(*given[:3], backend="associative")
    given = sample("min_gru")
    with pytest.raises(ValueError, match="associative does not apply: remat"):
        s2s_jax.unroll(*given[:3], backend="associative", remat=2)


def test_lowers_for_cuda_and_tpu():
    given = sample("lru")
    loss = jax.grad(lambda p, x: s2s_jax.unroll(given.cell, p, x, backend="associative").outputs.sum(), argnums=(0, 1))
    exported = jax.export.export(jax.jit(loss), platforms=("cuda", "tpu"))(given.params, given.xs)
    assert exported.platforms == ("cuda", "tpu")


# Affine recurrences -----------------------------------------------------------------------------------------------------


def by_hand(a, b, first, reverse):
    states, s = np.zeros_like(b), first
    for t in range(len(b))[:: -1 if reverse else 1]:
        s = np.einsum("bmij,bmj->bmi", a[t], s) + b[t]
        states[t] = s
    return states


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("block", [1, 2, 4, 5])
@pytest.mark.parametrize("solve", [affine.in_order, affine.as_tree, affine.solve])
def test_both_ways_agree_with_numpy(solve, block, reverse, float64):
    """Blocks that are multiplied number by number and such that are not."""
    rng = np.random.default_rng(block)
    a, b = rng.normal(size=(9, 2, 3, block, block)), rng.normal(size=(9, 2, 3, block))
    first = rng.normal(size=(2, 3, block))
    got = jax.jit(functools.partial(solve, reverse=reverse))(a, b, first)
    np.testing.assert_allclose(got, by_hand(a, b, first, reverse), rtol=1e-10)


@pytest.fixture
def kernels(monkeypatch):
    """Makes the kernels those on a CPU, with chunks of so many steps at least, as many threads are there."""

    def make(least_chunk=1, threads=2**16):
        target = cuda_on_cpu.targets(affine.KERNELS)[affine.KERNELS.targets[0]]
        monkeypatch.setattr(affine, "target", lambda: target)
        monkeypatch.setattr(affine, "_LEAST_CHUNK", least_chunk)
        monkeypatch.setattr(affine, "_THREADS", threads)

    return make


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("block", [1, 2, 3, 4])
@pytest.mark.parametrize(("time", "chunk"), [(1, 1), (23, 1), (23, 3), (23, 9), (24, 8), (23, 22), (23, 23), (0, 1)])
def test_kernels_agree_with_numpy(time, chunk, block, reverse, kernels):
    """In one chunk, in many, and with a last one that is not whole; each longer and shorter than what is read at once."""
    kernels(chunk)
    rng = np.random.default_rng(block)
    a, b = rng.normal(size=(time, 2, 35, block, block)) / 2, rng.normal(size=(time, 2, 35, block))
    first = rng.normal(size=(2, 35, block))
    got = jax.jit(functools.partial(affine.in_chunks, reverse=reverse))(*map(np.float32, (a, b, first)))
    np.testing.assert_allclose(got, by_hand(a, b, first, reverse), rtol=1e-4, atol=1e-4)


def test_kernels_have_as_many_chunks_as_fill_a_gpu(kernels):
    kernels(4, threads=60)
    assert "steps = 8 : i64" in _lowered_chunks(24, 20)  # 480 numbers for 60 threads
    assert "steps = 4 : i64" in _lowered_chunks(24, 1)
    assert "steps = 3 : i64" in _lowered_chunks(3 * (2**16 - 1), 1, least=1, threads=10**9, kernels=kernels)


def _lowered_chunks(time, blocks, least=None, threads=None, kernels=None):
    if kernels is not None:
        kernels(least, threads)
    shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((time, blocks, 1, 1), (time, blocks, 1), (blocks, 1))]
    return jax.jit(functools.partial(affine.in_chunks, reverse=False)).lower(*shapes).as_text()


def test_vmap_over_kernels_is_one_call_of_more_blocks(kernels):
    kernels(2)
    rng = np.random.default_rng(0)
    a, b, first = (np.float32(rng.normal(size=size)) for size in ((9, 5, 2, 2), (4, 9, 5, 2), (4, 5, 2)))
    mapped = jax.jit(jax.vmap(functools.partial(affine.in_chunks, reverse=True), (None, 0, 0)))
    for got, terms, start in zip(mapped(a / 2, b, first), b, first, strict=True):
        want = by_hand(a[:, None] / 2, terms[:, None], start[None], True)[:, 0]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert mapped.lower(a, b, first).as_text().count(f"@{affine.target()}(") == 1


@pytest.mark.parametrize(
    ("name", "backend"), [("lru", "associative"), ("min_gru", "associative"), ("diagonal_lstm", "parallel")]
)
def test_backends_on_kernels(name, backend, kernels, monkeypatch):
    kernels(4)
    for module in (associative, parallel):
        monkeypatch.setattr(module, "solve", affine.in_chunks)
    monkeypatch.setitem(BACKENDS, "on_kernels", {"associative": associative, "parallel": parallel}[backend].BACKEND)
    given = sample(name, time=30, hidden_features=20, seed=5)
    got, want = (values_and_gradients(given, way, reverse=True) for way in ("on_kernels", "scan"))
    assert_close(got, want, TOLERANCE["float32"])


def test_what_there_are_no_kernels_for():
    assert affine.why_no_kernels(jnp.zeros((3, 2, 5))) == "they are for blocks of up to 4 numbers in float32"
    assert affine.why_no_kernels(jnp.zeros((3, 2, 1), jnp.bfloat16)) == "they are for blocks of up to 4 numbers in float32"
    assert affine.why_no_kernels(jnp.zeros((3, 2, 1))) == "there is no GPU"


@pytest.mark.skipif(nvcc() is None, reason="there is no nvcc")
def test_kernels_compile(tmp_path):
    path = affine.KERNELS.build(tmp_path)
    symbols = subprocess.run(["nm", "-D", str(path)], capture_output=True, text=True, check=True).stdout
    assert f" {affine.KERNELS.targets[0]}\n" in symbols


@pytest.mark.accelerator
@pytest.mark.parametrize("block", [1, 2, 3, 4])
@pytest.mark.parametrize(("time", "blocks"), [(16384, 256), (1000, 40000), (7, 3)])
def test_kernels_on_a_gpu(block, time, blocks):
    rng = np.random.default_rng(block)
    a, b = rng.random((time, blocks, block, block)) / block, rng.normal(size=(time, blocks, block))
    first = rng.normal(size=(blocks, block))
    for reverse in (False, True):
        got = jax.jit(functools.partial(affine.in_chunks, reverse=reverse))(*map(jnp.float32, (a, b, first)))
        want = jax.jit(functools.partial(affine.as_tree, reverse=reverse))(*map(jnp.float32, (a, b, first)))
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "cell", "shape"), [("units", "lstm", (4, 2)), ("elements", "lstm", (8, 1)), ("whole", "lstm_projection", (1, 6))]
)
def test_a_state_that_is_cut_is_joined_again(kind, cell, shape):
    state = sample(cell).state
    layout = affine.layout_of(state, kind)
    blocks = layout.cut(state)
    assert blocks.shape[1:] == shape
    assert layout.block == shape[1]
    jax.tree.map(np.testing.assert_array_equal, layout.joined(blocks), state)


def test_leaves_of_two_shapes_are_cut_into_elements():
    assert affine.layout_of(sample("lstm_projection").state).kind == "elements"
    assert affine.layout_of(sample("lstm").state).kind == "units"


@pytest.mark.parametrize(
    ("kind", "name"), [("whole", "gru"), ("whole", "lstm"), ("units", "diagonal_lstm"), ("units", "diagonal_gru")]
)
def test_blocks_of_a_jacobian_equal_jaxs(kind, name):
    given = sample(name, 1)
    layout = affine.layout_of(given.state, kind)

    def step(blocks):
        state = layout.joined(blocks[None])
        return layout.cut(given.cell.step(given.params, state, given.cell.project(given.params, given.xs[:, 0]), None)[0])[0]

    blocks = layout.cut(given.state)[0]
    whole = jax.jacfwd(step)(blocks)  # [M, L, M, L]
    _, push = jax.linearize(
        lambda state: given.cell.step(given.params, state, given.cell.project(given.params, given.xs[:, 0]), None)[0],
        given.state,
    )
    got = affine.jacobian_blocks(push, given.state, layout)[0]
    for unit in range(len(blocks)):
        np.testing.assert_allclose(got[unit], whole[unit, :, unit], atol=1e-6)


def test_several_probes_make_up_less():
    """Of a dense matrix whose diagonal is positive: nearer to it, and hardly beyond; of a diagonal one all of it."""
    layout, at = affine.layout_of(jnp.zeros((1, 300))), jnp.zeros((1, 300))
    rng = np.random.default_rng(0)
    diagonal, rest = jnp.asarray(rng.uniform(0.2, 0.9, 300), jnp.float32), jnp.asarray(rng.normal(size=(300, 300)), jnp.float32)

    def found(matrix, probes):
        return np.asarray(affine.jacobian_blocks(lambda v: v @ matrix, at, layout, probes)[0, :, 0, 0])

    np.testing.assert_allclose(found(jnp.diag(diagonal), 3), diagonal, rtol=1e-6)
    dense = jnp.diag(diagonal) + 0.6 / np.sqrt(300) * (rest - jnp.diag(jnp.diag(rest)))
    one, three = (found(dense, probes) for probes in (1, 3))
    beyond_one, beyond_three = (np.maximum(np.abs(each) - diagonal, 0).mean() for each in (one, three))
    assert beyond_three < 0.2 * beyond_one
    assert np.abs(three - diagonal).mean() < np.abs(one - diagonal).mean()


def test_the_rest_of_a_jacobian_cancels_in_the_mean():
    layout = affine.layout_of(jnp.zeros((1, 2000)))
    matrix = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1.5, (2000, 2000)), jnp.float32) / 2000
    got = affine.jacobian_blocks(lambda v: v @ matrix, jnp.zeros((1, 2000)), layout)[0, :, 0, 0]
    assert abs(float(jnp.mean(got))) < 0.05  # a sum of all would be 1
