"""Pixels: orders, augmentation, splits, and a tiny run on drawn digits."""

import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import pixels
from s2s_jax import cells
from s2s_jax.data.images import LabelledImages, drawn_digits
from s2s_jax.training.command import main
from tests.samples import assert_close

IMAGES = drawn_digits(6, seed=0).images


def test_rows_pixels_and_permuted_hold_the_same_values():
    rows, flat, permuted = (
        np.asarray(pixels.as_sequence(pixels.Config(order=order), IMAGES)) for order in ("rows", "pixels", "permuted")
    )
    assert (rows.shape, flat.shape, permuted.shape) == ((6, 28, 28), (6, 784, 1), (6, 784, 1))
    assert_close(rows, (IMAGES / 255 - 0.1307) / 0.3081, 1e-5)
    assert_close(flat[..., 0], rows.reshape(6, 784), 0)
    # One permutation, the same for all pictures, calls and runs.
    numbers = np.tile(np.arange(784.0).reshape(28, 28), (2, 1, 1))
    order = np.rint(
        (np.asarray(pixels.as_sequence(pixels.Config(order="permuted", seed=3), numbers))[..., 0] * 0.3081 + 0.1307) * 255
    )
    assert sorted(order[0]) == list(range(784))
    assert np.array_equal(order[0], order[1])
    assert not np.array_equal(order[0], np.arange(784))
    assert_close(permuted[..., 0], flat[:, order[0].astype(int), 0], 0)


def test_augmentation_keeps_shape_and_ink_and_differs_between_pictures():
    same = np.tile(IMAGES[:1], (5, 1, 1))
    moved = np.asarray(jax.jit(pixels.augmented)(same, jax.random.key(0)))
    assert moved.shape == same.shape
    assert moved.dtype == np.float32
    assert len({picture.tobytes() for picture in moved}) == 5
    assert moved.min() >= 0
    assert moved.max() <= 255
    assert np.all(np.abs(moved.sum((1, 2)) / same.sum((1, 2)) - 1) < 0.35)
    assert_close(moved, np.asarray(pixels.augmented(same, jax.random.key(0))), 1e-4)


def test_augmentation_by_nothing_is_the_identity(monkeypatch):
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, minval, maxval: jnp.full(shape, (minval + maxval) / 2))
    assert_close(pixels.augmented(IMAGES, jax.random.key(0)), IMAGES.astype(np.float32), 1e-4)


@pytest.fixture
def real(monkeypatch, tmp_path):
    """A data folder that holds what is read as MNIST: 6,000 and 50 pictures whose first two pixels are their number."""

    def numbered(folder, split):
        count = {"train": 6000, "test": 50}[split]
        numbers = np.arange(count) + 10_000 * (split == "test")
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 0, 0], images[:, 0, 1] = numbers // 256, numbers % 256
        return LabelledImages(images, (numbers % 10).astype(np.int32))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("s2s_jax.data.datasets.formats.load_mnist", numbered)
    folder = tmp_path / "mnist"
    folder.mkdir()
    for prefix in ("train", "t10k"):
        for what in ("images-idx3", "labels-idx1"):
            (folder / f"{prefix}-{what}-ubyte").touch()
    return tmp_path


def test_the_splits_of_real_pictures_do_not_overlap(real):
    splits = pixels.load_splits(pixels.Config(data_dir=real))
    assert (splits.dataset, splits.origin) == ("mnist", "real")
    numbers = {}
    for name in ("train", "validation", "test"):
        batches = list(pixels.in_order(getattr(splits, name)))
        images = np.concatenate([batch["image"][batch["mask"]] for batch in batches]).astype(int)
        numbers[name] = (256 * images[:, 0, 0] + images[:, 0, 1]).tolist()
        assert np.concatenate([batch["label"][batch["mask"]] for batch in batches]).tolist() == [n % 10 for n in numbers[name]]
    assert numbers == {"train": list(range(1000)), "validation": list(range(1000, 6000)), "test": list(range(10_000, 10_050))}


FUNCTIONS = {"train": pixels.train, "evaluate": pixels.evaluate, "predict": pixels.predict}
SMALL = ["--steps", "6", "--hidden-features", "4", "--num-layers", "1", "--batch-size", "8", "--checkpoint-every", "100"]


@pytest.fixture
def few(monkeypatch):
    """Few drawn digits, and no data folder of the machine."""
    monkeypatch.delenv("S2S_DATA_DIR", raising=False)
    monkeypatch.setattr(pixels, "drawn_digits", lambda count, seed: drawn_digits(count // 100, seed))
    monkeypatch.setattr(pixels, "VALIDATION", 50)


def call(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pixels.py", *map(str, arguments)])
        patch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="experiments.pixels"))
        main("pixels", pixels.Config, **FUNCTIONS)


def test_a_run_on_drawn_digits_says_so(few, tmp_path, capsys):
    call(*SMALL, "--runs-dir", tmp_path)
    printed = capsys.readouterr().out
    assert "No data folder given: trains on generated digits" in printed
    assert "20 test pictures (generated): accuracy" in printed
    folder = tmp_path / "pixels" / "default"
    result = json.loads((folder / "result.json").read_text())
    assert (result["data"], result["dataset"], result["published"]) == ("generated", "drawn-digits", [])
    assert (result["split"], result["examples"], result["test_reads"]) == ("test, all 20", 48, 1)
    assert set(result["metrics"]) == {"loss", "accuracy"}
    assert result["backend"] == "scan"  # there are several devices
    assert {path.name for path in (folder / "figures").iterdir()} == {"learning_curve.png", "examples.png", "errors.png"}

    call("predict", "0", "19", "--runs-dir", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    labels = drawn_digits(20, seed=1).labels
    assert len(lines) == 2
    for line, number in zip(lines, (0, 19), strict=True):
        assert line.startswith(f"picture {number}: read as ")
        assert line.endswith(f"is {labels[number]}")
    call("evaluate", "--runs-dir", tmp_path)
    again = json.loads((folder / "result.json").read_text())
    assert again["test_reads"] == 2
    assert again["metrics"] == result["metrics"]
    for wrong in ("20", "x", "-1"):
        with pytest.raises(SystemExit, match=r"expected numbers of test pictures from 0 to 19|unknown argument -1"):
            call("predict", wrong, "--runs-dir", tmp_path)


def test_a_run_does_not_go_on_on_other_pictures(real, tmp_path):
    runs = tmp_path / "runs"
    call(*SMALL, "--runs-dir", runs, "--data-dir", real)
    result = json.loads((runs / "pixels/default/result.json").read_text())
    assert result["fingerprint"] == pixels.load_splits(pixels.Config(data_dir=real)).fingerprint
    (real / "mnist/t10k-labels-idx1-ubyte").write_bytes(b"other")
    (runs / "pixels/default/result.json").unlink()  # as if it had been stopped before the end
    for again in ([*SMALL], ["evaluate"]):
        with pytest.raises(
            SystemExit, match=f"expected the data that the run was trained on, .*{result['fingerprint']}.*, got"
        ):
            call(*again, "--runs-dir", runs, "--data-dir", real)


def test_an_empty_data_folder_is_an_error_and_not_the_stand_in(few, tmp_path):
    with pytest.raises(SystemExit, match=r"--data-dir: expected 'mnist' in "):
        call(*SMALL, "--runs-dir", tmp_path / "runs", "--data-dir", tmp_path)
    assert not (tmp_path / "runs/pixels").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--data-dir", "/nonexistent"],
            r"^python -m experiments.pixels: --data-dir: expected a folder, found none at /nonexistent$",
        ),
        (["--cell", "rnn", "--memory", "28"], "memory: expected a cell with gates"),
        (["--optimizer", "nothing"], "optimizer"),
    ],
)
def test_flags_that_do_not_do_leave_no_run_folder(few, tmp_path, flags, message):
    with pytest.raises(SystemExit, match=message):
        call(*SMALL, "--runs-dir", tmp_path / "runs", *flags)
    assert not (tmp_path / "runs/pixels").exists()


def test_memory_is_for_cells_with_gates():
    assert pixels.build_cell(pixels.Config()) is cells.lstm
    assert pixels.build_cell(pixels.Config(cell="gru", memory=28)) is cells.make_gru(memory=28)
    with pytest.raises(ValueError, match="memory: expected a cell with gates with it, lstm or gru, got rnn"):
        pixels.build_cell(pixels.Config(cell="rnn", memory=28))
