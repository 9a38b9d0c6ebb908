"""Sums of two numbers, decimal or binary, as sequences of symbols, split into training, validation and test."""

from typing import Literal

import numpy as np

from s2s_jax.data.vocabulary import END, PAD, Characters

TRAIN, VALIDATION, TEST = range(3)
SPLIT_SEED = 1  # one split for all runs, whatever their seed


class Sums:
    """All pairs of numbers of up to `digits` digits, split by a seeded hash, and how they are written.

    Args:
      task: "decimal": numbers of 1 to `digits` digits, "535+61". "binary": of exactly `digits` bits, "011+110".
      digits: 1 to 9, binary 1 to 30.
      layout: binary only: one number after the other with a plus between them, or "paired", both bit by bit.

    Raises:
      ValueError: `digits` out of range, or too few for a pair in each split.
    """

    def __init__(self, task: Literal["decimal", "binary"], digits: int, layout: Literal["sequence", "paired"] = "sequence"):
        binary = task == "binary"
        if layout == "paired" and not binary:
            raise ValueError("layout: expected sequence in the decimal task, whose numbers differ in length, got paired")
        if digits < 1 or digits > (30 if binary else 9):
            raise ValueError(f"digits: expected 1 to {30 if binary else 9}, got {digits}")
        self.base = 2 if binary else 10
        self.digits = digits
        self.fixed_width = binary
        self.paired = binary and layout == "paired"
        self.source_alphabet = Characters("0123" if self.paired else "01+" if binary else "0123456789+")
        self.target_alphabet = Characters("01" if binary else "0123456789")
        self.held_out = 0.5 if binary else 0.1
        if self.base**self.digits <= 2**10:  # few enough pairs to hold out that share of them to the pair
            a, b = np.triu_indices(self.base**self.digits)
            shares = np.sort(_hashed(a, b))
            test, validation = round(self.held_out * len(shares)), max(1, round(0.02 * len(shares)))
            if test < 1 or test + validation >= len(shares):
                raise ValueError(f"digits: expected enough for a pair in each split, got {digits}")
            self.held_out, self.validation_below = shares[test], shares[test + validation]
        else:
            self.validation_below = self.held_out + 0.02  # and one in fifty for validation

    def split_of(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """`TRAIN`, `VALIDATION` or `TEST`, by a hash of the unordered pair, so that a+b and b+a are on one side."""
        share = _hashed(a, b)
        return np.where(share < self.held_out, TEST, np.where(share < self.validation_below, VALIDATION, TRAIN))

    def draw(
        self, rng: np.random.Generator, split: int, count: int, digits: int | None = None, *, even: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """`count` pairs of a split, uniform over all of its pairs of numbers of up to `digits` digits.

        With `even` each of the two numbers has a limit of its own: up to 1, 2, ... or `digits` digits, as often each. Among
        all pairs those of a short and a long number are rare.
        """
        digits = digits or self.digits
        a, b = np.empty(0, np.int64), np.empty(0, np.int64)
        while len(a) < count:
            longest = rng.integers(1, digits + 1, size=(2, 2 * count)) if even else digits
            new_a, new_b = rng.integers(self.base**longest, size=(2, 2 * count))
            keep = self.split_of(new_a, new_b) == split
            a, b = np.concatenate([a, new_a[keep]]), np.concatenate([b, new_b[keep]])
        return a[:count], b[:count]

    def sample(self, split: int, count: int | None) -> tuple[np.ndarray, np.ndarray]:
        """`count` different pairs of a split, always the same; all there are where there are fewer.

        Without a count: 1,000, and all in the binary task.
        """
        limit = self.base**self.digits
        count = count or (limit**2 if self.fixed_width and limit <= 2**10 else 1000)
        if limit**2 <= 2**20:
            a, b = (grid.ravel() for grid in np.meshgrid(np.arange(limit), np.arange(limit), indexing="ij"))
            of_split = np.flatnonzero(self.split_of(a, b) == split)
            chosen = np.random.default_rng(SPLIT_SEED).permutation(of_split)[:count]
            return a[chosen], b[chosen]
        a, b = self.draw(np.random.default_rng(SPLIT_SEED + split), split, 2 * count)
        _, first = np.unique(np.stack([a, b]), axis=1, return_index=True)
        first = np.sort(first)[:count]
        return a[first], b[first]

    def encode(self, a: np.ndarray, b: np.ndarray, digits: int | None = None) -> dict[str, np.ndarray]:
        """Source symbols and lengths, and target symbols with their end symbol, padded on the right for `digits` digits."""
        digits = digits or self.digits
        width_a, width_b = self._width(a), self._width(b)
        first = END + 1  # the symbol of digit 0
        if self.paired:
            t = np.arange(digits)
            source = 2 * self._digit(a, width_a, t) + self._digit(b, width_b, t) + first
            lengths = width_a
        else:
            t = np.arange(2 * digits + 1)
            digits_a = self._digit(a, width_a, t)
            digits_b = self._digit(b, width_b, t - width_a[:, None] - 1)
            lengths = width_a + 1 + width_b
            source = np.where(t < width_a[:, None], digits_a, digits_b) + first
            source = np.where(t == width_a[:, None], first + self.base, source)
            source = np.where(t < lengths[:, None], source, PAD)
        total = a + b
        width = np.full_like(total, self.digits + 1) if self.fixed_width else self._width(total)
        t = np.arange(digits + 2)  # a digit more than the longer number, and the end symbol
        target = np.where(t < width[:, None], self._digit(total, width, t) + first, PAD)
        target = np.where(t == width[:, None], END, target)
        return {
            "source": source.astype(np.int32),
            "source_lengths": lengths.astype(np.int32),
            "target": target.astype(np.int32),
        }

    def parse(self, text: str) -> tuple[int, int]:
        """The two numbers of "535+61".

        Raises:
          ValueError: not two numbers of the right digits with a plus between them.
        """
        parts = text.replace(" ", "").split("+")
        if len(parts) != 2 or not all(part and set(part) <= set("0123456789"[: self.base]) for part in parts):
            raise ValueError(f'expected a sum like "{"101+011" if self.base == 2 else "535+61"}", got {text!r}')
        if any(len(part) > self.digits for part in parts):
            raise ValueError(f"expected numbers of at most {self.digits} digits, as trained, got {text!r}")
        return int(parts[0], self.base), int(parts[1], self.base)

    def write(self, number: int, width: int = 0) -> str:
        """A number in the digits of the task."""
        return np.base_repr(number, self.base).rjust(width if self.fixed_width else 0, "0")

    def _width(self, number: np.ndarray) -> np.ndarray:
        if self.fixed_width:
            return np.full_like(number, self.digits)
        return 1 + np.sum(number[:, None] >= self.base ** np.arange(1, self.digits + 1), axis=1)

    def _digit(self, number: np.ndarray, width: np.ndarray, t: np.ndarray) -> np.ndarray:
        place = np.clip(width[:, None] - 1 - t, 0, self.digits)
        return number[:, None] // self.base**place % self.base


def _hashed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each unordered pair."""
    low, high = np.minimum(a, b).astype(np.uint64), np.maximum(a, b).astype(np.uint64)
    return _mixed(_mixed(high ^ _mixed(np.array([SPLIT_SEED], np.uint64))) + low) / 2.0**64


def _mixed(x: np.ndarray) -> np.ndarray:
    """A hash of 64 bits in which every bit of the input moves every bit of the output (splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
