"""Backend `persistent`: its kernels compiled for a CPU (folder cuda_on_cpu), and for a GPU where there is nvcc."""

import collections
import functools
import itertools
import re
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import s2s_jax
from s2s_jax import layers
from s2s_jax.recurrence import library, persistent
from s2s_jax.recurrence.choice import BACKENDS
from s2s_jax.recurrence.persistent import build, plan
from s2s_jax.types import Unrolled
from tests import oracles
from tests.recurrence import cuda_on_cpu
from tests.recurrence.scripts import script
from tests.samples import (
    TOLERANCE,
    Gradients,
    assert_close,
    cast,
    fill_padding,
    further_derivatives,
    ragged_lengths,
    weighted_sum,
)
from tests.samples import sample as wild_sample

KNOWN = ("rnn", "rnn_relu", "rnn_no_bias", "lstm", "lstm_relu", "lstm_no_bias", "gru", "gru_relu", "gru_no_bias")
THREE = ("rnn", "lstm", "gru")
NUMBERS = itertools.count()
FOUR_BLOCKS = plan.Device(4, 232448)
# Objects that stay the same, so that a program is traced once.
BACKWARD = functools.partial(s2s_jax.unroll, reverse=True)
STACK_BACKWARD = functools.partial(s2s_jax.unroll_stack, directions=("backward",))
forward_and_reverse = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


@pytest.fixture
def on_cpu(monkeypatch):
    """Makes a backend, under a name that no compiled program has been kept under, that runs the kernels on the CPU.

    `splits` are those of the passes, instead of what `plan` takes for the best.
    """

    def make(device=FOUR_BLOCKS, exact=True, splits=None, of_each=1, load=cuda_on_cpu.load):
        monkeypatch.setattr(persistent, "_why_not_here", lambda directions: None)
        monkeypatch.setattr(build, "load", functools.partial(load, device=device, exact=exact, of_each=of_each))
        if splits is not None:
            monkeypatch.setattr(plan, "best", lambda layer, way, device: plan.Split(*splits[way]))
        name = f"on_cpu-{next(NUMBERS)}"
        monkeypatch.setitem(BACKENDS, name, persistent.BACKEND)
        return name

    return make


def sample(name, *sizes, seed=5):
    """With recurrent weights that do not make states explode, where rounding would be all that there is to compare."""
    given = wild_sample(name, *sizes, seed=seed)
    return given._replace(params=given.params._replace(u=given.params.u / np.sqrt(np.float32(sizes[-1]))))


@functools.partial(jax.jit, static_argnames=("carry", "cell", "backend"))
def _values_and_gradients(carry, cell, params, xs, state, lengths, weights, *, backend):
    def loss(params, xs, state):
        done = carry(cell, params, xs, state, lengths=lengths, backend=backend)
        return weighted_sum(done, weights), done

    gradients, done = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(params, xs, state)
    return done, Gradients(*gradients)


def values_and_gradients(given, backend, reverse=False):
    carry = BACKWARD if reverse else s2s_jax.unroll
    return jax.tree.map(np.asarray, _values_and_gradients(carry, *given[:6], backend=backend))


# Values and gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "reverse"), [(name, k % 2 == 0) for k, name in enumerate(KNOWN)], ids=str)
def test_values_and_gradients_equal_those_of_scan(name, reverse, on_cpu):
    given = sample(name, 5, 6, 3, 20)._replace(lengths=None)
    want = values_and_gradients(given, "scan", reverse)
    assert_close(values_and_gradients(given, on_cpu(), reverse), want, TOLERANCE["float32"])


@pytest.mark.parametrize("name", THREE)
@forward_and_reverse
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (20, 7, 2, 33)], ids=str)
def test_equals_pytorch(name, reverse, sizes, on_cpu):
    given = sample(name, *sizes)
    weights = Unrolled(given.weights.outputs, ((given.weights.state,),))
    nested = [[given.params]], given.xs, [[given.state]], given.lengths, weights
    done, gradients = oracles.torch_stack(given.cell, *nested, directions=("backward",) if reverse else ("forward",))
    want = Unrolled(done.outputs, done.state[0][0]), Gradients(gradients.params[0][0], gradients.xs, gradients.state[0][0])
    assert_close(values_and_gradients(given, on_cpu(), reverse), want, TOLERANCE["float32"])


# A cell, units, and batch, steps, features; of both passes units, tiles of rows and of the batch.
SPLITS = [
    ("lstm", 37, (20, 3, 2), (12, 3, 1), (16, 1, 2)),
    ("lstm", 21, (20, 3, 2), (8, 2, 2), (7, 1, 4)),
    ("lstm", 144, (9, 2, 2), (16, 4, 4), (32, 2, 4)),  # weights in shared memory too
    ("lstm", 70, (33, 2, 2), (16, 4, 2), (32, 2, 1)),
    ("gru", 37, (20, 3, 2), (16, 3, 4), (16, 1, 1)),
    ("gru", 30, (9, 3, 2), (10, 2, 1), (30, 2, 2)),
    ("gru", 41, (9, 3, 2), (21, 4, 2), (16, 1, 2)),
    ("rnn", 144, (33, 3, 2), (64, 4, 4), (32, 2, 4)),
    ("rnn", 50, (9, 3, 2), (48, 3, 2), (16, 1, 4)),
]


@pytest.mark.parametrize(
    ("name", "hidden", "sizes", "forward", "backward", "dtype"),
    [*((*split, "float32") for split in SPLITS), *((*split, "bfloat16") for split in SPLITS[:4])],
    ids=str,
)
def test_however_a_layer_is_divided(name, hidden, sizes, forward, backward, dtype, on_cpu):
    """And the plan knows the shared memory that its kernels take."""
    given = sample(name, *sizes, hidden)
    backend = on_cpu(cuda_on_cpu.HOPPER, splits={"forward": forward, "backward": backward})
    if dtype == "float32":
        assert_close(values_and_gradients(given, backend), values_and_gradients(given, "scan"), TOLERANCE["float32"])
    else:
        assert_near_the_truth(given, backend, dtype, reverse=True)
    layer = plan.Layer(given.cell.spec.gates, hidden, sizes[0], 1, jnp.dtype(dtype).itemsize)
    asked = [cuda_on_cpu.compiled(name.upper(), dtype).cuda_on_cpu_asked(ago) for ago in (1, 0)]
    want = [plan.shared_bytes(layer, way, plan.Split(*split)) for way, split in (("forward", forward), ("backward", backward))]
    assert asked == want


def assert_near_the_truth(given, backend, dtype, reverse=False, tolerance=None, of=values_and_gradients):
    """In a narrow dtype, against float64 at the same rounded numbers; outputs are of that dtype and the state of float32."""
    dtype = jnp.dtype(dtype)
    params, xs, weights = jax.tree.map(lambda x: np.asarray(jnp.asarray(x, dtype), np.float32), (given[1], given[2], given[5]))
    with jax.enable_x64(True):
        exact = given._replace(params=params, xs=xs, weights=weights)
        truth = of(exact._replace(**cast(_arrays(exact), "float64")), "scan", reverse)
    narrow = given._replace(
        params=_as(dtype, params), xs=_as(dtype, xs), weights=weights._replace(outputs=_as(dtype, weights.outputs))
    )
    got = of(narrow, backend, reverse)
    assert got[0].outputs.dtype == dtype
    assert {leaf.dtype.name for leaf in jax.tree.leaves(got[0].state)} == {"float32"}
    assert_close(jax.tree.map(np.float64, got), truth, tolerance or 6 * float(jnp.finfo(dtype).eps))


def _arrays(given):
    return {"params": given.params, "xs": given.xs, "state": given.state, "weights": given.weights}


def _as(dtype, tree):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def test_numbers_near_zero_keep_their_digits(on_cpu):
    """Of 1 - e^(-2 x) few would be left."""
    given = sample("rnn_no_bias", 3, 6, 4, 9, seed=7)
    xs, state, backend = 1e-5 * given.xs, 1e-5 * given.state, on_cpu()
    want, got = (s2s_jax.unroll(given.cell, given.params, xs, state, backend=name).outputs for name in ("scan", backend))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-11)


@pytest.mark.parametrize(("name", "dtype"), [("gru", "bfloat16"), ("rnn", "bfloat16"), ("lstm", "float16")])
def test_narrow_dtypes(name, dtype, on_cpu):
    assert_near_the_truth(sample(name, 5, 6, 3, 40), on_cpu(), dtype)


def test_the_way_back_reads_the_memory_as_it_was(on_cpu):
    """Not as rounded gates would make it anew: here both terms of c are a thousand times c, of which h_0's gradient is made."""
    given = sample("lstm_relu", 2, 1, 3, 16)
    i, f, g, o = np.linspace(-1, 1, 16), np.linspace(1, 2, 16), np.full(16, 64.0), np.full(16, 0.5)
    b = np.asarray(jnp.asarray(np.concatenate([i, f, g, o]), jnp.bfloat16), np.float64)
    logistic = 1 / (1 + np.exp(-b))
    c_0 = (0.05 - logistic[:16] * 64) / logistic[16:32]  # so that c is 0.05
    of_o_alone = given.params.u * np.repeat(np.array([0, 0, 0, 1], np.float32), 16)
    state = given.state._replace(h=np.zeros((2, 16), np.float32), c=np.float32(np.stack([c_0, c_0])))
    params = given.params._replace(u=of_o_alone, b=np.float32(b))
    crafted = given._replace(params=params, xs=np.zeros_like(given.xs), state=state, lengths=None)
    assert_near_the_truth(crafted, on_cpu(), "bfloat16")


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_float32_enters_products_as_tf32(name, on_cpu):
    """Near the truth as TF32 is, and not nearer: with numbers of 10 bits behind the point."""
    given = sample(name, 5, 6, 3, 40)
    backend = on_cpu(exact=False)
    assert_near_the_truth(given, backend, "float32", tolerance=2e-3)
    with pytest.raises(AssertionError, match="differs by"):
        assert_near_the_truth(given, backend, "float32", tolerance=1e-5)


@pytest.mark.parametrize(("name", "reverse"), [("rnn", True), ("lstm", False), ("gru", True)])
def test_padding_reaches_nothing(name, reverse, on_cpu):
    given, backend = sample(name, 5, 8, 3, 19), on_cpu()
    want = values_and_gradients(given, backend, reverse)
    padded = np.arange(8)[None] >= given.lengths[:, None]
    filled = given._replace(
        xs=fill_padding(given.xs, given.lengths, np.nan),
        weights=given.weights._replace(outputs=fill_padding(given.weights.outputs, given.lengths, np.nan)),
    )
    assert_close(values_and_gradients(given._replace(xs=filled.xs), backend, reverse), want, 0.0)
    assert_close(values_and_gradients(filled, backend, reverse)[1], want[1], 0.0)
    np.testing.assert_array_equal(want[0].outputs[padded], 0)
    np.testing.assert_array_equal(want[1].xs[padded], 0)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a[given.lengths == 0], b[given.lengths == 0]), want[0].state, given.state
    )


def test_no_row_reaches_the_end(on_cpu):
    """Steps that all rows of a tile lack are not run, and what stands there is zero."""
    given = sample("lstm", 12, 9, 3, 20)._replace(lengths=np.array([3, 0, 2, 5, 1, 1, 4, 2, 0, 0, 0, 0], np.int32))
    for reverse in (False, True):
        got, want = (values_and_gradients(given, backend, reverse) for backend in (on_cpu(), "scan"))
        assert_close(got, want, TOLERANCE["float32"])


@pytest.mark.parametrize(("name", "multiprocessors"), [("lstm", 8), ("gru", 8), ("lstm", 3), ("gru", 1)])
def test_both_directions_and_layers(name, multiprocessors, on_cpu):
    """At once, and where there is room for only one of the directions one after the other."""
    cell = {"lstm": layers.LSTM, "gru": layers.GRU}[name]
    made = {
        backend: cell(3, 20, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0), backend=backend)
        for backend in (on_cpu(plan.Device(multiprocessors, 232448)), "scan")
    }
    xs, lengths = jax.random.normal(jax.random.key(0), (9, 6, 3)), jnp.asarray(ragged_lengths(9, 6))

    def gradients(layer):
        def loss(layer, xs):
            outputs, states = layer(xs, lengths=lengths)
            return jnp.sum(jnp.sin(outputs)) + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(states))

        weights, xs_gradient = nnx.grad(loss, argnums=(0, 1))(layer, xs)
        return jax.tree.leaves(weights), xs_gradient

    got, want = (gradients(layer) for layer in made.values())
    assert_close(got, want, TOLERANCE["float32"])


# Stacks -----------------------------------------------------------------------------------------------------------------


def stack_of(name, hidden, layers, batch=9, time=6, features=3):
    """A sample whose parameters, states and their weights are those of layers, as `unroll_stack` takes them."""
    given = [sample(name, batch, time, features if k == 0 else hidden, hidden, seed=5 + k) for k in range(layers)]
    params = [[one.params._replace(w=one.params.w / np.sqrt(np.float32(len(one.params.w))))] for one in given]
    weights = Unrolled(given[0].weights.outputs, tuple((one.weights.state,) for one in given))
    return given[0]._replace(params=params, state=[[one.state] for one in given], weights=weights)


def of_stack(given, backend, reverse=False):
    carry = STACK_BACKWARD if reverse else s2s_jax.unroll_stack
    return jax.tree.map(np.asarray, _values_and_gradients(carry, *given[:6], backend=backend))


def _count(program):
    """Launches of the way there in the text of a traced program, by kernel."""
    return dict(collections.Counter(re.findall(r"s2s_persistent_forward_(\w+)_float32", program)))


def launches(given, backend):
    return _count(str(jax.make_jaxpr(functools.partial(of_stack_alone, given.cell, backend=backend))(*given[1:4])))


def of_stack_alone(cell, params, xs, states, *, backend):
    return s2s_jax.unroll_stack(cell, params, xs, states, backend=backend)


@pytest.mark.parametrize("name", [*THREE, "lstm_no_bias", "gru_relu"])
@forward_and_reverse
def test_a_stack_in_one_launch(name, reverse, on_cpu):
    """Equals PyTorch's, which has no stack that only runs backward, and `scan`'s."""
    given, backend = stack_of(name, 20, 3, batch=17), on_cpu(plan.Device(24, 232448))
    assert launches(given, backend) == {f"Stacked{name.split('_')[0].upper()}": 1}
    got = of_stack(given, backend, reverse)
    if reverse or name not in THREE:
        assert_close(got, of_stack(given, "scan", reverse), TOLERANCE["float32"])
    else:
        done, gradients = oracles.torch_stack(*given[:6])
        assert_close(got, (done, Gradients(*gradients)), TOLERANCE["float32"])


# A cell, units, layers, and batch, steps, features; of both passes units, tiles of rows and of the batch.
STACK_SPLITS = [
    ("lstm", 70, 2, (33, 3, 2), (16, 4, 2), (32, 2, 1)),
    ("gru", 37, 3, (20, 3, 2), (12, 3, 4), (16, 1, 1)),
    ("gru", 144, 2, (9, 2, 2), (16, 4, 4), (32, 2, 4)),  # weights in shared memory too
    ("rnn", 50, 8, (9, 3, 2), (48, 3, 2), (16, 1, 4)),
]


@pytest.mark.parametrize(("name", "hidden", "layers", "sizes", "forward", "backward"), STACK_SPLITS, ids=str)
@pytest.mark.parametrize("at_once", ["all", "one"])
def test_however_a_stack_is_divided(name, hidden, layers, sizes, forward, backward, at_once, on_cpu, monkeypatch):
    """Also where the device has room for one tile of rows alone: there is one launch after the other."""
    monkeypatch.setattr(plan, "gains_by_stacking", lambda *_: True)
    given = stack_of(name, hidden, layers, *sizes)
    of_one = layers * -(-hidden // min(forward[0], backward[0]))
    device = cuda_on_cpu.HOPPER if at_once == "all" else plan.Device(of_one, 232448)
    backend = on_cpu(device, splits={"forward": forward, "backward": backward})
    assert_close(of_stack(given, backend), of_stack(given, "scan"), TOLERANCE["float32"])
    layer = plan.Layer(given.cell.spec.gates, hidden, sizes[0], layers, 4, steps=sizes[1])
    asked = [cuda_on_cpu.compiled(f"Stacked{name.upper()}", "float32").cuda_on_cpu_asked(ago) for ago in (1, 0)]
    want = [plan.shared_bytes(layer, way, plan.Split(*split)) for way, split in (("forward", forward), ("backward", backward))]
    assert asked == want


@pytest.mark.parametrize(("name", "dtype"), [("lstm", "bfloat16"), ("gru", "bfloat16"), ("gru", "float16")])
def test_a_stack_of_a_narrow_dtype(name, dtype, on_cpu):
    assert_near_the_truth(stack_of(name, 20, 3), on_cpu(plan.Device(24, 232448)), dtype, of=of_stack)


def test_padding_reaches_nothing_in_a_stack(on_cpu):
    given, backend = stack_of("gru", 19, 2, time=8), on_cpu(plan.Device(24, 232448))
    want = of_stack(given, backend)
    weights = given.weights._replace(outputs=fill_padding(given.weights.outputs, given.lengths, np.nan))
    filled = given._replace(xs=fill_padding(given.xs, given.lengths, np.nan), weights=weights)
    assert_close(of_stack(filled, backend)[1], want[1], 0.0)
    assert_close(of_stack(given._replace(xs=filled.xs), backend), want, 0.0)
    np.testing.assert_array_equal(want[0].outputs[np.arange(8)[None] >= given.lengths[:, None]], 0)


def test_further_derivatives_of_a_stack(on_cpu):
    """Forward mode and second derivatives are those of `scan`; under `vmap` there is one launch after the other."""
    given, backend = stack_of("lstm", 9, 2, batch=2, time=3), on_cpu(plan.Device(24, 232448))

    def derivatives(backend):
        def loss(xs):
            done = of_stack_alone(given.cell, given.params, xs, given.state, backend=backend)
            return jnp.sum(jnp.sin(done.outputs)) + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(done.state))

        of_each = jax.vmap(jax.grad(loss))(jnp.stack([given.xs, 2 * given.xs]))
        return jax.jvp(jax.grad(loss), (given.xs,), (jnp.ones_like(given.xs),)), of_each

    assert_close(derivatives(backend), derivatives("scan"), TOLERANCE["float32"])


@pytest.mark.parametrize(
    ("changed", "kernels"),
    [
        ({}, {"StackedLSTM": 1}),
        ({"widths": [20] * 9, "multiprocessors": 132}, {"LSTM": 9}),
        ({"widths": [20, 21]}, {"LSTM": 2}),
        ({"multiprocessors": 2}, {"LSTM": 3}),
        ({"guess": False}, {"LSTM": 3}),
        ({"scratch": 10_000}, {"LSTM": 3}),
        ({"directions": 2}, {"LSTM": 3}),
        ({"residual": True}, {"LSTM": 3}),
    ],
    ids=str,
)
def test_which_stacks_go_in_one_launch(changed, kernels, on_cpu, monkeypatch):
    """The others go layer by layer; on two multiprocessors there is room for the weights of one at a time."""
    if "guess" in changed:
        monkeypatch.setattr(plan, "gains_by_stacking", lambda *_: changed["guess"])
    if "scratch" in changed:
        monkeypatch.setattr(plan, "MOST_SCRATCH", changed["scratch"])
    backend = on_cpu(plan.Device(changed.get("multiprocessors", 24), 232448))
    both = ("forward", "backward")[: changed.get("directions", 1)]
    widths = changed.get("widths", [20, 20, 20])
    params, features = [], 3
    for hidden in widths:
        params.append([sample("lstm", 2, 3, features, hidden).params for _ in both])
        features = hidden * len(both)
    given = sample("lstm", 2, 3, 3, 20)

    def carried(xs):
        options = {"directions": both, "residual": changed.get("residual", False), "backend": backend}
        return s2s_jax.unroll_stack(given.cell, params, xs, **options)

    text = str(jax.make_jaxpr(carried)(given.xs))
    assert _count(text) == kernels


def test_a_mask_of_an_upper_layer_counts(on_cpu, monkeypatch):
    """Of a stack whose lowest layer the kernels know."""
    given, masks = stack_of("lstm", 20, 2), [[None], [np.linspace(0, 2, 9 * 20, dtype=np.float32).reshape(9, 20)]]

    def outputs():
        return s2s_jax.unroll_stack(given.cell, given.params, given.xs, given.state, contexts=masks).outputs

    want = outputs()
    monkeypatch.setenv("S2S_JAX_BACKEND", on_cpu(plan.Device(24, 232448)))
    assert_close(outputs(), want, TOLERANCE["float32"])


def test_when_a_stack_gains():
    """Not where a device has so little room that its steps take as long as those of its layers together."""
    small, large = plan.Layer(4, 256, 16, 1, 2), plan.Layer(4, 512, 128, 1, 2)
    for layer, gains in ((small, True), (large, False)):
        assert plan.fits(plan.stack(layer, 4, 1024), cuda_on_cpu.HOPPER)
        assert plan.gains_by_stacking(layer, 4, 1024, cuda_on_cpu.HOPPER) == gains
    assert not plan.gains_by_stacking(small, 4, 1, cuda_on_cpu.HOPPER)  # one layer waits for the other anyway


def test_the_memory_of_a_stack_grows_with_its_steps():
    """And is refused where it is more than a device has to spare."""
    layer = plan.Layer(3, 128, 1, 1, 4)
    bytes_of = [plan.most_scratch_bytes(plan.stack(layer, 8, steps), cuda_on_cpu.HOPPER) for steps in (1000, 1_000_000)]
    assert 999 < bytes_of[1] / bytes_of[0] < 1001
    assert bytes_of[0] < plan.MOST_SCRATCH < bytes_of[1]


@pytest.mark.parametrize("of_each", [1, 2])
def test_more_rows_than_fit_at_once_take_several_launches(of_each, on_cpu):
    """Also where multiprocessors have room for more blocks than the plan, and so the scratch memory, counts on."""
    given = sample("lstm", 41, 3, 2, 20)
    splits = {"forward": (10, 3, 1), "backward": (10, 1, 1)}  # two blocks for each of six tiles, of which two fit
    got = values_and_gradients(given, on_cpu(splits=splits, of_each=of_each))
    assert_close(got, values_and_gradients(given, "scan"), TOLERANCE["float32"])


def test_other_derivatives_and_vmap(on_cpu):
    """Forward mode and second derivatives are those of `scan`; under `vmap` there is one launch after the other."""
    given, name = sample("gru", 3, 4, 3, 9), on_cpu()
    assert_close(further_derivatives(given, name), further_derivatives(given, "scan"), TOLERANCE["float32"])


def test_shard_map_over_the_batch(on_cpu):
    given, lengths, name = sample("lstm", 16, 6, 3, 9), ragged_lengths(16, 6), on_cpu()
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices("cpu")[:8])

    def forward(params, xs, state, lengths, backend):
        return s2s_jax.unroll(given.cell, params, xs, state, lengths=lengths, backend=backend).outputs

    def gradients(f):
        return jax.jit(jax.grad(lambda *args: weighted_sum(f(*args), given.weights.outputs), argnums=(0, 1, 2)))

    specs = (P(), P("batch"), P("batch"), P("batch"))
    sharded = jax.shard_map(functools.partial(forward, backend=name), mesh=mesh, in_specs=specs, out_specs=P("batch"))
    want = gradients(functools.partial(forward, backend="scan"))(*given[1:4], lengths)
    assert_close(gradients(sharded)(*given[1:4], lengths), want, TOLERANCE["float32"])


@pytest.mark.parametrize("name", THREE)
def test_lowers_for_cuda(name, on_cpu):
    given, backend = sample(name, 4, 6, 3, 16), on_cpu()

    def loss(params, xs):
        return weighted_sum(s2s_jax.unroll(given.cell, params, xs, given.state, backend=backend), given.weights)

    targets = [build.target(way, name.upper(), "float32") for way in build.PASSES]
    allowed = [jax.export.DisabledSafetyCheck.custom_call(target) for target in targets]
    exported = jax.export.export(jax.jit(jax.grad(loss)), platforms=("cuda",), disabled_checks=allowed)(given.params, given.xs)
    assert all(target in exported.mlir_module() for target in targets)


@pytest.mark.accelerator
@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("sizes", [(20, 37, 16, 200), (3, 200, 8, 520), (140, 5, 8, 64)], ids=str)
def test_on_a_gpu(name, dtype, sizes):
    """As on a CPU, with blocks that run at the same time; and the same bits each time, where a race would show."""
    given = sample(name, *sizes)
    for reverse in (False, True):
        assert_near_the_truth(given, "persistent", dtype, reverse, tolerance=2e-3 if dtype == "float32" else None)
    again = [values_and_gradients(given, "persistent") for _ in range(5)]
    for other in again[1:]:
        assert_close(other, again[0], 0.0)


@pytest.mark.accelerator
@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("sizes", [(256, 4, 16, 200), (128, 8, 3, 520)], ids=str)
def test_a_stack_on_a_gpu(name, sizes, monkeypatch):
    """Blocks of layers that run ahead of each other; and the same bits each time, where a race would show."""
    monkeypatch.setattr(plan, "gains_by_stacking", lambda *_: True)
    hidden, depth, batch, time = sizes
    given = stack_of(name, hidden, depth, batch, time)
    for reverse in (False, True):
        assert_near_the_truth(given, "persistent", "float32", reverse, tolerance=2e-3, of=of_stack)
    again = [of_stack(given, "persistent") for _ in range(5)]
    for other in again[1:]:
        assert_close(other, again[0], 0.0)


# What it does not do ----------------------------------------------------------------------------------------------------


def test_without_a_gpu_it_says_so():
    given = sample("lstm", 2, 3, 3, 4)
    needed = r"it needs an NVIDIA GPU of compute capability 9.0 \(Hopper\), .* platform 'cpu'"
    with pytest.raises(ValueError, match=f"backend: persistent does not apply: {needed}"):
        s2s_jax.unroll(*given[:4], backend="persistent")
    assert needed.split(" of")[0] in s2s_jax.explain_backend(*given[:3]).others["persistent"]


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("gru_before", {}, "the cell is not a plain RNN, LSTM or GRU"),
        ("lstm_peepholes", {}, "the cell is not a plain"),
        ("counting", {}, "the cell is not a plain"),
        ("lstm", {"context": np.ones((2, 4), np.float32)}, "context: it has no recurrent dropout"),
        ("lstm", {"remat": 2}, "remat: it keeps what its backward pass needs"),
        ("lstm", {"time": 0}, "there are no elements in xs"),
        ("lstm", {"batch": 0}, "there are no elements in xs"),
        ("lstm", {"hidden": 700}, "weights of 700 units in one direction do not stay in 4 multiprocessors"),
    ],
    ids=str,
)
def test_what_it_does_not_apply_to(name, change, reason, on_cpu):
    given = wild_sample(name, change.pop("batch", 2), change.pop("time", 3), 3, change.pop("hidden", 4))
    with pytest.raises(ValueError, match=reason):
        s2s_jax.unroll(*given[:4], backend=on_cpu(), **change)


def test_history_and_float64_are_refused(on_cpu, float64):
    given, name = sample("lstm", 2, 3, 3, 4), on_cpu()
    with pytest.raises(ValueError, match="history: it returns the last state only"):
        s2s_jax.unroll_with_history(*given[:4], backend=name)
    with pytest.raises(ValueError, match="and xs is float64"):
        s2s_jax.unroll(given.cell, *cast(given[1:4], "float64"), backend=name)


@pytest.mark.parametrize("sizes", [(3, 0), (0, 4)], ids=str)
def test_nothing_to_carry_falls_back(sizes, on_cpu, monkeypatch):
    monkeypatch.setenv("S2S_JAX_BACKEND", on_cpu())
    given = sample("lstm", *sizes, 3, 4)
    assert_close(values_and_gradients(given, "auto"), values_and_gradients(given, "scan"), 0.0)


def test_blocks_that_do_not_fit_are_an_error_and_not_a_wait(on_cpu):
    """The device turns out smaller than what the layer was divided for."""
    given = sample("lstm", 2, 3, 3, 20)

    def smaller(cell, dtype, device, **_):
        cuda_on_cpu.load(cell, dtype, plan.Device(2, 232448))
        return build.Loaded(device, None)

    splits = {"forward": (4, 1, 1), "backward": (4, 1, 1)}
    with pytest.raises(Exception, match="the blocks of a team do not fit onto the device at the same time"):
        values_and_gradients(given, on_cpu(splits=splits, load=smaller))


def test_auto_does_not_choose_it(on_cpu):
    """Until it has been measured."""
    on_cpu()
    chosen = s2s_jax.explain_backend(*sample("lstm", 2, 3, 3, 4)[:3])
    assert chosen.others["persistent"] == "it is taken by name alone"


def test_explaining_compiles_it_only_where_it_was_asked_for(on_cpu, monkeypatch):
    loaded = []

    def load(*kind, **_):
        loaded.append(kind)
        return build.Loaded(None, "there is no compiler")

    on_cpu(load=load)
    given = sample("lstm", 2, 3, 3, 4)[:3]
    for backend in ("auto", "scan"):
        assert s2s_jax.explain_backend(*given, backend=backend).backend != "persistent"
    assert "remat" in s2s_jax.explain_backend(*given, remat=1).others["persistent"]
    assert loaded == []
    monkeypatch.setenv("S2S_JAX_BACKEND", "persistent")
    assert s2s_jax.explain_backend(*given).others["persistent"] == "there is no compiler"
    assert loaded


# How a layer is divided -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gates", "hidden", "batch", "directions", "element_bytes"),
    [
        (4, 768, 16, 1, 2),
        (4, 512, 16, 1, 2),
        (4, 768, 16, 1, 4),
        (3, 512, 16, 1, 2),
        (4, 256, 16, 2, 2),
        (4, 1024, 128, 1, 2),
        (4, 320, 20, 1, 2),
        (4, 1024, 16, 1, 4),
        (4, 1536, 16, 1, 2),
    ],
)
def test_layers_that_people_have_fit_a_hopper(gates, hidden, batch, directions, element_bytes):
    layer = plan.Layer(gates, hidden, batch, directions, element_bytes)
    for way in build.PASSES:
        split = plan.best(layer, way, cuda_on_cpu.HOPPER)
        assert split is not None
        assert plan.blocks(layer, split) * directions <= 132
        assert plan.shared_bytes(layer, way, split) <= 232448


def test_what_does_not_fit_has_no_plan():
    assert plan.best(plan.Layer(4, 4096, 1, 1, 2), "forward", cuda_on_cpu.HOPPER) is None
    assert plan.best(plan.Layer(4, 2048, 1, 1, 4), "forward", cuda_on_cpu.HOPPER) is None


# Building ---------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(cuda_on_cpu.nvcc() is None, reason="there is no nvcc")
@pytest.mark.parametrize("cell", ["GRU", "StackedGRU"])
def test_compiles_for_hopper(cell, tmp_path):
    path = build.build(cell, "bfloat16", tmp_path)
    symbols = subprocess.run(["nm", "-D", str(path)], capture_output=True, text=True, check=True).stdout
    assert all(f" s2s_persistent_{way}\n" in symbols for way in build.PASSES)
    assert build.build(cell, "bfloat16", tmp_path) == path


def test_without_nvcc_the_log_says_so_once(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("NVCC", str(tmp_path / "no-such-compiler"))
    build._load.cache_clear()
    try:
        reasons = {build.load("LSTM", "float32").why_not for _ in range(2)}
    finally:
        build._load.cache_clear()
    assert len(reasons) == 1
    assert "nvcc was not found" in reasons.pop()
    assert len([record for record in caplog.records if "backend persistent is not available" in record.message]) == 1


def test_a_misspelt_setting_is_an_error(monkeypatch):
    monkeypatch.setenv("S2S_JAX_PERSISTENT", "of")
    build._load.cache_clear()
    with pytest.raises(ValueError, match="S2S_JAX_PERSISTENT: expected on or off, got 'of'"):
        build.load("LSTM", "float32")


def test_a_library_is_named_after_whatever_it_is_made_of(tmp_path):
    """Also after the names of its files, where one ends and the next begins, and the compiler that nvcc gives C++ to."""
    files, version = [tmp_path / "a.h", tmp_path / "b.h"], tmp_path / "version"
    compiler = [script(tmp_path / "nvcc", f'case "$*" in --version) echo 13;; -E*) cat {version};; *) touch "$4";; esac')]

    def name(*contents, named=files, host="gcc 14"):
        for path, content in zip(named, contents, strict=True):
            path.write_text(content)
        version.write_text(host)
        machine = build.recipe(compiler, (), "GRU", "float32", []).machine
        return library.compiled(library.Recipe(compiler, ["-c", "x"], named, machine, ""), tmp_path / "kept", "library").name

    first = name("one", "two")
    assert name("one", "two") == first
    assert len({first, name("onet", "wo"), name("one", "two", named=files[::-1]), name("one", "two", host="gcc 15")}) == 4


def test_a_damaged_library_that_another_process_has_removed_already(tmp_path, monkeypatch):
    path, builds = tmp_path / "library.so", []

    def build_it(folder):
        builds.append(folder)
        path.touch()
        return path

    def registered(path, _):
        if len(builds) == 1:
            path.unlink()
            raise OSError("file too short")
        return "loaded"

    monkeypatch.setattr(library, "_registered", registered)
    assert library.opened(build_it, print) == "loaded"
    assert builds == [None, None]


def test_a_compiler_is_waited_for_no_longer_than_was_said(tmp_path, monkeypatch):
    compiler = [script(tmp_path / "nvcc", 'case "$*" in --version|-E*) echo 13;; *) exec sleep 60;; esac')]
    monkeypatch.setenv("NVCC", compiler[0])
    with pytest.raises(subprocess.TimeoutExpired, match=r"timed out after 0\.1 seconds"):
        build.build("GRU", "float32", tmp_path / "kept", seconds=0.1)
