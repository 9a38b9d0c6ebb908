"""Long sequences: what is measured, beside NumPy, and a tiny run from its training to its timings."""

import itertools
import json
import types

import jax
import numpy as np
import pytest

from experiments import long_sequences
from experiments.long_sequences import Config, LongReader
from s2s_jax import cells
from s2s_jax.training.command import main
from s2s_jax.training.loop import make_measure


def told(model, batch):
    return make_measure(long_sequences.measure)(model, [batch])


def test_measures_equal_numpys():
    config = Config(length=6, hidden_features=4)
    batch = long_sequences.training_batch(config, 3)
    model = LongReader(config)
    said = np.asarray(model(batch["sequence"]), np.float64)
    np.testing.assert_allclose(told(model, batch)["loss"], np.mean((said - batch["sum"]) ** 2), rtol=1e-5)
    config = Config(task="copy", length=3, hidden_features=4)
    batch = long_sequences.training_batch(config, 3)
    model = LongReader(config)
    logits = np.asarray(model(batch["sequence"]), np.float64)
    nats = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, batch["target"][..., None], -1)[..., 0]
    got = told(model, batch)
    np.testing.assert_allclose(got["loss"], nats.mean(), rtol=1e-5)
    np.testing.assert_allclose(got["accuracy"], np.mean(logits[:, -10:].argmax(-1) == batch["target"][:, -10:]), rtol=1e-6)


def test_rows_that_hold_no_sequence_count_for_nothing():
    config = Config(length=5, hidden_features=4)
    model, batch = LongReader(config), long_sequences.training_batch(config, 0)
    mask = np.arange(len(batch["sum"])) < 10
    some = {name: values[:10] for name, values in batch.items()}
    np.testing.assert_allclose(told(model, {**batch, "mask": mask})["loss"], told(model, some)["loss"], rtol=1e-6)


def test_training_validation_and_test_are_drawn_apart():
    config = Config(length=9)
    first = {split: long_sequences.split_of(config, split)["sequence"][0] for split in ("validation", "test")}
    steps = [long_sequences.training_batch(config, step)["sequence"][0] for step in (0, 1)]
    other = long_sequences.training_batch(Config(length=9, seed=1), 0)["sequence"][0]
    assert len({drawn.tobytes() for drawn in [*first.values(), *steps, other]}) == 5


@pytest.mark.parametrize(("cell", "way"), [("gru", "parallel"), ("min_gru", "associative")])
def test_a_run_from_training_to_timings(cell, way, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(long_sequences.SPLIT_SEEDS, "test", (2, 20))
    monkeypatch.setitem(long_sequences.SPLIT_SEEDS, "validation", (1, 20))
    functions = {name: getattr(long_sequences, name) for name in ("train", "evaluate", "predict")}

    def call(*arguments):
        main("long_sequences", Config, **functions, arguments=[*arguments, "--runs-dir", str(tmp_path)])

    call("--steps", "2", "--length", "4", "--hidden-features", "4", "--cell", cell, "--evaluate-every", "1")
    folder = tmp_path / "long_sequences" / "default"
    result = json.loads((folder / "result.json").read_text())
    assert (result["dataset"], result["data"], result["published"]) == ("adding4", "drawn", [])
    capsys.readouterr()
    call("evaluate", "--times", "--longest", "40")
    printed = capsys.readouterr().out
    assert "trained weights, 40 steps: " in printed
    assert f"{way} with gradient" in printed
    assert "fresh weights, 10 steps: " in printed
    assert 0.05 < float(printed.split("This process took ")[1].split(" GB")[0]) < 24
    assert (" iterations, and in order takes " in printed) == (way == "parallel")
    assert (folder / "figures" / "time_by_length_trained.png").stat().st_size > 10_000
    call("predict", "2")
    printed = capsys.readouterr().out
    assert printed.count(", said ") == 2
    sums = long_sequences.split_of(Config(length=4), "test")["sum"]
    assert all(f"= {value:.4f}, said" in printed for value in sums[:2])
    with pytest.raises(SystemExit):
        call("predict", "two")


@pytest.mark.parametrize("wrong", ["half as much again", "NaN in the middle"])
def test_ways_that_differ_are_not_timed(wrong, monkeypatch):
    """Of 5,000 numbers: XLA's maximum of so many passes over NaN on a CPU."""
    params = cells.gru.init(jax.random.key(0), 2, 4)
    xs = jax.random.normal(jax.random.key(1), (1, 1250, 2))
    real = long_sequences.unroll

    def other(cell, params, xs, backend):
        done = real(cell, params, xs, backend=backend)
        if backend != "parallel":
            return done
        changed = 1.5 * done.outputs if wrong == "half as much again" else done.outputs.at[0, 600].set(np.nan)
        return done._replace(outputs=changed)

    found = long_sequences.time_one(cells.gru, params, xs)
    assert float(found["told"].split("equal to ")[1].split(";")[0]) < 1e-5
    assert list(found["seconds"]) == [f"{way}{what}" for way in ("scan", "parallel") for what in ("", " with gradient")]
    monkeypatch.setattr(long_sequences, "unroll", other)
    found = long_sequences.time_one(cells.gru, params, xs)
    assert found["told"].startswith("not timed, as the ways differ by ")
    assert not found["seconds"]


@pytest.mark.parametrize(
    ("parallel", "told"),
    [
        (0.5, "; parallel: 5 iterations, and in order takes as long as 13.0"),
        (8.0, "; parallel: 5 iterations, and in order takes less than its first look"),
    ],
)
def test_how_many_iterations_would_take_as_long_as_in_order(parallel, told, monkeypatch):
    """Medians as given; an iteration is the share of one in eight, with the first look and the last."""
    params, xs = cells.gru.init(jax.random.key(0), 2, 4), jax.random.normal(jax.random.key(1), (1, 30, 2))
    solved = parallel_of(5)
    monkeypatch.setattr(long_sequences, "unroll_in_parallel", lambda *args: solved)
    monkeypatch.setattr(long_sequences.statistics, "median", lambda values: next(medians))
    medians = iter([1.0, 1.0, parallel, parallel])
    assert told in long_sequences.time_one(cells.gru, params, xs)["told"]


@pytest.mark.parametrize(("cold", "counts"), [(0.2, 0.1), (0.3, 0.3)])
def test_short_calls_are_timed_warm(cold, counts, monkeypatch):
    """Of a long one the first call counts, after which there is no other."""
    params, xs = cells.gru.init(jax.random.key(0), 2, 4), jax.random.normal(jax.random.key(1), (1, 30, 2))
    taken = itertools.cycle([cold, 0.1] if cold < long_sequences.WARMED else [cold])
    monkeypatch.setattr(long_sequences, "_seconds", lambda call: next(taken))
    assert set(long_sequences.time_one(cells.gru, params, xs)["seconds"].values()) == {counts}


def parallel_of(iterations):
    return types.SimpleNamespace(solved=types.SimpleNamespace(iterations=iterations, converged=True))
