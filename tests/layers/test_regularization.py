"""Batch norm over valid positions against PyTorch and Keras, and the layers that draw: dropout and Gaussian noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from s2s_jax.layers import BatchNorm, Dropout, GaussianNoise
from tests import oracles
from tests.samples import assert_close, assert_equal, cast, fill_padding, ragged_lengths

B, T, F = 5, 6, 3
LENGTHS = ragged_lengths(B, T)
MASK = np.arange(T)[None] < LENGTHS[:, None]


def drawn(seed=0):
    """Scale, bias, input and weights of the loss, and running statistics that are not those of a fresh layer."""
    rng = np.random.default_rng(seed)
    x = (2 * rng.normal(size=(B, T, F)) + [1.0, -3.0, 0.2]).astype(np.float32)
    scale, bias, mean = rng.normal(size=(3, F)).astype(np.float32)
    return x, scale, bias, mean, rng.uniform(0.5, 2, F).astype(np.float32), rng.normal(size=x.shape).astype(np.float32)


def norm_of(scale, bias, mean, var, **options):
    norm = BatchNorm(F, **options)
    # Variables anew, and not their values alone: these would be cast to float32.
    norm.scale, norm.bias = nnx.Param(jnp.asarray(scale)), nnx.Param(jnp.asarray(bias))
    norm.mean, norm.var = nnx.BatchStat(jnp.asarray(mean)), nnx.BatchStat(jnp.asarray(var))
    return norm


def run(x, scale, bias, mean, var, weights, mask, training=True, **options):
    """Outputs, new running statistics, and gradients in x, scale and bias."""

    @jax.jit
    def both(x, scale, bias, mask):
        def loss(x, scale, bias):
            norm = norm_of(scale, bias, mean, var, **options)
            y = norm(x, mask=mask, training=training)
            return jnp.sum(y * weights), (y, norm.mean[...], norm.var[...])

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(x, scale, bias)

    gradients, (y, *statistics) = both(x, scale, bias, mask)
    return jax.tree.map(np.asarray, (y, statistics, gradients))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("mask", [MASK, None], ids=["ragged", "whole"])
def test_batch_norm_agrees_with_pytorch_on_the_valid_positions(mask, training, dtype):
    torch = oracles.oracle("torch")
    drawn_arrays = cast(drawn(), dtype)
    y, (mean, var), gradients = run(*drawn_arrays, mask, training, momentum=0.9, epsilon=1e-4)
    x, scale, bias, old_mean, old_var, weights = (torch.tensor(a.astype(np.float64)) for a in drawn_arrays)
    valid = torch.tensor(MASK if mask is not None else np.ones((B, T), bool))
    norm = torch.nn.BatchNorm1d(F, eps=1e-4, momentum=0.1, dtype=torch.float64).train(training)
    x.requires_grad_()
    with torch.no_grad():
        for theirs, ours in (
            (norm.weight, scale),
            (norm.bias, bias),
            (norm.running_mean, old_mean),
            (norm.running_var, old_var),
        ):
            theirs.copy_(ours)
    normalised = norm(x[valid])
    (normalised * weights[valid]).sum().backward()
    want = np.zeros((B, T, F))
    want[valid.numpy()] = normalised.detach().numpy()
    tolerance = 1e-5 if dtype == "float32" else 1e-11
    assert_close(y, want, tolerance)
    assert_close(gradients, (x.grad.numpy(), norm.weight.grad.numpy(), norm.bias.grad.numpy()), tolerance)
    assert_close(mean, norm.running_mean.numpy(), tolerance)
    # PyTorch divides by n - 1 in the running variance, Keras, Flax and we by n.
    n = int(valid.sum())
    biased = 0.9 * old_var + 0.1 * x[valid].var(0, correction=0) if training else old_var
    assert_close(var, biased.detach().numpy(), tolerance)
    if training:
        unbiased = (norm.running_var - 0.9 * old_var) * (n - 1) / n + 0.9 * old_var
        assert_close(var, unbiased.numpy(), tolerance)


def test_derivatives_forward_and_second_agree_with_pytorch(float64):
    """A product of the Hessian with a vector, by PyTorch's double backward; and the Jacobian in both modes."""
    torch = oracles.oracle("torch")
    x, scale, bias, *_ = cast(drawn(), "float64")
    direction = np.random.default_rng(5).normal(size=(MASK.sum(), F))
    valid = torch.tensor(x[MASK], requires_grad=True)
    loss = (torch.nn.functional.batch_norm(valid, None, None, *map(torch.tensor, (scale, bias)), True, eps=1e-4) ** 3).sum()
    (first,) = torch.autograd.grad(loss, valid, create_graph=True)
    (want,) = torch.autograd.grad((first * torch.tensor(direction)).sum(), valid)

    def ours(valid):
        filled = jnp.full(x.shape, 7.0).at[MASK].set(valid)
        return norm_of(scale, bias, scale, bias**2, epsilon=1e-4)(filled, mask=MASK, training=True)

    gradient = jax.grad(lambda valid: jnp.sum(ours(valid) ** 3))
    given = jnp.asarray(x[MASK])
    assert_close(gradient(given), first.detach().numpy(), 1e-11)
    assert_close(jax.jvp(gradient, (given,), (jnp.asarray(direction),))[1], want.numpy(), 1e-10)
    assert_close(jax.grad(lambda valid: jnp.sum(gradient(valid) * direction))(given), want.numpy(), 1e-10)
    assert_close(jax.jacfwd(ours)(given), jax.jacrev(ours)(given), 1e-12)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_mask_may_be_of_size_one_where_it_does_not_vary(training):
    x, *rest = drawn()
    for narrow in (MASK[:1], MASK[:, 2:3], np.ones((1, 1), bool), np.zeros((1, 1), bool)):
        want = run(x, *rest, np.broadcast_to(narrow, MASK.shape), training)
        assert_close(run(x, *rest, narrow, training), want, 1e-5)


def test_batch_norm_agrees_with_keras_and_its_mask():
    keras = oracles.oracle("keras")
    x, scale, bias, mean, var, weights = drawn()
    theirs = keras.layers.BatchNormalization()
    theirs.build(x.shape)
    theirs.set_weights([scale, bias, mean, var])
    want = np.where(MASK[..., None], np.asarray(theirs(x, training=True, mask=MASK)), 0)
    y, statistics, _ = run(x, scale, bias, mean, var, weights, MASK)  # our defaults are Keras' own
    assert_close(y, want, 1e-5)
    assert_close(statistics, [np.asarray(v.value) for v in (theirs.moving_mean, theirs.moving_variance)], 1e-5)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_nan_in_the_padding_reaches_nothing(training):
    x, *rest = drawn()
    want = run(fill_padding(x, LENGTHS, 0.0), *rest, MASK, training)
    assert_equal(run(fill_padding(x, LENGTHS, np.nan), *rest, MASK, training), want)
    assert not np.any(want[0][~MASK])


def test_more_padding_changes_nothing():
    x, scale, bias, mean, var, weights = drawn()
    y, statistics, gradients = run(x, scale, bias, mean, var, weights, MASK)
    wider = [np.pad(a, ((0, 2), (0, 3), (0, 0)), constant_values=7) for a in (x, weights)]
    got = run(wider[0], scale, bias, mean, var, wider[1], np.pad(MASK, ((0, 2), (0, 3))))
    assert_equal((got[0][:B, :T], got[1], (got[2][0][:B, :T], *got[2][1:])), (y, statistics, gradients))
    assert not np.any(got[0][B:])
    assert not np.any(got[2][0][:, T:])


def test_a_batch_without_a_valid_position_keeps_the_statistics():
    x, scale, bias, mean, var, weights = drawn()
    y, statistics, gradients = run(np.full_like(x, np.nan), scale, bias, mean, var, weights, np.zeros((B, T), bool))
    assert_close(statistics, [mean, var], 0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((y, gradients)))


def test_one_valid_position_gives_no_nan():
    x, scale, bias, mean, var, weights = drawn()
    mask = np.zeros((B, T), bool)
    mask[2, 3] = True
    y, statistics, gradients = run(x, scale, bias, mean, var, weights, mask)
    assert_close(y[2, 3], bias, 1e-6)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((y, statistics, gradients)))


def test_a_jitted_loss_returns_the_new_statistics():
    x, *_ = drawn()
    norm = BatchNorm(F, momentum=0.5)
    graphdef, params, statistics = nnx.split(norm, nnx.Param, ...)

    @jax.jit
    def gradients_and_statistics(params, statistics):
        def loss(params):
            model = nnx.merge(graphdef, params, statistics, copy=True)
            y = model(x, mask=MASK, training=True)
            return jnp.sum(y**3), nnx.state(model, nnx.BatchStat)

        return jax.grad(loss, has_aux=True)(params)

    for _ in range(20):
        gradients, statistics = gradients_and_statistics(params, statistics)
    valid = x[MASK].astype(np.float64)
    assert_close(np.asarray(statistics["mean"][...]), valid.mean(0), 1e-5)
    assert_close(np.asarray(statistics["var"][...]), valid.var(0), 1e-5)
    assert np.any(np.asarray(gradients["scale"][...]))
    assert_close(np.asarray(norm.mean[...]), np.zeros(F), 0)  # the module itself was not touched
    # What is then used in evaluation: the batch normalised by its own statistics, up to epsilon.
    evaluated = nnx.merge(graphdef, params, statistics)(x, mask=MASK)
    assert_close(evaluated, run(x, np.ones(F), np.zeros(F), np.zeros(F), np.ones(F), 0 * x, MASK)[0], 1e-4)


def test_half_precision_is_normalised_in_float32():
    x, scale, bias, mean, var, weights = drawn()
    x = np.asarray(jnp.asarray(x + 100, jnp.bfloat16))
    y, statistics, _ = run(x, scale, bias, mean, var, weights, MASK)
    want, expected, _ = run(x.astype(np.float32), scale, bias, mean, var, weights, MASK)
    assert y.dtype == jnp.bfloat16
    assert_close(y.astype(np.float32), want, 1e-2)
    assert_close(statistics, expected, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BatchNorm(0), "features: expected a positive number, got 0"),
        (lambda: BatchNorm(F)(jnp.zeros((B, T, F + 1))), r"x: expected 3 features, got shape \(5, 6, 4\)"),
        (
            lambda: BatchNorm(F)(jnp.zeros((B, T, F)), mask=jnp.ones((B, T + 1), bool)),
            r"mask: expected shape \(5, 6\), or 1 for some of it, got \(5, 7\)",
        ),
        (lambda: Dropout(1.0), "rate: expected a rate in"),
        (lambda: Dropout(-0.5), "rate: expected a rate in"),
        (lambda: GaussianNoise(-1.0), "stddev: expected a number that is not negative, got -1"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


X = np.random.default_rng(0).normal(size=(100, 50, 8)).astype(np.float32)


@pytest.mark.parametrize("layer", [GaussianNoise(0.5), Dropout(0.5)], ids=["noise", "dropout"])
def test_without_a_key_or_with_rate_zero_the_input_comes_back(layer):
    assert_close(layer(X), X, 0)
    assert_close(type(layer)(0.0)(X, key=jax.random.key(0)), X, 0)
    one, again, other = (layer(X, key=jax.random.key(k)) for k in (0, 0, 1))
    assert_close(one, again, 0)
    assert np.any(np.asarray(one) != np.asarray(other))


@pytest.mark.parametrize("stddev", [0.1, 2.0])
def test_gaussian_noise_has_the_stated_deviation(stddev):
    noise = np.asarray(GaussianNoise(stddev)(X, key=jax.random.key(0))) - X
    n = noise.size
    assert abs(noise.mean()) < 5 * stddev / np.sqrt(n)
    assert abs(noise.std() - stddev) < 5 * stddev / np.sqrt(2 * n)
    assert abs(np.mean(np.abs(noise) < stddev) - 0.6827) < 0.02
    assert abs(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]) < 0.03  # drawn anew at each position


@pytest.mark.parametrize("rate", [0.1, 0.7])
def test_dropout_keeps_the_stated_share_and_scales_it(rate):
    y = np.asarray(Dropout(rate)(X, key=jax.random.key(0)))
    kept = y != 0
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / X.size)
    assert_close(y[kept], X[kept] / (1 - rate), 1e-6)
    assert Dropout(rate)(X.astype(jnp.bfloat16), key=jax.random.key(0)).dtype == jnp.bfloat16
