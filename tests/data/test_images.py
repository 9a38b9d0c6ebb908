"""Idx files, whole and damaged, where MNIST is looked for, and the drawn stand-in."""

import gzip
import struct

import numpy as np
import pytest

from s2s_jax.data.images import drawn_digits, load_mnist, read_idx

CODES = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}


def idx_bytes(array):
    array = np.asarray(array)
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, CODES[array.dtype.name], array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def written(path, raw):
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("name", ["a-idx", "a-idx.gz"])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 2), (0, 3), ()])
@pytest.mark.parametrize("dtype", CODES)
def test_reads_what_was_written(tmp_path, dtype, shape, name):
    want = (np.random.default_rng(0).normal(size=shape) * 50).astype(dtype)
    got = read_idx(written(tmp_path / name, idx_bytes(want)))
    assert got.dtype == np.dtype(dtype)
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, want)


WHOLE = idx_bytes(np.arange(12, dtype=np.uint8).reshape(3, 4))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", r"expected an idx file \(0, 0, type, rank\), got it to begin with \[\]"),
        (b"\0\0\x08", r"got it to begin with \[0, 0, 8\]"),
        (b"\1" + WHOLE[1:], r"got it to begin with \[1, 0, 8, 2\]"),
        (b"\0\0\x0a" + WHOLE[3:], r"got it to begin with \[0, 0, 10, 2\]"),
        (WHOLE[:10], "expected 2 sizes of 4 bytes, got 6 bytes"),
        (WHOLE[:-1], r"expected 12 bytes of values for shape \(3, 4\), got 11"),
        (WHOLE + b"\0", r"expected 12 bytes of values for shape \(3, 4\), got 13"),
        (WHOLE[:4] + struct.pack(">II", 3, 5) + WHOLE[12:], r"expected 15 bytes of values for shape \(3, 5\), got 12"),
        (WHOLE[:4] + struct.pack(">II", 2**32 - 1, 2**32 - 1) + WHOLE[12:], r"expected \d{19,} bytes of values for shape"),
        (gzip.compress(WHOLE)[:-9], "damaged gzip file"),
        (gzip.compress(WHOLE)[:12], "damaged gzip file"),
        (gzip.compress(WHOLE)[:-6] + b"\1\1" + gzip.compress(WHOLE)[-4:], "damaged gzip file"),
        (gzip.compress(WHOLE[:-1]), r"expected 12 bytes of values for shape \(3, 4\), got 11"),
    ],
    ids=[
        *(
            "empty",
            "three bytes",
            "wrong magic",
            "unknown type",
            "cut in the sizes",
            "cut in the values",
            "too long",
            "wrong size",
        ),
        *("sizes that overflow", "gzip cut at its end", "gzip cut early", "gzip with a wrong sum", "gzip of a cut file"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, raw, message):
    path = tmp_path / "broken-idx"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=f"broken-idx: .*{message}"):
        read_idx(path)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "none")


# Where MNIST is ------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv("S2S_DATA_DIR", raising=False)


def small_mnist(folder, split, images=None, labels=None, count=10_000, suffix=".gz"):
    images = np.zeros((count, 28, 28), np.uint8) if images is None else images
    labels = (np.arange(count) % 10).astype(np.uint8) if labels is None else labels
    prefix = {"train": "train", "test": "t10k"}[split]
    written(folder / f"{prefix}-images-idx3-ubyte{suffix}", idx_bytes(images))
    written(folder / f"{prefix}-labels-idx1-ubyte{suffix}", idx_bytes(labels))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_loads_a_split(tmp_path, suffix):
    images = np.zeros((10_000, 28, 28), np.uint8)
    images[:, 3, 4] = np.arange(10_000) % 251
    small_mnist(tmp_path, "test", images, suffix=suffix)
    got = load_mnist(tmp_path, "test")
    np.testing.assert_array_equal(got.images, images)
    np.testing.assert_array_equal(got.labels, np.arange(10_000) % 10)
    assert got.labels.dtype == np.int32
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte: expected this file, or the same with .gz"):
        load_mnist(tmp_path, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 9_999}, r"t10k-images-idx3-ubyte: expected shape \(10000, 28, 28\), got \(9999, 28, 28\)"),
        ({"images": np.zeros((10_000, 784), np.uint8)}, r"expected shape \(10000, 28, 28\), got \(10000, 784\)"),
        ({"labels": np.zeros(9_999, np.uint8)}, r"t10k-labels-idx1-ubyte: expected 10000 labels from 0 to 9, got \(9999,\)"),
        ({"labels": np.full(10_000, 10, np.uint8)}, r"expected 10000 labels from 0 to 9, got \(10000,\) up to 10"),
        ({"labels": np.zeros(0, np.uint8)}, r"expected 10000 labels from 0 to 9, got \(0,\)"),
    ],
    ids=["count", "shape", "fewer labels", "label 10", "no labels"],
)
def test_files_that_are_not_mnists_are_refused(tmp_path, change, message):
    small_mnist(tmp_path, "test", suffix="", **change)
    with pytest.raises(ValueError, match=message):
        load_mnist(tmp_path, "test")


# The stand-in --------------------------------------------------------------------------------------------------------------


def test_drawn_digits_are_the_same_each_time():
    one, again, other = drawn_digits(50, seed=0), drawn_digits(50, seed=0), drawn_digits(50, seed=1)
    np.testing.assert_array_equal(one.images, again.images)
    np.testing.assert_array_equal(one.labels, again.labels)
    assert np.any(one.images != other.images)
    assert (one.images.shape, one.images.dtype, one.labels.dtype) == ((50, 28, 28), np.uint8, np.int32)


def test_drawn_digits_can_be_told_apart():
    """The nearest mean picture names most of them; and none is blank, nor equal to another."""
    train, test = drawn_digits(2000, seed=0), drawn_digits(500, seed=1)
    assert set(train.labels) == set(range(10))
    means = np.stack([train.images[train.labels == digit].mean(0) for digit in range(10)])
    distance = ((test.images[:, None].astype(float) - means) ** 2).sum((2, 3))
    assert np.mean(distance.argmin(1) == test.labels) > 0.6
    assert train.images.max((1, 2)).min() > 100
    assert len({image.tobytes() for image in train.images}) == 2000
