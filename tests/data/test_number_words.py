"""Numbers in words, beside lists written by hand."""

import pytest

from s2s_jax.data.number_words import in_english, in_german, number_words

# Written by hand, after Duden and Merriam-Webster.
BY_HAND = {
    0: ("zero", "null"),
    1: ("one", "eins"),
    2: ("two", "zwei"),
    6: ("six", "sechs"),
    7: ("seven", "sieben"),
    10: ("ten", "zehn"),
    11: ("eleven", "elf"),
    12: ("twelve", "zwölf"),
    13: ("thirteen", "dreizehn"),
    15: ("fifteen", "fünfzehn"),
    16: ("sixteen", "sechzehn"),
    17: ("seventeen", "siebzehn"),
    18: ("eighteen", "achtzehn"),
    20: ("twenty", "zwanzig"),
    21: ("twenty-one", "einundzwanzig"),
    30: ("thirty", "dreißig"),
    40: ("forty", "vierzig"),
    44: ("forty-four", "vierundvierzig"),
    55: ("fifty-five", "fünfundfünfzig"),
    66: ("sixty-six", "sechsundsechzig"),
    77: ("seventy-seven", "siebenundsiebzig"),
    80: ("eighty", "achtzig"),
    99: ("ninety-nine", "neunundneunzig"),
    100: ("one hundred", "einhundert"),
    101: ("one hundred one", "einhunderteins"),
    111: ("one hundred eleven", "einhundertelf"),
    121: ("one hundred twenty-one", "einhunderteinundzwanzig"),
    700: ("seven hundred", "siebenhundert"),
    1_000: ("one thousand", "eintausend"),
    1_001: ("one thousand one", "eintausendeins"),
    1_100: ("one thousand one hundred", "eintausendeinhundert"),
    2_016: ("two thousand sixteen", "zweitausendsechzehn"),
    21_000: ("twenty-one thousand", "einundzwanzigtausend"),
    100_000: ("one hundred thousand", "einhunderttausend"),
    101_000: ("one hundred one thousand", "einhunderteintausend"),
    101_101: ("one hundred one thousand one hundred one", "einhunderteintausendeinhunderteins"),
    342_105: ("three hundred forty-two thousand one hundred five", "dreihundertzweiundvierzigtausendeinhundertfünf"),
    999_999: (
        "nine hundred ninety-nine thousand nine hundred ninety-nine",
        "neunhundertneunundneunzigtausendneunhundertneunundneunzig",
    ),
}


@pytest.mark.parametrize("number", BY_HAND)
def test_words_are_those_written_by_hand(number):
    assert (in_english(number), in_german(number)) == BY_HAND[number]


def value_of_english(text):
    """The number that the words say, added up word by word."""
    value = {in_english(number): number for number in (*range(20), *range(20, 100, 10))}
    total = group = 0
    for word in text.replace("-", " ").split():
        if word == "thousand":
            total, group = 1000 * group, 0
        elif word == "hundred":
            group *= 100
        else:
            group += value[word]
    return total + group


def test_each_number_has_words_of_its_own():
    assert all(value_of_english(in_english(number)) == number for number in range(0, 1_000_000, 97))
    numbers = [*range(3000), *range(0, 1_000_000, 89)]
    assert len({in_german(number) for number in numbers}) == len(set(numbers))


def test_splits_share_no_number_and_the_pairs_are_translations():
    splits = {split: number_words(split) for split in ("train", "validation", "test")}
    assert {split: len(pairs.sources) for split, pairs in splits.items()} == {"train": 10_000, "validation": 500, "test": 1_000}
    sources = [source for pairs in splits.values() for source in pairs.sources]
    assert len(set(sources)) == len(sources)
    for pairs in splits.values():
        for source, target in zip(pairs.sources[:200], pairs.targets[:200], strict=True):
            assert in_german(value_of_english(source)) == target
    assert not set(number_words("train", seed=1).sources) & set(splits["test"].sources)
    assert number_words("test").sources == splits["test"].sources
    assert number_words("test", seed=1).sources != splits["test"].sources


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: in_german(1_000_000), "number: expected 0 to 999999, got 1000000"),
        (lambda: in_english(-1), "number: expected 0 to 999999, got -1"),
        (lambda: number_words("dev"), "split: expected one of train, validation, test, got 'dev'"),
        (lambda: number_words("test", 5_001), "count: expected 1 to 5000, got 5001"),
        (lambda: number_words("train", 0), "count: expected 1 to 50000, got 0"),
        (lambda: number_words("train", seed=-1), "seed: expected 0 or more, got -1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
