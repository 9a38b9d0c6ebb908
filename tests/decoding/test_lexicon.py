"""The tree of words: what may follow what."""

import numpy as np
import pytest

from s2s_jax.decoding.lexicon import make_lexicon

SPACE = 4


def walk(lexicon, text):
    """Whether the text may be begun, and whether it may end there."""
    node = 0
    for symbol in text:
        node = int(lexicon.following[node, symbol])
        if node < 0:
            return False, False
    return True, bool(lexicon.ends[node])


@pytest.mark.parametrize(
    ("text", "begun", "ended"),
    [
        ((), True, True),
        ((1, 2), True, True),
        ((1,), True, False),
        ((1, 2, 3), True, True),
        ((1, 2, 2), False, False),
        ((2,), False, False),
        ((1, 2, SPACE), True, True),
        ((SPACE, SPACE, 3), True, True),
        ((1, SPACE), False, False),
        ((1, 2, SPACE, 3, SPACE, 1), True, False),
    ],
)
def test_words_with_separators(text, begun, ended):
    assert walk(make_lexicon([(1, 2), (1, 2, 3), (3,)], 5, separators=[SPACE]), text) == (begun, ended)


def test_without_separators_a_text_is_one_word():
    lexicon = make_lexicon(iter([(1, 2), (2,)]), 5)
    assert walk(lexicon, (1, 2)) == (True, True)
    assert walk(lexicon, (2, 2)) == (False, False)
    assert (np.asarray(lexicon.following[:, [0, 3, 4]]) == -1).all()


def test_the_first_symbol_is_one_like_others_where_the_blank_is_another():
    assert walk(make_lexicon([(0, 1), (2,)], 5, separators=[3], blank=4), (0, 1, 3, 2)) == (True, True)


@pytest.mark.parametrize(
    ("words", "separators", "message"),
    [
        ([], (), "words: expected at least one, got none"),
        ([(1, 5)], (), "got 5 in word 0"),
        ([(1,), (1, 4)], (4,), "got 4 in word 1"),
        ([(1,)], (7,), "separators: expected symbols from 0 to 4 but the blank, 0, got 7"),
        ([(1,), (2, 0)], (4,), "words: expected .* not the blank, 0, got 0 in word 1"),
        ([(1,)], (0,), "separators: expected symbols from 0 to 4 but the blank, 0, got 0"),
    ],
)
def test_errors(words, separators, message):
    with pytest.raises(ValueError, match=message):
        make_lexicon(words, 5, separators=separators)
