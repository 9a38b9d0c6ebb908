"""Distributions of the next value of a series, as heads of a network: what a recurrent forecaster says of each step.

A network gives raw numbers; a head says what they mean. Values are in units of their own: `loc` and `scale` of each series take
what the network sees, numbers around 0 of size 1, to these units (Salinas et al., arXiv 1704.04110, section 3.3).
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import stats
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

LEAST_SCALE = 1e-3  # of a distribution, in units of the series' own scale: a series that stands still has no density without


class Distribution(NamedTuple):
    """What raw numbers [..., features] say of values [...].

    Attributes:
      name: as a flag calls it.
      features: how many raw numbers there are for each value.
      loss: `(raw, values, loc, scale) -> [...]`, what training makes small: nats, or the quantile loss.
      sample: `(raw, key, loc, scale) -> [...]`, a value drawn of each.
      mean: `(raw, loc, scale) -> [...]`; of quantiles the median.
      quantile: `(raw, level, loc, scale) -> [...]`, in closed form, or None where it takes samples.
      counts: whether values are whole numbers from 0.
      point: whether it is no more than one number.
    """

    name: str
    features: int
    loss: Callable[..., Array]
    sample: Callable[..., Array]
    mean: Callable[..., Array]
    quantile: Callable[..., Array] | None = None
    counts: bool = False
    point: bool = False


# One number --------------------------------------------------------------------------------------------------------------


def _point(name: str, error: Callable[[Array], Array]) -> Distribution:
    """All at one number, which the error chooses: the square the mean, the absolute value the median."""

    def place(raw: Float[Array, "... 1"], loc: Array, scale: Array) -> Array:
        return loc + scale * raw[..., 0]

    return Distribution(
        name,
        1,
        lambda raw, values, loc, scale: error(values - place(raw, loc, scale)),
        lambda raw, key, loc, scale: place(raw, loc, scale),
        place,
        lambda raw, level, loc, scale: place(raw, loc, scale),
        point=True,
    )


squared_error = _point("squared_error", jnp.square)
absolute_error = _point("absolute_error", jnp.abs)

# Gaussian ----------------------------------------------------------------------------------------------------------------


def _gaussian(raw: Float[Array, "... 2"], loc: Array, scale: Array) -> tuple[Array, Array]:
    return loc + scale * raw[..., 0], scale * (jax.nn.softplus(raw[..., 1]) + LEAST_SCALE)


def _gaussian_loss(raw: Array, values: Array, loc: Array, scale: Array) -> Array:
    return -stats.norm.logpdf(values, *_gaussian(raw, loc, scale))


def _gaussian_sample(raw: Array, key: Array, loc: Array, scale: Array) -> Array:
    mean, deviation = _gaussian(raw, loc, scale)
    return mean + deviation * jax.random.normal(key, mean.shape, mean.dtype)


def _gaussian_quantile(raw: Array, level: Array | float, loc: Array, scale: Array) -> Array:
    return stats.norm.ppf(level, *_gaussian(raw, loc, scale))


gaussian = Distribution(
    "gaussian",
    2,
    _gaussian_loss,
    _gaussian_sample,
    lambda raw, loc, scale: _gaussian(raw, loc, scale)[0],
    _gaussian_quantile,
)

# Student's t -------------------------------------------------------------------------------------------------------------


def _student_t(raw: Float[Array, "... 3"], loc: Array, scale: Array) -> tuple[Array, Array, Array]:
    """More than 2 degrees of freedom, so that there is a variance; place; width."""
    return 2 + jax.nn.softplus(raw[..., 2]), *_gaussian(raw, loc, scale)


def _student_t_loss(raw: Array, values: Array, loc: Array, scale: Array) -> Array:
    return -stats.t.logpdf(values, *_student_t(raw, loc, scale))


def _student_t_sample(raw: Array, key: Array, loc: Array, scale: Array) -> Array:
    freedom, place, width = _student_t(raw, loc, scale)
    return place + width * jax.random.t(key, freedom, freedom.shape, place.dtype)


student_t = Distribution(
    "student_t", 3, _student_t_loss, _student_t_sample, lambda raw, loc, scale: _student_t(raw, loc, scale)[1]
)

# Negative binomial -------------------------------------------------------------------------------------------------------


_MANY = 30.0  # from this shape on what Stirling's series leaves out is below 1e-7


def _negative_binomial(raw: Float[Array, "... 2"], scale: Array) -> tuple[Array, Array]:
    """Mean mu and shape alpha, of variance mu + alpha mu^2 (arXiv 1704.04110, section 3.3: alpha by the root of the scale)."""
    return scale * (jax.nn.softplus(raw[..., 0]) + LEAST_SCALE), (jax.nn.softplus(raw[..., 1]) + 1e-6) / jnp.sqrt(scale)


def _negative_binomial_loss(raw: Array, values: Array, loc: Array, scale: Array) -> Array:
    mean, alpha = _negative_binomial(raw, scale)
    shape = 1 / alpha
    # A small shape as it is defined. Of a large one log Gamma(v + s) - log Gamma(s) and its like are differences of large
    # numbers: by Stirling's series they come down to the Poisson distribution and a correction.
    few = jnp.minimum(shape, _MANY)
    defined = gammaln(values + few) - gammaln(few) - gammaln(values + 1) + few * jnp.log(few) + values * jnp.log(mean)
    defined -= (values + few) * jnp.log(few + mean)
    many = jnp.maximum(shape, _MANY)
    correction = (many + mean) * _convex((values - mean) / (many + mean)) - 0.5 * jnp.log1p(values / many)
    correction += (1 / (many + values) - 1 / many) / 12
    return -jnp.where(shape < _MANY, defined, _poisson_log_prob(values, mean) + correction)


def _poisson_log_prob(values: Array, mean: Array) -> Array:
    defined = values * jnp.log(mean) - mean - gammaln(values + 1)
    many = jnp.maximum(values, _MANY)
    by_stirling = -mean * _convex((many - mean) / mean) - 0.5 * jnp.log(2 * jnp.pi * many) - 1 / (12 * many)
    return jnp.where(values < _MANY, defined, by_stirling)


def _convex(x: Array) -> Array:
    """(1 + x) log(1 + x) - x, by its series where the terms would cancel."""
    near = jnp.where(jnp.abs(x) < 0.1, x, 0)
    terms = [(-1.0) ** k * near**k / (k * (k - 1)) for k in range(2, 9)]
    far = jnp.where(jnp.abs(x) < 0.1, 1.0, x)
    return jnp.where(jnp.abs(x) < 0.1, sum(terms), (1 + far) * jnp.log1p(far) - far)


def _negative_binomial_sample(raw: Array, key: Array, loc: Array, scale: Array) -> Array:
    mean, alpha = _negative_binomial(raw, scale)
    key_rate, key_count = jax.random.split(key)
    rate = jax.random.gamma(key_rate, 1 / alpha, mean.shape, mean.dtype) * alpha * mean
    return jax.random.poisson(key_count, rate, mean.shape).astype(mean.dtype)


negative_binomial = Distribution(
    "negative_binomial",
    2,
    _negative_binomial_loss,
    _negative_binomial_sample,
    lambda raw, loc, scale: _negative_binomial(raw, scale)[0],
    counts=True,
)

# Quantiles ---------------------------------------------------------------------------------------------------------------


def _quantiles(raw: Float[Array, "... Q"], loc: Array, scale: Array) -> Float[Array, "... Q"]:
    """Each above the one before, as the first is free and the others are steps up."""
    steps = jnp.concatenate([raw[..., :1], jax.nn.softplus(raw[..., 1:])], axis=-1)
    loc, scale = jnp.asarray(loc)[..., None], jnp.asarray(scale)[..., None]
    return loc + scale * jnp.cumsum(steps, axis=-1)


def make_quantiles(levels: Sequence[float] = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)) -> Distribution:
    """A distribution that is told by its quantiles at some levels, 0.5 among them; between them it is linear, and flat beyond.

    The loss is twice the mean of the quantile losses max(q (y - z), (q - 1) (y - z)), which is about the CRPS.

    Raises:
      ValueError: levels that do not rise from above 0 to below 1, or without 0.5.
    """
    return _make_quantiles(tuple(levels))


@functools.cache
def _make_quantiles(levels: tuple[float, ...]) -> Distribution:
    if not all(0 < low < high < 1 for low, high in itertools.pairwise(levels)) or 0.5 not in levels:
        raise ValueError(f"levels: expected rising ones between 0 and 1 with 0.5 among them, got {levels}")
    of_levels = np.asarray(levels, np.float32)

    def loss(raw: Array, values: Array, loc: Array, scale: Array) -> Array:
        error = values[..., None] - _quantiles(raw, loc, scale)
        return 2 * jnp.mean(jnp.maximum(of_levels * error, (of_levels - 1) * error), axis=-1)

    def quantile(raw: Array, level: Array | float, loc: Array, scale: Array) -> Array:
        known = _quantiles(raw, loc, scale)
        level = jnp.broadcast_to(jnp.asarray(level, known.dtype), known.shape[:-1])
        interpolate = functools.partial(jnp.interp, xp=jnp.asarray(of_levels, known.dtype))
        found = jax.vmap(lambda at, values: interpolate(at, fp=values))(level.reshape(-1), known.reshape(-1, len(levels)))
        return found.reshape(level.shape)

    def sample(raw: Array, key: Array, loc: Array, scale: Array) -> Array:
        return quantile(raw, jax.random.uniform(key, raw.shape[:-1], raw.dtype), loc, scale)

    median = levels.index(0.5)
    return Distribution(
        "quantiles", len(levels), loss, sample, lambda raw, loc, scale: _quantiles(raw, loc, scale)[..., median], quantile
    )


quantiles = make_quantiles()

DISTRIBUTIONS = {head.name: head for head in (squared_error, absolute_error, gaussian, student_t, negative_binomial, quantiles)}
