"""Splits saved as arrays: what comes back, slices, damage, and training on them with NumPy, JAX, Flax and optax alone."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from s2s_jax.data import datasets
from s2s_jax.data.datasets import save_arrays
from s2s_jax.data.pipeline import Batches

ROOT = Path(__file__).parents[2]
EXAMPLES = [
    {
        "image": np.full((2, 3), number, np.uint8),
        "text": "é" * number,
        "audio": bytes(range(2 * number)),
        "values": np.arange(number, dtype=np.float32).reshape(-1, 1),
        "label": np.int32(number % 3),
        "seconds": number / 2,
    }
    for number in range(10)
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("S2S_DATA_DIR", raising=False)
    save_arrays(EXAMPLES, tmp_path / "things" / "train")
    return tmp_path


def same(got, want):
    assert got.keys() == want.keys()
    for field, value in want.items():
        assert isinstance(got[field], type(value) if isinstance(value, str | bytes) else np.ndarray)
        assert np.array_equal(got[field], value)
        if isinstance(value, np.ndarray | np.generic):
            assert (got[field].dtype, got[field].shape) == (value.dtype, value.shape)


@pytest.mark.parametrize(
    "split", ["train", "train[:4]", "train[-3:]", "train[2:-2]", "train[50%:]", "train[:-20%]", "train[:]"]
)
def test_what_was_saved_comes_back_and_is_cut_as_a_list_is(folder, split):
    bounds = split.removeprefix("train").strip("[]").replace("50%", "5").replace("20%", "2") or ":"
    want = EXAMPLES[slice(*(int(bound) if bound else None for bound in bounds.split(":")))]
    for data_dir in (folder, folder / "things"):
        source = datasets.load("things", split, data_dir=data_dir)
        assert (source.name, source.split, len(source)) == ("things", split, len(want))
        for got, expected in zip(source, want, strict=True):
            same(got, expected)
    same(source[-1], want[-1])
    with pytest.raises(IndexError):
        source[len(want)]


def test_the_fingerprint_is_that_of_the_source_or_of_the_bytes(folder, tmp_path):
    class Known(list):
        fingerprint = "0123"

    known = Known(EXAMPLES)
    known.split = "train"
    save_arrays(known, tmp_path / "known" / "train")
    assert datasets.load("known", "train[:1]", data_dir=tmp_path).fingerprint == "0123"
    known.split = "train[:10]"  # might have been less than all
    save_arrays(known, tmp_path / "slice" / "train")
    assert datasets.load("slice", "train", data_dir=tmp_path).fingerprint != "0123"
    save_arrays(EXAMPLES, tmp_path / "again" / "train")
    save_arrays([{**EXAMPLES[0], "label": np.int32(7)}, *EXAMPLES[1:]], tmp_path / "other" / "train")
    prints = {name: datasets.load(name, "train", data_dir=tmp_path).fingerprint for name in ("things", "again", "other")}
    assert prints["things"] == prints["again"] != prints["other"]


def test_another_split_and_what_is_no_slice_are_named(folder):
    for split in ("test", "train[3]", "train+train"):
        with pytest.raises(ValueError, match=r"split: expected one or a slice of \['train'\] of things") as raised:
            datasets.load("things", split, data_dir=folder)
        assert repr(split) in str(raised.value)


def test_a_split_that_was_not_written_to_its_end_is_none(folder):
    (folder / "things" / "train" / "fields.json").unlink()
    with pytest.raises(FileNotFoundError, match="data_dir: expected 'things' in"):
        datasets.load("things", "train", data_dir=folder)


def test_bounds_beyond_the_examples_and_options_are_refused(folder):
    for bound in ("11", "-11", "110%"):
        with pytest.raises(ValueError, match=f"split: expected bounds within its 10 examples, got {bound}"):
            datasets.load("things", f"train[:{bound}]", data_dir=folder)
    with pytest.raises(ValueError, match=r"options: expected none for saved arrays, got \['langauges'\]"):
        datasets.load("things", "train", data_dir=folder, langauges=("de", "en"))


def test_what_was_saved_before_is_gone(folder):
    ragged, even = [{"x": np.arange(n)} for n in (1, 3, 2)], [{"x": np.arange(2) + n} for n in range(3)]
    for examples in (ragged, even, ragged):
        save_arrays(examples, folder / "things" / "train")
        got = [example["x"].tolist() for example in datasets.load("things", "train", data_dir=folder)]
        assert got == [example["x"].tolist() for example in examples]


def test_fields_of_other_numbers_of_examples_are_found_out(folder):
    np.save(folder / "things" / "train" / "label.npy", np.zeros(9))
    with pytest.raises(ValueError, match=r"train: expected one number of examples in all fields, got \[9, 10\]"):
        datasets.load("things", "train", data_dir=folder)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "source: expected at least one example, got none"),
        ([{"a": None}], "a: expected numbers, text or bytes, got NoneType None"),
        ([{"a": np.array(["x"], object)}], "a: expected numbers, text or bytes, got ndarray"),
        ([{"a": np.zeros((1, 2))}, {"a": np.zeros((1, 3))}], "a: expected arrays that differ in their first axis alone"),
        ([{"a": np.zeros(())}, {"a": np.zeros(1)}], "a: expected arrays that differ in their first axis alone"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path, examples, message):
    with pytest.raises(ValueError, match=message):
        save_arrays(examples, tmp_path / "train")
    assert not (tmp_path / "train" / "fields.json").exists()


def test_batches_of_saved_arrays_are_those_of_what_was_saved(folder):
    source = datasets.load("things", "train", data_dir=folder)
    lengths = {"values": np.arange(10)}

    def numbers(example):
        return {"values": example["values"], "label": example["label"]}

    saved, given = (Batches(s, 4, seed=3, lengths=lengths, transform=numbers) for s in (source, EXAMPLES))
    for step, batch in zip(range(7), saved.iterate(), strict=False):
        for field, value in given(step).items():
            assert np.array_equal(batch[field], value)
    assert [batch["label"].tolist() for batch in saved.iterate(2, 4)] == [
        given(2)["label"].tolist(),
        given(3)["label"].tolist(),
    ]


def test_training_on_them_needs_numpy_jax_flax_and_optax_alone(folder):
    """With every other package of the experiments made impossible to import (but rich, which Flax itself imports)."""
    code = """
        import pathlib, sys
        absent = "tensorflow_datasets tensorflow grain orbax array_record matplotlib tensorboardX tyro safetensors".split()
        sys.modules.update(dict.fromkeys(absent))
        import optax, jax.numpy as jnp
        from flax import nnx
        from s2s_jax.data import datasets
        from s2s_jax.data.pipeline import Batches
        from s2s_jax.losses import cross_entropy
        from s2s_jax.metrics import mean_over
        from s2s_jax.models import SequenceClassifier
        from s2s_jax.training.loop import fit, make_measure
        from s2s_jax.training.config import RunConfig
        from s2s_jax.training.run import Run

        source = datasets.load("things", "train[:8]", data_dir=sys.argv[1])
        only = lambda example: {"xs": example["image"].astype("float32"), "labels": example["label"]}
        batches = Batches(source, 4, seed=0, transform=only)

        def loss(model, batch, key):
            nats = cross_entropy(model(batch["xs"], key=key), batch["labels"], batch["mask"])
            return nats.total / nats.count, {"loss": nats}

        measure = make_measure(lambda model, batch: {"loss": loss(model, batch, None)[1]["loss"]})
        model = SequenceClassifier(3, 4, 3, rngs=nnx.Rngs(0))
        config = RunConfig(steps=5, runs_dir=pathlib.Path(sys.argv[1]) / "runs", checkpoint_every=0)
        run = Run.begin("task", config)
        trained = fit(model, loss, batches, optimizer=optax.adam(1e-2), steps=5, run=run,
                      evaluate=lambda model: measure(model, Batches(source, 4, seed=None, transform=only)))
        print("trained", int(trained.state.step), len(run.history()))
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "trained 5 2"
