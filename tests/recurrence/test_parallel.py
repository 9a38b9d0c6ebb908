"""Backend `parallel` against `scan`: that it converges to the same, and that it falls back where it does not."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import s2s_jax
from s2s_jax import cells, unroll, unroll_in_parallel
from s2s_jax.recurrence import Newton, by_hand, parallel
from s2s_jax.recurrence.affine import layout_of
from s2s_jax.types import Cell
from tests.recurrence.test_fused import values_and_gradients, with_mask
from tests.samples import (
    LIBRARY_CELLS,
    TOLERANCE,
    assert_close,
    fill_padding,
    ragged_lengths,
    random_like,
    sample,
    weighted_sum,
)

# One of each kind: what differs in a bias or an activation alone is left to the tests of the cells.
EVERY = ("rnn", "lstm", "lstm_projection", "lstm_layer_norm", "lstm_everything", "gru", "gru_before_no_bias")
EVERY += ("diagonal_rnn", "diagonal_lstm", "diagonal_gru", "min_gru", "min_lstm", "lru", "embedding", "tree")
BY_HAND = ("rnn", "lstm", "gru", "gru_before")


def solved(given, *, reverse=False, **newton):
    return unroll_in_parallel(
        given.cell,
        given.params,
        given.xs,
        given.state,
        lengths=given.lengths,
        context=given.context,
        reverse=reverse,
        newton=Newton(**newton),
    )


@pytest.fixture
def reports(monkeypatch):
    """(iterations, whether it converged) of every solve, of gradients too, in their order; call it to read and empty them."""
    told, real = [], parallel.parallel_scan

    def telling(*args, **options):
        *done, report = real(*args, **options)
        jax.debug.callback(lambda count, right: told.append((int(count), bool(right))), report.iterations, report.converged)
        return *done, report

    def read():
        jax.effects_barrier()
        found = told.copy()
        told.clear()
        return found

    monkeypatch.setattr(parallel, "parallel_scan", telling)
    return read


def iterations_of_an_equal_answer(given, reverse, reports):
    """Values and gradients are those of `scan`, and neither the way along time nor the way back is a fallback's."""
    got, want = (values_and_gradients(given, backend, reverse=reverse) for backend in ("parallel", "scan"))
    (forward, converged), (_, back_converged) = reports()
    assert converged
    assert back_converged
    assert_close(got[1], want[1], TOLERANCE["float32"])
    assert_close(got[0], want[0], 1e-4)
    done = solved(given, reverse=reverse)
    assert_close((done.outputs, done.state), tuple(want[1]), TOLERANCE["float32"])
    assert int(done.solved.iterations) == forward
    return forward


@pytest.mark.parametrize(
    ("name", "reverse"),
    [pytest.param(name, k % 2 == 0, id=f"{name}-{'forward' if k % 2 else 'reverse'}") for k, name in enumerate(EVERY)],
)
def test_values_and_gradients_equal_those_of_scan(name, reverse, reports):
    """Small states, so with the whole Jacobian; ragged lengths, 0 and 1 among them. And it is no fallback."""
    given = sample(name, time=24, seed=5)
    if name in LIBRARY_CELLS:
        given = with_mask(given)
    assert 0 < iterations_of_an_equal_answer(given, reverse, reports) < 20


@pytest.mark.parametrize(
    ("name", "reverse"),
    [
        *(("rnn", False), ("lstm", False), ("lstm", True), ("gru", True), ("gru_before", False)),
        *(("diagonal_lstm", True), ("diagonal_gru", False), ("lstm_peepholes", False)),
    ],
)
def test_the_same_with_a_part_of_the_jacobian(name, reverse, reports):
    """States of 20 numbers and more, so unit by unit; of a dense cell that is only a part."""
    given = sample(name, time=80, hidden_features=20, seed=6)
    given = given._replace(params=jax.tree.map(lambda leaf: 0.2 * leaf, given.params))
    if name in BY_HAND:
        given = with_mask(given)
    iterations = iterations_of_an_equal_answer(given, reverse, reports)
    if name.startswith("diagonal"):
        assert iterations <= 8  # all of it is in the units: Newton's own method


@pytest.mark.parametrize("mask", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("name", ["rnn_relu", "lstm", "gru", "gru_before", "gru_no_bias"])
def test_blocks_by_hand_equal_those_of_jax(name, mask):
    given = sample(name, 1, 1)
    if name == "gru_before":  # where a unit reaches itself through the reset gates of others too, which are left out
        diagonal = np.tile(np.eye(4, dtype=np.float32), 3)
        given = given._replace(params=given.params._replace(u=given.params.u * diagonal))
    mask = np.full((1, 4), 0.7, np.float32) if mask else None
    rules, layout = by_hand.rules_of(given.cell), layout_of(given.state)
    z = given.cell.project(given.params, given.xs[:, 0])
    _, saved = rules.step(given.params, given.state, z, mask)
    every = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], (given.state, saved))
    got = rules.blocks(given.params, *every, mask)[0, 0]

    def step(blocks):
        return layout.cut(given.cell.step(given.params, layout.joined(blocks[None]), z, mask)[0])[0]

    blocks = layout.cut(given.state)[0]
    whole = jax.jacfwd(step)(blocks)
    np.testing.assert_allclose(got, np.stack([whole[k, :, k] for k in range(len(blocks))]), atol=1e-6)


def test_gradients_are_exact_whatever_part_of_the_jacobian_the_iteration_uses(float64):
    """Back-propagation through the solve with a part of J would be biased: this is not."""
    given = sample("gru", time=60, hidden_features=24, seed=8)
    params, xs = jax.tree.map(lambda leaf: 0.2 * np.float64(leaf), (given.params, given.xs))

    def loss(params, xs, unrolled):
        return jnp.sum(unrolled(given.cell, params, xs).outputs ** 2)

    want = jax.grad(loss, (0, 1))(params, xs, lambda *args: unroll(*args, backend="scan"))
    for jacobian in ("elements", "whole"):
        newton = Newton(jacobian=jacobian, tolerance=1e-13)
        got = jax.grad(loss, (0, 1))(params, xs, lambda *args: unroll_in_parallel(*args, newton=newton))  # noqa: B023
        assert_close(got, want, 1e-10)
        assert bool(unroll_in_parallel(given.cell, params, xs, newton=newton).solved.converged)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_gradient_takes_one_iteration_where_units_do_not_mix(name, reverse, reports):
    """Its recurrence is linear, and blocks by hand are all of its Jacobian there: with ragged lengths too."""
    given = sample(name, time=31, hidden_features=20, seed=6)
    gates = given.cell.spec.gates
    diagonal = given._replace(
        params=given.params._replace(u=0.5 * given.params.u * np.tile(np.eye(20, dtype=np.float32), gates))
    )
    values_and_gradients(diagonal, "parallel", reverse=reverse)
    (forward, converged), backward = reports()
    assert converged
    assert forward <= 8
    assert backward == (1, True)


def test_a_gradient_tells_how_it_was_solved():
    given, told = sample("gru", time=24, seed=5), []
    newton = Newton(on_gradient=told.append)
    jax.grad(lambda p: unroll_in_parallel(given.cell, p, given.xs, newton=newton).outputs.sum())(given.params)
    jax.effects_barrier()
    (report,) = told
    assert bool(report.converged)
    assert 0 < int(report.iterations) < 10
    assert float(report.residual) < 1e-5


# Where it does not converge ---------------------------------------------------------------------------------------------


def growing(rate):
    return Cell(
        cells.rnn.init,
        cells.rnn.initial_state,
        lambda params, x: x @ params.w,
        lambda params, h, z, context: (rate(h) + z, rate(h)),
    )


@pytest.mark.parametrize(
    ("rate", "why"),
    [(lambda h: 3 * h, "overflows"), (lambda h: 3.9 * h * (1 - h), "chaotic")],
    ids=["overflow", "chaos"],
)
def test_an_exploding_cell_is_computed_in_order(rate, why):
    cell = growing(rate)
    params = cell.init(jax.random.key(0), 2, 20)._replace(w=jnp.full((2, 20), 1e-6))
    xs = jax.random.uniform(jax.random.key(1), (3, 150, 2))
    state = jnp.full((3, 20), 0.3)
    done = unroll_in_parallel(cell, params, xs, state)
    assert not bool(done.solved.converged)
    want = unroll(cell, params, xs, state, backend="scan")
    jax.tree.map(np.testing.assert_array_equal, (done.outputs, done.state), tuple(want))
    gradients = [
        jax.grad(lambda p: unroll(cell, p, xs, state, backend=backend).outputs.sum())(params).w  # noqa: B023
        for backend in ("parallel", "scan")
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-5)


def test_a_cell_that_only_grows_is_solved():
    """From 1e-6 to 1e6, and each state is right beside its own size: a small one at the start is not lost beside the last."""
    cell = growing(lambda h: 1.2 * h)
    params = cell.init(jax.random.key(0), 2, 20)._replace(w=jnp.full((2, 20), 1e-6))
    xs = jax.random.uniform(jax.random.key(1), (3, 150, 2))
    done = unroll_in_parallel(cell, params, xs)
    assert bool(done.solved.converged)
    np.testing.assert_allclose(done.outputs, unroll(cell, params, xs, backend="scan").outputs, rtol=2e-5)


def test_a_bound_of_iterations_that_is_too_small():
    given = sample("lstm", time=24, seed=5)
    done = solved(given, max_iterations=1)
    assert int(done.solved.iterations) == 1
    assert not bool(done.solved.converged)
    assert float(done.solved.residual) > 1e-4
    want = unroll(*given[:4], lengths=given.lengths, backend="scan")
    assert_close((done.outputs, done.state), tuple(want), 2e-6)


def test_nan_in_a_row_stays_in_that_row():
    given = sample("gru", time=12, seed=4)._replace(lengths=None)
    given.xs[1, 5] = np.nan
    want = unroll(*given[:4], backend="scan")
    done = solved(given)
    assert not bool(done.solved.converged)
    np.testing.assert_array_equal(np.isnan(done.outputs), np.isnan(want.outputs))
    assert_close(np.nan_to_num(done.outputs), np.nan_to_num(want.outputs), 2e-6)


def made_and_solved(**options):
    cell = cells.make_lstm(**options)
    params = cell.init(jax.random.key(0), 4, 32)
    xs = jax.random.normal(jax.random.key(1), (2, 256, 4))
    done = unroll_in_parallel(cell, params, xs)
    assert_close(done.outputs, unroll(cell, params, xs, backend="scan").outputs, 1e-4)
    return done.solved


def test_an_iteration_that_ends_in_nan_is_no_answer():
    """Of thousands of numbers: over so many XLA's maximum passes over NaN on a CPU."""
    solved = made_and_solved(layer_norm=True)
    assert not bool(solved.converged)
    assert np.isnan(solved.residual)


@pytest.mark.parametrize("options", [{"peepholes": True}, {"projection": 16}], ids=str)
def test_first_weights_of_cells_that_are_probed_converge(options):
    assert bool(made_and_solved(**options).converged)


def test_a_tolerance_below_all_that_can_be_met_is_not_met():
    given = sample("gru", time=24, seed=5)
    for tolerance in (1e-20, 1e-80):
        assert not bool(solved(given, tolerance=tolerance).solved.converged)


@pytest.mark.parametrize("place", [0, 3, 6])
def test_sizes_reach_four_steps(place):
    sizes = jnp.zeros((7, 1, 1, 1)).at[place].set(1)
    np.testing.assert_array_equal(parallel._near(sizes)[:, 0, 0, 0], np.abs(np.arange(7) - place) <= 4)


def test_a_residual_that_is_nan_is_told_as_such():
    given = sample("gru", 2, 400, hidden_features=20)._replace(lengths=None)
    given.xs[0, 200] = np.nan
    done = solved(given).solved
    assert np.isnan(done.residual)
    assert not bool(done.converged)


# What holds for every backend -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lstm", "tree"])
def test_padding_reaches_nothing(name):
    given = sample(name, seed=9)
    want = values_and_gradients(given, "parallel")
    for padding in (np.nan, np.inf):
        filled = given._replace(xs=fill_padding(given.xs, given.lengths, padding))
        jax.tree.map(np.testing.assert_array_equal, values_and_gradients(filled, "parallel"), want)


@pytest.mark.parametrize(("batch_size", "time"), [(3, 0), (0, 4), (1, 1), (1, 2)])
def test_empty_and_single_sizes(batch_size, time):
    given = sample("lstm", batch_size, time)
    got, want = (values_and_gradients(given, backend, history=True) for backend in ("parallel", "scan"))
    assert_close(got, want, TOLERANCE["float32"])
    done = solved(given)
    assert done.outputs.shape == (batch_size, time, 4)
    assert bool(done.solved.converged)


def test_forward_mode_second_derivatives_and_vmap(float64):
    given = sample("gru", 2, 5)
    params, xs, state = jax.tree.map(np.float64, (given.params, given.xs, given.state))
    along = jax.tree.map(np.float64, random_like(params, 9))

    def results(backend):
        def loss(params, xs):
            return weighted_sum(unroll(given.cell, params, xs, state, lengths=given.lengths, backend=backend), given.weights)

        gradient = jax.grad(loss)
        slope = jax.jvp(lambda p: loss(p, xs), (params,), (along,))[1]
        hessian = jax.jvp(lambda p: gradient(p, xs), (params,), (along,))[1]
        return slope, hessian, jax.vmap(gradient, (None, 0))(params, np.stack([xs, -xs]))

    assert_close(results("parallel"), results("scan"), 1e-10)


def test_under_vmap_one_that_does_not_converge_leaves_the_others():
    cell = growing(lambda h: h)
    cell = cell._replace(step=lambda params, h, z, context: (params.u[:1] * h + z, h))
    params = cell.init(jax.random.key(0), 2, 20)
    xs, state = jax.random.normal(jax.random.key(1), (3, 120, 2)), jnp.ones((3, 20))
    rates = jnp.array([0.5, 4.0])

    def carried(rate, unrolled):
        return unrolled(cell, params._replace(u=jnp.full_like(params.u, rate)), xs, state)

    done = jax.vmap(lambda rate: carried(rate, unroll_in_parallel))(rates)
    assert done.solved.converged.tolist() == [True, False]
    want = jax.vmap(lambda rate: carried(rate, lambda *args: unroll(*args, backend="scan")))(rates)
    assert_close(done.outputs[0], want.outputs[0], TOLERANCE["float32"])
    np.testing.assert_allclose(done.outputs[1], want.outputs[1], rtol=1e-5)


@pytest.mark.parametrize(("name", "share"), [("rnn", 0.6), ("lstm", 1.0), ("gru", 1.0)])
def test_a_dense_cell_of_ones_own_converges(name, share, reports):
    """Whose units are asked for at once: what they say to each other is not to be taken for their own."""
    known = LIBRARY_CELLS[name]
    params = known.init(jax.random.key(0), 3, 24)
    params, xs = params._replace(u=share * params.u), jax.random.normal(jax.random.key(1), (2, 200, 3))
    own = Cell(known.init, known.initial_state, known.project, known.step)

    def loss(params, cell, backend):
        return jnp.sum(unroll(cell, params, xs, backend=backend).outputs ** 2)

    got = jax.grad(loss)(params, own, "parallel")
    (forward, converged), (_, back_converged) = reports()
    assert converged
    assert back_converged
    assert forward < 50
    assert_close(got, jax.grad(loss)(params, known, "scan"), 1e-4)


def test_products_are_not_rounded_as_a_gpu_rounds_them(reports):
    """To TF32, if nothing else is said; the step would be a staircase, on which the iteration finds no place."""

    def step(params, h, z, context):
        exact = jax.config.jax_default_matmul_precision == "highest"
        h = jnp.tanh(z + (h if exact else jax.lax.reduce_precision(h, 8, 10)) @ params.u)
        return h, h

    params = cells.rnn.init(jax.random.key(0), 3, 24)
    params = params._replace(u=0.6 * params.u)
    xs = jax.random.normal(jax.random.key(1), (2, 200, 3))
    cell = Cell(cells.rnn.init, cells.rnn.initial_state, lambda params, x: x @ params.w, step)

    def loss(params, backend):
        return jnp.sum(unroll(cell, params, xs, backend=backend).outputs ** 2)

    got = jax.grad(loss)(params, "parallel")
    assert [converged for _, converged in reports()] == [True, True]
    assert_close(got, jax.grad(loss)(params, "scan"), 1e-2)


def products(jaxpr, in_loop=False):
    """Of each product within a loop how it is multiplied."""
    for equation in jaxpr.eqns:
        if in_loop and equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for value in jax.tree.leaves(equation.params, is_leaf=lambda value: hasattr(value, "eqns") or hasattr(value, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner, in_loop or equation.primitive.name in ("while", "scan"))


@pytest.mark.parametrize("name", ["lstm", "gru", "lstm_peepholes"])
def test_all_products_along_time_are_exact(name):
    """Of cells that are differentiated by hand, and of another; on the way back too."""
    given = sample(name, time=24, hidden_features=20, seed=5)

    def loss(params, backend):
        return jnp.sum(unroll(given.cell, params, given.xs, backend=backend).outputs)

    exact = (jax.lax.Precision.HIGHEST,) * 2
    found = list(products(jax.make_jaxpr(jax.grad(lambda params: loss(params, "parallel")))(given.params)))
    assert len(found) >= 4
    assert set(found) == {exact}
    assert exact not in set(products(jax.make_jaxpr(jax.grad(lambda params: loss(params, "fused")))(given.params)))


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_bfloat16_is_solved_as_closely_as_its_states_are_kept(name, reports):
    """They are kept in float32, and so the steps are computed, and checked: values and gradients are those in float32."""
    cell = LIBRARY_CELLS[name]
    params = cell.init(jax.random.key(0), 16, 64)
    xs = jax.random.normal(jax.random.key(1), (2, 100, 16), jnp.bfloat16)

    def loss(params, xs, backend):
        outputs = unroll(cell, params, xs, backend=backend).outputs
        return jnp.mean(outputs.astype(jnp.float32) ** 2), outputs

    got, outputs = jax.grad(loss, has_aux=True)(params, xs, "parallel")
    assert [converged for _, converged in reports()] == [True, True]
    assert outputs.dtype == jnp.bfloat16
    want, wide = jax.grad(loss, has_aux=True)(params, xs.astype(jnp.float32), "scan")
    assert_close(outputs.astype(jnp.float32), wide, 2**-8)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.linalg.norm(np.float64(a) - np.float64(b)) <= 0.005 * np.linalg.norm(np.float64(b))


@pytest.mark.parametrize("great", [1, 12])
@pytest.mark.parametrize("features", [4, 20])
def test_a_small_number_beside_great_ones_is_solved_as_well(great, features):
    """Units that count to millions, and others that turn among each other: each is checked beside what it is made of."""
    great = min(great, features - 3)

    def step(params, h, z, context):
        turned = jnp.tanh(2 * jnp.roll(h[:, great:], 1, axis=1) + z[:, great:])
        return (new := jnp.concatenate([h[:, :great] + 1e6, turned], axis=1)), new

    cell = Cell(cells.rnn.init, cells.rnn.initial_state, lambda params, x: x @ params.w, step)
    params = cell.init(jax.random.key(0), 3, features)
    xs = jax.random.normal(jax.random.key(1), (2, 100, 3))
    got, want = (unroll(cell, params, xs, backend=backend).outputs for backend in ("parallel", "scan"))
    assert_close(got[..., great:], want[..., great:], 1e-4)
    assert_close(got[..., :great], want[..., :great], 1e-6)


def test_a_small_number_that_a_great_weight_waits_for():
    """Units of 1e-7, each the next one's input, and one whose weight of 3e7 makes the last of them count."""
    w, u = np.zeros((1, 20), np.float32), np.zeros((20, 20), np.float32)
    w[0, 0], w[0, 7:] = 1e-7, 1
    u[np.arange(5), np.arange(1, 6)], u[5, 6] = 1, 3e7
    params = cells.RNNParams(w, u, np.zeros(20, np.float32))
    xs = jax.random.normal(jax.random.key(1), (1, 100, 1))
    got, want = (unroll(cells.rnn, params, xs, backend=backend).outputs for backend in ("parallel", "scan"))
    assert jnp.abs(want[..., 6]).max() > 0.9
    assert_close(got, want, 1e-5)


def test_gradients_of_units_that_hardly_count_are_right():
    """Two halves that do not meet; the second counts for 1e-7 in the loss."""
    params = cells.rnn.init(jax.random.key(0), 3, 20)
    params = params._replace(u=params.u * np.kron(np.eye(2), np.ones((10, 10))).astype(np.float32))
    xs, weights = jax.random.normal(jax.random.key(1), (1, 60, 3)), jnp.where(jnp.arange(20) < 10, 1, 1e-7)

    def loss(params, backend):
        return jnp.sum(unroll(cells.rnn, params, xs, backend=backend).outputs * weights * jnp.cos(jnp.arange(60.0))[:, None])

    got, want = (jax.grad(loss)(params, backend).u[10:, 10:] for backend in ("parallel", "scan"))
    assert jnp.linalg.norm(got - want) <= 1e-4 * jnp.linalg.norm(want)


def test_a_gradient_that_vanishes_below_the_least_number_is_solved(reports):
    """Of a loss on the last output alone, far enough behind the first steps."""
    params = cells.gru.init(jax.random.key(0), 2, 8)
    xs = jax.random.normal(jax.random.key(1), (1, 400, 2))
    got, want = (
        jax.grad(lambda p: unroll(cells.gru, p, xs, backend=backend).outputs[:, -1].sum())(params)  # noqa: B023
        for backend in ("parallel", "scan")
    )
    assert_close(got, want, 1e-4)
    _, backward = reports()
    assert backward == (1, True)


def test_padding_makes_no_errors_that_could_grow():
    params = jax.tree.map(lambda leaf: 0.3 * leaf, cells.gru.init(jax.random.key(0), 4, 20))
    xs = jax.random.normal(jax.random.key(1), (2, 1500, 4))
    done = unroll_in_parallel(cells.gru, params, xs, lengths=jnp.array([1500, 10]))
    assert bool(done.solved.converged)


def test_gradients_that_vanish_do_so_rightly():
    """Those of inputs far before the end, each step's beside its own size."""
    params = cells.gru.init(jax.random.key(0), 8, 32)
    xs = jax.random.normal(jax.random.key(1), (1, 60, 8))
    got, want = (
        jax.grad(lambda xs: unroll(cells.gru, params, xs, backend=backend).outputs[:, -1].sum())(xs)[0]  # noqa: B023
        for backend in ("parallel", "scan")
    )
    sizes = jnp.linalg.norm(want, axis=1)
    assert sizes[0] < 1e-6 * sizes[-1]
    np.testing.assert_array_less(jnp.linalg.norm(got - want, axis=1) / sizes, 1e-3)


def test_an_unstable_recurrence_that_its_inputs_hold_in_check_is_computed_in_order():
    """Solved in one iteration, each equation holding as far as rounding allows; yet that does not tell the states."""
    cell = growing(lambda h: 1.5 * h)
    wanted = jax.random.normal(jax.random.key(0), (2, 40, 3))
    xs = wanted - 1.5 * jnp.concatenate([jnp.zeros((2, 1, 3)), wanted[:, :-1]], axis=1)
    params = cell.init(jax.random.key(0), 3, 3)._replace(w=jnp.eye(3))
    done = unroll_in_parallel(cell, params, xs)
    assert done.solved.residual < 1e-6
    assert not bool(done.solved.converged)
    np.testing.assert_array_equal(done.outputs, unroll(cell, params, xs, backend="scan").outputs)


@pytest.mark.parametrize("seed", range(3))
def test_affine_steps_beyond_all_numbers_are_not_the_end_of_it(seed):
    """At the first guess each state moves the next by about twice as much: 200 of them overflow. The true ones do not."""
    rng = np.random.default_rng(seed)
    params = cells.rnn.init(jax.random.key(0), 1, 4)
    params = params._replace(u=jnp.asarray(rng.normal(size=(4, 4)), jnp.float32))
    xs = rng.normal(size=(2, 200, 1)).astype(np.float32)
    done = unroll_in_parallel(cells.rnn, params, xs)
    assert bool(done.solved.converged)
    # Errors grow here, those of scan too: in float64 both are wrong by as much.
    np.testing.assert_allclose(done.outputs, unroll(cells.rnn, params, xs, backend="scan").outputs, atol=1e-4)


def test_great_states_are_solved():
    cell = growing(lambda h: h / 2)
    params = cell.init(jax.random.key(0), 2, 20)._replace(w=jnp.full((2, 20), 1e25))
    xs = jax.random.normal(jax.random.key(1), (1, 100, 2))
    done = unroll_in_parallel(cell, params, xs)
    assert bool(done.solved.converged)
    np.testing.assert_allclose(done.state, unroll(cell, params, xs, backend="scan").state, rtol=1e-5)


def test_a_hopeless_iteration_ends_soon():
    params = cells.rnn.init(jax.random.key(0), 1, 4)
    params = params._replace(u=2 * params.u)
    xs = 0.3 * jax.random.normal(jax.random.key(1), (2, 4000, 1))
    done = unroll_in_parallel(cells.rnn, params, xs)
    assert not bool(done.solved.converged)
    assert done.solved.iterations < 5
    np.testing.assert_array_equal(done.outputs, unroll(cells.rnn, params, xs, backend="scan").outputs)


def test_long_padding_does_not_count_as_growth():
    """Through padding an error is handed on as it is; of errors at each step the sum would be that of a random walk."""
    params = cells.rnn.init(jax.random.key(0), 1, 20)
    xs, lengths = jax.random.normal(jax.random.key(1), (1, 400_000, 1)), jnp.array([3])
    assert bool(unroll_in_parallel(cells.rnn, params, xs, lengths=lengths).solved.converged)


def test_chaotic_dense_states_are_not_taken_for_solved():
    """The start of a sequence is right after as many iterations as it has steps, whatever the states do."""
    params = cells.rnn.init(jax.random.key(0), 8, 32)
    params = params._replace(u=4 * params.u * (1 - jnp.eye(32)))
    xs = jax.random.normal(jax.random.key(1), (1, 90, 8))
    assert not bool(unroll_in_parallel(cells.rnn, params, xs).solved.converged)


@pytest.mark.parametrize("name", ["lstm", "diagonal_gru"])
def test_on_several_devices(name):
    given = sample(name, 16)
    lengths = ragged_lengths(16, given.xs.shape[1])

    def gradients(f):
        return jax.jit(jax.grad(lambda *args: weighted_sum(f(*args), given.weights.outputs), argnums=(0, 1)))

    def forward(params, xs, state, lengths):
        return unroll(given.cell, params, xs, state, lengths=lengths, backend="parallel").outputs

    want = gradients(forward)(*given[1:4], lengths)
    axis, every = (jax.sharding.AxisType.Auto,), jax.sharding.PartitionSpec("batch")
    mesh = jax.make_mesh((8,), ("batch",), axis_types=axis, devices=jax.devices("cpu")[:8])
    specs = (jax.sharding.PartitionSpec(), every, every, every)
    sharded = jax.shard_map(forward, mesh=mesh, in_specs=specs, out_specs=every)
    assert_close(gradients(sharded)(*given[1:4], lengths), want, TOLERANCE["float32"])
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Explicit,), devices=jax.devices("cpu")[:8])
    with jax.set_mesh(mesh):
        split = jax.device_put((given.xs, given.state, lengths), jax.sharding.NamedSharding(mesh, every))
        got = gradients(forward)(given.params, *split)
        assert_close(jax.tree.map(np.asarray, got), jax.tree.map(np.asarray, want), TOLERANCE["float32"])
    assert bool(unroll_in_parallel(*given[:4], lengths=lengths).solved.converged)


def test_lowers_for_cuda_and_tpu():
    given = sample("lstm")
    loss = jax.grad(lambda p, x: unroll(given.cell, p, x, backend="parallel").outputs.sum(), argnums=(0, 1))
    exported = jax.export.export(jax.jit(loss), platforms=("cuda", "tpu"))(given.params, given.xs)
    assert exported.platforms == ("cuda", "tpu")


def test_for_what_it_does_not_apply():
    given = sample("counting")
    for call in (unroll_in_parallel, lambda *args: unroll(*args, backend="parallel")):
        with pytest.raises(ValueError, match="parallel does not apply: the state holds numbers that have no derivative"):
            call(*given[:3])
    narrow = jnp.zeros((len(given.xs), 4), jnp.bfloat16)
    for state, reason in ((narrow, "narrower than float32"), ((), "there is no state")):
        still = Cell(
            lambda *_: (),
            lambda *_, state=state: state,
            lambda params, x: x,
            lambda params, h, z, context: (h, z),
        )
        with pytest.raises(ValueError, match=f"parallel does not apply: .*{reason}"):
            unroll_in_parallel(still, (), given.xs)
    given = sample("lstm")
    assert "remat" in s2s_jax.explain_backend(*given[:3], remat=2).others["parallel"]


@pytest.mark.parametrize(
    ("newton", "message"),
    [
        ({"tolerance": 0.0}, "newton.tolerance: expected a number above 0 and below 1, got 0.0"),
        ({"max_iterations": 0}, "newton.max_iterations: expected a positive number, got 0"),
        ({"jacobian": "all"}, "newton.jacobian: expected None or one of units, elements, whole, got 'all'"),
    ],
)
def test_options_that_raise(newton, message):
    with pytest.raises(ValueError, match=message):
        solved(sample("lstm"), **newton)


def test_units_are_for_states_of_one_shape():
    given = sample("lstm_projection")
    with pytest.raises(ValueError, match=r"newton\.jacobian: expected leaves of one shape in the state with units"):
        solved(given, jacobian="units")
