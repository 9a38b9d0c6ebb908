"""Numbers in English and German words: a translation that is made up, with one right answer."""

from typing import Literal

import numpy as np

from s2s_jax.data.datasets.report import Report
from s2s_jax.data.parallel import Pairs
from s2s_jax.data.toy_pairs import split_of

LIMIT = 1_000_000  # numbers are below it

_ENGLISH = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_ENGLISH_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_GERMAN = (
    *("null", "ein", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn", "elf", "zwölf"),
    *("dreizehn", "vierzehn", "fünfzehn", "sechzehn", "siebzehn", "achtzehn", "neunzehn"),
)
_GERMAN_TENS = ("", "", "zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig")


def in_english(number: int) -> str:
    """A number from 0 to 999,999 in words, American: "three hundred forty-two thousand one hundred five".

    Raises:
      ValueError: another number.
    """
    _check(number)
    if number == 0:
        return _ENGLISH[0]
    thousands, rest = divmod(number, 1000)
    return " ".join(
        ([_english_hundreds(thousands), "thousand"] if thousands else []) + ([_english_hundreds(rest)] if rest else [])
    )


def in_german(number: int) -> str:
    """A number from 0 to 999,999 in one word, as Duden writes it: "dreihundertzweiundvierzigtausendeinhundertfünf".

    Raises:
      ValueError: another number.
    """
    _check(number)
    if number == 0:
        return _GERMAN[0]
    thousands, rest = divmod(number, 1000)
    word = (f"{_german_hundreds(thousands)}tausend" if thousands else "") + _german_hundreds(rest)
    return f"{word}s" if number % 100 == 1 else word  # eins at the end, ein before tausend


def number_words(split: Literal["train", "validation", "test"], count: int | None = None, *, seed: int = 0) -> Pairs:
    """Numbers below a million, English to German, each once; those of one digit to six as often, where there are so many.

    Without a `count` 10,000, 500 and 1,000 pairs. A number is in one split, whatever the seed.

    Raises:
      ValueError: no such split, or a count below 1 or above 50,000 (validation and test: 5,000).
    """
    counts = {"train": 10_000, "validation": 500, "test": 1_000}
    if split not in counts:
        raise ValueError(f"split: expected one of {', '.join(counts)}, got {split!r}")
    count = counts[split] if count is None else count
    most = 50_000 if split == "train" else 5_000
    if not 1 <= count <= most:
        raise ValueError(f"count: expected 1 to {most}, got {count}")
    if seed < 0:
        raise ValueError(f"seed: expected 0 or more, got {seed}")
    rng = np.random.default_rng((seed, list(counts).index(split)))
    numbers: dict[int, None] = {}
    while len(numbers) < count:
        digits = rng.integers(1, 7)
        number = int(rng.integers(10 ** (digits - 1) if digits > 1 else 0, 10**digits))
        if split_of(str(number)) == split:
            numbers[number] = None
    sources, targets = ([in_words(number) for number in numbers] for in_words in (in_english, in_german))
    return Pairs("number-words", split, sources, targets, None, Report({split: count}))


def _english_hundreds(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    words = [_ENGLISH[hundreds], "hundred"] if hundreds else []
    if rest >= 20:
        tens, ones = divmod(rest, 10)
        words.append(f"{_ENGLISH_TENS[tens]}-{_ENGLISH[ones]}" if ones else _ENGLISH_TENS[tens])
    elif rest:
        words.append(_ENGLISH[rest])
    return " ".join(words)


def _german_hundreds(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    word = f"{_GERMAN[hundreds]}hundert" if hundreds else ""
    if rest >= 20:
        tens, ones = divmod(rest, 10)
        return word + (f"{_GERMAN[ones]}und" if ones else "") + _GERMAN_TENS[tens]
    return word + (_GERMAN[rest] if rest else "")


def _check(number: int) -> None:
    if not 0 <= number < LIMIT:
        raise ValueError(f"number: expected 0 to {LIMIT - 1}, got {number}")
