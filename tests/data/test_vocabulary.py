"""Characters and bytes, and their numbers."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from s2s_jax.data.vocabulary import END, PAD, START, Bytes, Characters, normalized, up_to_end

DIGITS = Characters("0123456789+")


def test_the_special_symbols_come_first():
    assert (PAD, START, END) == (0, 1, 2)
    assert len(DIGITS) == 14
    assert DIGITS.encode("01+") == [3, 4, 13]


@given(st.text(alphabet="0123456789+", max_size=20))
def test_decode_undoes_encode(text):
    assert DIGITS.decode(DIGITS.encode(text)) == text
    assert DIGITS.decode(np.array([START, *DIGITS.encode(text), END, 5, 5])) == text


def test_decode_stops_at_the_end_symbol_and_leaves_padding_out():
    assert DIGITS.decode([START, 4, PAD, 5, END, 6]) == "12"
    assert DIGITS.decode([END, 4]) == ""
    assert DIGITS.decode([]) == ""


def test_a_batch_is_padded_on_the_right():
    numbers, lengths = DIGITS.encode_batch(["1+2", "", "0123"], 4)
    assert numbers.tolist() == [[4, 13, 5, 0], [0, 0, 0, 0], [3, 4, 5, 6]]
    assert lengths.tolist() == [3, 0, 4]
    assert numbers.dtype == lengths.dtype == np.int32
    numbers, lengths = DIGITS.encode_batch([], 4)
    assert (numbers.shape, lengths.shape) == ((0, 4), (0,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Characters(""), "alphabet: expected at least one character, got none"),
        (lambda: Characters("abca"), "alphabet: expected each character once, got 'a' twice"),
        (lambda: DIGITS.encode("1-2"), "text: expected characters of '0123456789\\+', got '-' in '1-2'"),
        (lambda: DIGITS.encode_batch(["1", "12345"], 4), r"texts\[1\]: expected at most 4 characters, got 5: '12345'"),
        (lambda: DIGITS.encode_batch(["1", "x"], 4), "got 'x' in 'x'"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@given(st.text(max_size=30))
def test_bytes_hold_any_text(text):
    numbers = Bytes().encode(text)
    assert numbers.dtype == np.int32
    assert [number - 3 for number in numbers] == list(text.encode("utf-8"))
    assert all(END < number < len(Bytes()) for number in numbers)
    assert Bytes().decode(np.array([START, *numbers, END, 70, PAD])) == text


def test_bytes_that_make_no_character_are_replaced():
    assert Bytes().decode([3 + 0xC3, 3 + ord("a")]) == "\ufffda"
    assert Bytes().decode([]) == ""
    assert len(Bytes()) == 259
    with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"):
        Bytes().encode("\ud800")


def test_texts_are_normalised():
    assert normalized("e\u0301A") == "\u00e9A"
    assert normalized("\u00c9A", lowercase=True) == "\u00e9a"
    assert normalized("\ud800 half\udc00") == "\ufffd half\ufffd"
    assert normalized("\ud83d\ude00 ﬁ ²") == "\U0001f600 ﬁ ²"  # form NFKC would change the last two


def test_numbers_up_to_the_end_symbol():
    assert list(up_to_end(np.array([START, 5, PAD, 3, END, 9]), 6)) == [5, 3]
    with pytest.raises(ValueError, match="ids: expected 0 to 5, got 6"):
        list(up_to_end([4, 6], 6))
