"""Loss and forecasts of windows: units, what was not observed, levels and paths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from s2s_jax.data.windows import Truth
from s2s_jax.distributions import DISTRIBUTIONS, gaussian
from s2s_jax.models.forecaster import AttentionForecaster
from s2s_jax.models.forecasts import forecast, loss_of
from tests.models.test_forecaster import AR_SIZES, SIZES, B, C, H, L, autoregressive, window, with_drawn_parameters
from tests.samples import assert_close

RNG = np.random.default_rng(7)
FUTURE = jnp.asarray(RNG.normal(size=(B, H, C)).astype(np.float32))
OBSERVED, PAST_OBSERVED = RNG.random((B, H, C)) < 0.7, RNG.random((B, L, C)) < 0.7


def attention():
    return with_drawn_parameters(AttentionForecaster(SIZES, 5, rngs=nnx.Rngs(0)))


def test_the_loss_counts_what_was_observed():
    model, given = attention(), window()
    raw = np.asarray(model(given), np.float64)
    nats = -stats.norm.logpdf(FUTURE, raw[..., 0], np.log1p(np.exp(raw[..., 1])) + 1e-3)
    truth = Truth(FUTURE, jnp.asarray(OBSERVED), jnp.asarray(PAST_OBSERVED))
    found = loss_of(model, gaussian, given, truth)
    assert float(found.count) == OBSERVED.sum()
    assert found.value() == pytest.approx(nats[OBSERVED].mean(), rel=1e-4)
    poisoned = Truth(jnp.where(OBSERVED, FUTURE, 1e30), truth.observed, truth.past_observed)
    assert loss_of(model, gaussian, given, poisoned).value() == pytest.approx(found.value(), rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_an_autoregressive_model_learns_from_the_past_too(training):
    model, given = autoregressive(), window(AR_SIZES)
    truth = Truth(FUTURE, jnp.asarray(OBSERVED), jnp.asarray(PAST_OBSERVED))
    raw = model(given, FUTURE)
    values = np.concatenate([given.past, FUTURE], 1)[:, 1:]
    observed = np.concatenate([PAST_OBSERVED, OBSERVED], 1)[:, 1:]
    if not training:
        raw, values, observed = raw[:, -H:], values[:, -H:], observed[:, -H:]
    nats = np.asarray(gaussian.loss(raw, values, 0.0, 1.0))
    found = loss_of(model, gaussian, given, truth, training=training)
    assert found.value() == pytest.approx(nats[observed].mean(), rel=1e-4)


@pytest.mark.parametrize("make", [attention, autoregressive], ids=["direct", "autoregressive"])
def test_what_is_said_moves_and_grows_with_the_window(make):
    """Less its last value: the whole is moved with the window. Over its mean size: twice the window is twice the forecast."""
    model = make()
    given = window() if make is attention else window(AR_SIZES)
    key = jax.random.key(0)
    moved = given._replace(past=given.past + 100)
    first, second = (forecast(model, gaussian, w, key, window_range="last", samples=5) for w in (given, moved))
    assert_close(jax.tree.map(lambda x: x + 100, first), second, 1e-3)
    doubled = given._replace(past=given.past * 1000)
    first, second = (forecast(model, gaussian, w, key, window_range="mean", samples=5) for w in (given, doubled))
    assert_close(jax.tree.map(lambda x: 1000 * x, first), second, 2e-2)


@pytest.mark.parametrize("name", ["gaussian", "student_t"])
def test_levels_are_those_of_the_distribution(name):
    """In closed form where there is one; of Student's t those of the samples."""
    head = DISTRIBUTIONS[name]
    model = with_drawn_parameters(AttentionForecaster(SIZES._replace(features=head.features), 5, rngs=nnx.Rngs(0)))
    given = window()
    found = forecast(model, head, given, jax.random.key(0), samples=4000, levels=(0.1, 0.5))
    assert found.samples.shape == (4000, B, H, C)
    for level, quantile in zip((0.1, 0.5), found.quantiles, strict=True):
        below = (np.asarray(found.samples) <= np.asarray(quantile)).mean(0)
        assert np.abs(below - level).max() < 4 * np.sqrt(level * (1 - level) / 4000) + 1e-3
    assert_close(found.mean, np.asarray(head.mean(model(given), 0.0, 1.0)), 1e-6)


def test_counts_stay_counts():
    head = DISTRIBUTIONS["negative_binomial"]
    model, given = autoregressive(), window(AR_SIZES)
    given = given._replace(past=jnp.asarray(RNG.poisson(20, (B, L, C)).astype(np.float32)))
    found = forecast(model, head, given, jax.random.key(0), window_range="mean", samples=10)
    assert_close(found.samples, np.round(found.samples), 1e-3)
    assert np.min(found.samples) > -1e-3
    assert_close(found.mean, np.asarray(found.samples).mean(0), 1e-4)
