"""Backend `diagonal`, on a CPU, and its kernels for a GPU compiled for a CPU (folder cuda_on_cpu)."""

import functools
import itertools
import re
import subprocess
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import s2s_jax
from s2s_jax import cells
from s2s_jax.recurrence import cuda, diagonal
from s2s_jax.recurrence.choice import BACKENDS
from s2s_jax.recurrence.diagonal import build, parts
from s2s_jax.types import Unrolled
from tests import oracles
from tests.recurrence import cuda_on_cpu
from tests.samples import (
    DIAGONAL_CELLS,
    LINEAR_CELLS,
    TOLERANCE,
    UNIT_VARIANTS,
    Gradients,
    T,
    assert_close,
    cast,
    fill_padding,
    further_derivatives,
    gradients_in_parts,
    ragged_lengths,
    sample,
    weighted_sum,
)

KNOWN = tuple(name for name in (*DIAGONAL_CELLS, *LINEAR_CELLS, *UNIT_VARIANTS) if "peepholes" not in name)
NUMBERS = itertools.count()
every_known = pytest.mark.parametrize("name", KNOWN)
forward_and_reverse = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


@pytest.fixture(params=["cpu", "kernels"])
def backend(request, monkeypatch):
    """Its name: of the loops on a CPU, or of the GPU's kernels on a CPU; one that no program has been compiled under."""
    if request.param == "kernels":
        _kernels_on_cpu(monkeypatch)
    return _named(monkeypatch, request.param)


def _kernels_on_cpu(monkeypatch):
    targets, target = cuda_on_cpu.targets(build.KERNELS), build.target
    monkeypatch.setattr(build, "target", lambda way: targets[target(way)])
    monkeypatch.setattr(build, "why_not", lambda platform: None)
    for module in (diagonal, parts):
        monkeypatch.setattr(module, "default_platform", lambda: "gpu")


def _named(monkeypatch, name):
    name = f"{name}-{next(NUMBERS)}"
    monkeypatch.setitem(BACKENDS, name, diagonal.BACKEND)
    return name


@functools.partial(jax.jit, static_argnames=("cell", "backend", "reverse"))
def _values_and_gradients(cell, params, xs, state, lengths, weights, *, backend, reverse):
    def loss(params, xs, state):
        done = s2s_jax.unroll(cell, params, xs, state, lengths=lengths, reverse=reverse, backend=backend)
        return weighted_sum(done, weights), done

    gradients, done = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(params, xs, state)
    return done, Gradients(*gradients)


def values_and_gradients(given, backend, reverse=False):
    return jax.tree.map(np.asarray, _values_and_gradients(*given[:6], backend=backend, reverse=reverse))


@every_known
@forward_and_reverse
def test_values_and_gradients_equal_those_of_scan(name, reverse, backend):
    """Of more units than a vector has room for, and not a multiple of that."""
    given = sample(name, 5, 30, 3, 37, seed=5)
    want = values_and_gradients(given, "scan", reverse)
    assert_close(values_and_gradients(given, backend, reverse), want, TOLERANCE["float32"])


@pytest.mark.parametrize("name", ["diagonal_rnn", "diagonal_rnn_relu", "diagonal_lstm", "diagonal_gru", "diagonal_gru_no_bias"])
@forward_and_reverse
def test_equals_pytorch(name, reverse, backend):
    """Whose weights are matrices with nothing beside their diagonals."""
    given = sample(name, 4, 9, 3, 5, seed=3)
    weights = Unrolled(given.weights.outputs, ((given.weights.state,),))
    dense = getattr(cells, f"make_{name.split('_')[1]}")(activation=given.cell.spec.activation, bias=given.cell.spec.bias)
    u = np.concatenate([np.diag(of_gate) for of_gate in given.params.u.reshape(-1, 5)], axis=1)
    nested = [[given.params._replace(u=u)]], given.xs, [[given.state]], given.lengths, weights
    done, gradients = oracles.torch_stack(dense, *nested, directions=("backward",) if reverse else ("forward",))
    (((params,),), xs, ((state,),)) = gradients
    u = np.concatenate([np.diagonal(of_gate) for of_gate in np.split(params.u, u.shape[1] // 5, axis=1)])
    want = Unrolled(done.outputs, done.state[0][0]), Gradients(params._replace(u=u), xs, state)
    assert_close(values_and_gradients(given, backend, reverse), want, TOLERANCE["float32"])


@pytest.mark.parametrize("name", ["lru", "diagonal_lstm"])
@forward_and_reverse
@pytest.mark.parametrize(("size", "time"), [(1, 9), (4, 7), (4, 8), (4, 13), (13, 13)])
def test_however_a_sequence_is_cut(name, reverse, size, time, monkeypatch):
    """Also into one part and a rest, and where sequences end within a part or before it."""
    given = sample(name, 4, time, 3, 6, seed=8)
    monkeypatch.setattr(parts, "_NUMBERS", size * 4 * given.params.w.shape[1])
    assert parts.steps_of_each(time, 4, given.params.w) == size
    want = values_and_gradients(given, "scan", reverse)
    assert_close(values_and_gradients(given, _named(monkeypatch, "cut"), reverse), want, TOLERANCE["float32"])


@every_known
@forward_and_reverse
def test_long_sequences_whose_ends_differ(name, reverse, backend):
    """The kernels read in chunks, in turns: of some rows there are many, of others none or a part."""
    given = sample(name, 6, 130, 3, 5, seed=6)._replace(lengths=np.int32([130, 0, 1, 45, 80, 121]))
    if hasattr(given.params, "u"):
        given = given._replace(params=given.params._replace(u=0.3 * given.params.u))
    want = values_and_gradients(given, "scan", reverse)
    assert_close(values_and_gradients(given, backend, reverse), want, TOLERANCE["float32"])


def test_numbers_near_zero_keep_their_digits(backend):
    """Of 1 - e^(-2 x) few would be left."""
    given = sample("diagonal_rnn", 3, 6, 4, 9, seed=7)
    xs, state = 1e-5 * given.xs, 1e-5 * given.state
    params = given.params._replace(b=0 * given.params.b)
    want, got = (s2s_jax.unroll(given.cell, params, xs, state, backend=name).outputs for name in ("scan", backend))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-11)


@pytest.mark.parametrize(
    ("time", "batch_size", "into", "steps"),
    [
        (10_000, 8, (64, 128), 256),  # 2^18 products
        (10_000, 8, (512, 1024), 64),  # as many rows as features
        (10_000, 8, (1024, 2048), 10_000),  # its gradient is too large to be added to again and again
        (100, 8, (64, 128), 100),
        (10_000, 10**6, (64, 128), 1),
    ],
)
def test_how_many_steps_a_part_has(time, batch_size, into, steps):
    assert parts.steps_of_each(time, batch_size, np.zeros(into)) == steps


@every_known
def test_padding_reaches_nothing(name, backend):
    given = sample(name, seed=9)
    want = values_and_gradients(given, backend)
    for padding in (np.nan, np.inf):
        filled = given._replace(xs=fill_padding(given.xs, given.lengths, padding))
        jax.tree.map(np.testing.assert_array_equal, values_and_gradients(filled, backend), want)
    np.testing.assert_array_equal(want[0].outputs[np.arange(T)[None] >= given.lengths[:, None]], 0)
    np.testing.assert_array_equal(want[1].xs[np.arange(T)[None] >= given.lengths[:, None]], 0)


@pytest.mark.parametrize("name", ["lru", "min_gru", "diagonal_gru"])
def test_what_the_loss_does_with_the_padding_reaches_nothing(name, backend):
    given = sample(name, seed=9)
    bad = given.weights._replace(outputs=fill_padding(given.weights.outputs, given.lengths, np.nan))

    @jax.jit
    def gradients(params, xs, state):
        carried = functools.partial(s2s_jax.unroll, given.cell, lengths=given.lengths, backend=backend)
        _, pull = jax.vjp(carried, params, xs, state)
        return Gradients(*pull(bad))

    got = jax.tree.map(np.asarray, gradients(given.params, given.xs, given.state))
    assert_close(got, values_and_gradients(given, "scan")[1], TOLERANCE["float32"])


@pytest.mark.parametrize("name", ["lru", "diagonal_lstm"])
@pytest.mark.parametrize(("batch_size", "time"), [(3, 0), (0, 4), (1, 1), (1, 2)])
def test_empty_and_single_sizes(name, batch_size, time, backend):
    given = sample(name, batch_size, time)
    want = values_and_gradients(given, "scan")
    assert_close(values_and_gradients(given, backend), want, TOLERANCE["float32"])


@pytest.mark.parametrize("gates", [(-60.0, -61.0), (-61.0, -60.0), (-200.0, -3.0), (80.0, 90.0), (-1e4, -1e4), (-np.inf, 0.0)])
def test_shut_gates_of_a_min_lstm_share_as_they_should(gates, backend, float64):
    """The shares of s(i) and s(f), where one or both are not told from 0 in float32."""
    i, f = gates
    params = cells.MinLSTMParams(np.zeros((1, 3), np.float32), np.float32([i, f, 1.0]))
    got, gradients = jax.value_and_grad(
        lambda params: s2s_jax.unroll(cells.min_lstm, params, jnp.zeros((1, 2, 1), jnp.float32), backend=backend).outputs.sum()
    )(params)
    stays = 1 / (1 + np.exp(np.logaddexp(0, -f) - np.logaddexp(0, -i)))
    np.testing.assert_allclose(got, 2 - stays - stays**2, rtol=1e-5, atol=1e-30)  # the sum of 1 - s and 1 - s^2
    both = stays * (1 - stays) * (-1 - 2 * stays)
    want = [-both / (1 + np.exp(i)), both / (1 + np.exp(f))]
    np.testing.assert_allclose(gradients.b[:2], want, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("name", ["lru", "diagonal_gru"])
def test_further_derivatives_are_those_of_scan(name, backend):
    given = sample(name, 2, 4)
    assert_close(further_derivatives(given, backend), further_derivatives(given, "scan"), TOLERANCE["float32"])


@pytest.mark.parametrize("name", ["min_gru", "diagonal_lstm", "lru"])
@pytest.mark.parametrize("ragged", [True, False])
def test_vmap_over_sequences_is_one_call_over_more_rows(name, ragged, backend, monkeypatch):
    given = sample(name, 3, 5)
    lengths = np.stack([ragged_lengths(3, 5), ragged_lengths(3, 5, 9)]) if ragged else None
    xs, states = np.stack([given.xs, -given.xs]), jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf]), given.state)

    def results(backend):
        def loss(params, xs, state, lengths):
            done = s2s_jax.unroll(given.cell, params, xs, state, lengths=lengths, backend=backend)
            return weighted_sum(done, given.weights), done

        each = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        mapped = jax.jit(jax.vmap(each, (None, 0, 0, 0 if ragged else None)))
        return mapped, mapped(given.params, xs, states, lengths)

    mapped, got = results(backend)
    assert_close(got, results("scan")[1], TOLERANCE["float32"])
    text = mapped.lower(given.params, xs, states, lengths).as_text()
    assert text.count(f"@{build.target('forward')}(") == text.count(f"@{build.target('backward')}(") == 1


def test_vmap_over_parameters(backend):
    given = sample("diagonal_gru", 3, 5)
    many = jax.tree.map(lambda leaf: np.stack([leaf, -leaf, 2 * leaf]), given.params)

    def gradients(backend):
        def loss(params, xs):
            done = s2s_jax.unroll(given.cell, params, xs, given.state, lengths=given.lengths, backend=backend)
            return weighted_sum(done, given.weights)

        return jax.jit(jax.vmap(jax.value_and_grad(loss, argnums=(0, 1)), (0, None)))(many, given.xs)

    assert_close(gradients(backend), gradients("scan"), TOLERANCE["float32"])


def test_many_rows_on_several_threads(monkeypatch):
    """And few rows of many units: a thread has some of either."""
    backend = _named(monkeypatch, "cpu")
    for sizes in [(16, 20, 4, 130), (1, 60, 4, 1000)]:
        given = sample("diagonal_gru", *sizes, seed=2)
        assert_close(values_and_gradients(given, backend), values_and_gradients(given, "scan"), TOLERANCE["float32"])


@pytest.mark.parametrize("name", ["min_gru", "lru", "diagonal_lstm"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_narrow_dtypes_on_a_gpu(name, dtype, tolerance, monkeypatch, request):
    """Against float64 at the same rounded numbers."""
    request.getfixturevalue("float64")
    _kernels_on_cpu(monkeypatch)
    given = sample(name, 4, 12, 3, 8, seed=4)
    narrow = given._replace(
        **{k: jax.tree.map(lambda x: jnp.asarray(x, dtype), getattr(given, k)) for k in ("params", "xs")},
        weights=given.weights._replace(outputs=jnp.asarray(given.weights.outputs, dtype)),
    )
    backend = _named(monkeypatch, "kernels")
    got = values_and_gradients(narrow, backend)
    assert got[0].outputs.dtype == dtype
    # Parameters that are not rounded yet: as they enter the cell's own step.
    of_wide = values_and_gradients(narrow._replace(params=given.params), backend)[0]
    jax.tree.map(np.testing.assert_array_equal, of_wide, got[0])
    exact = narrow._replace(**cast(jax.tree.map(np.float64, narrow._asdict() | {"cell": None, "lengths": None}), "float64"))
    truth = values_and_gradients(exact._replace(cell=given.cell, lengths=given.lengths), "scan")
    assert_close(jax.tree.map(np.float64, got), truth, tolerance)


@pytest.mark.parametrize("name", ["min_gru", "diagonal_lstm"])
def test_gradients_on_several_devices(name, monkeypatch):
    want, sharded, _ = gradients_in_parts(sample(name, 16), _named(monkeypatch, "cpu"))
    assert_close(sharded, want, TOLERANCE["float32"])


# Which cells and arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "options", "reason"),
    [
        ("gru", {}, "the cell is not a plain one with diagonal recurrence"),
        ("diagonal_lstm_peepholes", {}, "the cell is not a plain one with diagonal recurrence"),
        ("diagonal_gru", {"remat": 2}, "remat: it keeps"),
        ("diagonal_gru", {"context": np.ones((4, 4), np.float32)}, "context: it has no recurrent dropout"),
    ],
)
def test_what_it_does_not_do(cell, options, reason):
    given = sample(cell)
    with pytest.raises(ValueError, match=f"backend: diagonal does not apply: {reason}"):
        s2s_jax.unroll(*given[:4], backend="diagonal", **options)


def test_other_dtypes_and_the_history_are_not_for_it(float64):
    given = sample("min_gru")
    for dtype in ("bfloat16", "float64"):
        with pytest.raises(ValueError, match=f"it computes in float32 here, and the arrays are of .*{dtype}"):
            s2s_jax.unroll(given.cell, given.params, jnp.asarray(given.xs, dtype), backend="diagonal")
    wide = jax.tree.map(np.float64, given.params)
    with pytest.raises(ValueError, match="the arrays are of float32, float64"):
        s2s_jax.unroll(given.cell, wide, given.xs, given.state, backend="diagonal")
    with pytest.raises(ValueError, match="history: it returns the last state only"):
        s2s_jax.unroll_with_history(*given[:3], backend="diagonal")


def test_whole_numbers_are_refused_as_by_any_other():
    given = sample("min_gru")
    with pytest.raises(TypeError, match="xs: expected floating point"):
        s2s_jax.unroll(given.cell, given.params, np.ones((1, 2, 3), np.int32), backend="diagonal")


def test_arrays_that_are_split_are_not_for_it():
    given, mesh = sample("min_gru", 16), jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        split = jax.device_put(given.xs, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch")))
        with pytest.raises(ValueError, match="the arrays are split over a mesh whose axes are explicit"):
            s2s_jax.unroll(given.cell, given.params, split, backend="diagonal")


def test_the_projection_is_computed_again_and_not_kept():
    """In one part, where XLA sees both passes at once."""
    cell, xs = cells.min_gru, jnp.ones((2, 9, 5))
    params = cell.init(jax.random.key(0), 5, 7)
    gradient = jax.jit(jax.grad(lambda p: s2s_jax.unroll(cell, p, xs, backend="diagonal").outputs.sum()))
    text = gradient.lower(params).compile().as_text()
    read = {
        way: re.search(rf"custom-call\(([^)]*)\).*custom_call_target=\"{build.target(way)}\"", text).group(1).split(", ")[1]
        for way in build.PASSES
    }
    assert read["forward"] != read["backward"]


def test_wrong_inputs_are_named():
    given = sample("diagonal_gru")
    with pytest.raises(ValueError, match=r"xs: expected 3 features \(the rows of params.w\), got 4"):
        s2s_jax.unroll(given.cell, given.params, np.ones((1, 2, 4), np.float32), backend="diagonal")


@pytest.mark.parametrize("name", [*KNOWN, "diagonal_lstm_peepholes"])
def test_auto_takes_it_on_one_cpu(name, monkeypatch):
    given = sample(name)
    told = s2s_jax.explain_backend(*given[:3])
    assert told.others["diagonal"].startswith("there are several devices" if name in KNOWN else "the cell is not a plain one")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert s2s_jax.explain_backend(*given[:3]).backend == ("diagonal" if name in KNOWN else "scan")
    told = s2s_jax.explain_backend(given.cell, given.params, given.xs[:, :1])
    assert told.backend in ("associative", "scan")
    assert "of a single step there is no loop" in told.others["diagonal"] or name not in KNOWN


def test_without_a_compiler_it_says_why(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(build, "why_not", lambda platform: "no C++ compiler was found")
    told = s2s_jax.explain_backend(*sample("min_gru")[:3])
    assert told.backend == "associative"
    assert told.others["diagonal"] == "no C++ compiler was found"


# Building ---------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(cuda_on_cpu.nvcc() is None, reason="there is no nvcc")
def test_compiles_for_a_gpu(tmp_path):
    path = build.KERNELS.build(tmp_path)
    symbols = subprocess.run(["nm", "-D", str(path)], capture_output=True, text=True, check=True).stdout
    assert all(f" {build.target(way)}\n" in symbols for way in build.PASSES)


@pytest.mark.parametrize(
    ("found", "too_old"), [("7.5", True), ("gfx90a", True), ("8.0", False), ("9.0", False), ("12.0", False)]
)
def test_which_gpus(found, too_old, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(compute_capability=found)])
    monkeypatch.setattr(cuda, "_loaded", lambda kernels: None)
    why = build.why_not("gpu")
    assert why == (
        f"it needs an NVIDIA GPU of compute capability 8.0 or later, and the device's is {found}" if too_old else None
    )


@pytest.mark.accelerator
@every_known
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_on_a_gpu(name, dtype, float64):
    given = sample(name, 20, 300, 16, 70)
    if "relu" in name:  # whose states would leave the range of float16, and of float32
        given = given._replace(params=given.params._replace(u=0.1 * given.params.u))
    narrow = given._replace(**{k: jax.tree.map(lambda x: jnp.asarray(x, dtype), getattr(given, k)) for k in ("params", "xs")})
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), (narrow.params, narrow.xs, given.state, given.weights))
    truth = given._replace(params=exact[0], xs=exact[1], state=exact[2], weights=exact[3])
    tolerance = {"float32": 2e-3, "bfloat16": 0.05, "float16": 0.01}[dtype]
    if "relu" in name and dtype != "float32":
        tolerance = 0.15  # its slope jumps where rounding moves a number past zero
    with jax.default_matmul_precision("highest"):  # of the products before and after it
        for reverse in (False, True):
            got = values_and_gradients(narrow, "diagonal", reverse)
            assert_close(jax.tree.map(np.float64, got), values_and_gradients(truth, "scan", reverse), tolerance)
