"""Loss and forecasts of any forecaster with any distribution, on windows that are brought to a range first."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from s2s_jax.data.windows import Range, Truth, Window, range_of
from s2s_jax.distributions import Distribution
from s2s_jax.metrics import Mean, mean_over
from s2s_jax.models.autoregressive_forecaster import AutoregressiveForecaster


class Forecast(NamedTuple):
    """Mean, quantiles of the levels that were asked for, and samples, none where they were not needed."""

    mean: Float[Array, "B H C"]
    quantiles: tuple[Float[Array, "B H C"], ...]
    samples: Float[Array, "S B H C"]


def loss_of(
    model: Any,
    head: Distribution,
    window: Window,
    truth: Truth,
    *,
    window_range: Range = "none",
    training: bool = False,
    key: Array | None = None,
) -> Mean:
    """The head's loss over all observed steps ahead; of an autoregressive model in training those of the past count, too."""
    loc, scale = range_of(window.past, window_range)
    inner = window._replace(past=(window.past - loc) / scale)
    if isinstance(model, AutoregressiveForecaster):
        raw = model(inner, (truth.future - loc) / scale, training=training, key=key)
        values = jnp.concatenate([window.past, truth.future], axis=1)[:, 1:]
        observed = jnp.concatenate([truth.past_observed, truth.observed], axis=1)[:, 1:]
        if not training:
            raw, values, observed = (leaf[:, -truth.future.shape[1] :] for leaf in (raw, values, observed))
    else:
        raw, values, observed = model(inner, training=training, key=key), truth.future, truth.observed
    return mean_over(head.loss(raw, values, loc, scale), observed)


def forecast(
    model: Any,
    head: Distribution,
    window: Window,
    key: Array,
    *,
    window_range: Range = "none",
    samples: int = 100,
    levels: tuple[float, ...] = (0.1, 0.9),
) -> Forecast:
    """What a model says of the steps ahead, in units of the window.

    An autoregressive model draws paths; others draw each step by itself, and have quantiles in closed form where the head has.
    """
    loc, scale = range_of(window.past, window_range)
    inner = window._replace(past=(window.past - loc) / scale)
    if isinstance(model, AutoregressiveForecaster):

        def draw(raw: Array, key: Array) -> Array:
            return (head.sample(raw, key, loc[:, 0], scale[:, 0]) - loc[:, 0]) / scale[:, 0]

        drawn = model.paths(inner, draw, key, count=samples) * scale + loc
        return Forecast(drawn.mean(0), tuple(jnp.quantile(drawn, level, axis=0) for level in levels), drawn)
    raw = model(inner)
    sample: Callable[[Array], Array] = lambda key: head.sample(raw, key, loc, scale)  # noqa: E731
    drawn = jax.vmap(sample)(jax.random.split(key, samples))
    if head.quantile is None:
        quantiles = tuple(jnp.quantile(drawn, level, axis=0) for level in levels)
    else:
        quantiles = tuple(head.quantile(raw, level, loc, scale) for level in levels)
    return Forecast(head.mean(raw, loc, scale), quantiles, drawn)
