"""RNN, LSTM and GRU whose units read themselves alone, beside dense ones with the same numbers on the diagonal of u."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2s_jax import cells, explain_backend, unroll
from tests import oracles
from tests.samples import DIAGONAL_CELLS, LIBRARY_CELLS, TOLERANCE, D, H, assert_close, run, sample

DENSE = {"diagonal_rnn": "rnn", "diagonal_lstm": "lstm", "diagonal_lstm_peepholes": "lstm_peepholes"}
DENSE |= {"diagonal_gru": "gru", "diagonal_gru_before": "gru_before_no_bias"}
every_cell = pytest.mark.parametrize("name", DIAGONAL_CELLS)


def as_matrix(u):
    return np.concatenate([np.diag(block) for block in np.split(np.asarray(u), len(u) // H)], axis=1)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@every_cell
def test_agrees_with_a_dense_cell_of_diagonal_matrices(name, reverse, float64):
    """Which agrees with PyTorch and others; with a recurrent dropout mask."""
    given = sample(name, seed=5)
    mask = np.random.default_rng(1).uniform(0.5, 2, (given.xs.shape[0], H))
    given = given._replace(context=mask)
    dense = given._replace(cell=LIBRARY_CELLS[DENSE[name]], params=given.params._replace(u=as_matrix(given.params.u)))
    got, want = (run(it, "float64", reverse=reverse) for it in (given, dense))
    d_u = want[1].params.u.reshape(H, -1, H)
    diagonal = np.concatenate([np.diag(d_u[:, gate]) for gate in range(d_u.shape[1])])
    want = want[0], want[1]._replace(params=want[1].params._replace(u=diagonal))
    assert_close(got, want, TOLERANCE["float64"])


@pytest.mark.parametrize("name", ["diagonal_lstm", "diagonal_gru"])
def test_agrees_with_pytorch(name, float64):
    given = sample(name, seed=7)
    dense, params = LIBRARY_CELLS[DENSE[name]], given.params._replace(u=as_matrix(given.params.u))
    answer = oracles.torch_stack(
        dense, [[params]], given.xs, [[given.state]], given.lengths, given.weights._replace(state=((given.weights.state,),))
    )
    done, _ = run(given, "float64")
    assert_close(done.outputs, answer.done.outputs, 1e-10)


@every_cell
def test_starts_with_the_orthogonal_matrices_of_one_unit(name):
    params = DIAGONAL_CELLS[name].init(jax.random.key(0), D, 500)
    assert params.u.shape == (500 * DIAGONAL_CELLS[name].spec.gates,)
    assert set(np.unique(params.u)) == {-1, 1}
    assert abs(float(jnp.mean(params.u))) < 0.15


def test_drawn_as_asked_for():
    uniform = cells.make_gru(recurrence="diagonal", recurrent_init="uniform").init(jax.random.key(0), D, 400)
    assert 0.9 / 20 < float(jnp.abs(uniform.u).max()) <= 1 / 20
    halves = cells.make_gru(recurrence="diagonal", recurrent_init=lambda key, shape, dtype: jnp.full(shape, 0.5, dtype))
    np.testing.assert_array_equal(halves.init(jax.random.key(0), D, H).u, np.full(3 * H, 0.5))


def test_no_backend_takes_it_for_a_dense_one():
    for name, cell in DIAGONAL_CELLS.items():
        given = sample(name)
        choice = explain_backend(cell, given.params, given.xs)
        assert choice.backend == "scan"
        assert "not a plain" in choice.others["native"]


def test_what_cannot_be():
    with pytest.raises(ValueError, match="recurrence: expected dense with projection=2, which mixes the units, got diagonal"):
        cells.make_lstm(recurrence="diagonal", projection=2)
    with pytest.raises(ValueError, match='recurrence: expected "dense" or "diagonal", got \'sparse\''):
        cells.make_rnn(recurrence="sparse")
    params = cells.lstm.init(jax.random.key(0), D, H)
    with pytest.raises(ValueError, match="params: expected"):
        unroll(cells.make_lstm(recurrence="diagonal"), params, jnp.ones((1, 2, D)))
