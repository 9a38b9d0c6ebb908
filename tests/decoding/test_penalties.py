"""Penalties against numbers worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from s2s_jax.decoding.penalties import coverage_penalty, length_penalty


@pytest.mark.parametrize(
    ("kind", "alpha", "lengths", "want"),
    [
        ("none", 5.0, [1, 7], [1, 1]),
        ("gnmt", 0.0, [1, 7], [1, 1]),
        ("gnmt", 1.0, [1, 7, 13], [1, 2, 3]),
        ("gnmt", 2.0, [1, 7, 13], [1, 4, 9]),
        ("average", 1.0, [1, 7], [1, 7]),
        ("average", 0.5, [4, 9], [2, 3]),
    ],
)
def test_length_penalty(kind, alpha, lengths, want):
    np.testing.assert_allclose(length_penalty(jnp.array(lengths), kind, alpha), want, rtol=1e-6)


def test_another_length_penalty_is_refused():
    with pytest.raises(ValueError, match="length_penalty: expected one of none, gnmt, average, got 'wu'"):
        length_penalty(jnp.array([1]), "wu", 1.0)


def test_coverage_penalty():
    sums = jnp.array([[0.5, 1.0, 3.0, 0.25], [1.0, 2.0, 1.5, 0.0]])
    np.testing.assert_allclose(coverage_penalty(sums[0], 2.0), 2 * np.log(0.125), rtol=1e-6)
    mask = jnp.array([[True, True, True, False]] * 2)
    np.testing.assert_allclose(coverage_penalty(sums, 2.0, mask), [2 * np.log(0.5), 0], rtol=1e-6)
    assert np.isfinite(coverage_penalty(sums[1], 1.0))  # what was never read costs much, but something can cost more
    assert coverage_penalty(sums[1], 1.0) < -80
