"""The native backend: against PyTorch and NumPy, on odd sizes, under every transformation, however built, on any thread."""

import concurrent.futures
import functools
import logging
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import s2s_jax
from s2s_jax import cells, layers
from s2s_jax.recurrence import native
from s2s_jax.recurrence.choice import VARIABLE
from s2s_jax.recurrence.native import build
from s2s_jax.types import Unrolled
from tests import oracles
from tests.recurrence.scripts import script
from tests.samples import TOLERANCE, Gradients, assert_close, fill_padding, further_derivatives, weighted_sum
from tests.samples import sample as wild_sample

NATIVE = ("rnn", "rnn_relu", "rnn_no_bias", "lstm", "lstm_no_bias", "gru", "gru_no_bias", "gru_before", "gru_before_no_bias")
FOUR = ("rnn", "lstm", "gru", "gru_before")
# Batch, time, features, hidden: one row that the threads share by units, several groups of rows, units that fill no vector.
# With two threads the inputs of many steps at once, for one thread, for each of two, and for both. The last of them reads its
# weights in place.
SIZES = [(1, 1, 1, 1), (5, 7, 2, 17), (40, 6, 1, 48), (2, 60, 3, 33), (4, 30, 40, 64), (3, 150, 35, 70), (3, 1, 6, 64)]
forward_and_reverse = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


@pytest.fixture(autouse=True)
def _there_is_a_compiler():
    reason = build.load().why_not
    if os.environ.get("CI") == "true":
        assert reason is None
    elif reason is not None:
        pytest.skip(reason)


def sample(name, *sizes):
    """With recurrent weights that do not make states explode, where rounding would be all that there is to compare."""
    given = wild_sample(name, *sizes)
    return given._replace(params=given.params._replace(u=given.params.u / np.sqrt(np.float32(sizes[-1]))))


@functools.partial(jax.jit, static_argnames=("cell", "reverse", "backend"))
def values_and_gradients(cell, params, xs, state, lengths, weights, *, reverse=False, backend="native"):
    def loss(params, xs, state):
        done = s2s_jax.unroll(cell, params, xs, state, lengths=lengths, reverse=reverse, backend=backend)
        return weighted_sum(done, weights), done

    gradients, done = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(params, xs, state)
    return done, Gradients(*gradients)


# Values and gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NATIVE)
@forward_and_reverse
@pytest.mark.parametrize("sizes", [(5, 8, 3, 19), (33, 5, 20, 40)], ids=str)
def test_equals_a_loop_in_numpy(name, reverse, sizes):
    given = sample(name, *sizes)
    got = values_and_gradients(*given[:6], reverse=reverse)
    assert_close(got[0], oracles.plain(*given[:5], reverse=reverse), TOLERANCE["float32"])
    if sizes[0] < 10:  # the loop's gradients are slow
        assert_close(got[1], oracles.plain_gradients(*given[:6], reverse=reverse), TOLERANCE["float32"])


@pytest.mark.parametrize(
    ("name", "reverse"),
    [("rnn", False), ("rnn_relu", True), ("lstm", False), ("lstm_no_bias", True), ("gru", True), ("gru_no_bias", False)],
)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_equals_pytorch(name, reverse, sizes):
    given = sample(name, *sizes)
    weights = Unrolled(given.weights.outputs, ((given.weights.state,),))
    nested = [[given.params]], given.xs, [[given.state]], given.lengths, weights
    done, gradients = oracles.torch_stack(given.cell, *nested, directions=("backward",) if reverse else ("forward",))
    want = Unrolled(done.outputs, done.state[0][0]), Gradients(gradients.params[0][0], gradients.xs, gradients.state[0][0])
    assert_close(values_and_gradients(*given[:6], reverse=reverse), want, TOLERANCE["float32"])


@pytest.mark.parametrize("name", ["rnn_relu", *FOUR])
@pytest.mark.parametrize(("reverse", "ragged"), [(False, False), (True, True)], ids=["forward whole", "reverse ragged"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_equals_scan(name, reverse, sizes, ragged):
    given = sample(name, *sizes)
    arguments = given._replace(lengths=given.lengths if ragged else None)[:6]
    want = values_and_gradients(*arguments, reverse=reverse, backend="scan")
    assert_close(values_and_gradients(*arguments, reverse=reverse), want, TOLERANCE["float32"])


@pytest.mark.parametrize("name", FOUR)
def test_sums_over_many_steps_keep_their_digits(name):
    """Gradients of weights add up 64,000 products: errors of 1e-6 at most if piece by piece, of 4e-6 if one by one."""
    given = sample(name, 64, 1000, 2, 16)
    got = values_and_gradients(*given._replace(lengths=None)[:6])[1].params
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), given._replace(cell=None, lengths=None))
        want = values_and_gradients(given.cell, *exact[1:6], backend="scan")[1].params
    assert_close(jax.tree.map(np.asarray, got), jax.tree.map(np.asarray, want), 3e-6)


@pytest.mark.parametrize("name", FOUR)
@forward_and_reverse
def test_padding_reaches_nothing(name, reverse):
    given = sample(name, 5, 8, 3, 19)
    want = values_and_gradients(*given[:6], reverse=reverse)
    padded = given._replace(
        xs=fill_padding(given.xs, given.lengths, np.nan),
        weights=given.weights._replace(outputs=fill_padding(given.weights.outputs, given.lengths, np.nan)),
    )
    got = values_and_gradients(*given._replace(xs=padded.xs)[:6], reverse=reverse)
    np.testing.assert_array_equal(got[0].outputs, want[0].outputs)
    assert_close(got, want, 0.0)
    beyond = np.arange(8)[None] >= given.lengths[:, None]
    assert not np.any(np.asarray(got[0].outputs)[beyond])
    assert not np.any(np.asarray(got[1].xs)[beyond])
    # A cotangent in the padding has no way in either.
    assert_close(values_and_gradients(*padded[:6], reverse=reverse)[1], want[1], 0.0)


@pytest.mark.parametrize("name", FOUR)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_row(name, value):
    given = sample(name, 5, 8, 3, 19)._replace(lengths=None)
    xs = given.xs.copy()
    xs[2, 4, 1] = value
    got, want = (values_and_gradients(*given._replace(xs=xs)[:6], backend=backend)[0] for backend in ("native", "scan"))
    np.testing.assert_array_equal(np.isfinite(got.outputs), np.isfinite(want.outputs))
    others = np.arange(5) != 2
    assert_close(np.asarray(got.outputs)[others], np.asarray(want.outputs)[others], TOLERANCE["float32"])


def test_half_a_million_steps():
    params = cells.gru.init(jax.random.key(0), 1, 3)
    xs = jax.random.normal(jax.random.key(1), (1, 500_000, 1))
    got, want = (s2s_jax.unroll(cells.gru, params, xs, backend=backend) for backend in ("native", "scan"))
    assert_close(tuple(got), tuple(want), TOLERANCE["float32"])


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_parameters_narrower_than_the_inputs(name):
    given = sample(name, 4, 6, 3, 20)
    given = given._replace(params=jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), given.params))
    got, want = (values_and_gradients(*given[:6], backend=backend) for backend in ("native", "scan"))
    assert {leaf.dtype for leaf in jax.tree.leaves(got[1].params)} == {jnp.dtype(jnp.bfloat16)}
    assert_close(got[0], want[0], TOLERANCE["float32"])
    assert_close(got[1], want[1], 2**-7)


@pytest.mark.parametrize("name", FOUR)
@pytest.mark.parametrize("sizes", [(0, 4, 3, 5), (3, 0, 3, 5), (0, 0, 3, 5)], ids=str)
def test_nothing_to_do(name, sizes):
    given = sample(name, *sizes)
    got = values_and_gradients(*given[:6])
    assert_close(got, values_and_gradients(*given[:6], backend="scan"), 0.0)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_without_a_cotangent_for_the_outputs_and_without_a_gradient_of_the_inputs(name):
    given = sample(name, 4, 9, 3, 20)

    def loss(params, backend):
        state = s2s_jax.unroll(given.cell, params, given.xs, given.state, lengths=given.lengths, backend=backend).state
        return weighted_sum(state, given.weights.state)

    got, want = (jax.jit(jax.grad(loss), static_argnums=1)(given.params, backend) for backend in ("native", "scan"))
    assert_close(got, want, TOLERANCE["float32"])


@pytest.mark.parametrize("name", ["lstm", "gru", "gru_before"])
@pytest.mark.parametrize("merge", ["concat", "none"])
def test_both_directions_go_in_one_call(name, merge):
    given = sample(name, 6, 9, 4, 20)
    params = [[given.params, jax.tree.map(lambda p: p * 0.9, given.params)]]

    def loss(params, xs, backend):
        done = s2s_jax.unroll_stack(
            given.cell, params, xs, lengths=given.lengths, directions=("forward", "backward"), merge=merge, backend=backend
        )
        return jnp.sum(jnp.sin(done.outputs)) + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(done.state))

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), static_argnums=2)
    assert_close(both(params, given.xs, "native"), both(params, given.xs, "scan"), TOLERANCE["float32"])
    compiled = both.lower(params, given.xs, "native").compile().as_text()
    assert compiled.count('custom_call_target="s2s_forward"') == 1
    assert compiled.count('custom_call_target="s2s_backward"') == 1


def test_no_sequence_is_copied_to_turn_batch_and_time():
    given = sample("lstm", 6, 9, 4, 20)
    f = jax.jit(lambda params, xs: s2s_jax.unroll(given.cell, params, xs, backend="native").outputs)
    assert "transpose" not in f.lower(given.params, given.xs).compile().as_text()


# Transformations --------------------------------------------------------------------------------------------------------


def losses(name):
    given = sample(name, 4, 7, 3, 10)

    def loss(backend, params, xs):
        done = s2s_jax.unroll(given.cell, params, xs, given.state, lengths=given.lengths, backend=backend)
        return weighted_sum(done, given.weights)

    return given, loss


TRANSFORMED = {
    "second derivative": lambda f, p, x: jax.grad(lambda p: sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(f)(p, x))))(p),
    "forward mode": lambda f, p, x: jax.jvp(lambda p: f(p, x), (p,), (p,))[1],
    "forward over reverse": lambda f, p, x: jax.jvp(jax.grad(f), (p, x), (p, x))[1],
    "reverse over forward": lambda f, p, x: jax.grad(lambda p: jax.jvp(lambda p: f(p, x), (p,), (p,))[1])(p),
    "vmap": lambda f, p, x: jax.vmap(f, (None, 0))(p, jnp.stack([x, 2 * x])),
    "vmap of grad": lambda f, p, x: jax.vmap(jax.grad(f), (0, None))(jax.tree.map(lambda a: jnp.stack([a, 2 * a]), p), x),
    "grad of vmap": lambda f, p, x: jax.grad(lambda p: jax.vmap(f, (None, 0))(p, jnp.stack([x, 2 * x])).sum())(p),
    "checkpoint": lambda f, p, x: jax.grad(lambda p: jax.checkpoint(f)(p, x))(p),
    "linearize": lambda f, p, x: jax.linearize(f, p, x)[1](p, x),
    "hessian": lambda f, p, x: jax.hessian(lambda b: f(p._replace(b=b), x))(p.b),
    "vjp made inside vmap, applied outside": lambda f, p, x: _vjp_out_of_vmap(f, p, x),
    "no jit": lambda f, p, x: _without_jit(f, p, x),
}


MAPPED = {  # the axes of xs, state and lengths over which is mapped, and whether that is one call
    "all": ((2, 1, 1), True),
    "inputs": ((0, None, None), True),
    "states": ((None, 1, None), False),
    "lengths": ((None, None, 0), False),
}


@pytest.mark.parametrize(
    ("name", "over", "batch_size"),
    [*(("lstm", over, 4) for over in MAPPED), ("gru", "all", 4), ("rnn", "all", 4), ("lstm", "all", 0)],
)
def test_vmap_over_sequences_is_one_call(name, over, batch_size):
    """Both directions, ragged lengths; values, gradients of a loss over the mapped axis, and of each by itself.

    Sequences that are shared are not copied for it.
    """
    given = sample(name, max(batch_size, 1), 7, 3, 10)
    axes, in_one = MAPPED[over]

    def many(leaf, axis, seed):
        leaf = np.asarray(leaf)[:batch_size]
        if axis is None:
            return leaf
        if leaf.dtype.kind == "i":  # lengths; 0, 1 and T of `leaf` stand in other places
            return np.stack([np.roll(leaf, k) for k in range(3)], axis)
        return np.random.default_rng(seed).normal(size=(*leaf.shape[:axis], 3, *leaf.shape[axis:])).astype(np.float32)

    xs, lengths = many(given.xs, axes[0], 1), many(given.lengths, axes[2], 2)
    state = jax.tree.map(lambda leaf: many(leaf, axes[1], 3), given.state)

    def outputs(backend, params, xs, state, lengths):
        both = ("forward", "backward")
        return s2s_jax.unroll_stack(
            given.cell, [[params] * 2], xs, [[state] * 2], lengths=lengths, directions=both, backend=backend
        )

    def loss(backend, params, xs, state, lengths):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(outputs(backend, params, xs, state, lengths)))

    def everything(backend):
        mapped = jax.vmap(functools.partial(outputs, backend), (None, *axes))
        total = lambda *args: jnp.sum(jax.vmap(functools.partial(loss, backend), (None, *axes))(*args))  # noqa: E731
        each = jax.vmap(jax.grad(functools.partial(loss, backend), argnums=(1, 2)), (None, *axes))
        of_params = jax.vmap(jax.grad(functools.partial(loss, backend)), (None, *axes))
        arguments = given.params, xs, state, lengths
        return mapped(*arguments), jax.grad(total, argnums=(0, 1, 2))(*arguments), each(*arguments), of_params(*arguments)

    assert_close(everything("native"), everything("scan"), TOLERANCE["float32"])
    total = jax.jit(
        jax.grad(
            lambda params, xs: jnp.sum(jax.vmap(functools.partial(loss, "native"), (None, *axes))(params, xs, state, lengths)),
            argnums=(0, 1),
        )
    )
    compiled = total.lower(given.params, xs).compile().as_text()
    assert ("while" not in compiled) == in_one
    assert compiled.count('custom_call_target="s2s_backward"') == 1


@pytest.mark.parametrize("batch_size", [0, 2])
def test_vmap_over_nothing_keeps_the_shape(batch_size):
    given = sample("lstm", max(batch_size, 1), 7, 3, 10)
    xs = np.zeros((0, batch_size, 7, 3), np.float32)
    shapes = [
        jax.tree.map(jnp.shape, jax.vmap(lambda x: tuple(s2s_jax.unroll(given.cell, given.params, x, backend=b)))(xs))  # noqa: B023
        for b in ("native", "scan")
    ]
    assert shapes[0] == shapes[1]


def test_a_jacobian_does_not_copy_what_its_rows_share():
    given = sample("lstm", 2, 50, 3, 10)

    def last(params, backend):
        return s2s_jax.unroll(given.cell, params, given.xs, backend=backend).state.h.ravel()

    jacobian = jax.jit(jax.jacrev(last), static_argnums=1)
    assert_close(jacobian(given.params, "native"), jacobian(given.params, "scan"), TOLERANCE["float32"])
    memory = [jacobian.lower(given.params, b).compile().memory_analysis().temp_size_in_bytes for b in ("native", "scan")]
    saved = 50 * 2 * 5 * 10 * 4
    assert memory[0] < memory[1] + 4 * saved  # and not 20 times `saved`, once for each row


def _vjp_out_of_vmap(f, params, xs):
    _, pull = jax.vmap(lambda x: jax.vjp(lambda p: f(p, x), params))(jnp.stack([xs, 2 * xs]))
    return jax.tree.map(lambda leaf: leaf[1], pull)(jnp.ones(()))


def _without_jit(f, params, xs):
    with jax.disable_jit():
        return jax.grad(f)(params, xs)


@pytest.mark.parametrize("how", TRANSFORMED)
def test_transformations(how):
    given, loss = losses("lstm")
    got, want = (TRANSFORMED[how](functools.partial(loss, backend), given.params, given.xs) for backend in ("native", "scan"))
    assert_close(got, want, TOLERANCE["float32"])


@pytest.mark.parametrize("check", [True, False], ids=["checked", "unchecked"])
def test_shard_map_over_the_batch(check):
    given = sample("gru", 16, 5, 3, 10)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices("cpu")[:8])

    def outputs(backend, params, xs):
        return s2s_jax.unroll(given.cell, params, xs, backend=backend).outputs

    sharded = jax.shard_map(
        functools.partial(outputs, "native"), mesh=mesh, in_specs=(P(), P("batch")), out_specs=P("batch"), check_vma=check
    )
    assert_close(jax.jit(sharded)(given.params, given.xs), outputs("scan", given.params, given.xs), TOLERANCE["float32"])


def test_lowers_for_another_platform_as_scan():
    given, loss = losses("lstm")
    gradient = jax.jit(jax.grad(functools.partial(loss, "native")))
    exported = jax.export.export(gradient, platforms=["tpu"])(given.params, given.xs)
    assert "stablehlo.while" in exported.mlir_module()
    assert "s2s_forward" not in exported.mlir_module()


# What it is chosen for --------------------------------------------------------------------------------------------------


REFUSED = {
    "own cell": ("not a plain", {"cell": cells.make_lstm(peepholes=True)}),
    "dtype": ("float32, and the arrays are of", {"dtype": jnp.bfloat16}),
    "context": ("dropout mask", {"context": jnp.ones((2, 4))}),
    "remat": ("remat", {"remat": 2}),
    "history": ("all states", {"history": True}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_does_not_apply_to(name, monkeypatch):
    reason, changes = REFUSED[name]
    cell = changes.pop("cell", cells.lstm) if name == "own cell" else cells.lstm
    options = {key: value for key, value in changes.items() if key not in ("cell", "dtype")}
    params = cell.init(jax.random.key(0), 3, 4)
    xs = jnp.ones((2, 5, 3), changes.get("dtype", jnp.float32))
    chosen = s2s_jax.explain_backend(cell, params, xs, **options)
    assert chosen.backend == "scan"
    assert reason in chosen.others["native"]
    with pytest.raises(ValueError, match=f"backend: native does not apply: .*{reason}"):
        s2s_jax.explain_backend(cell, params, xs, backend="native", **options)
    # The environment asks for it where it applies, and only there.
    monkeypatch.setenv(VARIABLE, "native")
    assert s2s_jax.explain_backend(cell, params, xs, **options).backend == "scan"
    assert s2s_jax.explain_backend(cells.lstm, params._replace(peephole=None), xs.astype(jnp.float32)).backend == "native"


def test_a_variable_that_names_nothing_is_an_error(monkeypatch):
    monkeypatch.setenv(VARIABLE, "fastest")
    with pytest.raises(ValueError, match="S2S_JAX_BACKEND: expected one of auto, scan, native, diagonal"):
        s2s_jax.unroll(cells.gru, cells.gru.init(jax.random.key(0), 3, 4), jnp.ones((2, 5, 3)))


PROGRAM = """
import logging, os, sys
logging.basicConfig(level=logging.INFO, format="%(message)s")
import jax, jax.numpy as jnp
from s2s_jax import cells, explain_backend, unroll
xs = jax.random.normal(jax.random.key(1), (5, 7, 3))
for cell in (cells.rnn, cells.gru, cells.make_gru(reset="before"), cells.lstm):
    p = jax.tree.map(lambda leaf: leaf + 0.1, cell.init(jax.random.key(0), 3, 20))
    chosen = explain_backend(cell, p, xs)
    print(chosen.backend, chosen.others.get("native"))
    f = lambda p, backend: jnp.sum(unroll(cell, p, xs, lengths=jnp.array([7, 0, 3, 1, 7]), backend=backend).outputs ** 2)
    got, want = jax.jit(jax.grad(f), static_argnums=1)(p, "auto"), jax.grad(f)(p, "scan")
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        assert jnp.max(jnp.abs(a - b)) <= 1e-5 * jnp.max(jnp.abs(b))
    if os.environ.get("CELLS") != "all":
        break
"""


def _run(cache=None, **variables):
    """A process of its own; without a folder of libraries it finds the one that this process has built."""
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", **variables}
    if cache is not None:
        environment["XDG_CACHE_HOME"] = str(cache)
    environment.pop(VARIABLE, None)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _quick_compiler(folder):
    """Without optimisation, in a third of the time."""
    return script(folder / "quick", f'exec {shlex.join(build._compiler())} "$@" -O0')


def _copying_compiler(folder):
    """It takes a second, and the library that this process has built; for who asks no more than when one is built."""
    lines = [
        f'case "$*" in --version) exec {shlex.join(build._compiler())} --version;; esac',
        'while [ "$1" != -o ]; do shift; done',
        f'sleep 1; exec cp {shlex.quote(str(build.build()))} "$2"',
    ]
    return script(folder / "copying", "\n".join(lines))


def test_two_processes_build_at_once_and_auto_takes_it_on_one_device(tmp_path):
    compiler = _copying_compiler(tmp_path)
    running = [_run(tmp_path, CXX=compiler) for _ in range(2)]
    for process in running:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert out.splitlines()[-1] == "native None"
    assert len(list((tmp_path / "s2s_jax" / "native").iterdir())) == 1  # and nothing half-built is left


def test_without_a_compiler_scan_runs_and_the_log_says_so_once(tmp_path):
    process = _run(tmp_path, CXX=str(tmp_path / "no-such-compiler"))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.splitlines()[-1].startswith("scan no C++ compiler was found")
    assert err.count("backend native is not available, scan runs instead: no C++ compiler was found") == 1


def test_a_compiler_that_fails_is_named(tmp_path):
    process = _run(tmp_path, CXX=shutil.which("false"))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.splitlines()[-1].startswith("scan ")
    assert err.count(f"scan runs instead: {shutil.which('false')} --version failed with 1") == 1


def test_a_damaged_library_is_built_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", _copying_compiler(tmp_path))
    library = build.build(folder=tmp_path / "s2s_jax" / "native")
    for damage in (b"", b"nonsense"):
        library.write_bytes(damage)
        out, err = _run(tmp_path).communicate(timeout=300)
        assert out.splitlines()[-1] == "native None", err
        assert err.count("compiling the native backend") == 1


def test_code_is_not_loaded_from_where_others_may_write(tmp_path):
    folder = tmp_path / "s2s_jax" / "native"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="others than this user may write there"):
        build.build(folder=folder)


@pytest.mark.parametrize(
    ("batch", "time", "hidden", "with_avx512", "without"),
    [
        (1, 1, 64, "native", "native"),
        (5, 1, 64, "native", "native"),
        (1, 1, 640, "native", "native"),  # read in place
        (5, 1, 640, "fused", "fused"),
        (1, 1, 630, "fused", "fused"),
        (5, 2, 640, "native", "native"),
        (1, 1, 1216, "fused", "fused"),  # read in place, but so many take longer
        (2, 2, 1216, "fused", "fused"),
        (5, 2, 1216, "fused", "native"),
        (8, 2, 1216, "fused", "native"),
        (10, 2, 1216, "native", "native"),
    ],
)
def test_one_step_is_native_unless_many_weights_had_to_be_arranged(batch, time, hidden, with_avx512, without, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    params = cells.gru.init(jax.random.key(0), 3, hidden)
    for avx512, backend in ((True, with_avx512), (False, without)):
        monkeypatch.setattr(build, "has_avx512", lambda avx512=avx512: avx512)
        assert s2s_jax.explain_backend(cells.gru, params, jnp.ones((batch, time, 3))).backend == backend


@pytest.mark.parametrize(("batch", "time", "few"), [(2, 4, True), (1, 1, True), (64, 2, True), (3, 3, False), (65, 2, False)])
@pytest.mark.parametrize("directions", [("forward",), ("forward", "backward")], ids=len)
def test_few_rows_of_many_weights_are_differentiated_by_fused(batch, time, few, directions):
    """For whom arranging the weights for a native way back takes longer than all else."""
    given = sample("lstm", batch, time, 256, 256)

    def loss(params, xs, state, backend):
        both = [params] * len(directions), [state] * len(directions)
        done = s2s_jax.unroll_stack(
            given.cell, [both[0]], xs, [both[1]], lengths=given.lengths, directions=directions, backend=backend
        )
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(done))

    found = {
        backend: jax.jit(jax.grad(functools.partial(loss, backend=backend), argnums=(0, 1, 2)))
        for backend in ("native", "scan")
    }
    arguments = given.params, given.xs, given.state
    compiled = found["native"].lower(*arguments).compile()
    assert ("s2s_backward" not in compiled.as_text()) == few
    assert_close(compiled(*arguments), found["scan"](*arguments), TOLERANCE["float32"])


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_all_derivatives_of_few_rows_of_many_weights(name):
    given = sample(name, 2, 4, 256, 256)
    assert_close(further_derivatives(given, "native"), further_derivatives(given, "scan"), TOLERANCE["float32"])
    lengths = np.array([3, 1], np.int32)

    def gradient(xs):
        loss = lambda xs: jnp.sum(jnp.sin(s2s_jax.unroll(*given[:2], xs, lengths=lengths, backend="native").outputs))  # noqa: E731
        return jax.grad(loss)(xs)

    np.testing.assert_array_equal(gradient(fill_padding(given.xs, lengths, np.nan)), gradient(given.xs))


def test_portable_code_gives_the_same(tmp_path):
    process = _run(tmp_path, S2S_JAX_NATIVE="portable", CELLS="all", CXX=_quick_compiler(tmp_path))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.splitlines() == ["native None"] * 4


def test_it_can_be_switched_off():
    out, err = _run(S2S_JAX_NATIVE="off").communicate(timeout=300)
    assert out.splitlines()[-1] == "scan S2S_JAX_NATIVE is off", err


def test_what_was_built_is_found_again(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("CXX", _copying_compiler(tmp_path))
    with caplog.at_level(logging.INFO, "s2s_jax"):
        first = build.build(folder=tmp_path / "kept")
        again = build.build(folder=tmp_path / "kept")
    assert first == again
    assert len(caplog.records) == 1
    assert build.build(folder=tmp_path / "kept", flags=("-DANOTHER",)) != first


# Threads and memory -----------------------------------------------------------------------------------------------------


def test_calls_at_once_from_many_threads():
    """XLA runs them on one pool: each must be able to finish alone."""
    given = sample("lstm", 6, 200, 8, 64)
    f = functools.partial(values_and_gradients, *given[:6])
    want = jax.block_until_ready(f())
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: jax.block_until_ready(f()), range(64)):
            assert_close(got, want, TOLERANCE["float32"])


@pytest.mark.parametrize(
    ("sanitizer", "own"),  # what the first adds to the code takes -O1 twice as long to compile
    [("address,undefined", ["-Og"]), ("address,undefined", ["-Og", "-march=native"]), ("thread", ["-O1", "-march=native"])],
    ids=["address portable", "address", "thread"],
)
def test_sanitizers_find_nothing(sanitizer, own, tmp_path):
    """All cells and odd sizes outside of XLA, two layers at once on one pool, with threads that come late or never."""
    program = tmp_path / "driver"
    compiler = build._compiler()
    flags = ["-std=c++17", *own, "-ffp-contract=fast", "-pthread", "-fno-sanitize-recover=all"]
    source = Path(__file__).with_name("native_driver.cc")
    include = Path(native.__file__).parent
    subprocess.run([*compiler, *flags, f"-fsanitize={sanitizer}", f"-I{include}", str(source), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]


def test_layers_take_it():
    layer = layers.LSTM(3, 20, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0), backend="native")
    xs = jax.random.normal(jax.random.key(0), (4, 6, 3))
    want = layers.LSTM(3, 20, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0), backend="scan")
    assert_close(layer(xs).outputs, want(xs).outputs, TOLERANCE["float32"])
