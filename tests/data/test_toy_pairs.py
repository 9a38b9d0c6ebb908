"""Made-up pairs: what they say, how long they are, and that no source stands in two splits."""

import collections

import pytest

from s2s_jax.data.toy_pairs import copied_digits, reversed_integers, sorted_digits

TASKS = {
    reversed_integers: (20, 50, lambda symbols: symbols[::-1]),
    copied_digits: (10, 10, lambda symbols: symbols),
    sorted_digits: (10, 10, lambda symbols: sorted(symbols, key=int)),
}


@pytest.mark.parametrize("task", TASKS)
def test_targets_are_right_and_lengths_and_symbols_uniform(task):
    longest, symbols, right = TASKS[task]
    pairs = task("train", 4000)
    lengths, seen = collections.Counter(), collections.Counter()
    for source, target in zip(pairs.sources, pairs.targets, strict=True):
        assert right(source.split(" ")) == target.split(" ")
        lengths[len(source.split(" "))] += 1
        seen.update(source.split(" "))
    assert set(lengths) == set(range(1, longest + 1))
    assert all(0.7 < lengths[length] * longest / 4000 < 1.3 for length in range(2, longest + 1))
    assert set(seen) == {str(number) for number in range(symbols)}


@pytest.mark.parametrize("task", TASKS)
def test_no_source_stands_in_two_splits_and_a_seed_gives_the_same_again(task):
    splits = {split: set(task(split, 3000).sources) for split in ("train", "validation", "test")}
    assert not splits["train"] & splits["test"]
    assert not splits["train"] & splits["validation"]
    assert not splits["validation"] & splits["test"]
    assert not set(task("train", 3000, seed=5).sources) & splits["test"]
    assert task("test", 50).sources == task("test", 50).sources
    assert task("test", 50).sources != task("test", 50, seed=1).sources


def test_sizes_are_those_of_the_published_tasks():
    assert len(reversed_integers("train").sources) == 50_000
    assert len(reversed_integers("validation").sources) == len(reversed_integers("test").sources) == 1_000
    for task in (copied_digits, sorted_digits):
        assert [len(task(split).sources) for split in ("train", "validation", "test")] == [10_000, 1_000, 1_000]
    assert max(len(source.split()) for source in copied_digits("test", 50, longest=3).sources) == 3


@pytest.mark.parametrize("task", TASKS)
def test_what_is_scored_differs_text_by_text(task):
    for split in ("validation", "test"):
        sources = task(split).sources
        assert len(set(sources)) == len(sources) == 1_000
    few = task("test", longest=1)
    assert 0 < len(few.sources) == len(set(few.sources)) == few.report.examples["test"] < 20
    with pytest.raises(ValueError, match=r"count: expected fewer of at most 1 symbols, found [0-9]+ that differ, got 50"):
        task("test", 50, longest=1)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "split: expected one of train, validation, test, got 'dev'"),
        ({"split": "test", "count": 0}, "count: expected at least 1, got 0"),
        ({"split": "test", "longest": 0}, "longest: expected at least 1, got 0"),
        ({"split": "test", "seed": -1}, "seed: expected 0 or more, got -1"),
    ],
)
def test_bad_input_is_named(task, options, message):
    with pytest.raises(ValueError, match=message):
        task(**options)
