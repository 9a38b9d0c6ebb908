"""Loss and forecasts of any forecaster with any distribution, on windows that are brought to a range first."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from s2s_jax.data.windows import Scaling, Truth, Window, scaling_of
from s2s_jax.distributions import Distribution
from s2s_jax.metrics import Mean, mean_over
from s2s_jax.models.autoregressive_forecaster import AutoregressiveForecaster


def _scaled(model: Any, window: Window, loc: Array, scale: Array) -> Window:
    """In the dtype of the model's parameters, which a narrower precision narrows; distributions stay in that of the window."""
    dtype = jax.tree.leaves(nnx.state(model, nnx.Param))[0].dtype
    return jax.tree.map(lambda leaf: leaf.astype(dtype), window._replace(past=(window.past - loc) / scale))


def _checked(raw: Float[Array, "... P"], head: Distribution) -> Float[Array, "... P"]:
    """Raw numbers that the head can read; of others it would take some, or the last one twice, without a word."""
    if raw.shape[-1] != head.features:
        expected = f"one of {raw.shape[-1]} raw numbers, as the model says"
        raise ValueError(f"head: expected {expected}, got {head.name} of {head.features}")
    return raw


def _check(truth: Truth, window: Window, horizon: int) -> None:
    """Raises a ValueError where what came after is not of the windows: it might be broadcast without a word."""
    batch_size, length, series = window.past.shape
    for name, leaf, steps in zip(Truth._fields, truth, (horizon, horizon, length), strict=True):
        if leaf.shape != (batch_size, steps, series):
            raise ValueError(f"truth.{name}: expected {[batch_size, steps, series]}, got {list(leaf.shape)}")


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
    window_scaling: Scaling = "none",
    training: bool = False,
    key: Array | None = None,
) -> Mean:
    """The head's loss over all observed steps ahead.

    Of an autoregressive model in training those of the past count, too; but not with the scalings "last" and "standard", which
    tell each step of the past where the past ends: the first by itself, the other as a whole window sums up to zero. What of
    the steps ahead was not observed may be anything, NaN too; but the past is read as it stands, and its gaps have to be
    filled, as `read_series` does.

    `window_scaling` belongs to the model: SegRNN is one of "last", DeepAR of "mean" (see `scaling_of`), and a forecast takes
    the one of the training. "none" leaves windows as they are.

    Raises:
      ValueError: a window or truth of other sizes than the model's, or a head of other raw numbers.
    """
    loc, scale = scaling_of(window.past, window_scaling)
    inner = _scaled(model, window, loc, scale)
    if isinstance(model, AutoregressiveForecaster):
        model.sizes.check(window)
        horizon = model.sizes.horizon
        _check(truth, window, horizon)
        future = jnp.where(jnp.isnan(truth.future), loc, truth.future)
        raw = model(inner, ((future - loc) / scale).astype(inner.past.dtype), training=training, key=key)
        values = jnp.concatenate([window.past, truth.future], axis=1)[:, 1:]
        observed = jnp.concatenate([truth.past_observed, truth.observed], axis=1)[:, 1:]
        if not training or window_scaling in ("last", "standard"):
            raw, values, observed = (leaf[:, -horizon:] for leaf in (raw, values, observed))
    else:
        raw, values, observed = model(inner, training=training, key=key), truth.future, truth.observed
        _check(truth, window, raw.shape[1])
    values = jnp.where(observed, values, loc)
    return mean_over(head.loss(_checked(raw, head).astype(loc.dtype), values, loc, scale), observed)


def forecast(
    model: Any,
    head: Distribution,
    window: Window,
    key: Array,
    *,
    window_scaling: Scaling = "none",
    samples: int = 100,
    levels: tuple[float, ...] = (0.1, 0.9),
) -> Forecast:
    """What a model says of the steps ahead, in units of the window.

    An autoregressive model draws paths; others draw each step by itself, and have quantiles in closed form where the head has.
    `window_scaling` is that of the training; see `loss_of`.

    Raises:
      ValueError: a window of other sizes than the model's, or a head of other raw numbers.
    """
    loc, scale = scaling_of(window.past, window_scaling)
    inner = _scaled(model, window, loc, scale)
    if isinstance(model, AutoregressiveForecaster):

        def draw(raw: Array, key: Array) -> tuple[Array, Array]:
            value = head.sample(_checked(raw, head).astype(loc.dtype), key, loc[:, 0], scale[:, 0])
            return (value - loc[:, 0]) / scale[:, 0], value

        drawn = model.paths(inner, draw, key, count=samples)
        return Forecast(drawn.mean(0), tuple(jnp.quantile(drawn, level, axis=0) for level in levels), drawn)
    raw = _checked(model(inner), head).astype(loc.dtype)
    sample: Callable[[Array], Array] = lambda key: head.sample(raw, key, loc, scale)  # noqa: E731
    drawn = jax.vmap(sample)(jax.random.split(key, samples))
    if head.quantile is None:
        quantiles = tuple(jnp.quantile(drawn, level, axis=0) for level in levels)
    else:
        quantiles = tuple(head.quantile(raw, level, loc, scale) for level in levels)
    return Forecast(head.mean(raw, loc, scale), quantiles, drawn)
