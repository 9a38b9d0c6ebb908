"""Which lengths are padded to."""

import itertools

import numpy as np
import pytest

from s2s_jax.data.buckets import field_lengths, length_buckets


@pytest.mark.parametrize("count", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("highest", [0, 1, 12])
def test_length_buckets_pad_the_least_of_all_choices(count, highest):
    lengths = np.random.default_rng(count).integers(0, highest + 1, 30)

    def positions(buckets):
        return sum(min(bucket for bucket in buckets if bucket >= length) for length in lengths)

    different = sorted(set(lengths.tolist()))
    number = min(count, len(different))
    least = min(positions((*some, different[-1])) for some in itertools.combinations(different[:-1], number - 1))
    got = length_buckets(lengths, count)
    assert (len(got), got[-1], sorted(set(got))) == (number, different[-1], got)
    assert positions(got) == least


def test_length_buckets_of_very_many_lengths():
    got = length_buckets(np.arange(5003), 10)
    assert (len(got), got[-1]) == (10, 5002)
    assert np.diff(got) == pytest.approx(500, abs=11)
    for lengths, count in (([], 2), ([3], 0)):
        with pytest.raises(ValueError, match="lengths, count: expected at least one of each, got"):
            length_buckets(lengths, count)


def test_field_lengths_are_those_of_the_examples():
    source = [{"x": np.zeros((n, 2)), "y": "a" * (n + 1), "z": 0} for n in (3, 0, 5)]
    got = field_lengths(source, ["x", "y"])
    assert {field: values.tolist() for field, values in got.items()} == {"x": [3, 0, 5], "y": [4, 1, 6]}
    doubled = field_lengths(source, ["y"], lambda example: {"y": 2 * example["y"]})
    assert doubled["y"].tolist() == [8, 2, 12]
    assert field_lengths([], ["x", "y"])["y"].shape == (0,)
