"""Which lengths are padded to."""

import itertools

import numpy as np
import pytest

from s2s_jax.data.buckets import field_buckets, field_lengths, length_buckets, power_of_two, with_room_for


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


def positions_of(buckets, source, target):
    return sum(
        min(b["source"] + b["target"] for b in buckets if b["source"] >= s and b["target"] >= t)
        for s, t in zip(source, target, strict=True)
    )


@pytest.mark.parametrize("count", [1, 2, 3])
def test_field_buckets_are_close_to_the_best_of_all_choices(count):
    rng = np.random.default_rng(count)
    source = rng.integers(1, 7, 40)
    target = np.clip(source + rng.integers(-2, 3, 40), 0, 6)
    got = field_buckets({"source": source, "target": target}, count)
    last = {"source": int(source.max()), "target": int(target.max())}
    assert len(got) <= count
    assert got[-1] == last
    pairs = [{"source": s, "target": t} for s in range(1, 7) for t in range(7)]
    least = min(positions_of([*some, last], source, target) for some in itertools.combinations(pairs, count - 1))
    assert least <= positions_of(got, source, target) <= 1.02 * least


def test_field_buckets_of_one_field_pad_the_least_and_of_two_groups_are_the_groups():
    lengths = np.random.default_rng(0).integers(1, 30, 200)
    one = [bucket["x"] for bucket in field_buckets({"x": lengths}, 4)]
    best = length_buckets(lengths, 4)

    def positions(ends):
        return ends[np.searchsorted(ends, lengths)].sum()

    assert one[-1] == best[-1]
    assert positions(np.array(best)) <= positions(np.array(one)) <= 1.02 * positions(np.array(best))
    # Neither of the two groups is within the other: a long source with a short target, and the other way round.
    crossing = field_buckets({"source": [9] * 50 + [3] * 50, "target": [3] * 50 + [9] * 50}, 5)
    expected = [{"source": 3, "target": 9}, {"source": 9, "target": 3}, {"source": 9, "target": 9}]
    assert crossing == expected


def test_field_buckets_of_very_many_lengths_hold_all():
    rng = np.random.default_rng(0)
    frames = rng.integers(1, 5000, 20_000)
    letters = frames // 20 + rng.integers(0, 9, 20_000)
    got = field_buckets({"frames": frames, "letters": letters}, 6)
    assert len(got) <= 6
    assert got[-1] == {"frames": int(frames.max()), "letters": int(letters.max())}
    for lengths, count in (({}, 2), ({"x": []}, 2), ({"x": [1], "y": [1, 2]}, 2), ({"x": [1]}, 0)):
        with pytest.raises(ValueError, match="lengths, count: expected fields of as many lengths, at least one of each, got"):
            field_buckets(lengths, count)


def test_room_is_made_for_what_is_longer_than_in_training():
    buckets = [{"x": 3, "y": 4}, {"x": 5, "y": 6}]
    assert with_room_for(buckets, {"x": [5, 1], "y": [6, 0]}) == buckets
    assert with_room_for(buckets, {"x": [9, 1], "y": [2, 0]}) == [*buckets, {"x": 9, "y": 6}]
    assert with_room_for(buckets, {"x": [], "y": []}) == buckets


def test_a_power_of_two_is_the_least_that_holds_a_length():
    for length in range(200):
        for least in (1, 16):
            assert power_of_two(length, least) == min(2**n for n in range(9) if 2**n >= max(length, least))
