"""CTC's loss against PyTorch and Keras on longer frames; brute force on short ones stands in decoding/ctc."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2s_jax.losses import ctc_loss
from s2s_jax.metrics import mean_over
from tests import oracles
from tests.samples import assert_close

B, T, N, V = 6, 12, 5, 7
LENGTHS = np.array([12, 9, 1, 0, 12, 5])
LABEL_LENGTHS = np.array([5, 3, 1, 0, 0, 3])


def drawn(blank, seed=0):
    rng = np.random.default_rng(seed)
    logits = (2 * rng.normal(size=(B, T, V))).astype(np.float32)
    symbols = [symbol for symbol in range(V) if symbol != blank]
    labels = rng.choice(symbols, size=(B, N))
    labels[0, 1:3] = labels[0, 1]  # one that is said twice in a row
    labels[5, :3] = labels[5, 0]  # three times: 5 frames are just enough
    return logits, labels


def value_and_gradient(logits, lengths, labels, label_lengths, **options):
    def total(logits):
        nats, fits = ctc_loss(logits, lengths, labels, label_lengths, **options)
        return mean_over(nats, fits).total, (nats, fits)

    (_, (nats, fits)), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(logits)
    return np.asarray(nats), np.asarray(fits), np.asarray(gradient)


@pytest.mark.parametrize(("blank", "scale"), [(0, 1), (V - 1, 1), (3, 1), (0, 1e5)])
def test_agrees_with_pytorch(blank, scale):
    torch = oracles.oracle("torch")
    logits, labels = drawn(blank)
    logits *= np.float32(scale)
    theirs = torch.tensor(logits.astype(np.float64), requires_grad=True)
    frames = torch.log_softmax(theirs, dim=-1).transpose(0, 1)
    options = {"blank": blank, "reduction": "none", "zero_infinity": True}
    loss = torch.nn.functional.ctc_loss(frames, torch.tensor(labels), tuple(LENGTHS), tuple(LABEL_LENGTHS), **options)
    loss.sum().backward()
    nats, fits, gradient = value_and_gradient(logits, LENGTHS, labels, LABEL_LENGTHS, blank=blank)
    assert fits.all()
    assert_close(nats, loss.detach().numpy(), 1e-5)
    assert_close(gradient, theirs.grad.numpy(), 1e-5)


def test_values_that_keras_own_test_holds():
    # keras/src/ops/nn_test.py, test_ctc_loss. Its code is optax's, these numbers are not.
    logits = [
        [[0.4, 0.8, 0.4], [0.2, 0.8, 0.3], [0.9, 0.4, 0.5]],
        [[0.4, 0.8, 0.4], [0.2, 0.3, 0.3], [0.4, 0.3, 0.2]],
    ]
    nats, fits = ctc_loss(np.array(logits, np.float32), [3, 2], np.array([[1, 2, 1], [1, 2, 2]]), [3, 2])
    assert fits.all()
    assert_close(nats, np.array([3.4411672, 1.91680186]), 1e-6)


def test_a_symbol_of_probability_zero():
    logits, labels = drawn(0)
    logits[:, :, 6] = -np.inf  # in no label of row 1, say; and in one of row 0
    labels[0, 0], labels[1] = 6, [1, 2, 3, 4, 5]
    labels[2:] = np.where(labels[2:] == 6, 5, labels[2:])
    torch = oracles.oracle("torch")
    theirs = torch.tensor(logits.astype(np.float64), requires_grad=True)
    frames = torch.log_softmax(theirs, dim=-1).transpose(0, 1)
    options = {"reduction": "none", "zero_infinity": False}
    want = torch.nn.functional.ctc_loss(frames, torch.tensor(labels), tuple(LENGTHS), tuple(LABEL_LENGTHS), **options)
    nats, _, gradient = value_and_gradient(logits, LENGTHS, labels, LABEL_LENGTHS)
    assert np.isinf(nats[0])
    assert_close(nats[1:], want.detach().numpy()[1:], 1e-5)
    assert not gradient[0].any()
    assert np.isfinite(gradient).all()


def test_a_frame_without_any_symbol():
    logits, labels = drawn(0)
    want = value_and_gradient(logits, LENGTHS, labels, LABEL_LENGTHS)
    logits[0, 4], logits[3, 4], logits[4, 2], logits[5, 1], logits[5, 2] = *[-np.inf] * 4, np.nan  # in row 3 padding
    nats, fits, gradient = value_and_gradient(logits, LENGTHS, labels, LABEL_LENGTHS)
    assert fits.all()
    np.testing.assert_array_equal(np.isinf(nats), [True, False, False, False, True, False])
    np.testing.assert_array_equal(np.isnan(nats), [False] * 5 + [True])
    assert_close(nats[1:4], want[0][1:4], 0)
    assert_close(gradient[1:4], want[2][1:4], 0)
    assert not gradient[[0, 4]].any()


def test_in_float64():
    with jax.enable_x64(True):
        logits, labels = drawn(0)
        assert ctc_loss(logits, LENGTHS, labels, LABEL_LENGTHS).nats.dtype == np.float32
        wide = ctc_loss(logits.astype(np.float64), LENGTHS, labels, LABEL_LENGTHS).nats
        assert wide.dtype == np.float64
        assert_close(ctc_loss(logits, LENGTHS, labels, LABEL_LENGTHS).nats.astype(np.float64), wide, 1e-5)


def test_rows_split_over_devices():
    logits, labels = drawn(0)
    arguments = [np.concatenate([x, x[:2]]) for x in (logits, LENGTHS, labels, LABEL_LENGTHS)]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")

    def one(*rows):
        return ctc_loss(*rows, unfit="infinite").nats

    split = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=(spec,) * 4, out_specs=spec))
    assert_close(split(*arguments), ctc_loss(*arguments).nats, 1e-6)


@pytest.mark.parametrize("what", [np.nan, np.inf, -np.inf])
def test_what_stands_in_the_padding_reaches_nothing(what):
    logits, labels = drawn(0)
    want = value_and_gradient(logits, LENGTHS, labels, LABEL_LENGTHS)
    padded = np.where((np.arange(T) < LENGTHS[:, None])[..., None], logits, what)
    got = value_and_gradient(padded, LENGTHS, np.where(np.arange(N) < LABEL_LENGTHS[:, None], labels, -5), LABEL_LENGTHS)
    assert_close(got, want, 0)


def test_labels_that_do_not_fit():
    logits, labels = drawn(0)
    lengths = np.array([5, 9, 0, 0, 12, 4])  # rows 0, 2 and 5 lack a frame each
    with pytest.raises(ValueError, match=re.escape("got rows that do not: [0, 2, 5]")):
        ctc_loss(logits, lengths, labels, LABEL_LENGTHS)
    whole = value_and_gradient(logits, LENGTHS, labels, LABEL_LENGTHS)
    fit = np.array([False, True, False, True, True, False])
    for unfit, instead in (("drop", 0), ("infinite", np.inf), ("raise", np.inf)):  # traced lengths cannot raise
        nats, fits, gradient = value_and_gradient(logits, lengths, labels, LABEL_LENGTHS, unfit=unfit)
        np.testing.assert_array_equal(fits, fit)
        assert_close(nats[fit], whole[0][fit], 1e-6)
        assert (nats[~fit] == instead).all()
        assert_close(gradient[fit], whole[2][fit], 1e-6)
        assert not gradient[~fit].any()


def test_half_precision_is_summed_in_float32():
    logits, labels = drawn(0)
    nats, _, _ = value_and_gradient(logits.astype(jnp.bfloat16), LENGTHS, labels, LABEL_LENGTHS)
    want, _, _ = value_and_gradient(logits.astype(jnp.bfloat16).astype(np.float32), LENGTHS, labels, LABEL_LENGTHS)
    assert nats.dtype == np.float32
    assert_close(nats, want, 1e-6)


def test_second_derivative_is_that_of_the_softmax_where_there_is_one_alignment():
    logits = jnp.asarray(drawn(0)[0][:1, :2])

    def loss(x):  # two frames, two different symbols: one alignment
        return ctc_loss(x, jnp.array([2]), jnp.array([[1, 2]]), jnp.array([2])).nats.sum()

    hessian = jax.jit(jax.hessian(loss))
    got = hessian(logits).reshape(2 * V, 2 * V)
    p = jax.nn.softmax(logits[0])
    want = jax.scipy.linalg.block_diag(*(jnp.diag(q) - jnp.outer(q, q) for q in p))
    assert_close(got, want, 1e-5)
    assert not np.any(hessian(logits.at[0, 1].set(-jnp.inf)))  # a frame without any symbol has no derivatives


def test_rows_may_be_mapped_over():
    logits, labels = drawn(0)
    want = ctc_loss(logits, LENGTHS, labels, LABEL_LENGTHS)

    def one(*row):
        return jax.tree.map(lambda leaf: leaf[0], ctc_loss(*(x[None] for x in row), unfit="infinite"))

    assert_close(jax.vmap(one)(logits, LENGTHS, labels, LABEL_LENGTHS), want, 1e-6)


def test_no_rows_no_frames_and_no_symbols():
    empty = ctc_loss(np.zeros((0, T, V), np.float32), np.zeros(0, int), np.zeros((0, N), int), np.zeros(0, int))
    assert empty.nats.shape == (0,)
    nats, fits = ctc_loss(np.zeros((2, 0, V), np.float32), [0, 0], np.ones((2, 3), int), [0, 1], unfit="drop")
    assert nats.tolist() == [0, 0]
    assert fits.tolist() == [True, False]
    logits = drawn(0)[0]
    nats, _ = ctc_loss(logits, LENGTHS, np.zeros((B, 0), int), np.zeros(B, int))
    blanks = np.where(np.arange(T) < LENGTHS[:, None], np.asarray(jax.nn.log_softmax(logits))[..., 0], 0)
    assert_close(nats, -blanks.sum(1), 1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unfit": "ignore"}, "unfit: expected raise, drop or infinite, got 'ignore'"),
        ({"blank": V}, "blank: expected a symbol from 0 to 6, got 7"),
        ({"labels": np.ones((B - 1, N), int)}, r"labels: expected \[6, N\], got shape \(5, 5\)"),
        ({"labels": np.zeros((B, N), int)}, "labels: expected symbols other than the blank, 0, got it in row 0"),
        ({"labels": np.full((B, N), V)}, "labels: expected ids from 0 to 6, got 7"),
        ({"lengths": np.full(B, T + 1)}, "lengths: expected values from 0 to T = 12, got 13 in row 0"),
        ({"label_lengths": np.full(B, -1)}, "label_lengths: expected values from 0 to T = 5, got -1 in row 0"),
        ({"logits": np.zeros((B, V), np.float32)}, r"logits: expected \[B, T, V\], got shape \(6, 7\)"),
    ],
)
def test_errors_name_the_argument(change, message):
    logits, labels = drawn(0)
    arguments = {"logits": logits, "lengths": LENGTHS, "labels": labels, "label_lengths": LABEL_LENGTHS} | change
    with pytest.raises(ValueError, match=message):
        ctc_loss(**arguments)
