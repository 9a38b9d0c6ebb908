"""Batches as a pure function of seed and step: of arrays, and in length buckets of any source."""

import collections
import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from s2s_jax.data.buckets import field_lengths, length_buckets
from s2s_jax.data.pipeline import Batches


def arrays(count):
    return {"x": np.arange(count), "y": (10 * np.arange(count))[:, None]}


@pytest.mark.parametrize(("count", "batch_size"), [(10, 5), (10, 3), (7, 4), (3, 8), (1, 1), (1, 5)])
def test_every_example_comes_exactly_once_an_epoch(count, batch_size):
    batches = Batches(arrays(count), batch_size, seed=3)
    assert batches.steps_per_epoch == -(-count // batch_size)
    for epoch in range(6):
        seen = [batches(epoch * batches.steps_per_epoch + step) for step in range(batches.steps_per_epoch)]
        assert all(batch["x"].shape == batch["mask"].shape == (batch_size,) for batch in seen)
        assert sorted(np.concatenate([batch["x"][batch["mask"]] for batch in seen])) == list(range(count))
        for batch in seen:
            np.testing.assert_array_equal(batch["y"][:, 0], 10 * batch["x"])


def test_a_batch_is_a_function_of_seed_and_step_only():
    first, again = Batches(arrays(20), 6, seed=1), Batches(arrays(20), 6, seed=1)
    in_order = [first(step)["x"].tolist() for step in range(12)]
    # Any order of asking, as a run that goes on asks.
    for step in (11, 0, 7, 3, 7):
        assert again(step)["x"].tolist() == in_order[step]
    other = Batches(arrays(20), 6, seed=2)
    assert [other(step)["x"].tolist() for step in range(12)] != in_order


def test_epochs_have_orders_of_their_own():
    batches = Batches(arrays(30), 30, seed=0)
    orders = {tuple(batches(step)["x"].tolist()) for step in range(5)}
    assert len(orders) == 5
    assert tuple(range(30)) not in orders


def test_the_first_place_is_uniform():
    counts = collections.Counter(int(Batches(arrays(4), 1, seed=seed)(0)["x"][0]) for seed in range(400))
    assert min(counts.values()) > 60


@pytest.mark.parametrize(("count", "batch_size"), [(10, 5), (10, 4), (3, 8), (1, 1)])
def test_evaluation_counts_everything_once_in_order_and_in_one_shape(count, batch_size):
    batches = list(Batches(arrays(count), batch_size, seed=None))
    assert all(batch["x"].shape == batch["mask"].shape == (batch_size,) for batch in batches)
    assert np.concatenate([batch["x"][batch["mask"]] for batch in batches]).tolist() == list(range(count))


# Length buckets ------------------------------------------------------------------------------------------------------------


class Texts:
    """Examples of their own lengths, two fields of which vary: all values are above 0, so that padding can be told."""

    name, split = "texts", "train"

    def __init__(self, lengths):
        self.lengths = lengths

    def __len__(self):
        return len(self.lengths["x"])

    def __getitem__(self, number):
        x, y = (int(self.lengths[field][number]) for field in "xy")
        return {
            "x": np.arange(1, x + 1) + 100 * number,
            "y": np.full((y, 2), number + 1, np.float32),
            "id": np.int32(number),
        }


def texts(count=37, longest=12, seed=0):
    lengths = np.random.default_rng(seed).integers(0, longest + 1, (2, count))
    return Texts({"x": lengths[0], "y": lengths[1]})


BUCKETS = [{"x": 3, "y": 4}, {"x": 6, "y": 4}, {"x": 6, "y": 9}, {"x": 12, "y": 12}]
CASES = {
    "by count": {"batch_size": 4, "buckets": BUCKETS},
    "by tokens": {"tokens": 40, "buckets": BUCKETS},
    "tokens, even rows": {"tokens": 40, "buckets": BUCKETS, "multiple_of": 2},
    "one length": {"batch_size": 5},
    "numbers": {"batch_size": 3, "buckets": [4, 12]},
    "one large batch": {"batch_size": 64, "buckets": [5, 12]},
}
cases = pytest.mark.parametrize("case", CASES)


def slow_bucket(lengths, number, buckets):
    for place, bucket in enumerate(buckets):
        if all(lengths[field][number] <= bucket[field] for field in lengths):
            return place
    raise AssertionError(number)


def slow_shapes(lengths, batch_size=None, tokens=None, buckets=None, multiple_of=1):
    """{bucket: (rows, lengths, ids)} by plain loops."""
    if buckets is None:
        buckets = [{field: max(map(int, values)) for field, values in lengths.items()}]
    buckets = [bucket if isinstance(bucket, dict) else {"x": bucket, "y": bucket} for bucket in buckets]
    shapes = {}
    for number in range(len(lengths["x"])):
        place = slow_bucket(lengths, number, buckets)
        rows = batch_size or tokens // max(buckets[place].values()) // multiple_of * multiple_of
        shapes.setdefault(place, (rows, buckets[place], []))[2].append(number)
    return shapes


def slow_plan(shapes, order=sorted):
    """[(place, ids)] by plain loops: what does not fill a batch moves up if the whole plan has fewer positions by that."""

    def positions(plan):
        return sum(shapes[place][0] * sum(shapes[place][1].values()) for place, _ in plan)

    plans = [slow_plan_of(shapes, sorted, moving) for moving in (False, True)]
    return slow_plan_of(shapes, order, positions(plans[1]) < positions(plans[0]))


def slow_plan_of(shapes, order, moving):
    waiting = {place: list(ids) for place, (_, _, ids) in shapes.items()}
    plan = []
    for place in sorted(shapes):
        rows, lengths, _ = shapes[place]
        ids = list(order(sorted(waiting[place])))
        left = len(ids) % rows
        for later in sorted(shapes):
            other = shapes[later][1]
            if moving and left and later > place and all(lengths[field] <= other[field] for field in lengths):
                if left * (sum(other.values()) - sum(lengths.values())) < (rows - left) * sum(lengths.values()):
                    waiting[later] += ids[-left:]
                    ids = ids[:-left]
                break
        plan += [(place, ids[start : start + rows]) for start in range(0, len(ids), rows)]
    return plan


@cases
@pytest.mark.parametrize("seed", [0, 7, None])
def test_an_epoch_holds_each_example_once_in_a_bucket_and_each_field_as_it_was(case, seed):
    source = texts()
    batches = Batches(source, **CASES[case], lengths=source.lengths, seed=seed)
    shapes = slow_shapes(source.lengths, **CASES[case])
    plan = slow_plan(shapes)
    assert batches.steps_per_epoch == len(plan) <= sum(-(-len(ids) // rows) for rows, _, ids in shapes.values())
    for epoch in range(3):
        seen, used = [], []
        for step in range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch):
            batch, ids = batches(step), batches.ids(step)
            mask = batch.pop("mask")
            assert mask.dtype == bool
            np.testing.assert_array_equal(mask, ids >= 0)
            assert mask.any()
            assert set(batch) == {"x", "y", "id", "x_lengths", "y_lengths"}
            rows, padded = len(ids), {"x": batch["x"].shape[1], "y": batch["y"].shape[1]}
            assert (batch["x"].shape, batch["y"].shape) == ((rows, padded["x"]), (rows, padded["y"], 2))
            used.append((rows, padded, int(mask.sum())))
            for row, number in enumerate(ids):
                if number < 0:
                    assert not any(values[row].any() for values in batch.values())
                    continue
                example = source[number]
                assert batch["id"][row] == number
                for field in "xy":
                    length = source.lengths[field][number]
                    assert batch[f"{field}_lengths"][row] == length
                    np.testing.assert_array_equal(batch[field][row, :length], example[field])
                    assert not batch[field][row, length:].any()
            assert {field: values.dtype.name for field, values in batch.items()} == {
                "x": "int64",
                "y": "float32",
                "id": "int32",
                "x_lengths": "int32",
                "y_lengths": "int32",
            }
            seen += ids[mask].tolist()
        assert sorted(seen) == list(range(len(source)))
        expected = [(*shapes[place][:2], len(ids)) for place, ids in plan]
        assert sorted(used, key=str) == sorted(expected, key=str)


@pytest.mark.parametrize("seed", range(20))
def test_what_moves_to_a_longer_bucket_never_makes_an_epoch_longer(seed):
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.choice(np.arange(1, 60), 4, replace=False)).tolist()
    lengths = {"x": rng.integers(0, ends[-1] + 1, 150)}
    options = {"batch_size": 32} if seed % 2 else {"tokens": 400}
    usage = Batches([{"x": np.zeros(n)} for n in lengths["x"]], seed=0, lengths=lengths, buckets=ends, **options).usage()
    unmoved = 0
    for low, high in itertools.pairwise([-1, *ends]):
        rows = 32 if seed % 2 else 400 // high
        unmoved += -(-int(((lengths["x"] > low) & (lengths["x"] <= high)).sum()) // rows) * rows * high
    assert sum(shape.rows * shape.lengths["x"] * shape.steps for shape in usage.shapes) <= unmoved


def test_a_full_batch_is_not_broken_up_for_a_few_more():
    lengths = {"x": np.array(20 * [10] + 32 * [11])}
    usage = Batches([{"x": np.zeros(n)} for n in lengths["x"]], 32, seed=0, lengths=lengths, buckets=[10, 11]).usage()
    assert [(shape.lengths["x"], shape.steps) for shape in usage.shapes] == [(10, 1), (11, 1)]


def test_the_plan_is_that_of_a_few_lines_of_numpy():
    """Pinned: with another plan, a run that was stopped would go on with other examples."""
    source = texts()
    batches = Batches(source, 4, lengths=source.lengths, buckets=BUCKETS, seed=5)
    shapes = slow_shapes(source.lengths, 4, buckets=BUCKETS)
    for epoch in range(3):
        rng = np.random.default_rng((5, epoch))
        expected = [ids for _, ids in slow_plan(shapes, rng.permutation)]
        expected = [expected[place] for place in rng.permutation(len(expected))]
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        assert [batches.ids(step)[batches(step)["mask"]].tolist() for step in steps] == expected


def test_in_order_is_the_order_of_the_source_within_a_bucket_and_the_same_each_time():
    source = texts()
    batches = Batches(source, 4, lengths=source.lengths, buckets=BUCKETS, seed=None)
    ids = [number for step in range(batches.steps_per_epoch) for number in batches.ids(step) if number >= 0]
    shapes = slow_shapes(source.lengths, 4, buckets=BUCKETS)
    assert ids == [number for _, numbers in slow_plan(shapes) for number in numbers]
    assert batches.ids(0).tolist() == batches.ids(batches.steps_per_epoch).tolist()


def test_seeds_and_epochs_have_plans_of_their_own_and_any_order_of_asking_gives_the_same():
    source = texts()

    def ids(seed, steps):
        batches = Batches(source, 4, lengths=source.lengths, buckets=BUCKETS, seed=seed)
        return {step: batches.ids(step).tolist() for step in steps}

    steps = range(30)
    assert ids(1, steps) == ids(1, reversed(steps)) == ids(1, [*steps, *steps])
    per_epoch = Batches(source, 4, lengths=source.lengths, buckets=BUCKETS, seed=1).steps_per_epoch
    plans = {str([ids(seed, steps)[epoch * per_epoch + i] for i in range(per_epoch)]) for seed in range(3) for epoch in (0, 1)}
    assert len(plans) == 6


def test_fixed_sizes_need_no_lengths():
    source = [{"x": np.full(3, i), "label": i} for i in range(7)]
    batches = Batches(source, 3, seed=0)
    assert batches.steps_per_epoch == 3
    epoch = [batches(step) for step in range(3)]
    assert [batch["x"].shape for batch in epoch] == [(3, 3)] * 3
    assert sorted(np.concatenate([batch["label"][batch["mask"]] for batch in epoch])) == list(range(7))
    assert batches.usage().padding == pytest.approx(2 / 9)


def test_arrays_in_memory_are_examples_too():
    source = texts()
    arrays = {
        "x": np.stack([np.pad(source[i]["x"], (0, 20 - len(source[i]["x"])), constant_values=-9) for i in range(37)]),
        "y": np.stack(
            [np.pad(source[i]["y"], ((0, 20 - len(source[i]["y"])), (0, 0)), constant_values=np.nan) for i in range(37)]
        ),
        "id": np.arange(37, dtype=np.int32),
    }
    options = {"lengths": source.lengths, "buckets": BUCKETS, "seed": 3}
    from_arrays, from_source = Batches(arrays, 4, **options), Batches(source, 4, **options)
    for step in range(25):
        for field, values in from_source(step).items():
            np.testing.assert_array_equal(from_arrays(step)[field], values)


def test_a_transform_makes_numbers_of_what_a_source_has():
    words = [{"text": text, "label": len(text)} for text in ("one", "three", "eleven", "")]

    def transform(example):
        return {"text": np.frombuffer(example["text"].encode(), np.uint8), "label": example["label"]}

    lengths = field_lengths(words, ["text"], transform)
    assert {field: values.tolist() for field, values in lengths.items()} == {"text": [3, 5, 6, 0]}
    assert field_lengths([], ["x", "y"])["y"].shape == (0,)
    batches = Batches(words, 2, lengths=lengths, buckets=[5, 6], transform=transform, seed=None)
    assert batches(0)["text"].tolist() == [[111, 110, 101, 0, 0], [116, 104, 114, 101, 101]]
    assert batches(1)["text"].tolist() == [[101, 108, 101, 118, 101, 110], [0] * 6]  # "" does not fill a batch of the first
    assert batches(1)["text_lengths"].tolist() == [6, 0]
    assert batches(1)["mask"].tolist() == [True, True]


@cases
def test_usage_is_what_an_epoch_shows(case):
    source = texts()
    batches = Batches(source, **CASES[case], lengths=source.lengths, seed=0)
    usage = batches.usage()
    epoch = [batches(step) for step in range(batches.steps_per_epoch)]
    data = sum(int(batch[f"{field}_lengths"].sum()) for batch in epoch for field in "xy")
    positions = sum(batch["x"].size + batch["y"].size // 2 for batch in epoch)
    assert usage.padding == pytest.approx(1 - data / positions)
    assert usage.filler_rows == sum(int((~batch["mask"]).sum()) for batch in epoch)
    assert (usage.examples, usage.steps, usage.left_out.tolist()) == (37, len(epoch), [])
    shown = collections.Counter((*batch["x"].shape, batch["y"].shape[1]) for batch in epoch)
    assert shown == {(shape.rows, shape.lengths["x"], shape.lengths["y"]): shape.steps for shape in usage.shapes}
    assert f"{usage.padding:.1%} padding" in str(usage)


def test_the_shapes_are_bounded_whatever_the_lengths():
    lengths = np.random.default_rng(0).lognormal(3, 0.8, 5000).astype(int)
    buckets = length_buckets(lengths, 8)
    assert len(buckets) == 8
    assert buckets[-1] == lengths.max()
    source = [{"x": np.zeros(length, np.int8)} for length in lengths]
    batches = Batches(source, tokens=1024, lengths={"x": lengths}, buckets=buckets, seed=0)
    shapes = {batches(step)["x"].shape for step in range(2 * batches.steps_per_epoch)}
    assert len(shapes) == 8
    assert all(rows * length <= 1024 < (rows + 1) * length for rows, length in shapes)
    # What buckets are for.
    assert batches.usage().padding < 0.25
    assert Batches(source, tokens=1024, lengths={"x": lengths}, seed=0).usage().padding > 0.7


@cases
@pytest.mark.parametrize("count", [2, 4])
def test_the_rows_of_all_processes_are_the_whole_batch(case, count):
    source = texts()
    options = {**CASES[case], "lengths": source.lengths, "seed": 1}
    rows = {shape.rows for shape in Batches(source, **options).usage().shapes}
    if any(number % count for number in rows):
        with pytest.raises(ValueError, match=rf"count: expected one that divides the \d+ rows of a batch, got {count}"):
            Batches(source, **options).of_process(0, count)
        return
    whole = Batches(source, **options)
    parts = [whole.of_process(index, count) for index in range(count)]
    for step in range(2 * whole.steps_per_epoch):
        batches = [part(step) for part in parts]
        assert len({tuple((field, values.shape) for field, values in batch.items()) for batch in batches}) == 1
        for field, values in whole(step).items():
            joined = np.concatenate([batch[field] for batch in batches])
            np.testing.assert_array_equal(joined, values)
            assert joined.dtype == values.dtype
        for part in parts:
            np.testing.assert_array_equal(part.ids(step), whole.ids(step))


def test_a_process_reads_no_rows_of_another():
    source = texts()
    read = []

    class Noting:
        def __len__(self):
            return len(source)

        def __getitem__(self, number):
            read.append(number)
            return source[number]

    batches = Batches(Noting(), 4, seed=1, lengths=source.lengths).of_process(1, 2)
    for step in range(batches.steps_per_epoch - 1):
        read.clear()
        batches(step)
        assert read == [number for number in batches.ids(step)[2:] if number >= 0]
    with pytest.raises(ValueError, match="index, count: expected 0 <= index < count, got 2 and 2"):
        batches.of_process(2, 2)


# What is wrong is named ----------------------------------------------------------------------------------------------------


def test_an_example_too_long_is_named_or_left_out_and_counted():
    source = texts()
    too_long = [i for i in range(37) if source.lengths["x"][i] > 10 or source.lengths["y"][i] > 11]
    assert len(too_long) > 1
    options = {"lengths": source.lengths, "buckets": [{"x": 5, "y": 5}, {"x": 10, "y": 11}], "seed": 0}
    first = {field: int(source.lengths[field][too_long[0]]) for field in "xy"}
    message = rf"expected at most {{'x': 10, 'y': 11}}, got {first} of example {too_long[0]}; {len(too_long)} examples are"
    with pytest.raises(ValueError, match=message):
        Batches(source, 4, **options)
    batches = Batches(source, 4, **options, overlong="leave out")
    assert batches.usage().left_out.tolist() == too_long
    assert f"{37 - len(too_long)} examples, {len(too_long)} too long and left out" in str(batches.usage())
    seen = {int(number) for step in range(batches.steps_per_epoch) for number in batches.ids(step)} - {-1}
    assert seen == set(range(37)) - set(too_long)


GOOD = {"batch_size": 4, "seed": 0, "buckets": [12]}


def test_buckets_may_cross_and_an_example_goes_to_the_first_that_holds_it():
    lengths = {"x": np.array(6 * [1, 3, 2, 5, 5]), "y": np.array(6 * [1, 2, 5, 1, 5])}  # all batches are full
    buckets = [{"x": 3, "y": 2}, {"x": 2, "y": 5}, {"x": 5, "y": 2}, {"x": 5, "y": 5}]
    batches = Batches(Texts(lengths), tokens=10, seed=0, lengths=lengths, buckets=buckets)
    shapes = {}
    for step, batch in enumerate(batches):
        for number in batches.ids(step)[batches.ids(step) >= 0]:
            shapes.setdefault(int(number) % 5, set()).add((batch["x"].shape[1], batch["y"].shape[1]))
    assert shapes == {0: {(3, 2)}, 1: {(3, 2)}, 2: {(2, 5)}, 3: {(5, 2)}, 4: {(5, 5)}}
    assert [shape.rows for shape in batches.usage().shapes] == [3, 2, 2, 2]


WRONG = {
    "neither": ({"batch_size": None}, "batch_size, tokens: expected one of the two, got None and None"),
    "both": ({"tokens": 8}, "batch_size, tokens: expected one of the two, got 4 and 8"),
    "batch_size": ({"batch_size": 0}, "batch_size: expected a positive number, got 0"),
    "tokens": ({"batch_size": None, "tokens": -1}, "tokens: expected a positive number, got -1"),
    "few tokens": ({"batch_size": None, "tokens": 11}, "tokens: expected enough for 1 rows of length 12, got 11"),
    "few tokens for devices": (
        {"batch_size": None, "tokens": 30, "multiple_of": 4},
        "tokens: expected enough for 4 rows of length 12, got 30",
    ),
    "multiple_of": ({"multiple_of": 0}, "multiple_of: expected a positive number, got 0"),
    "seed": ({"seed": -1}, "seed: expected 0 or more, or None, got -1"),
    "overlong": ({"overlong": "drop"}, "overlong: expected 'error' or 'leave out', got 'drop'"),
    "buckets down": ({"buckets": [12, 5]}, r"buckets: expected lengths of \['x', 'y'\] that go up, got \[12, 5\]"),
    "buckets twice": ({"buckets": [5, 5]}, r"buckets: expected lengths .* that go up, got \[5, 5\]"),
    "no buckets": ({"buckets": []}, r"buckets: expected lengths .* that go up, got \[\]"),
    "buckets crossing": (
        {"buckets": [{"x": 3, "y": 5}, {"x": 5, "y": 3}]},
        "that go up, got .* and the last is the longest in every field",
    ),
    "buckets never used": (
        {"buckets": [{"x": 3, "y": 5}, {"x": 5, "y": 3}, {"x": 5, "y": 2}, {"x": 9, "y": 9}]},
        "that go up, got .* none may be within one before it",
    ),
    "buckets of another field": ({"buckets": [{"x": 3}]}, "buckets: expected lengths .* that go up"),
    "buckets without lengths": ({"lengths": None}, "buckets: expected lengths with them, got none"),
    "lengths of another count": (
        {"lengths": {"x": np.zeros(3, int)}},
        r"lengths: expected 37 integers, none below 0, for 'x', got int64 \[3\]",
    ),
    "fractional lengths": ({"lengths": {"x": np.zeros(37)}}, "lengths: expected 37 integers, .*, got float64"),
    "negative lengths": ({"lengths": {"x": np.full(37, -1)}}, "lengths: expected 37 integers, none below 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_arguments_out_of_range_are_named(case):
    source = texts()
    changed, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        Batches(source, **{**GOOD, "lengths": source.lengths, **changed})


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match="source: expected at least one example, got none of 0"):
        Batches([], 4, seed=0)
    with pytest.raises(ValueError, match="source: expected at least one example, got none of 2"):
        Batches([{"x": [1, 2]}] * 2, 4, seed=0, lengths={"x": np.array([2, 2])}, buckets=[1], overlong="leave out")
    with pytest.raises(ValueError, match="step: expected 0 or more, got -1"):
        Batches([{"x": 1}], 4, seed=0)(-1)


def faulty(number):
    if number == 5:
        raise OSError("no such sector")
    return {"x": np.ones(number % 3 + 1)}


class Faulty:
    """A source one of whose examples cannot be read."""

    name, split = "digits", "test"

    def __getitems__(self, numbers):
        return [faulty(number) for number in numbers]

    def __len__(self):
        return 8

    def __getitem__(self, number):
        return faulty(number)


def double(example):
    return {"x": example["x"][:, None] / example["x"].sum() if len(example["x"]) < 3 else 1 // 0}


FAULTS = {
    "read": (Faulty(), None, r"digits, split test, example 5: cannot be read \(no such sector\)"),
    "transform": ([faulty(i) for i in range(5)], double, r"list, example 2: the transform failed \(ZeroDivisionError"),
    "length": (
        [faulty(i) for i in (0, 1, 2, 4)],
        None,
        r"list, example 3: expected 'x' to be float64 \[1\], got float64 \[2\]",
    ),
    "type": (
        [{"x": np.ones(1)}, {"x": np.ones(2, int)}],
        None,
        r"list, example 1: expected 'x' to be float64 \[2\], got int64 \[2\]",
    ),
    "fields": (
        [{"x": np.ones(1)}, {"x": np.ones(2), "z": 1}],
        None,
        r"list, example 1: expected the fields \['x'\], got \['x', 'z'\]",
    ),
    "text": ([{"x": np.ones(1), "text": "no"}], None, "list: expected numbers in 'text', got str; give a transform"),
    "bytes": ([{"x": np.ones(1), "text": b"no"}], None, "list: expected numbers in 'text', got bytes; give a transform"),
    "field missing": ([{"y": 1}], None, r"list: expected examples with \['x'\] and without .*, got the fields \['y'\]"),
    "mask": ([{"x": np.ones(1), "mask": 1}], None, r"without \['mask', 'x_lengths'\], got the fields \['x', 'mask'\]"),
    "lengths": ([{"x": np.ones(1), "x_lengths": 1}], None, r"without \['mask', 'x_lengths'\], got the fields"),
}


@pytest.mark.parametrize("case", FAULTS)
@pytest.mark.parametrize("prefetched", [False, True], ids=["called", "iterated"])
def test_an_example_that_cannot_be_used_is_named(case, prefetched):
    source, transform, message = FAULTS[case]
    lengths = {"x": np.arange(len(source)) % 3 + 1}
    batches = Batches(source, 8, seed=None, lengths=lengths, transform=transform)
    with pytest.raises(ValueError, match=message):
        list(batches.iterate(0, 1)) if prefetched else batches(0)


# Prefetching ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "last"), [(0, 9), (7, 31), (4, 4), (40, 41)])
@pytest.mark.parametrize("threads", [1, 3])
def test_iterating_gives_what_calling_gives(first, last, threads):
    source = texts()
    batches = Batches(source, 4, lengths=source.lengths, buckets=BUCKETS, seed=2)
    got = list(batches.iterate(first, last, threads=threads))
    assert len(got) == last - first
    for step, batch in zip(range(first, last), got, strict=True):
        for field, values in batches(step).items():
            np.testing.assert_array_equal(batch[field], values)


def test_without_a_last_step_it_goes_on():
    source = texts()
    batches = Batches(source, 4, lengths=source.lengths, buckets=BUCKETS, seed=2)
    iterator = batches.iterate(3)
    for step, batch in zip(range(3, 60), iterator, strict=False):
        np.testing.assert_array_equal(batch["id"], batches(step)["id"])
    iterator.close()


class Noted:
    """A source that notes which examples were read, and in which threads."""

    def __init__(self, count):
        self.count, self.read, self.threads = count, [], set()

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        self.read.append(number)
        self.threads.add(threading.current_thread())
        return {"x": number}


def wait_until(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("nothing happened for five seconds")


def test_prefetching_runs_ahead_as_far_as_it_was_told_and_ends_with_the_iterator():
    source = Noted(100)
    iterator = Batches(source, 2, seed=None).iterate(10, threads=2, ahead=6)
    assert not source.read
    assert next(iterator)["x"].tolist() == [20, 21]
    wait_until(lambda: len(source.read) == 14)  # the batch that was taken, and six more
    time.sleep(0.1)
    assert sorted(source.read) == list(range(20, 34))
    assert threading.current_thread() not in source.threads
    assert len(source.threads) <= 2
    next(iterator)
    wait_until(lambda: len(source.read) == 16)
    iterator.close()
    wait_until(lambda: not any(thread.is_alive() for thread in source.threads))


def test_batches_are_made_in_as_many_threads_as_it_was_told():
    together = threading.Barrier(3)

    class Meeting(Noted):
        def __getitem__(self, number):
            together.wait(timeout=5)  # or it breaks
            return {"x": number}

    got = list(Batches(Meeting(6), 1, seed=None).iterate(0, 6, threads=3))
    assert [int(batch["x"][0]) for batch in got] == list(range(6))


@pytest.mark.alone
def test_waiting_and_computing_overlap():
    class Slow(Noted):
        def __getitem__(self, number):
            time.sleep(0.02)
            return {"x": number}

    batches = Batches(Slow(30), 1, seed=0)
    next(batches.iterate())  # imports Grain
    began = time.perf_counter()
    for _ in batches.iterate(0, 30, threads=2):
        time.sleep(0.02)
    assert time.perf_counter() - began < 0.75 * 30 * 0.04


def test_arrays_and_calls_need_neither_grain_nor_tfds():
    code = """
import sys
import numpy as np
from s2s_jax.data.pipeline import Batches
batches = Batches({"x": np.arange(10).reshape(5, 2)}, 2, seed=0, lengths={"x": np.array([1, 2, 2, 0, 1])}, buckets=[1, 2])
[batches(step) for step in range(5)]
next(batches.iterate())
print(*(name for name in ("grain", "tensorflow_datasets", "array_record") if name in sys.modules))
next(Batches([{"x": 1}], 1, seed=0).iterate())
print("grain" in sys.modules, "tensorflow" in sys.modules)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["", "True False"]
