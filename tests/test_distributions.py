"""Distributions of the next value: beside SciPy, in loss, quantiles and what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from s2s_jax.distributions import DISTRIBUTIONS, LEAST_SCALE, gaussian, make_quantiles, negative_binomial, quantiles, student_t
from tests.samples import assert_close

RNG = np.random.default_rng(0)
RAW = {name: RNG.normal(size=(4, head.features)).astype(np.float32) for name, head in DISTRIBUTIONS.items()}
LOC, SCALE = np.array([0.0, 3.0, -40.0, 1.5], np.float32), np.array([1.0, 0.2, 30.0, 7.0], np.float32)
COUNTS = np.array([0.0, 1.0, 30.0, 5.0], np.float32)


def softplus(x):
    return np.log1p(np.exp(np.asarray(x, np.float64)))


def of_scipy(name):
    """The same distributions by SciPy, from the equations in the docstrings."""
    raw = RAW[name]
    if name == "negative_binomial":
        mean, alpha = SCALE * (softplus(raw[:, 0]) + LEAST_SCALE), (softplus(raw[:, 1]) + 1e-6) / np.sqrt(SCALE)
        return stats.nbinom(1 / alpha, 1 / (1 + alpha * mean))
    place, width = LOC + SCALE * raw[:, 0], SCALE * (softplus(raw[:, 1]) + LEAST_SCALE)
    return stats.norm(place, width) if name == "gaussian" else stats.t(2 + softplus(raw[:, 2]), place, width)


@pytest.mark.parametrize("name", ["gaussian", "student_t", "negative_binomial"])
def test_loss_mean_and_quantiles_are_those_of_scipy(name):
    head, theirs = DISTRIBUTIONS[name], of_scipy(name)
    values = COUNTS if head.counts else LOC + 2 * SCALE
    want = -(theirs.logpmf(values) if head.counts else theirs.logpdf(values))
    assert_close(head.loss(RAW[name], values, LOC, SCALE), want, 1e-4)
    assert_close(head.mean(RAW[name], LOC, SCALE), theirs.mean(), 1e-4)
    if head.quantile is not None:
        for level in (0.05, 0.5, 0.9):
            assert_close(head.quantile(RAW[name], level, LOC, SCALE), theirs.ppf(level), 1e-4)


@pytest.mark.parametrize("name", ["gaussian", "student_t", "negative_binomial"])
def test_what_is_drawn_is_spread_as_scipy_says(name):
    """The share of 20,000 draws below a quantile, within four standard errors; each row is drawn by itself."""
    head, theirs = DISTRIBUTIONS[name], of_scipy(name)
    keys = jax.random.split(jax.random.key(1), 20_000)
    drawn = np.asarray(jax.vmap(lambda key: head.sample(RAW[name], key, LOC, SCALE))(keys))
    for level in (0.1, 0.5, 0.9):
        at = theirs.ppf(level)
        share = theirs.cdf(at)  # of whole numbers not the level itself
        assert np.all(np.abs((drawn <= at).mean(0) - share) <= 4 * np.sqrt(share * (1 - share) / len(drawn)) + 1e-6)
    if head.counts:
        assert np.all(drawn == np.round(drawn))
    assert np.abs(np.corrcoef(stats.rankdata(drawn, axis=0).T) - np.eye(4)).max() < 0.04


def test_quantiles_rise_and_their_loss_is_that_of_the_definition():
    levels = [0.1, 0.5, 0.75]
    head, raw = make_quantiles(levels), RAW["quantiles"][:, :3]
    known = np.stack([np.asarray(head.quantile(raw, level, LOC, SCALE)) for level in levels], -1)
    want = LOC[:, None] + SCALE[:, None] * np.cumsum(np.concatenate([raw[:, :1], softplus(raw[:, 1:])], -1), -1)
    assert_close(known, want, 1e-5)
    assert np.all(np.diff(known) > 0)
    values = LOC + 0.3 * SCALE
    pinball = [
        np.mean([level * max(y - z, 0) + (1 - level) * max(z - y, 0) for level, z in zip(levels, row, strict=True)])
        for y, row in zip(values, known, strict=True)
    ]
    assert_close(head.loss(raw, values, LOC, SCALE), 2 * np.array(pinball), 1e-5)
    assert_close(head.mean(raw, LOC, SCALE), known[:, 1], 1e-6)
    assert_close(head.quantile(raw, 0.3, LOC, SCALE), (known[:, 0] + known[:, 1]) / 2, 1e-5)
    for level, end in ((0.01, 0), (0.99, 2)):
        assert_close(head.quantile(raw, level, LOC, SCALE), known[:, end], 1e-6)
    keys = jax.random.split(jax.random.key(1), 20_000)
    drawn = np.asarray(jax.vmap(lambda key: head.sample(raw, key, LOC, SCALE))(keys))
    for number, level in enumerate(levels):
        share = (drawn <= known[:, number] + 1e-4 * SCALE).mean(0)
        assert np.all(np.abs(share - (1 if number == 2 else level)) < 0.015)


@pytest.mark.parametrize("head", [gaussian, student_t, negative_binomial, quantiles], ids=lambda head: head.name)
def test_far_numbers_give_finite_losses_and_gradients(head):
    raw = jnp.asarray([[-60.0] * head.features, [60.0] * head.features, [0.0] * head.features])
    values = jnp.asarray([0.0, 10.0, 1000.0])
    loss, gradient = jax.value_and_grad(lambda raw: head.loss(raw, values, jnp.zeros(3), jnp.ones(3)).sum())(raw)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("inverse", [-14.0, -10.0, -5.0, 0.0, 3.0])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_counts_that_are_nearly_poisson_keep_their_loss_and_gradient(scale, inverse):
    """Beside SciPy in double precision, and the gradient beside its differences."""
    raw = np.array([0.5, inverse])

    def nats(raw, value):
        mean, alpha = scale * (softplus(raw[0]) + LEAST_SCALE), (softplus(raw[1]) + 1e-6) / np.sqrt(scale)
        return -stats.nbinom.logpmf(value, 1 / alpha, 1 / (1 + alpha * mean))

    for value in np.round(scale * np.array([0.0, 1.0, 1.5])):
        loss = jax.value_and_grad(lambda raw, value=value: negative_binomial.loss(raw, value, 0.0, scale))
        found, gradient = loss(jnp.asarray(raw, jnp.float32))
        assert float(found) == pytest.approx(nats(raw, value), rel=2e-4, abs=2e-3)
        for number in range(2):
            ahead, back = raw.copy(), raw.copy()
            ahead[number] += 1e-3
            back[number] -= 1e-3
            want = (nats(ahead, value) - nats(back, value)) / 2e-3
            assert float(gradient[number]) == pytest.approx(want, rel=5e-3, abs=5e-3)


@pytest.mark.parametrize("inverse", [-14.0, 0.0, 8.0])
@pytest.mark.parametrize("scale", [1e6, 1e9, 1e12])
def test_large_counts_keep_their_loss_and_gradient(scale, inverse):
    """Beside SciPy in double precision, and the derivatives by hand; within what single precision holds of the mean itself."""
    raw = np.array([0.5, inverse])
    mean, alpha = scale * (softplus(raw[0]) + LEAST_SCALE), (softplus(raw[1]) + 1e-6) / np.sqrt(scale)
    shape, rise = 1 / alpha, special.expit(raw)
    loss = jax.jit(jax.value_and_grad(lambda raw, value: negative_binomial.loss(raw, value, 0.0, scale)))
    for value in (0.0, 1.0, 25.0, *np.float32(scale * np.array([0.01, 0.5, 1.0, 1.5])).tolist()):
        found, gradient = loss(jnp.asarray(raw, jnp.float32), value)
        want = -stats.nbinom.logpmf(value, shape, 1 / (1 + alpha * mean))
        assert float(found) == pytest.approx(want, rel=2e-5, abs=1e-2)
        of_mean = shape * (mean - value) / (mean * (shape + mean))
        logs = special.digamma(shape) - special.digamma(shape + value) + np.log1p(mean / shape)
        of_shape = logs - (mean - value) / (shape + mean)
        wanted = of_mean * scale * rise[0], -of_shape * shape**2 * rise[1] / np.sqrt(scale)
        assert_close(gradient, np.array(wanted), 1e-4)


@pytest.mark.parametrize("inverse", [-14.0, 8.0])
@pytest.mark.parametrize("scale", [1e4, 1e7, 1e10, 1e12])
def test_large_counts_are_drawn_as_scipy_says(scale, inverse):
    """Those above 2^31 too, in nearly Poisson distributions and in wider ones: the share of draws below a quantile."""
    raw = np.array([0.5, inverse], np.float32)
    mean, alpha = scale * (softplus(raw[0]) + LEAST_SCALE), (softplus(raw[1]) + 1e-6) / np.sqrt(scale)
    theirs = stats.nbinom(1 / alpha, 1 / (1 + alpha * mean))
    keys = jax.random.split(jax.random.key(1), 20_000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: negative_binomial.sample(raw, key, 0.0, jnp.float32(scale))))(keys))
    assert np.all(drawn == np.round(drawn))
    for level in (0.01, 0.5, 0.99):
        assert (drawn <= theirs.ppf(level)).mean() == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / len(drawn)))


@pytest.mark.parametrize("levels", [(0.5, 0.4), (0.0, 0.5), (0.5, 1.0), (0.1, 0.9), ()])
def test_levels_that_are_none_are_an_error(levels):
    with pytest.raises(ValueError, match="levels: expected rising ones"):
        make_quantiles(levels)
