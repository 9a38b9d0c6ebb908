"""Convolution and pooling along time: against PyTorch, and a padded sequence against the sequence alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from s2s_jax.layers.sequence_convolution import (
    Frames,
    SequenceConvolution,
    convolve_sequence,
    frames_of,
    k_max_pool,
    max_pool_sequence,
)
from tests import oracles
from tests.samples import assert_close

LENGTHS = np.array([11, 7, 3, 2, 1, 0])
XS = np.random.default_rng(0).normal(size=(len(LENGTHS), 11, 4)).astype(np.float32)


def padded(fill=np.nan, more=0):
    x = np.pad(XS, ((0, 0), (0, more), (0, 0)))
    return np.where((np.arange(x.shape[1]) < LENGTHS[:, None])[..., None], x, fill)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_convolution_agrees_with_pytorch(size):
    torch = oracles.oracle("torch")
    rng = np.random.default_rng(1)
    kernel, weights = rng.normal(size=(size, 4, 5)), rng.normal(size=(len(XS), 11, 5))
    ours, vjp = jax.vjp(convolve_sequence, jnp.asarray(XS), jnp.asarray(kernel, jnp.float32))
    tensors = [torch.tensor(XS, dtype=torch.float64, requires_grad=True), torch.tensor(kernel, requires_grad=True)]
    theirs = torch.nn.functional.conv1d(tensors[0].transpose(1, 2), tensors[1].permute(2, 1, 0), padding=size // 2)
    (theirs.transpose(1, 2) * torch.tensor(weights)).sum().backward()
    assert_close(ours, theirs.transpose(1, 2).detach().numpy(), 1e-5)
    assert_close(vjp(jnp.asarray(weights, jnp.float32)), tuple(tensor.grad.numpy() for tensor in tensors), 1e-5)


@pytest.mark.parametrize("lengths", [LENGTHS, None], ids=["ragged", "whole"])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_of_symbols_it_is_that_of_one_hot(size, lengths):
    layer = SequenceConvolution(9, 5, size, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(layer)
    state = jax.tree.map(lambda leaf: leaf + 0.3, state)
    tokens = np.random.default_rng(2).integers(-1, 11, XS.shape[:2])  # 0 to 8 are symbols, the others are none
    weights = np.random.default_rng(3).normal(size=(*tokens.shape, 5)).astype(np.float32)

    def loss(state, by_rows):
        made = nnx.merge(graphdef, state)
        frames = made.of_symbols(tokens, lengths) if by_rows else made(frames_of(jax.nn.one_hot(tokens, 9), lengths))
        return jnp.sum(frames.features * weights), frames.features

    (got, want) = (jax.grad(loss, has_aux=True)(state, by_rows) for by_rows in (True, False))
    assert_close(got, want, 1e-5)


def test_of_symbols_in_bfloat16_it_is_the_sum_rounded_once():
    """Each sum anew in bfloat16 would be off by several of its steps, of 2^-8 of the sum."""
    graphdef, state = nnx.split(SequenceConvolution(9, 64, 7, rngs=nnx.Rngs(0)))
    layer = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state))
    narrow = layer.kernel[...]
    tokens = np.random.default_rng(2).integers(0, 9, (4, 30))
    around = (
        np.pad(np.asarray(narrow, np.float64), ((0, 0), (0, 1), (0, 0))),
        np.pad(tokens, ((0, 0), (3, 3)), constant_values=9),
    )
    want = np.maximum(sum(rows[around[1][:, n : n + 30]] for n, rows in enumerate(around[0])), 0)
    got = layer.of_symbols(jnp.asarray(tokens), None).features
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=2**-8)


def test_gradients_of_symbols_in_bfloat16_are_sums_rounded_once():
    """Of a symbol that stands everywhere a thousand terms of 1 add up; in bfloat16 they would stay at 256."""
    graphdef, state = nnx.split(SequenceConvolution(3, 2, 1, rngs=nnx.Rngs(0)))
    state = jax.tree.map(lambda leaf: jnp.ones_like(leaf, jnp.bfloat16), state)
    tokens = jnp.zeros((4, 250), int)

    def total(state):
        return nnx.merge(graphdef, state).of_symbols(tokens, None).features.astype(jnp.float32).sum()

    assert jax.grad(total)(state)["kernel"][...].tolist() == [[[1000.0, 1000.0], [0.0, 0.0], [0.0, 0.0]]]


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (2, 2), (3, 3), (3, 2), (5, 2)])
def test_pooling_is_that_of_each_sequence_alone(window, stride):
    """PyTorch with `ceil_mode`, whose last window may begin behind the end where it would hold padding only: by hand, then."""
    pooled = max_pool_sequence(frames_of(padded(), LENGTHS), window, stride)
    assert pooled.lengths.tolist() == [-(-n // stride) for n in LENGTHS]
    for row, n in enumerate(LENGTHS):
        want = [XS[row, first : min(first + window, n)].max(0) for first in range(0, n, stride)]
        count = len(want)
        np.testing.assert_array_equal(pooled.features[row, :count], np.array(want).reshape(count, 4))
        assert not pooled.features[row, count:].any()
    whole = max_pool_sequence(Frames(jnp.asarray(XS), None), window, stride)
    np.testing.assert_array_equal(whole.features[0], pooled.features[0])
    assert whole.lengths is None


def test_pooling_without_overlap_agrees_with_pytorch():
    torch = oracles.oracle("torch")
    theirs = torch.nn.functional.max_pool1d(torch.tensor(XS).transpose(1, 2), 3, ceil_mode=True).transpose(1, 2)
    np.testing.assert_array_equal(max_pool_sequence(Frames(jnp.asarray(XS), None), 3).features, theirs.numpy())


@pytest.mark.parametrize("k", [1, 3, 8, 14])
def test_k_max_keeps_the_greatest_in_their_order(k):
    got = k_max_pool(frames_of(padded(), LENGTHS), k)
    assert got.shape == (len(LENGTHS), k, 4)
    for row, n in enumerate(LENGTHS):
        for feature in range(4):
            kept = sorted(np.argsort(-XS[row, :n, feature], kind="stable")[:k])
            want = np.pad(XS[row, kept, feature], (0, k - len(kept)))
            np.testing.assert_array_equal(got[row, :, feature], want)
    np.testing.assert_array_equal(k_max_pool(Frames(jnp.asarray(XS), None), k)[0], got[0])


@pytest.mark.parametrize("batch_norm", [False, True])
def test_padding_reaches_neither_values_nor_gradients(batch_norm):
    layer = SequenceConvolution(4, 3, 3, batch_norm=batch_norm, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(layer)
    state = jax.tree.map(lambda leaf: leaf + 0.3, state)  # a bias that padding would show

    @jax.jit
    def run(state, x, lengths):
        def loss(state, x):
            made = nnx.merge(graphdef, state, copy=True)
            frames = max_pool_sequence(made(frames_of(x, lengths), training=batch_norm), 3, 2)
            return jnp.sum(k_max_pool(frames, 2) ** 2) + jnp.sum(frames.features**3), frames.features

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(state, x)

    (of_state, of_x), features = run(state, padded(np.nan), LENGTHS)
    (of_state_wider, of_x_wider), wider = run(state, padded(7.0, more=5), LENGTHS)
    assert np.isfinite(np.asarray(features)).all()
    assert_close(wider[:, : features.shape[1]], features, 1e-6)
    assert not np.asarray(wider[:, features.shape[1] :]).any()
    assert_close((of_state_wider, of_x_wider[:, :11]), (of_state, of_x), 1e-5)
    assert not np.asarray(of_x_wider[:, 11:]).any()
    if not batch_norm:  # nor does a row know of the others
        (_, alone), one = run(state, XS[1:2, :7], LENGTHS[1:2])
        assert_close(one[0], features[1, : one.shape[1]], 1e-5)
        assert_close(alone[0], of_x[1, :7], 1e-5)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_behind_the_lengths_there_is_nothing(batch_norm, relu):
    layer = SequenceConvolution(4, 3, 5, batch_norm=batch_norm, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(layer)
    layer = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf + 0.3, state))
    frames = layer(frames_of(padded(), LENGTHS), relu=relu)
    something = np.any(np.asarray(frames.features), axis=-1)
    valid = np.arange(11) < LENGTHS[:, None]
    assert not something[~valid].any()
    assert something[valid].mean() > 0.7  # ReLU may leave nothing of a frame


def test_nothing_at_all_is_a_sequence_too():
    layer = SequenceConvolution(4, 3, 5, rngs=nnx.Rngs(0))
    for x, lengths in ((XS[:, :0], np.zeros(6, int)), (XS[:0], np.zeros(0, int)), (XS[:, :0], None)):
        frames = max_pool_sequence(layer(frames_of(jnp.asarray(x), lengths)), 3)
        assert frames.features.shape == (len(x), -(-x.shape[1] // 3), 3)
        assert not np.asarray(k_max_pool(frames, 2)).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SequenceConvolution(4, 3, 2, rngs=nnx.Rngs(0)), "size: expected an odd number, got 2"),
        (lambda: SequenceConvolution(0, 3, 3, rngs=nnx.Rngs(0)), "in_features, features: expected positive numbers"),
        (lambda: max_pool_sequence(frames_of(XS), 2, 3), "window, stride: expected 1 <= stride <= window, got 2 and 3"),
        (lambda: k_max_pool(frames_of(XS), 0), "k: expected a positive number, got 0"),
        (lambda: frames_of(XS, LENGTHS + 1), "lengths: expected values from 0 to T = 11, got 12 in row 0"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
