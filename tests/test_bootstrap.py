"""The bootstrap, beside what the binomial distribution says, and its samples the same for all systems."""

import numpy as np
import pytest

from s2s_jax.bootstrap import bootstrap, interval
from s2s_jax.text_metrics import exact_match_counts

RIGHT = exact_match_counts(["a"] * 100 + ["b"] * 300, ["a"] * 400)
ALL = np.arange(400)


def test_intervals_are_those_of_the_binomial_distribution():
    groups = {"all": ALL, "first": ALL[:200], "last": ALL[200:]}
    values = bootstrap({"one": RIGHT}, groups, samples=4000)
    assert [values["one", group][0] for group in groups] == [0.25, 0.5, 0]
    assert {of_group.shape for of_group in values.values()} == {(4001,)}
    for group, share, size in (("all", 0.25, 400), ("first", 0.5, 200), ("last", 0, 200)):
        half = 1.96 * (share * (1 - share) / size) ** 0.5
        assert interval(values["one", group]) == pytest.approx((share - half, share + half), abs=0.006)
    assert interval(np.array([9, *range(101)])) == (2.5, 97.5)


def test_samples_are_the_same_for_all_systems_and_others_for_each_group_and_seed():
    wrong = exact_match_counts(["b"] * 100 + ["a"] * 300, ["a"] * 400)
    values = bootstrap({"right": RIGHT, "wrong": wrong}, {"a": ALL, "b": ALL}, samples=50)
    np.testing.assert_allclose(values["right", "a"] + values["wrong", "a"], 1)
    assert (values["right", "a"] != values["right", "b"]).any()
    again, other = (bootstrap({"right": RIGHT}, {"a": ALL}, samples=50, seed=seed)["right", "a"] for seed in (0, 1))
    np.testing.assert_array_equal(again, values["right", "a"])
    assert (other != again).any()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="groups: expected at least one text in each, got none in 'none'"):
        bootstrap({"one": RIGHT}, {"none": ALL[:0]})
    with pytest.raises(ValueError, match="samples: expected at least 1, got 0"):
        bootstrap({"one": RIGHT}, {"all": ALL}, samples=0)
