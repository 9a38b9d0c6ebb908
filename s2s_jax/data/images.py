"""Pictures: idx files (the format of MNIST), digits that are drawn where there are none, and pictures moved a little."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_IDX_DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_MNIST = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", 60_000),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", 10_000),
}


class LabelledImages(NamedTuple):
    """Grey pictures uint8 [N, H, W], and a class for each, int32 [N]."""

    images: np.ndarray
    labels: np.ndarray


def read_idx(path: str | Path) -> np.ndarray:
    """Reads an idx file, gzipped or not (LeCun; two zero bytes, type, rank, sizes big-endian, then the values).

    Raises:
      FileNotFoundError: no such file.
      ValueError: not an idx file, or a damaged one; the message says what was expected and what came.
    """
    path = Path(path)
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file ({error})") from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX_DTYPES:
        raise ValueError(f"{path}: expected an idx file (0, 0, type, rank), got it to begin with {list(raw[:4])}")
    dtype, rank = np.dtype(_IDX_DTYPES[raw[2]]), raw[3]
    start = 4 + 4 * rank
    if len(raw) < start:
        raise ValueError(f"{path}: expected {rank} sizes of 4 bytes, got {len(raw) - 4} bytes")
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
    expected = math.prod(shape) * dtype.itemsize  # Python's own integers: sizes of a damaged file overflow 64 bits
    if len(raw) - start != expected:
        raise ValueError(f"{path}: expected {expected} bytes of values for shape {shape}, got {len(raw) - start}")
    return np.frombuffer(raw, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def load_mnist(folder: str | Path, split: str) -> LabelledImages:
    """The split "train" (60,000) or "test" (10,000) of MNIST (LeCun et al. 1998).

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a damaged file, or numbers of pictures or labels that are not MNIST's.
    """
    images_name, labels_name, count = _MNIST[split]
    images, labels = (read_idx(_plain_or_gzipped(Path(folder) / name)) for name in (images_name, labels_name))
    if images.shape != (count, 28, 28):
        raise ValueError(f"{images_name}: expected shape {(count, 28, 28)}, got {images.shape}")
    if labels.shape != (count,):
        raise ValueError(f"{labels_name}: expected {count} labels from 0 to 9, got {labels.shape}")
    if labels.max() > 9:
        raise ValueError(f"{labels_name}: expected {count} labels from 0 to 9, got {labels.shape} up to {labels.max()}")
    return LabelledImages(images, labels.astype(np.int32))


def drawn_digits(count: int, seed: int) -> LabelledImages:
    """A stand-in for MNIST: digits of a 5 x 7 pixel font, shifted, scaled, slanted, blurred and noisy, 28 x 28."""
    if count < 1:
        raise ValueError(f"count: expected at least one picture, got {count}")
    rng = np.random.default_rng(seed)
    parts = [_draw(min(1000, count - start), rng) for start in range(0, count, 1000)]  # not all at once: memory
    return LabelledImages(*map(np.concatenate, zip(*parts, strict=True)))


def augmented(images: Any, key: jax.Array) -> jax.Array:
    """Each picture turned by up to 10 degrees, scaled by up to 10 % and shifted by up to 2 pixels; bilinear."""
    count, height, width = images.shape
    keys = jax.random.split(key, 3)
    angle = jax.random.uniform(keys[0], (count,), minval=-1, maxval=1) * (10 * jnp.pi / 180)
    scale = jax.random.uniform(keys[1], (count, 2), minval=0.9, maxval=1.1)
    shift = jax.random.uniform(keys[2], (count, 2), minval=-2, maxval=2)
    y, x = jnp.mgrid[:height, :width] - (height - 1) / 2

    def warped(image: jax.Array, angle: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
        rows = (jnp.cos(angle) * y - jnp.sin(angle) * x) * scale[0] + shift[0] + (height - 1) / 2
        columns = (jnp.sin(angle) * y + jnp.cos(angle) * x) * scale[1] + shift[1] + (width - 1) / 2
        return jax.scipy.ndimage.map_coordinates(image, [rows, columns], order=1)

    return jax.vmap(warped)(images.astype(jnp.float32), angle, scale, shift)


def _draw(count: int, rng: np.random.Generator) -> LabelledImages:
    labels = rng.integers(10, size=count)
    width, height = rng.uniform(2.2, 3.4, (2, count))
    slant = rng.uniform(-0.35, 0.35, count)
    shift_x, shift_y = rng.uniform(-2.5, 2.5, (2, count))
    y, x = np.mgrid[:28, :28] - 13.5
    # Each pixel looks up where it comes from in the font, between four of its pixels.
    rows = (y - shift_y[:, None, None]) / height[:, None, None] + 3
    columns = (x - shift_x[:, None, None] + slant[:, None, None] * y) / width[:, None, None] + 2
    glyphs = np.pad(_font(), ((0, 0), (1, 1), (1, 1)))
    ink = _interpolated(glyphs, labels, rows + 1, columns + 1)
    ink = np.clip(1.6 * ink, 0, 1) * rng.uniform(0.7, 1, (count, 1, 1)) + rng.normal(0, 0.08, ink.shape)
    return LabelledImages((255 * np.clip(ink, 0, 1)).astype(np.uint8), labels.astype(np.int32))


def _interpolated(pictures: np.ndarray, which: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bilinear values of `pictures[which]` at fractional places; 0 outside."""
    height, width = pictures.shape[1:]
    row, column = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = rows - row, columns - column
    value = np.zeros_like(rows)
    for step_down, weight_down in ((0, 1 - down), (1, down)):
        for step_right, weight_right in ((0, 1 - right), (1, right)):
            r, c = row + step_down, column + step_right
            inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
            picked = pictures[which[:, None, None], np.clip(r, 0, height - 1), np.clip(c, 0, width - 1)]
            value += np.where(inside, picked, 0) * weight_down * weight_right
    return value


def _font() -> np.ndarray:
    """Ten digits, [10, 7, 5], from 7 rows of 5 bits each."""
    rows = (
        "0e11131519110e 040c040404040e 0e11010204081f 1f02040201110e 02060a121f0202 1f101e0101110e 0608101e11110e "
        "1f010204080808 0e11110e11110e 0e11110f01020c"
    )
    glyphs = np.array([list(bytes.fromhex(digit)) for digit in rows.split()])
    return (glyphs[:, :, None] >> np.arange(4, -1, -1)) & 1


def _plain_or_gzipped(path: Path) -> Path:
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"{path}: expected this file, or the same with .gz, found neither")
