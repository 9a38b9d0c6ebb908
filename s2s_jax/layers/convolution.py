"""Convolutions over pictures whose widths differ: columns behind a picture's width reach nothing."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from s2s_jax.layers.keys import check_key, check_rngs
from s2s_jax.layers.regularization import BatchNorm, Dropout
from s2s_jax.masks import check_lengths, length_mask


class Stage(NamedTuple):
    """Some convolutions of one width, and the pooling behind them.

    Attributes:
      features: channels that come out.
      blocks: convolutions; of a residual backbone pairs of them.
      pool: rows and columns of which the greatest is kept.
    """

    features: int
    blocks: int = 1
    pool: tuple[int, int] = (2, 2)


class Maps(NamedTuple):
    """Feature maps [B, H, W, F], zero behind the widths [B]; widths are None where all columns are valid."""

    features: Float[Array, "B H W F"]
    widths: Int[Array, " B"] | None


# Lines of writing, 48 rows or so: 6 rows are left of them, and a quarter of the columns, of which each symbol needs one or two.
TEXT_LINE_STAGES = (Stage(16, 1, (2, 2)), Stage(32, 1, (2, 2)), Stage(48, 2, (2, 1)), Stage(64, 2, (1, 1)))
# Pictures of things: an eighth of rows and columns.
PICTURE_STAGES = (Stage(32, 2, (2, 2)), Stage(64, 2, (2, 2)), Stage(128, 2, (2, 2)))


class Backbone(nnx.Module):
    """Stages of convolutions 3 x 3, batch norm, ReLU and max-pooling: like VGG (Simonyan & Zisserman, arXiv 1409.1556, with
    batch norm), or with residual links around pairs of convolutions (He et al., arXiv 1512.03385).

    A picture padded on the right gives the maps of the picture alone, to rounding: batch norm counts valid columns only and
    leaves zeros in the others, and a convolution takes what lies outside of a picture as zero on every side. Pooling rounds
    down: of a width of 7 pooled by 2 three columns are left, and the last one is dropped, whether there is padding or not.

    Args:
      in_features: channels of the pictures.
      stages: see `Stage`.
      residual: whether blocks are pairs of convolutions with a link around them.
      dropout: rate behind each stage but the first.
      rngs: key `params` draws the parameters.

    Raises:
      ValueError: no stages, or a size that is not positive.
    """

    def __init__(
        self,
        in_features: int,
        stages: Sequence[Stage] = TEXT_LINE_STAGES,
        *,
        residual: bool = False,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        if not stages:
            raise ValueError("stages: expected at least one, got none")
        for size in (in_features, *(size for stage in stages for size in (stage.features, stage.blocks, *stage.pool))):
            if size < 1:
                raise ValueError(f"in_features, stages: expected positive numbers, got {in_features} and {stages}")
        self.in_features = in_features
        self.pools = tuple(tuple(stage.pool) for stage in stages)
        self.out_features = stages[-1].features
        self.dropout = Dropout(dropout)
        self.stages = nnx.List([])
        for stage in stages:
            blocks: list[nnx.Module] = []
            for _ in range(stage.blocks):
                make = _Residual if residual else _Convolution
                blocks.append(make(in_features, stage.features, rngs=rngs))
                in_features = stage.features
            self.stages.append(nnx.List(blocks))

    def reduced(self, rows: int, columns: Int[Array, "..."] | int) -> tuple[int, Int[Array, "..."] | int]:
        """How many rows and columns are left of a picture of so many; of NumPy's arrays too."""
        for down, across in self.pools:
            rows, columns = rows // down, columns // across
        return rows, columns

    def __call__(
        self,
        pictures: Float[Array, "B H W C"],
        widths: Int[Array, " B"] | None = None,
        *,
        training: bool = False,
        key: Array | None = None,
    ) -> Maps:
        """Maps of pictures; a key turns dropout on.

        Args:
          pictures: what stands behind their widths is not read.
          widths: how many columns of each are valid; None for all.
          training: whether batch norm goes by the batch, and learns from it.
          key: of the dropout masks.

        Raises:
          ValueError: another number of channels, or concrete widths out of range.
        """
        check_key(key)
        if pictures.ndim != 4 or pictures.shape[-1] != self.in_features:
            raise ValueError(f"pictures: expected [B, H, W, {self.in_features}], got {pictures.shape}")
        if widths is not None:
            widths = check_lengths(widths, pictures.shape[0], pictures.shape[2], "widths")
        x, mask = pictures, _columns(pictures, widths)
        if mask is not None:
            x = jnp.where(mask[..., None], x, 0)
        for number, (blocks, pool) in enumerate(zip(self.stages, self.pools, strict=True)):
            for block in blocks:
                x = block(x, mask, training)
            x = max_pool(x, pool)
            widths = None if widths is None else widths // pool[1]
            mask = _columns(x, widths)
            if mask is not None:  # a column that the rounding has dropped of the picture is none of the padding's either
                x = jnp.where(mask[..., None], x, 0)
            if number:
                x = self.dropout(x, key=None if key is None else jax.random.fold_in(key, number))
        return Maps(x, widths)


class _Convolution(nnx.Module):
    """Convolution 3 x 3, batch norm over valid columns, ReLU if wanted."""

    def __init__(self, in_features: int, features: int, *, size: int = 3, rngs: nnx.Rngs):
        shape = (size, size, in_features, features)
        self.kernel = nnx.Param(jax.nn.initializers.he_normal()(rngs.params(), shape, jnp.float32))
        self.norm = BatchNorm(features)

    def __call__(self, x: Array, mask: Bool[Array, "B 1 W"] | None, training: bool, *, relu: bool = True) -> Array:
        y = self.norm(convolve(x, self.kernel[...]), mask=mask, training=training)
        return jax.nn.relu(y) if relu else y


class _Residual(nnx.Module):
    """Two convolutions, and around them the input, through a convolution 1 x 1 where it is of another width."""

    def __init__(self, in_features: int, features: int, *, rngs: nnx.Rngs):
        self.first = _Convolution(in_features, features, rngs=rngs)
        self.second = _Convolution(features, features, rngs=rngs)
        self.link = None if in_features == features else _Convolution(in_features, features, size=1, rngs=rngs)

    def __call__(self, x: Array, mask: Bool[Array, "B 1 W"] | None, training: bool) -> Array:
        y = self.second(self.first(x, mask, training), mask, training, relu=False)
        around = x if self.link is None else self.link(x, mask, training, relu=False)
        return jax.nn.relu(y + around)


def convolve(x: Float[Array, "B H W C"], kernel: Float[Array, "K K C F"]) -> Float[Array, "B H W F"]:
    """y[h, w] = sum_ij x[h + i - K // 2, w + j - K // 2] kernel[i, j], with zeros outside of x, in the dtype of x.

    Raises:
      ValueError: a kernel that is not square and odd, or of other channels.
    """
    size = kernel.shape[0]
    if kernel.shape[:2] != (size, size) or size % 2 == 0 or kernel.shape[2] != x.shape[-1]:
        raise ValueError(f"kernel: expected [K, K, {x.shape[-1]}, F] of an odd K, got {kernel.shape}")
    kernel = kernel.astype(x.dtype)
    around = (size // 2, size // 2)
    if x.shape[-1] <= 4 and size > 1:
        # Few channels: XLA's own is six times slower on a CPU than a product with the neighbours of each place side by side.
        height, width = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), around, around, (0, 0)))
        near = [padded[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
        return jnp.concatenate(near, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), (around, around), dimension_numbers=("NHWC", "HWIO", "NHWC"))


def max_pool(x: Float[Array, "B H W F"], window: tuple[int, int]) -> Float[Array, "B H/h W/w F"]:
    """The greatest of each window of h rows and w columns that is whole; windows do not overlap."""
    (down, across), (batch_size, height, width, features) = window, x.shape
    height, width = height // down, width // across
    x = x[:, : height * down, : width * across].reshape(batch_size, height, down, width, across, features)
    # Not `jnp.max`: its gradient divides by how many places equal the greatest, and where XLA computes x once more with other
    # roundings that is none, and the gradient NaN.
    return functools.reduce(jnp.maximum, [x[:, :, i, :, j] for i in range(down) for j in range(across)])


def _columns(x: Array, widths: Array | None) -> Bool[Array, "B 1 W"] | None:
    return None if widths is None else length_mask(widths, x.shape[2])[:, None]
