"""Convolutions over pictures of different widths: against PyTorch, and a padded picture against the picture alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from s2s_jax.layers import PICTURE_STAGES, TEXT_LINE_STAGES, Backbone, Stage
from s2s_jax.layers.convolution import convolve, max_pool
from tests import oracles
from tests.samples import assert_close

SMALL = (Stage(3, 1, (2, 2)), Stage(4, 2, (2, 1)), Stage(5, 1, (1, 3)))
WIDTHS = np.array([29, 13, 7, 6, 1, 0])


def backbone(residual=False, stages=SMALL, channels=1, **options):
    """With statistics and biases of batch norm that are not those of the start."""
    return moved(Backbone(channels, stages, residual=residual, rngs=nnx.Rngs(0), **options))


def moved(made):
    graphdef, state = nnx.split(made)
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(state))))
    state = jax.tree.map(lambda leaf: leaf + jax.random.uniform(next(keys), leaf.shape, minval=-0.3, maxval=0.3), state)
    return nnx.merge(graphdef, state)


def pictures(channels=1, height=8, width=29, seed=0):
    return np.random.default_rng(seed).normal(size=(len(WIDTHS), height, width, channels)).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 4, 5])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_convolution_agrees_with_pytorch(channels, size):
    torch = oracles.oracle("torch")
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 6, 7, channels)), rng.normal(size=(size, size, channels, 3))
    weights = rng.normal(size=(2, 6, 7, 3))
    ours, vjp = jax.vjp(convolve, jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
    tensors = [torch.tensor(x, requires_grad=True), torch.tensor(kernel, requires_grad=True)]
    theirs = torch.nn.functional.conv2d(tensors[0].permute(0, 3, 1, 2), tensors[1].permute(3, 2, 0, 1), padding=size // 2)
    (theirs.permute(0, 2, 3, 1) * torch.tensor(weights)).sum().backward()
    assert_close(ours, theirs.permute(0, 2, 3, 1).detach().numpy(), 1e-5)
    assert_close(vjp(jnp.asarray(weights, jnp.float32)), tuple(tensor.grad.numpy() for tensor in tensors), 1e-5)


@pytest.mark.parametrize("window", [(2, 2), (2, 1), (1, 3), (3, 2)])
def test_pooling_agrees_with_pytorch(window):
    torch = oracles.oracle("torch")
    x = pictures(2)
    theirs = torch.nn.functional.max_pool2d(torch.tensor(x).permute(0, 3, 1, 2), window).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(max_pool(jnp.asarray(x), window), theirs.numpy())


def torch_maps(made, picture):
    """The maps [H, W, F] of one picture [H, W, C], by PyTorch with the weights and the running statistics of a backbone."""
    torch = oracles.oracle("torch")

    def of(array):
        return torch.tensor(np.asarray(array[...], np.float64))

    def convolved(block, x):
        kernel, norm = of(block.kernel).permute(3, 2, 0, 1), block.norm
        x = torch.nn.functional.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
        return torch.nn.functional.batch_norm(x, of(norm.mean), of(norm.var), of(norm.scale), of(norm.bias), eps=norm.epsilon)

    x = torch.tensor(np.asarray(picture, np.float64)).permute(2, 0, 1)[None]
    for blocks, pool in zip(made.stages, made.pools, strict=True):
        for block in blocks:
            if hasattr(block, "first"):
                y = convolved(block.second, torch.relu(convolved(block.first, x)))
                x = torch.relu(y + (x if block.link is None else convolved(block.link, x)))
            else:
                x = torch.relu(convolved(block, x))
        x = torch.nn.functional.max_pool2d(x, pool)
    return x[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("residual", [False, True], ids=["vgg", "residual"])
def test_maps_agree_with_pytorch(residual):
    """Each picture of a padded batch beside that picture alone, whose borders PyTorch fills with zeros."""
    made, x = backbone(residual), pictures()
    x = np.where((np.arange(29) < WIDTHS[:, None])[:, None, :, None], x, np.nan)
    maps = nnx.jit(lambda made, *rows: made(*rows))(made, x, WIDTHS)
    for row, width in enumerate(WIDTHS[:4]):
        want = torch_maps(made, x[row, :, :width])
        assert want.shape[1] == maps.widths[row]
        assert_close(maps.features[row, :, : want.shape[1]], want.astype(np.float32), 1e-5)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_padded_picture_gives_the_maps_of_the_picture_alone(residual, channels):
    made, x = backbone(residual, channels=channels), pictures(channels)
    padded = np.where((np.arange(29) < WIDTHS[:, None])[:, None, :, None], x, np.nan)
    maps = made(padded, WIDTHS)
    for row, width in enumerate(WIDTHS):
        rows, left = made.reduced(8, int(width))
        assert maps.features.shape[1] == rows
        assert maps.widths[row] == left
        assert not np.any(maps.features[row, :, left:])
        if left:
            alone = made(x[row : row + 1, :, :width])
            assert alone.features.shape[2] == left
            assert_close(maps.features[row, :, :left], alone.features[0], 1e-5)


@pytest.mark.parametrize("stages", [TEXT_LINE_STAGES, PICTURE_STAGES], ids=["text lines", "pictures"])
def test_stages_that_come_with_it_keep_that(stages):
    made = backbone(stages=stages)
    x = pictures(height=48, width=64)[:2]
    maps = made(x, np.array([64, 37]))
    assert_close(maps.features[1, :, : int(maps.widths[1])], made(x[1:2, :, :37]).features[0], 1e-5)


@pytest.mark.parametrize("residual", [False, True])
def test_in_training_too_padding_reaches_no_output_statistic_or_gradient(residual):
    x = pictures(height=4)
    mask = (np.arange(29) < WIDTHS[:, None])[:, None, :, None]

    def run(x, widths):
        graphdef, params, rest = nnx.split(backbone(residual), nnx.Param, ...)

        def total(params, x):
            model = nnx.merge(graphdef, params, rest, copy=True)
            maps = model(x, widths, training=True)
            return jnp.sum(jnp.sin(maps.features)), nnx.state(model, nnx.BatchStat)

        (value, statistics), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(params, x)
        return value, statistics, gradients[0], gradients[1]

    want = run(np.where(mask, x, 0), WIDTHS)
    wider = np.pad(np.where(mask, x, np.nan), ((0, 0), (0, 0), (0, 5), (0, 0)), constant_values=np.inf)
    got = run(wider, WIDTHS)
    for ours, theirs in zip(jax.tree.leaves(got[:3]), jax.tree.leaves(want[:3]), strict=True):
        # Not relative to the greatest of a leaf: batch norm leaves hardly any gradient to the size of the kernels before it.
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert_close(got[3][:, :, :29], want[3], 1e-5)
    assert not np.any(got[3] * (np.arange(34) >= WIDTHS[:, None])[:, None, :, None])


def test_pixel_gradient_stays_within_the_reach_of_the_kernels():
    # A column of the maps sees the columns that its kernels and windows cover, and no others.
    made = backbone()
    x = pictures()[:1]
    seen = jax.grad(lambda x: jnp.sum(made(x).features[0, :, 2]))(x)
    across = np.flatnonzero(np.any(np.asarray(seen) != 0, axis=(0, 1, 3)))
    # Window of 3 columns, two convolutions at half the columns, one before: columns 2 (6 - 3) - 1 .. 2 (8 + 3) + 1 + 1.
    assert across.min() >= 2 * (6 - 3) - 1
    assert across.max() <= 2 * (8 + 3) + 1 + 1


def test_dropout_needs_a_key():
    made = backbone(dropout=0.5)
    x = pictures()
    once, again = (made(x, WIDTHS, key=jax.random.key(0)).features for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert np.any(np.asarray(once) != np.asarray(made(x, WIDTHS).features))


def test_half_precision_stays_so():
    maps = backbone()(jnp.asarray(pictures(), jnp.bfloat16), WIDTHS)
    assert maps.features.dtype == jnp.bfloat16
    assert_close(np.asarray(maps.features, np.float32), backbone()(pictures(), WIDTHS).features, 0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Backbone(1, (), rngs=nnx.Rngs(0)), "stages: expected at least one"),
        (lambda: Backbone(0, SMALL, rngs=nnx.Rngs(0)), "expected positive numbers"),
        (lambda: backbone()(pictures(2)), r"pictures: expected \[B, H, W, 1\]"),
        (lambda: backbone()(pictures(), WIDTHS + 1), "widths: expected values from 0 to T = 29, got 30 in row 0"),
        (lambda: convolve(jnp.ones((1, 2, 2, 1)), jnp.ones((2, 2, 1, 1))), "kernel: expected"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()
