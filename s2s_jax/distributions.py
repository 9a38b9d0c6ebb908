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


_MANY = 10.0  # from this number on what Stirling's series leaves out of log Gamma is below 1e-10
_NORMAL = 1e4  # rates from which on Poisson counts are drawn of a normal distribution; the quantiles are right to 2e-6


def _negative_binomial(raw: Float[Array, "... 2"], scale: Array) -> tuple[Array, Array]:
    """Mean mu and shape alpha, of variance mu + alpha mu^2 (arXiv 1704.04110, section 3.3: alpha by the root of the scale)."""
    return scale * (jax.nn.softplus(raw[..., 0]) + LEAST_SCALE), (jax.nn.softplus(raw[..., 1]) + 1e-6) / jnp.sqrt(scale)


def _negative_binomial_loss(raw: Array, values: Array, loc: Array, scale: Array) -> Array:
    """By deviances, which are never negative, so that no large numbers cancel (Loader, "Fast and accurate computation of
    binomial probabilities", 2000).

        -log p(v) = D(s | s g) + D(v | mu g) + log(1 + v / s) / 2 + e(s) - e(s + v) + log(2 pi v) / 2 + e(v)
        D(x | m) = x log(x / m) + m - x,  s = 1 / alpha,  g = (s + v) / (s + mu),  e: see `_stirling_error`

    Without the last two terms where v is 0.
    """
    mean, alpha = _negative_binomial(raw, scale)
    shape = 1 / alpha
    apart = (values - mean) / (shape + mean)
    ratio = jnp.where(jnp.abs(apart) < 0.5, 1 + apart, (shape + values) / (shape + mean))
    log_ratio = jnp.log(ratio)
    of_shape = shape * ratio * _convex((mean - values) / (shape + values), 1 / ratio, -log_ratio)
    counted = jnp.where(values > 0, values, 1.0)  # of none v log v is 0
    near = (values - mean) / (mean * (1 + values / shape))
    of_values = mean * ratio * _convex(near, values / mean / ratio, jnp.log(counted / mean) - log_ratio)
    rest = 0.5 * jnp.log1p(values / shape) + _stirling_error(shape) - _stirling_error(shape + values)
    of_stirling = 0.5 * jnp.log(2 * jnp.pi * counted) + _stirling_error(counted)
    return of_shape + of_values + rest + jnp.where(values > 0, of_stirling, 0.0)


def _stirling_error(x: Array) -> Array:
    """What log Gamma(x + 1) is more than (x + 1/2) log x - x + log(2 pi) / 2."""
    few, many = jnp.minimum(x, _MANY), jnp.maximum(x, _MANY)
    defined = gammaln(few + 1) - (few + 0.5) * jnp.log(few) + few - 0.5 * jnp.log(2 * jnp.pi)
    inverse = 1 / many
    return jnp.where(x < _MANY, defined, inverse / 12 - inverse**3 / 360 + inverse**5 / 1260)


def _convex(x: Array, one_more: Array, log_one_more: Array) -> Array:
    """(1 + x) log(1 + x) - x, by its series where the terms would cancel; 1 + x apart, as x holds it badly near -1."""
    near = jnp.where(jnp.abs(x) < 0.1, x, 0)
    terms = [(-1.0) ** k * near**k / (k * (k - 1)) for k in range(2, 9)]
    return jnp.where(jnp.abs(x) < 0.1, sum(terms), one_more * log_one_more - x)


def _negative_binomial_sample(raw: Array, key: Array, loc: Array, scale: Array) -> Array:
    mean, alpha = _negative_binomial(raw, scale)
    key_rate, key_count = jax.random.split(key)
    rate = jax.random.gamma(key_rate, 1 / alpha, mean.shape, mean.dtype) * alpha * mean
    # Of larger rates jax.random.poisson is off, by 1 % at 1e7, as float32 holds its log probabilities badly, and ends at 2^31.
    few = jax.random.poisson(key_count, jnp.minimum(rate, _NORMAL), mean.shape).astype(mean.dtype)
    normal = jax.random.normal(key_count, mean.shape, mean.dtype)
    many = jnp.round(rate + jnp.sqrt(rate) * normal + (normal**2 - 1) / 6)  # Cornish-Fisher, to the third moment
    return jnp.where(rate < _NORMAL, few, many)


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
