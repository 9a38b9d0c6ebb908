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
from tests.models.test_forecaster import (
    AR_SIZES,
    SIZES,
    B,
    C,
    H,
    L,
    autoregressive,
    autoregressive_of_pytorch,
    window,
    with_drawn_parameters,
)
from tests.samples import assert_close

RNG = np.random.default_rng(7)
FUTURE = jnp.asarray(RNG.normal(size=(B, H, C)).astype(np.float32))
OBSERVED, PAST_OBSERVED = RNG.random((B, H, C)) < 0.7, RNG.random((B, L, C)) < 0.7


def attention():
    return with_drawn_parameters(AttentionForecaster(SIZES, 5, rngs=nnx.Rngs(0)))


def test_the_loss_counts_what_was_observed():
    model, given = attention(), window()
    nats = nats_of_scipy("gaussian", np.asarray(model(given), np.float64), np.asarray(FUTURE), 0, 1)
    truth = Truth(FUTURE, jnp.asarray(OBSERVED), jnp.asarray(PAST_OBSERVED))
    found = loss_of(model, gaussian, given, truth)
    assert float(found.count) == OBSERVED.sum()
    assert found.value() == pytest.approx(nats[OBSERVED].mean(), rel=1e-4)


@pytest.mark.parametrize("make", [attention, autoregressive], ids=["direct", "autoregressive"])
def test_what_was_not_observed_reaches_no_loss_and_no_gradient(make):
    model = make()
    given = window() if make is attention else window(AR_SIZES)
    graphdef, params = nnx.split(model)

    def loss(params, fill):
        future = jnp.where(OBSERVED, FUTURE, fill)
        if make is autoregressive:  # which reads it: only NaN is taken for nothing there
            future = jnp.where(jnp.isnan(fill), future, FUTURE.at[0, 0, 0].set(given.past[0, -1, 0]))
        truth = Truth(future, jnp.asarray(OBSERVED), jnp.asarray(PAST_OBSERVED))
        found = loss_of(nnx.merge(graphdef, params, copy=True), gaussian, given, truth, training=make is autoregressive)
        return found.total / found.count

    (value, gradient) = jax.value_and_grad(loss)(params, jnp.asarray(np.nan))
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    if make is attention:
        assert_close(jax.value_and_grad(loss)(params, jnp.asarray(1e30)), (value, gradient), 1e-6)


def softplus(x):
    return np.log1p(np.exp(np.asarray(x, np.float64)))


def nats_of_scipy(name, raw, values, loc, scale):
    """Negative log likelihoods from the equations of the heads, and SciPy's densities."""
    if name == "negative_binomial":
        mean, alpha = scale * (softplus(raw[..., 0]) + 1e-3), (softplus(raw[..., 1]) + 1e-6) / np.sqrt(scale)
        return -stats.nbinom.logpmf(values, 1 / alpha, 1 / (1 + alpha * mean))
    place, width = loc + scale * raw[..., 0], scale * (softplus(raw[..., 1]) + 1e-3)
    theirs = stats.norm(place, width) if name == "gaussian" else stats.t(2 + softplus(raw[..., 2]), place, width)
    return -theirs.logpdf(values)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize(
    ("name", "training", "scaling"),
    [
        ("gaussian", True, "none"),
        ("gaussian", True, "last"),
        ("gaussian", False, "none"),
        ("student_t", True, "mean"),
        ("negative_binomial", True, "mean"),
        ("negative_binomial", False, "mean"),
        ("gaussian", True, "standard"),
        ("student_t", False, "standard"),
    ],
)
def test_the_loss_of_an_autoregressive_model_is_that_of_pytorch_and_scipy(kind, name, training, scaling):
    """In training that of the past too, but not where the past is told its end: less its last value, the last step is zero in
    every window, and less its mean, the last step is what the others lack to zero.
    """
    head = DISTRIBUTIONS[name]
    model, theirs = autoregressive_of_pytorch(kind, head.features)
    given, future = window(AR_SIZES), np.asarray(FUTURE)
    if head.counts:
        given = given._replace(past=jnp.asarray(RNG.poisson(20, (B, L, C)).astype(np.float32)))
        future = RNG.poisson(20, (B, H, C)).astype(np.float32)
    past = np.asarray(given.past)
    loc = past[:, -1:] if scaling == "last" else 0 * past[:, -1:]
    scale = 1 + np.abs(past).mean(1, keepdims=True) if scaling == "mean" else 1 + 0 * loc
    if scaling == "standard":
        loc, scale = past.mean(1, keepdims=True), np.sqrt(past.var(1, keepdims=True) + 1e-5)
    values = np.concatenate([past, future], 1)
    raw, _ = theirs(((values - loc) / scale)[:, :-1], given)
    nats = nats_of_scipy(name, raw, values[:, 1:], loc, scale)
    observed = np.concatenate([PAST_OBSERVED, OBSERVED], 1)[:, 1:]
    if not training or scaling in ("last", "standard"):
        nats, observed = nats[:, -H:], observed[:, -H:]
    truth = Truth(jnp.asarray(future), jnp.asarray(OBSERVED), jnp.asarray(PAST_OBSERVED))
    found = loss_of(model, head, given, truth, training=training, window_scaling=scaling)
    assert float(found.count) == observed.sum()
    assert found.value() == pytest.approx(nats[observed].mean(), rel=1e-4)


@pytest.mark.parametrize("make", [attention, autoregressive], ids=["direct", "autoregressive"])
def test_what_is_said_moves_and_grows_with_the_window(make):
    """Less its last value: the whole is moved with the window. Over its mean size: twice the window is twice the forecast.
    Less its mean and over its deviation: both.
    """
    model = make()
    given = window() if make is attention else window(AR_SIZES)
    key = jax.random.key(0)
    moved = given._replace(past=given.past + 100)
    first, second = (forecast(model, gaussian, w, key, window_scaling="last", samples=5) for w in (given, moved))
    assert_close(jax.tree.map(lambda x: x + 100, first), second, 1e-3)
    large, larger = (given._replace(past=given.past * size) for size in (1e5, 1e6))
    first, second = (forecast(model, gaussian, w, key, window_scaling="mean", samples=5) for w in (large, larger))
    assert_close(jax.tree.map(lambda x: 10 * x, first), second, 1e-3)
    moved = given._replace(past=10 * given.past + 100)
    first, second = (forecast(model, gaussian, w, key, window_scaling="standard", samples=5) for w in (given, moved))
    assert_close(jax.tree.map(lambda x: 10 * x + 100, first), second, 1e-3)


@pytest.mark.parametrize("name", ["gaussian", "student_t"])
def test_levels_are_those_of_the_distribution(name):
    """In closed form where there is one; of Student's t those of the samples."""
    head = DISTRIBUTIONS[name]
    model = with_drawn_parameters(AttentionForecaster(SIZES._replace(features=head.features), 5, rngs=nnx.Rngs(0)))
    given = window()
    found = forecast(model, head, given, jax.random.key(0), samples=4000, levels=(0.1, 0.5))
    assert found.samples.shape == (4000, B, H, C)
    raw = np.asarray(model(given), np.float64)
    place, width = raw[..., 0], np.log1p(np.exp(raw[..., 1])) + 1e-3
    theirs = stats.norm(place, width) if name == "gaussian" else stats.t(2 + np.log1p(np.exp(raw[..., 2])), place, width)
    for level, quantile in zip((0.1, 0.5), found.quantiles, strict=True):
        # In probability, within four standard errors of 4,000 samples.
        assert np.abs(theirs.cdf(quantile) - level).max() < 4 * np.sqrt(level * (1 - level) / 4000)
    assert_close(found.mean, np.asarray(head.mean(model(given), 0.0, 1.0)), 1e-6)


def test_counts_stay_counts():
    """In bfloat16 too, which holds no such number as 257: what is read of a step is narrow, and not what is said of it."""
    head = DISTRIBUTIONS["negative_binomial"]
    model, given = autoregressive(), window(AR_SIZES)
    given = given._replace(past=jnp.asarray(RNG.poisson(20, (B, L, C)).astype(np.float32)))
    narrow = nnx.merge(nnx.graphdef(model), jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), nnx.state(model)))
    samples = np.asarray(forecast(narrow, head, given, jax.random.key(0), window_scaling="mean", samples=10).samples)
    np.testing.assert_array_equal(samples, np.round(samples))
    assert samples.min() >= 0
    assert len(np.unique(samples)) > 20


@pytest.mark.parametrize("make", [attention, autoregressive], ids=["direct", "autoregressive"])
def test_other_heads_and_windows_are_errors(make):
    """Student's t would read the second of a Gaussian's two numbers once more, as its third."""
    model, given = make(), window() if make is attention else window(AR_SIZES)
    truth = Truth(FUTURE, jnp.asarray(OBSERVED), jnp.asarray(PAST_OBSERVED))
    message = "head: expected one of 2 raw numbers, as the model says, got student_t of 3"
    with pytest.raises(ValueError, match=message):
        loss_of(model, DISTRIBUTIONS["student_t"], given, truth)
    with pytest.raises(ValueError, match=message):
        forecast(model, DISTRIBUTIONS["student_t"], given, jax.random.key(0))
    other = given._replace(past=jnp.ones((B, L, 3)))
    with pytest.raises(ValueError, match=r"past: expected \[3, 8, 2\], got \[3, 8, 3\]"):
        loss_of(model, gaussian, other, truth)
    with pytest.raises(ValueError, match=r"past: expected \[3, 8, 2\], got \[3, 8, 3\]"):
        forecast(model, gaussian, other, jax.random.key(0))


@pytest.mark.parametrize("make", [attention, autoregressive], ids=["direct", "autoregressive"])
def test_a_truth_of_other_sizes_is_an_error(make):
    """One step ahead would be broadcast to all."""
    model, given = make(), window() if make is attention else window(AR_SIZES)
    truth = Truth(FUTURE, jnp.asarray(OBSERVED), jnp.asarray(PAST_OBSERVED))
    for name, leaf in truth._asdict().items():
        wanted, got = (rf"\[{B}, {steps}, {C}\]" for steps in (leaf.shape[1], 1))
        with pytest.raises(ValueError, match=f"truth.{name}: expected {wanted}, got {got}"):
            loss_of(model, gaussian, given, truth._replace(**{name: leaf[:, :1]}))
