"""Lengths and masks against Python's own slices."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from s2s_jax import masks

TIME = 6
# One batch size and one T, so that nothing is compiled for each example; `TIME` itself comes up often at either end.
ragged = st.lists(st.integers(0, TIME), min_size=4, max_size=4).map(np.asarray)
trailing_axes = pytest.mark.parametrize("axes", [(), (3,), (2, 3)], ids=["BxT", "BxTxD", "BxTxDxE"])


def numbered(axes, batch_size=4, time=TIME):
    shape = (batch_size, time, *axes)
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@given(lengths=ragged)
def test_length_mask(lengths):
    mask = np.asarray(masks.length_mask(lengths, TIME))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, [[t < length for t in range(TIME)] for length in lengths])


@trailing_axes
@given(lengths=ragged)
def test_reverse_sequence_turns_the_valid_part_alone(axes, lengths):
    xs = numbered(axes)
    turned = np.asarray(masks.reverse_sequence(xs, lengths))
    for x, y, length in zip(xs, turned, lengths, strict=True):
        np.testing.assert_array_equal(y, np.concatenate([x[:length][::-1], x[length:]]))
    np.testing.assert_array_equal(masks.reverse_sequence(turned, lengths), xs)


@trailing_axes
@given(lengths=ragged)
def test_double_sequence_says_the_valid_part_twice(axes, lengths):
    xs = numbered(axes)
    xs[np.arange(TIME)[None] >= lengths[:, None]] = -1  # padding before is padding after, nothing valid is seen in it
    doubled, doubled_lengths = masks.double_sequence(xs, lengths)
    np.testing.assert_array_equal(doubled_lengths, 2 * lengths)
    assert doubled.shape == (4, 2 * TIME, *axes)
    for x, y, length in zip(xs, np.asarray(doubled), lengths, strict=True):
        np.testing.assert_array_equal(y[: 2 * length], np.concatenate([x[:length], x[:length]]))
        np.testing.assert_array_equal(y[2 * length :], -1)


def test_doubled_lengths_need_not_fit_the_dtype_of_the_lengths():
    _, doubled_lengths = masks.double_sequence(np.zeros((2, 200), np.float32), np.array([200, 3], np.uint8))
    np.testing.assert_array_equal(doubled_lengths, [400, 6])


@trailing_axes
def test_without_lengths_all_is_valid(axes):
    xs = numbered(axes)
    np.testing.assert_array_equal(masks.reverse_sequence(xs), xs[:, ::-1])
    doubled, lengths = masks.double_sequence(xs)
    assert lengths is None
    np.testing.assert_array_equal(doubled, np.concatenate([xs, xs], axis=1))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (1, 1)])
def test_empty_and_single(shape):
    xs, lengths = np.ones(shape, np.float32), np.full(shape[0], shape[1], np.int32)
    assert masks.length_mask(lengths, shape[1]).shape == shape
    np.testing.assert_array_equal(masks.reverse_sequence(xs, lengths), xs)
    doubled, doubled_lengths = masks.double_sequence(xs, lengths)
    np.testing.assert_array_equal(doubled, np.ones((shape[0], 2 * shape[1])))
    np.testing.assert_array_equal(doubled_lengths, 2 * lengths)


@pytest.mark.parametrize("axes", [(), (3,), (2, 3)])
def test_where_valid_takes_rows(axes):
    x, other = np.ones((4, *axes), np.float32), np.full((4, *axes), 2, np.float32)
    valid = np.array([True, False, False, True])
    np.testing.assert_array_equal(np.asarray(masks.where_valid(valid, x, other)).reshape(4, -1)[:, 0], [1, 2, 2, 1])
    np.testing.assert_array_equal(np.asarray(masks.where_valid(valid, x, np.float32(0))).reshape(4, -1)[:, 0], [1, 0, 0, 1])


@pytest.mark.parametrize(
    "lengths",
    [
        *([0, 1, 300], (0, 1, 300), np.array([0, 1, 300]), jnp.array([0, 1, 300])),
        *(np.array([0, 1, 255], np.uint8), np.array([0, 1, 300], np.uint64), np.array([0, 1, 127], np.int8)),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}",
)
def test_lengths_of_any_integer_kind(lengths):
    """300 is beyond what 8 bits hold, so T must not be cast to the dtype of the lengths."""
    checked = masks.check_lengths(lengths, 3, 300)
    assert checked.dtype == jnp.int32
    np.testing.assert_array_equal(checked, np.asarray(lengths, np.int64))


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        (np.array([1, 7, 9]), ValueError, r"lengths: expected values from 0 to T = 6, got 7 in row 1"),
        (np.array([1, 2, -3]), ValueError, r"lengths: expected values from 0 to T = 6, got -3 in row 2"),
        (np.array([2**63, 1, 1], np.uint64), ValueError, r"got 9223372036854775808 in row 0"),
        (np.array([2**32, 1, 1], np.int64), ValueError, r"got 4294967296 in row 0"),
        ([1, 7, 2], ValueError, r"got 7 in row 1"),
        (np.array([1.0, 2.0, 3.0]), TypeError, r"lengths: expected integers \[B\], got dtype float64"),
        ([1.0, 2.0, 3.0], TypeError, r"lengths: expected integers \[B\], got dtype float64"),
        (np.array([True, True, False]), TypeError, r"lengths: expected integers \[B\], got dtype bool"),
        (np.array([1, 2]), ValueError, r"lengths: expected shape \[B\] = \(3,\), got \(2,\)"),
        (np.array([[1, 2, 3]]), ValueError, r"lengths: expected shape \[B\] = \(3,\), got \(1, 3\)"),
        (4, ValueError, r"lengths: expected shape \[B\] = \(3,\), got \(\)"),
    ],
    ids=str,
)
def test_wrong_lengths_raise(lengths, error, message):
    with pytest.raises(error, match=message):
        masks.check_lengths(lengths, 3, 6)


def test_the_name_of_the_argument_is_told():
    with pytest.raises(ValueError, match="source_lengths: expected values from 0 to T = 6, got 7 in row 0"):
        masks.check_lengths(np.array([7]), 1, 6, name="source_lengths")


def test_traced_lengths_are_clipped():
    clipped = jax.jit(lambda lengths: masks.check_lengths(lengths, 3, 6))(np.array([-1, 9, 3]))
    np.testing.assert_array_equal(clipped, [0, 6, 3])
    with jax.enable_x64(True):  # before the cast, or 2 ** 32 + 1 would be 1
        wide = jax.jit(lambda lengths: masks.check_lengths(lengths, 3, 6))(np.array([2**32 + 1, -(2**32) + 1, 3]))
    np.testing.assert_array_equal(wide, [6, 0, 3])


def test_shift_right_by_hand():
    targets = np.array([[5, 6, 2], [7, 2, 0]])
    np.testing.assert_array_equal(masks.shift_right(targets, 1), [[1, 5, 6], [1, 7, 2]])
    assert masks.shift_right(targets[:, :0], 1).shape == (2, 0)
