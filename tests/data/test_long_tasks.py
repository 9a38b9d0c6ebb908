"""What the tests of a long memory ask, beside what their papers say of them."""

import numpy as np
import pytest

from s2s_jax.data.long_tasks import copied_digits, marked_sums


@pytest.mark.parametrize("length", [2, 3, 50])
def test_one_number_of_each_half_is_marked(length):
    drawn = marked_sums(np.random.default_rng(0), 4000, length)
    values, marks = drawn["sequence"][..., 0], drawn["sequence"][..., 1]
    assert set(np.unique(marks)) <= {0, 1}
    np.testing.assert_array_equal(marks[:, : length // 2].sum(1), 1)
    np.testing.assert_array_equal(marks[:, length // 2 :].sum(1), 1)
    np.testing.assert_allclose(drawn["sum"], [row[mark == 1].sum() for row, mark in zip(values, marks, strict=True)], rtol=1e-6)
    assert abs(np.mean((drawn["sum"] - 1) ** 2) - 1 / 6) < 0.01  # who always says 1
    assert values.min() >= 0
    assert values.max() < 1
    assert marks[:, 0].mean() > 0
    assert marks[:, -1].mean() > 0


def test_ten_digits_come_again_after_the_signal():
    drawn = copied_digits(np.random.default_rng(0), 500, 7)
    sequence, target = drawn["sequence"], drawn["target"]
    assert sequence.shape == target.shape == (500, 27)
    assert set(np.unique(sequence[:, :10])) == set(range(1, 9))
    assert not sequence[:, 10:16].any()
    np.testing.assert_array_equal(sequence[:, 16:], 9)
    np.testing.assert_array_equal(target[:, 17:], sequence[:, :10])
    assert not target[:, :17].any()


def test_the_seed_decides_and_lengths_are_checked():
    one, same, other = (marked_sums(np.random.default_rng(seed), 3, 5)["sequence"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    with pytest.raises(ValueError, match="length: expected at least 2, got 1"):
        marked_sums(np.random.default_rng(0), 1, 1)
    with pytest.raises(ValueError, match="length: expected a positive number of steps, got 0"):
        copied_digits(np.random.default_rng(0), 1, 0)
