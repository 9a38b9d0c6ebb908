"""Each cell and each option against implementations that are not ours, and what their initialisers draw."""

import functools

import jax
import numpy as np
import pytest

from s2s_jax import cells
from s2s_jax.types import Unrolled
from tests import oracles
from tests.samples import LIBRARY_CELLS, TOLERANCE, Gradients, assert_close, run, sample

TORCH = ("rnn", "rnn_relu", "rnn_no_bias", "lstm", "lstm_no_bias", "lstm_projection", "gru", "gru_no_bias")
KERAS = (
    *("rnn", "rnn_relu", "rnn_no_bias", "lstm", "lstm_relu", "lstm_no_bias"),
    *("gru", "gru_relu", "gru_no_bias", "gru_before", "gru_before_relu", "gru_before_no_bias"),
)
ONNX = (
    *("rnn", "rnn_relu", "rnn_no_bias", "lstm", "lstm_relu", "lstm_no_bias", "lstm_peepholes"),
    *("gru", "gru_relu", "gru_no_bias", "gru_before", "gru_before_relu", "gru_before_no_bias"),
)
forward_and_reverse = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


def drawn(name, reverse, seed=0):
    """A sample of drawn shape. Seeded by the case, so that all oracles of one case share what is compiled."""
    rng = np.random.default_rng([sorted(LIBRARY_CELLS).index(name), reverse, seed])
    batch_size, time, in_features, hidden_features = rng.integers((3, 3, 1, 3), (6, 10, 6, 7)).tolist()
    return sample(name, batch_size, time, in_features, hidden_features, seed)


@functools.cache
def torch_answer(name, reverse):
    given = drawn(name, reverse)
    weights = Unrolled(given.weights.outputs, ((given.weights.state,),))
    nested = [[given.params]], given.xs, [[given.state]], given.lengths, weights
    done, gradients = oracles.torch_stack(given.cell, *nested, directions=("backward",) if reverse else ("forward",))
    return Unrolled(done.outputs, done.state[0][0]), Gradients(gradients.params[0][0], gradients.xs, gradients.state[0][0])


@functools.cache
def keras_answer(name, reverse):
    given = drawn(name, reverse)
    return tuple(oracles.keras_layer(given.cell, *given[1:6], reverse=reverse))


@functools.cache
def plain_answer(name, reverse):
    given = drawn(name, reverse)
    done = oracles.plain(given.cell, *given[1:5], reverse=reverse)
    return done, oracles.plain_gradients(given.cell, *given[1:6], reverse=reverse)


@functools.cache
def ours(name, reverse, dtype):
    return run(drawn(name, reverse), dtype, reverse=reverse)


@forward_and_reverse
@pytest.mark.parametrize("name", TORCH)
def test_agrees_with_pytorch(name, reverse, dtype):
    assert_close(ours(name, reverse, dtype), torch_answer(name, reverse), TOLERANCE[dtype])


@forward_and_reverse
@pytest.mark.parametrize("name", KERAS)
def test_agrees_with_keras(name, reverse, dtype):
    assert_close(ours(name, reverse, dtype), keras_answer(name, reverse), TOLERANCE[dtype])


@forward_and_reverse
@pytest.mark.parametrize("name", ONNX)
def test_agrees_with_onnx_runtime(name, reverse):
    given = drawn(name, reverse)
    direction = "reverse" if reverse else "forward"
    want = oracles.onnx_layer(given.cell, [given.params], given.xs, [given.state], given.lengths, direction)
    assert_close(ours(name, reverse, "float32")[0], Unrolled(want.outputs, want.state[0]), TOLERANCE["float32"])


@forward_and_reverse
@pytest.mark.parametrize("name", LIBRARY_CELLS)
def test_agrees_with_the_plain_equations(name, reverse, dtype):
    """The only reference for gradients of peepholes and for layer norm; itself held against the others by the tests above."""
    assert_close(ours(name, reverse, dtype), plain_answer(name, reverse), TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["rnn", "lstm", "lstm_everything", "gru", "gru_before"])
def test_recurrent_dropout_mask_scales_h_in_the_matrix_product_only(name, dtype):
    given = drawn(name, reverse=False, seed=1)
    features = given.params.u.shape[0]
    mask = 1.5 * np.random.default_rng(0).integers(0, 2, (len(given.xs), features)).astype(np.float32)
    want = oracles.plain(given.cell, *given[1:5], mask=mask)
    gradients = oracles.plain_gradients(given.cell, *given[1:6], mask=mask)
    assert_close(run(given._replace(context=mask), dtype), (want, gradients), TOLERANCE[dtype])
