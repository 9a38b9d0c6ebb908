"""Pairs that are made up: sequences to be reversed, copied or sorted, as texts of symbols with spaces between them."""

import hashlib
from collections.abc import Callable
from typing import Literal

import numpy as np

from s2s_jax.data.datasets.report import Report
from s2s_jax.data.parallel import Pairs

Split = Literal["train", "validation", "test"]

_SPLITS = ("train", "validation", "test")


def reversed_integers(split: Split, count: int | None = None, *, longest: int = 20, seed: int = 0) -> Pairs:
    """1 to `longest` integers from 0 to 49, and the same from the last to the first: "7 41 3" and "3 41 7".

    JoeyNMT's tutorial (Kreutzer et al. 2019, arXiv 1907.12484) has 50,000, 1,000 and 1,000 pairs, which is what comes without a
    `count`, or as many of validation and test as differ. Lengths are drawn evenly. No source stands in two splits, nor twice in
    validation or test, so that of the shortest, of which there are few, there are fewer.

    Raises:
      ValueError: no such split, a number below 1, or a `count` of validation or test texts that there are not.
    """

    def draw(rng: np.random.Generator) -> tuple[str, str]:
        numbers = [str(number) for number in rng.integers(50, size=rng.integers(1, longest + 1))]
        return " ".join(numbers), " ".join(reversed(numbers))

    return _pairs("reversed-integers", split, count, (50_000, 1_000, 1_000), longest, seed, draw)


def copied_digits(split: Split, count: int | None = None, *, longest: int = 10, seed: int = 0) -> Pairs:
    """1 to `longest` digits, and the same: Sockeye's system test of copying (10,000 pairs, 1,000 for the other splits).

    Lengths are as of `reversed_integers`, and so is what a source stands in. Hieber et al. 2017, arXiv 1712.05690.

    Raises:
      ValueError: as of `reversed_integers`.
    """
    return _digits("copied-digits", split, count, longest, seed, list)


def sorted_digits(split: Split, count: int | None = None, *, longest: int = 10, seed: int = 0) -> Pairs:
    """1 to `longest` digits, and the same going up, as in Sockeye's system test of sorting; the rest as of `copied_digits`."""
    return _digits("sorted-digits", split, count, longest, seed, sorted)


def _digits(
    name: str, split: str, count: int | None, longest: int, seed: int, ordered: Callable[[list[str]], list[str]]
) -> Pairs:
    def draw(rng: np.random.Generator) -> tuple[str, str]:
        digits = [str(digit) for digit in rng.integers(10, size=rng.integers(1, longest + 1))]
        return " ".join(digits), " ".join(ordered(digits))

    return _pairs(name, split, count, (10_000, 1_000, 1_000), longest, seed, draw)


def split_of(text: str) -> str:
    """The split of a source, by a hash of its text: eight of ten are "train", one each "validation" and "test"."""
    share = hashlib.blake2b(text.encode(), digest_size=8).digest()[0]
    return "train" if share >= 52 else "validation" if share < 26 else "test"


def _pairs(
    name: str,
    split: str,
    count: int | None,
    counts: tuple[int, int, int],
    longest: int,
    seed: int,
    draw: Callable[[np.random.Generator], tuple[str, str]],
) -> Pairs:
    if split not in _SPLITS:
        raise ValueError(f"split: expected one of {', '.join(_SPLITS)}, got {split!r}")
    place, asked = _SPLITS.index(split), count
    count = counts[place] if count is None else count
    for argument, number in (("count", count), ("longest", longest)):
        if number < 1:
            raise ValueError(f"{argument}: expected at least 1, got {number}")
    if seed < 0:
        raise ValueError(f"seed: expected 0 or more, got {seed}")
    rng = np.random.default_rng((seed, place))
    sources, targets, seen = [], [], set()
    for _ in range(100 * count):
        source, target = draw(rng)
        if split_of(source) == split and source not in seen:
            sources.append(source)
            targets.append(target)
            if split != "train":
                seen.add(source)
            if len(sources) == count:
                break
    if len(sources) < (1 if asked is None else asked):
        raise ValueError(f"count: expected fewer of at most {longest} symbols, found {len(sources)} that differ, got {count}")
    return Pairs(name, split, sources, targets, None, Report({split: len(sources)}))
