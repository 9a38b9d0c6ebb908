"""Made-up reviews: what their class is said by, and that a seed makes them."""

import numpy as np
import pytest

from s2s_jax.data import reviews
from s2s_jax.data.reviews import made_up_reviews


def test_most_words_say_what_the_class_is():
    made = made_up_reviews(400, seed=0)
    assert made.labels.tolist() == [0, 1] * 200
    assert made.labels.dtype == np.int32

    def praise(text):
        words = text.lower().replace(".", " ").replace("!", " ").split()
        return sum(word in reviews._WORDS[1] for word in words), sum(word in reviews._WORDS[0] for word in words)

    counts = np.array([praise(text) for text in made.texts])
    for label in (0, 1):
        good, bad = counts[made.labels == label].sum(0)
        share = good / (good + bad)
        assert abs(share - (0.8 if label else 0.2)) < 0.04
    # Neither all nor few can be told by counting words, or there would be nothing to learn, or no way to.
    told = (counts[:, 0] > counts[:, 1]) == made.labels
    assert 0.75 < told.mean() < 0.95


def test_a_seed_gives_the_same_and_another_gives_others():
    assert made_up_reviews(20, 3).texts == made_up_reviews(20, 3).texts
    assert not set(made_up_reviews(50, 3).texts) & set(made_up_reviews(50, 4).texts)
    assert all(10 < len(text) < 400 for text in made_up_reviews(200, 5).texts)


def test_none_is_refused():
    with pytest.raises(ValueError, match="count: expected at least one review, got 0"):
        made_up_reviews(0, 0)
