"""Lines of writing, changed a little by chance: what a pen, a hand and a scanner change, and the text does not."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from s2s_jax.masks import length_mask

FADED = 10 / 3  # the strength at which the palest ink would be 1 - 0.3 * strength = 0, and so the gamma
_GRID = 24  # pixels between two places whose shifts are drawn; between them shifts are smooth


def augmented_lines(
    pictures: Float[Array, "B H W C"], widths: Int[Array, " B"], key: Array, *, strength: float = 1.0
) -> tuple[Float[Array, "B H W C"], Int[Array, " B"]]:
    """Pictures of ink (1) on paper (0), each slanted, scaled, moved, bent, of thicker or thinner strokes, paler, and noisy.

    Each row draws its own: a slant of up to 0.15 columns for each row, heights from 0.85 to 1, widths from 0.85 to 1.15 (a
    smaller range around 1 where the array has no room for that), a move of up to 1 row; bends of up to 2 rows and 3 columns,
    smooth over 24 columns and a third of the height; strokes up to one pixel wider or thinner, in half of the pictures; ink of
    0.7 to 1, by a gamma of 0.7 to 1.4; noise of up to 0.05. So ink at the upper and lower edge stays nearly always inside.

    Args:
      pictures, widths: what stands behind the widths is not read.
      key: of all that is drawn.
      strength: what ranges are multiplied by; 0 changes nothing, and from `FADED` on nothing would be left of a picture.

    Returns:
      Pictures of the same shape, zero behind the new widths, and these.

    Raises:
      ValueError: a strength out of this range.
    """
    if not 0 <= strength < FADED:
        raise ValueError(f"strength: expected a number from 0 to below {FADED:.2f}, got {strength}")
    batch_size, height, width, _ = pictures.shape
    keys = iter(jax.random.split(key, 16))

    def drawn(low: float, high: float, middle: float = 0.0) -> Array:
        """[B, 1, 1], from `low` to `high` around the value that changes nothing."""
        value = jax.random.uniform(next(keys), (batch_size, 1, 1), minval=low, maxval=high)
        return middle + strength * (value - middle)

    mask = length_mask(widths, width)
    pictures = jnp.where(mask[:, None, :, None], pictures, 0)
    room = (width / jnp.maximum(widths, 1))[:, None, None] - 1
    # As much narrower as wider: lines of training should not be narrower than those to be read.
    stretch = 1 + jnp.minimum(0.15, room) * drawn(-1, 1)
    widths = jnp.clip(jnp.round(widths * stretch[:, 0, 0]), jnp.minimum(widths, 1), width).astype(jnp.int32)

    coarse = (batch_size, 3, width // _GRID + 2, 2)
    bends = jax.image.resize(jax.random.normal(next(keys), coarse), (batch_size, height, width, 2), "linear")
    bends = strength * jnp.clip(bends, -2, 2)
    down, right = jnp.mgrid[:height, :width].astype(jnp.float32)
    middle = (height - 1) / 2
    rows = (down - middle) / drawn(0.85, 1.0, 1.0) + middle + drawn(-1, 1) + bends[..., 0]
    across = (right + drawn(-0.15, 0.15) * (down - middle)) / stretch + 1.5 * bends[..., 1]

    def looked_up(picture: Array, rows: Array, across: Array) -> Array:
        channel = lambda values: jax.scipy.ndimage.map_coordinates(values, [rows, across], order=1)  # noqa: E731
        return jax.vmap(channel, in_axes=-1, out_axes=-1)(picture)

    x = jax.vmap(looked_up)(pictures, rows, across)

    def beside(values: Array) -> list[Array]:
        """Each pixel with those to its right and below it."""
        right = jnp.pad(values, ((0, 0), (0, 0), (0, 1), (0, 0)))[:, :, 1:]
        return [values, right, jnp.pad(values, ((0, 0), (0, 1), (0, 0), (0, 0)))[:, 1:]]

    pen = drawn(-1.0, 1.0)[..., None]
    pen = jnp.sign(pen) * jnp.maximum(2 * jnp.abs(pen) - 1, 0)  # half of the strokes stay as they are
    wider, thinner = jnp.stack(beside(x)).max(0), jnp.stack(beside(x)).min(0)
    x = x + jnp.maximum(pen, 0) * (wider - x) + jnp.maximum(-pen, 0) * (thinner - x)
    x = jnp.maximum(x, 0) ** drawn(0.7, 1.4, 1.0)[..., None] * drawn(0.7, 1.0, 1.0)[..., None]
    x = x + drawn(0, 0.05)[..., None] * jax.random.normal(next(keys), x.shape)
    x = jnp.where(length_mask(widths, width)[:, None, :, None], jnp.clip(x, 0, 1), 0)
    return x.astype(pictures.dtype), widths
