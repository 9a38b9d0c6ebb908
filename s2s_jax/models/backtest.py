"""Rolling back-test: what a forecaster says at every origin of a part, scored beside forecasts that learn little."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from s2s_jax import forecast_metrics
from s2s_jax.data.pipeline import Batches
from s2s_jax.data.windows import Scaler, Scaling, Table, Truth, Window, cut, merge_series, origins_of, split_series
from s2s_jax.distributions import Distribution
from s2s_jax.forecast_baselines import Linear, naive, seasonal_naive
from s2s_jax.metrics import Mean
from s2s_jax.models.forecasts import Forecast, forecast, loss_of

DRAWN_AT_ONCE = 20_000_000  # numbers of all samples of a batch
SCORED_AT_ONCE = 4_000_000  # pairs of a step ahead and a step of the past, each of which an attention looks at


class ForecastTask(NamedTuple):
    """What is asked of a forecaster.

    Attributes:
      length, horizon: L steps of the past, and H ahead.
      distribution: what its raw numbers mean.
      window_scaling: see `scaling_of`.
      split_series: whether each series is a row of its own.
      covariates: whether it reads them.
    """

    length: int
    horizon: int
    distribution: Distribution
    window_scaling: Scaling = "none"
    split_series: bool = False
    covariates: bool = True

    def origins(self, begin: int, end: int) -> dict[str, np.ndarray]:
        """The examples of a part: the first steps ahead of all of its windows; see `origins_of`."""
        return {"origin": origins_of(begin, end, self.length, self.horizon)}

    def windows(self, table: Table, batch: Mapping[str, Any]) -> tuple[Window, Truth]:
        """The windows of a batch; rows that hold none count nowhere, and repeat the others: batch norm reads them too."""
        mask = jnp.asarray(batch["mask"])
        count = jnp.maximum(jnp.sum(mask), 1)
        origins = jnp.asarray(batch["origin"])[jnp.argsort(~mask)[jnp.arange(len(mask)) % count]]
        window, truth = cut(table, jnp.where(mask, batch["origin"], origins), self.length, self.horizon)
        rows = mask[:, None, None]
        truth = truth._replace(observed=truth.observed & rows, past_observed=truth.past_observed & rows)
        if not self.covariates:
            past, future = (leaf[..., :0] for leaf in (window.past_covariates, window.future_covariates))
            window = window._replace(past_covariates=past, future_covariates=future)
        return split_series(window, truth, table.static) if self.split_series else (window, truth)

    def loss(self, table: Table, model: Any, batch: Mapping[str, Any], **how: Any) -> Mean:
        """See `loss_of`."""
        window, truth = self.windows(table, batch)
        return loss_of(model, self.distribution, window, truth, window_scaling=self.window_scaling, **how)

    def in_order(self, table: Table, begin: int, end: int, samples: int) -> Batches:
        """All windows of a part, as many at a time as so many samples of them fit into memory."""
        drawn = self.horizon * table.values.shape[1] * (1 if self.distribution.point else samples)
        rows = min(512, DRAWN_AT_ONCE // drawn, SCORED_AT_ONCE // (self.length * self.horizon))
        return Batches(self.origins(begin, end), max(1, rows), seed=None)


class ForecastBatch(NamedTuple):
    """Of N windows: the first steps ahead, what was known, what came (NaN where unknown), and what was said."""

    origins: np.ndarray  # [N]
    past: np.ndarray  # [N, L, C]
    truth: np.ndarray  # [N, H, C]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    samples: np.ndarray  # [S, N, H, C]


def forecast_windows(
    task: ForecastTask,
    model: Any,
    table: Table,
    batches: Batches,
    *,
    samples: int = 100,
    levels: tuple[float, float] = (0.1, 0.9),
    seed: int = 0,
) -> Iterator[ForecastBatch]:
    """Each batch of windows with its forecasts, in units of the table.

    Args:
      task, model, table: what is asked of which model on which data.
      batches: of origins, see `ForecastTask.origins`.
      samples: how many futures are drawn of each window.
      levels: of `low` and `high`.
      seed: of what is drawn.
    """
    count = 1 if task.distribution.point else samples
    values = np.where(table.observed, table.values, np.nan)
    (graphdef, state), key = nnx.split(model), jax.random.key(seed)
    for step in range(batches.steps_per_epoch):
        batch = batches(step)
        rows = batch["mask"]
        how = task, count, levels, table.known
        arrays = table.values, table.observed, table.covariates, table.static
        found = _forecast(graphdef, how, state, arrays, batch, jax.random.fold_in(key, step))
        mean, (low, high), drawn = jax.tree.map(np.asarray, found)
        origins = batch["origin"][rows]
        past = table.values[origins[:, None] + np.arange(-task.length, 0)]
        truth = values[origins[:, None] + np.arange(task.horizon)]
        yield ForecastBatch(origins, past, truth, mean[rows], low[rows], high[rows], drawn[:, rows])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _forecast(graphdef: Any, how: Any, state: Any, arrays: Any, batch: Any, key: jax.Array) -> Forecast:
    task, samples, levels, known = how
    values, observed, covariates, static = arrays
    window, _ = task.windows(Table(values, observed, covariates, known, static), batch)
    options: dict[str, Any] = {"window_scaling": task.window_scaling, "samples": samples, "levels": levels}
    found = forecast(nnx.merge(graphdef, state), task.distribution, window, key, **options)
    return jax.tree.map(lambda x: merge_series(x, values.shape[1]), found) if task.split_series else found


Scores = dict[str, dict[str, float]]


class Scored(NamedTuple):
    """How good forecasts are.

    Attributes:
      scores: metrics over all windows by name of the forecast, "model" first.
      without_mase: numbers of the series that `mase` leaves out.
      shown: the first and the last batch of windows.
    """

    scores: Scores
    without_mase: tuple[int, ...]
    shown: list[ForecastBatch]


def score_windows(
    task: ForecastTask, said: Iterable[ForecastBatch], table: Table, train: int, scaler: Scaler, season: int
) -> Scored:
    """Scores a model and its baselines over all windows.

    `mse`, `mae` and `crps` are in units of the table; `mase` and `smape` as in `s2s_jax.forecast_metrics`, the latter in units
    of the series; `coverage` is that of the interval.

    `mase` leaves out series that repeat exactly in training, or have no two values a season apart: nothing can be divided by an
    error of zero; where no other is
    left, there is none. A point's `crps` is its absolute error.

    Args:
      task: what was asked.
      said: see `forecast_windows`.
      table: of all steps.
      train: how many of them are the training part, which "linear" is fitted to, and by whose seasonal error `mase` divides.
      scaler: from units of the table back to those of the series.
      season: in steps.
    """
    values = table.values.astype(np.float64)
    linear = Linear(values[:train], task.length, task.horizon)
    error = forecast_metrics.seasonal_error(np.where(table.observed, values, np.nan)[:train], season)
    divides = error > 0
    totals: dict[str, dict[str, Mean]] = {}
    shown: list[ForecastBatch] = []
    for batch in said:
        shown = [*shown[:1], batch]
        points = {
            "model": batch.mean,
            "naive": naive(batch.past, task.horizon),
            "seasonal naive": seasonal_naive(table.values, batch.origins, task.horizon, season),
            "linear": linear(batch.past),
        }
        count = int((~np.isnan(batch.truth)).sum())
        for name, point in points.items() if count else ():
            found = {
                "mse": forecast_metrics.mse(point, batch.truth),
                "mae": forecast_metrics.mae(point, batch.truth),
                "smape": forecast_metrics.smape(scaler.back(point), scaler.back(batch.truth)),
                "crps": forecast_metrics.crps(batch.samples if name == "model" else point[None], batch.truth),
            }
            if name == "model" and not task.distribution.point:
                found["coverage"] = forecast_metrics.coverage(batch.low, batch.high, batch.truth)
            into = totals.setdefault(name, {})
            for metric, value in found.items():
                into[metric] = into.get(metric, Mean(0.0, 0)) + Mean(value * count, count)
            truth = batch.truth[..., divides]
            if of_divided := int((~np.isnan(truth)).sum()):
                value = forecast_metrics.mase(point[..., divides], truth, error[divides])
                into["mase"] = into.get("mase", Mean(0.0, 0)) + Mean(value * of_divided, of_divided)
    scores = {name: {metric: mean.value() for metric, mean in found.items()} for name, found in totals.items()}
    return Scored(scores, tuple(np.flatnonzero(~divides).tolist()), shown)
