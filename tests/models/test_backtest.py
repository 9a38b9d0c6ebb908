"""Back-tests of a forecaster known by heart: every window once, scores by hand, what is missing, series by themselves."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from s2s_jax.data.windows import Scaler, Table
from s2s_jax.distributions import gaussian, squared_error
from s2s_jax.models.backtest import ForecastTask, forecast_windows, score_windows
from tests.samples import assert_close

T, C, L, H = 40, 2, 6, 3
RNG = np.random.default_rng(0)
TABLE = Table(RNG.normal(size=(T, C)).astype(np.float32), RNG.random((T, C)) < 0.8, np.zeros((T, 1), np.float32), 1)
STANDARD = Scaler(np.array([10.0, 20.0]), np.array([2.0, 3.0]))


class Known(nnx.Module):
    """Says the value H steps before and 1 as the scale's raw number; it counts on nothing else."""

    def __init__(self, features):
        self.features = features
        self.unit = nnx.Param(jnp.ones(()))

    def __call__(self, window, *, training=False, key=None):
        place = window.past[:, -H:, :, None]
        return jnp.concatenate([place, jnp.ones_like(place) * self.unit[...]], axis=-1)[..., : self.features]


@pytest.mark.parametrize("split_series", [False, True])
def test_every_origin_is_said_once(split_series):
    task = ForecastTask(L, H, gaussian, split_series=split_series, covariates=False)
    batches = task.in_order(TABLE, 20, 40, samples=10)
    said = list(forecast_windows(task, Known(2), TABLE, batches, samples=10, levels=(0.25, 0.75)))
    origins = np.concatenate([batch.origins for batch in said])
    np.testing.assert_array_equal(origins, np.arange(20, 38))
    before = TABLE.values[origins[:, None] + np.arange(-H, 0)]
    width = np.log1p(np.e) + 1e-3
    assert_close(np.concatenate([batch.mean for batch in said]), before, 1e-6)
    assert_close(np.concatenate([batch.low for batch in said]), before - 0.67449 * width, 1e-4)
    assert_close(np.concatenate([batch.high for batch in said]), before + 0.67449 * width, 1e-4)
    assert said[0].samples.shape == (10, len(said[0].origins), H, C)
    truth = np.concatenate([batch.truth for batch in said])
    future = origins[:, None] + np.arange(H)
    np.testing.assert_array_equal(np.isnan(truth), ~TABLE.observed[future])
    np.testing.assert_array_equal(truth[~np.isnan(truth)], TABLE.values[future][TABLE.observed[future]])


def test_scores_are_means_over_all_windows_however_they_are_cut():
    task = ForecastTask(L, H, squared_error, covariates=False)
    (whole,) = forecast_windows(task, Known(1), TABLE, task.in_order(TABLE, 20, 40, samples=1))
    parts = [type(whole)(*(leaf[rows] for leaf in whole[:6]), whole.samples[:, rows]) for rows in (slice(5), slice(5, None))]
    found, left_out, shown = score_windows(task, iter(parts), TABLE, 20, STANDARD, season=3)
    assert ([batch.origins[0] for batch in shown], left_out) == ([20, 25], ())
    assert list(found) == ["model", "naive", "seasonal naive", "linear"]
    assert set(found["model"]) == {"mse", "mae", "mase", "smape", "crps"}
    error = whole.mean - whole.truth
    assert found["model"]["mse"] == pytest.approx(np.nanmean(error**2))
    assert found["model"] == pytest.approx(found["seasonal naive"])  # the model is the season before
    last = whole.past[:, -1:] - whole.truth
    assert found["naive"]["mae"] == pytest.approx(np.nanmean(np.abs(last)))
    real, forecast = (STANDARD.back(x.astype(float)) for x in (whole.truth, whole.mean))
    smape = 2 * np.abs(real - forecast) / (np.abs(real) + np.abs(forecast))
    assert found["model"]["smape"] == pytest.approx(np.nanmean(smape))
    assert found["naive"]["crps"] == pytest.approx(np.nanmean(np.abs(last)))
    # A season longer than the past is that of the table.
    longer, *_ = score_windows(task, iter(parts), TABLE, 20, STANDARD, season=L + 5)
    season = TABLE.values[whole.origins[:, None] - L - 5 + np.arange(H)]
    assert longer["seasonal naive"]["mae"] == pytest.approx(np.nanmean(np.abs(season - whole.truth)))


def test_mase_leaves_out_series_that_repeat_exactly():
    """Of the model and of each baseline; the others' windows count as if they were alone."""
    task = ForecastTask(L, H, squared_error, covariates=False)
    for repeats, left in (((True, False), (1,)), ((False, True), (0,)), ((True, True), ())):
        values = np.where((np.arange(T)[:, None] < 20) & np.array(repeats), np.arange(T)[:, None] % 3, TABLE.values)
        table = TABLE._replace(values=values.astype(np.float32))
        (whole,) = forecast_windows(task, Known(1), table, task.in_order(table, 20, 40, samples=1))
        parts = [
            type(whole)(*(leaf[rows] for leaf in whole[:6]), whole.samples[:, rows]) for rows in (slice(5), slice(5, None))
        ]
        found, left_out, _ = score_windows(task, iter(parts), table, 20, STANDARD, season=3)
        assert left_out == tuple(np.flatnonzero(repeats))
        alone = table._replace(values=table.values[:, list(left)], observed=table.observed[:, list(left)])
        for of_name in found.values():
            assert ("mase" in of_name) == bool(left)
            assert np.isfinite(of_name["mae"])
        if left:
            of_one = [
                batch._replace(**{leaf: getattr(batch, leaf)[..., list(left)] for leaf in batch._fields[1:]}) for batch in parts
            ]
            want, *_ = score_windows(task, iter(of_one), alone, 20, STANDARD.of(left), season=3)
            for name in ("model", "naive", "seasonal naive"):  # least squares is fitted to all series at once
                assert found[name]["mase"] == pytest.approx(want[name]["mase"])


def test_samples_and_intervals_are_scored_by_their_definitions():
    """The continuous ranked probability score over all pairs of samples, and the share of truth in the interval."""
    task = ForecastTask(L, H, gaussian, covariates=False)
    plan = task.in_order(TABLE, 20, 40, samples=9)
    (said,) = forecast_windows(task, Known(2), TABLE, plan, samples=9, levels=(0.1, 0.6))
    found = score_windows(task, iter([said]), TABLE, 20, STANDARD, season=3)[0]["model"]
    there = ~np.isnan(said.truth)
    apart = np.abs(said.samples - said.truth).mean(0)
    spread = np.abs(said.samples[:, None] - said.samples[None]).sum((0, 1)) / (9 * 8)
    assert found["crps"] == pytest.approx((apart - spread / 2)[there].mean(), rel=1e-5)
    inside = (said.low <= said.truth) & (said.truth <= said.high)
    assert found["coverage"] == pytest.approx(inside[there].mean())
    assert 0.2 < found["coverage"] < 0.8


def test_what_comes_after_the_training_part_is_learned_by_nothing():
    """Other numbers there, with the same windows, leave least squares and the error that `mase` divides by as they were."""
    task = ForecastTask(L, H, squared_error, covariates=False)
    said = list(forecast_windows(task, Known(1), TABLE, task.in_order(TABLE, 20, 40, samples=1)))
    changed = TABLE._replace(values=np.where(np.arange(T)[:, None] < 20, TABLE.values, 7 + TABLE.values**2))
    before, after = (score_windows(task, iter(said), table, 20, STANDARD, season=3)[0] for table in (TABLE, changed))
    assert before["linear"] == after["linear"]
    assert before["model"] == after["model"]
    longer, *_ = score_windows(task, iter(said), TABLE, 21, STANDARD, season=3)
    assert longer["linear"]["mse"] != before["linear"]["mse"]
    assert longer["model"]["mase"] != before["model"]["mase"]


def test_rows_without_a_window_repeat_others():
    """What batch norm reads in training has to be of the training part."""
    task = ForecastTask(L, H, squared_error)
    batch = {"origin": np.array([20, 25, 0, 0, 0], np.int32), "mask": np.array([True, True, False, False, False])}
    window, truth = task.windows(TABLE, batch)
    for row, origin in enumerate([20, 25, 20, 25, 20]):
        np.testing.assert_array_equal(window.past[row], TABLE.values[origin - L : origin])
        assert truth.observed[row].any() == (row < 2)
    empty, _ = task.windows(TABLE, {"origin": np.zeros(2, np.int32), "mask": np.zeros(2, bool)})
    assert np.isfinite(empty.past).all()


def test_rows_that_hold_no_window_and_what_was_not_observed_count_nowhere():
    task = ForecastTask(L, H, squared_error, covariates=False)
    batch = {"origin": np.array([20, 25, 0], np.int32), "mask": np.array([True, True, False])}
    found = task.loss(TABLE, Known(1), batch)
    future = np.array([20, 25])[:, None] + np.arange(H)
    error = TABLE.values[future - H] - TABLE.values[future]
    observed = TABLE.observed[future]
    assert float(found.count) == observed.sum()
    assert found.value() == pytest.approx((error[observed] ** 2).mean(), rel=1e-5)
