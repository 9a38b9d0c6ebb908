"""Rolling back-test: what a forecaster says at every origin of a part, scored beside forecasts that learn little."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from s2s_jax import forecast_metrics
from s2s_jax.data.pipeline import Batches
from s2s_jax.data.windows import Range, Standard, Table, Truth, Window, apart, cut, origins_of, together
from s2s_jax.distributions import Distribution
from s2s_jax.forecast_baselines import Linear, naive, seasonal_naive
from s2s_jax.metrics import Mean
from s2s_jax.models.forecasts import Forecast, forecast, loss_of

DRAWN_AT_ONCE = 20_000_000  # numbers of all samples of a batch


class ForecastTask(NamedTuple):
    """What is asked of a forecaster.

    Attributes:
      length, horizon: L steps of the past, and H ahead.
      distribution: what its raw numbers mean.
      window_range: see `range_of`.
      apart: whether each series is a row of its own.
      covariates: whether it reads them.
    """

    length: int
    horizon: int
    distribution: Distribution
    window_range: Range = "none"
    apart: bool = False
    covariates: bool = True

    @property
    def probabilistic(self) -> bool:
        return self.distribution.features > 1

    def origins(self, begin: int, end: int) -> dict[str, np.ndarray]:
        """The examples of a part: the first steps ahead of all of its windows; see `origins_of`."""
        return {"origin": origins_of(begin, end, self.length, self.horizon)}

    def windows(self, table: Table, batch: Mapping[str, Any]) -> tuple[Window, Truth]:
        """The windows of a batch; rows that hold none count nowhere."""
        window, truth = cut(table, batch["origin"], self.length, self.horizon)
        rows = jnp.asarray(batch["mask"])[:, None, None]
        truth = truth._replace(observed=truth.observed & rows, past_observed=truth.past_observed & rows)
        if not self.covariates:
            past, future = (leaf[..., :0] for leaf in (window.past_covariates, window.future_covariates))
            window = window._replace(past_covariates=past, future_covariates=future)
        return apart(window, truth) if self.apart else (window, truth)

    def loss(self, table: Table, model: Any, batch: Mapping[str, Any], **how: Any) -> Mean:
        """See `loss_of`."""
        window, truth = self.windows(table, batch)
        return loss_of(model, self.distribution, window, truth, window_range=self.window_range, **how)

    def in_order(self, table: Table, begin: int, end: int, samples: int) -> Batches:
        """All windows of a part, as many at a time as so many samples of them fit into memory."""
        one = self.horizon * table.values.shape[1] * (samples if self.probabilistic else 1)
        return Batches(self.origins(begin, end), min(512, max(1, DRAWN_AT_ONCE // one)), seed=None)


class Said(NamedTuple):
    """Of N windows: the first steps ahead, what was known, what came (NaN where unknown), and what was said."""

    origins: np.ndarray  # [N]
    past: np.ndarray  # [N, L, C]
    truth: np.ndarray  # [N, H, C]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    samples: np.ndarray  # [S, N, H, C]


def said_of(
    task: ForecastTask,
    model: Any,
    table: Table,
    batches: Batches,
    *,
    samples: int = 100,
    levels: tuple[float, float] = (0.1, 0.9),
    seed: int = 0,
) -> Iterator[Said]:
    """Each batch of windows with its forecasts, in units of the table.

    Args:
      task, model, table: what is asked of which model on which data.
      batches: of origins, see `ForecastTask.origins`.
      samples: how many futures are drawn of each window.
      levels: of `low` and `high`.
      seed: of what is drawn.
    """
    count = samples if task.probabilistic else 1
    series = table.values.shape[1]
    values = np.where(table.observed, table.values, np.nan)

    @jax.jit
    def of_batch(parts: Any, batch: Any, key: jax.Array) -> Forecast:
        window, _ = task.windows(table, batch)
        options: dict[str, Any] = {"window_range": task.window_range, "samples": count, "levels": levels}
        found = forecast(nnx.merge(*parts), task.distribution, window, key, **options)
        return jax.tree.map(lambda x: together(x, series), found) if task.apart else found

    parts, key = nnx.split(model), jax.random.key(seed)
    for step in range(batches.steps_per_epoch):
        batch = batches(step)
        rows = batch["mask"]
        mean, (low, high), drawn = jax.tree.map(np.asarray, of_batch(parts, batch, jax.random.fold_in(key, step)))
        origins = batch["origin"][rows]
        past = table.values[origins[:, None] + np.arange(-task.length, 0)]
        truth = values[origins[:, None] + np.arange(task.horizon)]
        yield Said(origins, past, truth, mean[rows], low[rows], high[rows], drawn[:, rows])


Scores = dict[str, dict[str, float]]


def scores_of(
    task: ForecastTask, said: Iterable[Said], training: Table, standard: Standard, season: int
) -> tuple[Scores, list[Said]]:
    """Metrics over all windows by name of the forecast, "model" first; and the first and the last batch of windows.

    `mse`, `mae` and `crps` are in units of the table; `mase` and `smape` as in `s2s_jax.forecast_metrics`, the latter in units
    of the series; `coverage` is that of the interval.

    Args:
      task: what was asked.
      said: see `said_of`.
      training: the training part of the table, which "linear" is fitted to, and by whose seasonal error `mase` divides.
      standard: from units of the table back to those of the series.
      season: steps of it; of one longer than the past there is no seasonal forecast.
    """
    values = training.values.astype(np.float64)
    linear = Linear(values, task.length, task.horizon)
    known = np.where(training.observed, values, np.nan)
    totals: dict[str, dict[str, Mean]] = {}
    shown: list[Said] = []
    for batch in said:
        shown = [*shown[:1], batch]
        points = {"model": batch.mean, "naive": naive(batch.past, task.horizon), "linear": linear(batch.past)}
        if season <= task.length:
            points["seasonal naive"] = seasonal_naive(batch.past, task.horizon, season)
        count = int((~np.isnan(batch.truth)).sum())
        for name, point in points.items() if count else ():
            found = {
                "mse": forecast_metrics.mse(point, batch.truth),
                "mae": forecast_metrics.mae(point, batch.truth),
                "mase": forecast_metrics.mase(point, batch.truth, known, season),
                "smape": forecast_metrics.smape(standard.back(point), standard.back(batch.truth)),
            }
            if name == "model" and task.probabilistic:
                found["crps"] = forecast_metrics.crps(batch.samples, batch.truth)
                found["coverage"] = forecast_metrics.coverage(batch.low, batch.high, batch.truth)
            into = totals.setdefault(name, {})
            for metric, value in found.items():
                into[metric] = into.get(metric, Mean(0.0, 0)) + Mean(value * count, count)
    return {name: {metric: mean.value() for metric, mean in found.items()} for name, found in totals.items()}, shown
