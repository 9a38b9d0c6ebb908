"""The cells that are linear in their state, beside their equations in NumPy, and what their initialisers draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2s_jax import cells, unroll
from tests.samples import LINEAR_CELLS, D, H, assert_close, run, sample

every_cell = pytest.mark.parametrize("name", LINEAR_CELLS)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def one_step(name, p, state, x):
    """A step in float64, from the equations of the papers; LRU in complex numbers."""
    if name == "lru":
        eigenvalues = np.exp(-np.exp(p.log_decay) + 1j * np.exp(p.log_phase))
        b = p.w[:, :H] + 1j * p.w[:, H:]
        c = p.c[:H] + 1j * p.c[H:]
        state = eigenvalues * state + np.exp(p.log_scale) * (x @ b)
        return state, (state @ c).real + x @ p.skip
    z = x @ p.w + (0 if p.b is None else p.b)
    if name == "min_lstm":
        i, f, g = sigmoid(z[:, :H]), sigmoid(z[:, H : 2 * H]), z[:, 2 * H :]
        state = f / (f + i) * state + i / (f + i) * g
    else:
        share = sigmoid(z[:, :H])
        state = (1 - share) * state + share * z[:, H:]
    return state, state


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@every_cell
def test_agrees_with_the_equations(name, reverse, float64):
    given = sample(name, seed=3)
    params = jax.tree.map(np.float64, given.params)
    want_outputs, want_states = np.zeros((len(given.xs), given.xs.shape[1], H)), []
    for row, length in enumerate(given.lengths):
        parts = [leaf[row : row + 1].astype(np.float64) for leaf in jax.tree.leaves(given.state)]
        state = parts[0] + 1j * parts[1] if name == "lru" else parts[0]
        for t in range(length)[:: -1 if reverse else 1]:
            state, want_outputs[row, t] = one_step(name, params, state, given.xs[row : row + 1, t].astype(np.float64))
        want_states.append(state[0])
    done, _ = run(given, "float64", reverse=reverse)
    final = done.state.re + 1j * done.state.im if name == "lru" else done.state
    np.testing.assert_allclose(done.outputs, want_outputs, atol=1e-12)
    np.testing.assert_allclose(final, np.stack(want_states), atol=1e-12)


def test_gates_of_min_lstm_that_are_both_shut():
    params = cells.min_lstm.init(jax.random.key(0), 1, 1)._replace(w=jnp.array([[-400.0, -401.0, 1.0]]))
    outputs, _ = unroll(cells.min_lstm, params, jnp.ones((1, 2, 1)))
    keep = sigmoid(-1.0)
    np.testing.assert_allclose(outputs[0, :, 0], [1 - keep, 1 - keep**2], rtol=1e-6)
    gradients = jax.grad(lambda p: unroll(cells.min_lstm, p, jnp.ones((1, 2, 1))).outputs.sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_eigenvalues_of_lru_lie_in_the_ring():
    def modulus_and_phase(**options):
        params = cells.make_lru(**options).init(jax.random.key(0), 3, 4000)
        modulus = np.exp(-np.exp(np.float64(params.log_decay)))
        np.testing.assert_allclose(np.exp(params.log_scale), np.sqrt(1 - modulus**2), rtol=1e-3)
        return modulus, np.exp(params.log_phase)

    modulus, phase = modulus_and_phase(radius=(0.5, 0.9), max_phase=0.3)
    assert 0.5 <= modulus.min() < 0.52
    assert 0.88 < modulus.max() <= 0.9 + 1e-6
    # Uniform over the ring: as many within a radius as it has area.
    assert abs(np.mean(modulus**2 < (0.25 + 0.81) / 2) - 0.5) < 0.03
    assert phase.min() < 0.01
    assert 0.29 < phase.max() <= 0.3
    modulus, phase = modulus_and_phase()
    assert modulus.max() < 1
    assert modulus.min() < 0.05
    assert 6.2 < phase.max() <= 2 * np.pi + 1e-6


def test_parts_of_lru_start_with_a_variance_that_keeps_that_of_white_input():
    params = cells.lru.init(jax.random.key(0), 256, 256)
    xs = jax.random.normal(jax.random.key(1), (4, 400, 256))
    outputs = unroll(cells.lru, params, xs).outputs[:, 200:]
    assert 1.5 < float(jnp.var(outputs)) < 3  # of k C, scaled so that k has that of the input, and of the skip: 1 each


@every_cell
def test_init_says_what_it_got(name):
    with pytest.raises(ValueError, match="hidden_features: expected a positive number, got 0"):
        LINEAR_CELLS[name].init(jax.random.key(0), D, 0)
    params = LINEAR_CELLS[name].init(jax.random.key(0), D, H)
    with pytest.raises(ValueError, match=f"xs: expected {D} features .*, got {D + 1}"):
        unroll(LINEAR_CELLS[name], params, jnp.ones((1, 2, D + 1)))
    with pytest.raises(TypeError, match="xs: expected floating point"):
        unroll(LINEAR_CELLS[name], params, jnp.ones((1, 2, D), int))
    with pytest.raises(ValueError, match="context: expected None, as no product reads the state"):
        unroll(LINEAR_CELLS[name], params, jnp.ones((1, 2, D)), context=jnp.ones((1, H)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": (0.9, 0.5)}, r"radius: expected two numbers in order within 0 and 1, got \(0.9, 0.5\)"),
        ({"radius": (0.0, 1.5)}, "radius: expected two numbers in order"),
        ({"max_phase": 0.0}, "max_phase: expected an angle above 0"),
    ],
)
def test_options_of_lru_that_raise(options, message):
    with pytest.raises(ValueError, match=message):
        cells.make_lru(**options)


def test_same_options_give_the_same_object():
    assert cells.make_min_gru() is cells.min_gru
    assert cells.make_min_lstm() is cells.min_lstm
    assert cells.make_lru() is cells.lru
    assert cells.make_min_gru(bias=False) is not cells.min_gru


@every_cell
def test_bfloat16_is_near_float32(name):
    given = sample(name, seed=4)._replace(lengths=None)
    narrow = jnp.asarray(given.xs, jnp.bfloat16)
    got = unroll(given.cell, given.params, narrow, given.state)
    want = unroll(given.cell, given.params, narrow.astype(jnp.float32), given.state)
    assert got.outputs.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(got.state))
    assert_close(np.float32(got.outputs), np.float32(want.outputs), 4 * 2**-8)


def test_an_eigenvalue_near_one_decays_in_bfloat16_too():
    cell = cells.make_lru(radius=(0.99, 0.9995), max_phase=0.01)
    params = cell.init(jax.random.key(0), 4, 64)
    xs = jnp.zeros((1, 2000, 4), jnp.bfloat16)
    state = jax.tree.map(jnp.ones_like, cell.initial_state(params, 1, jnp.float32))
    last = unroll(cell, params, xs, state).state
    kept = np.hypot(last.re, last.im) / np.sqrt(2)
    np.testing.assert_array_less(kept, 1.3 * 0.9995**2000)  # the slowest, its log_decay rounded by a hundredth


@every_cell
def test_gradients_against_finite_differences(name, float64):
    given = sample(name, seed=6)
    _, gradients = run(given, "float64")

    def loss(x):
        done = unroll(
            given.cell, jax.tree.map(np.float64, given.params), x, jax.tree.map(np.float64, given.state), lengths=given.lengths
        )
        pairs = zip(jax.tree.leaves(done), jax.tree.leaves(given.weights), strict=True)
        return sum(float((a * b).sum()) for a, b in pairs)

    along = np.random.default_rng(0).normal(size=given.xs.shape)
    xs, step = np.float64(given.xs), 1e-6
    slope = (loss(xs + step * along) - loss(xs - step * along)) / (2 * step)
    np.testing.assert_allclose(np.sum(gradients.xs * along), slope, rtol=1e-6)
