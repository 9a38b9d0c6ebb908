"""Checkpoints that are damaged, half-written or of random keys; best weights, their mean, and parts of them."""

import json
import re
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open

from s2s_jax.training.checkpoint import (
    BestWeights,
    Checkpoints,
    load_mean_weights,
    load_weights,
    named_variables,
    save_weights,
)
from tests.samples import assert_close


def tree(number):
    rng = np.random.default_rng(number)
    return {
        "weights": rng.normal(size=(50, 40)).astype(np.float32),
        "narrow": jnp.asarray(rng.normal(size=7), jnp.bfloat16),
        "step": np.int32(number),
        "key": jax.random.key(number),
    }


VALUES = {"best": 0.1 + 0.2, "name": "run", "worse": 3, "none": None, "times": {"data": 1 / 3}}


def numbers(tree):
    return {**tree, "key": jax.random.key_data(tree["key"]), "narrow": np.asarray(tree["narrow"], np.float32)}


@pytest.fixture
def three(tmp_path):
    """A folder with the checkpoints of steps 1, 2 and 3, closed."""
    checkpoints = Checkpoints(tmp_path / "c", keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, tree(step), VALUES)
    checkpoints.close()
    return tmp_path / "c"


def test_trees_keys_and_values_come_back_to_the_bit(three):
    got, values = Checkpoints(three).restore_latest(tree(0))
    assert_close(numbers(got), numbers(tree(3)), 0)
    assert got["narrow"].dtype == jnp.bfloat16
    assert values == VALUES
    assert jax.random.normal(got["key"]) == jax.random.normal(jax.random.key(3))


def test_the_newest_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    for step in (1, 5, 9):
        checkpoints.save(step, tree(step), {})
    checkpoints.save(9, tree(1), {})  # one that is there already stays
    assert checkpoints.steps() == [5, 9]
    assert_close(numbers(checkpoints.restore_latest(tree(0))[0]), numbers(tree(9)), 0)
    with pytest.raises(ValueError, match="keep: expected a positive number of checkpoints, got 0"):
        Checkpoints(tmp_path / "d", keep=0)


def files_of(folder, step):
    return sorted(path for path in (folder / str(step)).rglob("*") if path.is_file() and path.stat().st_size > 0)


def damage(path, how):
    raw = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(raw[: len(raw) // 2])
    else:
        middle = len(raw) // 2
        path.write_bytes(raw[:middle] + bytes([raw[middle] ^ 0x55]) + raw[middle + 1 :])


# Where reading fails half-way, Orbax leaves callbacks behind to an event loop that is closed by then.
orphans = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@orphans
@pytest.mark.parametrize("how", ["gone", "cut", "flipped"])
def test_a_damaged_checkpoint_is_passed_over_or_was_not_needed(three, how, tmp_path):
    """Each file of the newest checkpoint in turn: what comes back is whole, the newest or, with a warning, the one before."""
    passed_over = 0
    for file in files_of(three, 3):
        copy = tmp_path / "copy"
        shutil.copytree(three, copy)
        damage(copy / file.relative_to(three), how)
        checkpoints = Checkpoints(copy)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            got, values = checkpoints.restore_latest(tree(0))
        step = int(got["step"])
        assert_close(numbers(got), numbers(tree(step)), 0)
        assert values == VALUES
        assert step in (2, 3)
        if step == 2:
            passed_over += 1
            assert any("checkpoint of step 3 is damaged" in str(w.message) for w in caught)
            # It is out of the way: the step can be saved anew.
            checkpoints.save(3, tree(7), VALUES)
            assert_close(numbers(Checkpoints(copy).restore_latest(tree(0))[0]), numbers(tree(7)), 0)
        checkpoints.close()
        shutil.rmtree(copy)
    assert passed_over >= 2


@orphans
def test_where_all_are_damaged_nothing_is_trained_over(three):
    for step in (1, 2, 3):
        for file in files_of(three, step):
            damage(file, "cut")
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ValueError, match=r"all checkpoints are damaged \(steps \[3, 2, 1\]\)"),
    ):
        Checkpoints(three).restore_latest(tree(0))


def test_a_half_written_checkpoint_is_no_checkpoint(three):
    """What a kill leaves: the folder of the next step under its temporary name."""
    shutil.copytree(three / "3", three / "4.orbax-checkpoint-tmp-0")
    shutil.rmtree(next(path for path in (three / "4.orbax-checkpoint-tmp-0").iterdir() if path.is_dir()))
    checkpoints = Checkpoints(three)
    assert checkpoints.steps() == [1, 2, 3]
    checkpoints.save(4, tree(4), VALUES)
    assert_close(numbers(Checkpoints(three).restore_latest(tree(0))[0]), numbers(tree(4)), 0)


def test_a_checkpoint_of_another_run_is_refused_by_what_differs(tmp_path):
    of = {"task": "sums", "seed": 3, "parts": ("a", "b"), "rate": 0.1}
    checkpoints = Checkpoints(tmp_path / "c", of=of)
    checkpoints.save(1, tree(1), VALUES)
    checkpoints.close()
    assert Checkpoints(tmp_path / "c", of=of).restore_latest(tree(0))[1] == VALUES
    other = {"task": "sums", "seed": 4, "parts": ("a",), "steps": 5, "rate": 0.1}
    said = "step 1 is of another run, with seed 3 (now 4), parts ['a', 'b'] (now ['a']), steps None (now 5); delete"
    with pytest.raises(ValueError, match=re.escape(said)):
        Checkpoints(tmp_path / "c", of=other).restore_latest(tree(0))


def test_a_changed_value_is_damage(three):
    for written in three.glob("3/values/metadata"):
        values = json.loads(written.read_text())
        name = min(values.keys() - {"of", "crc32"})
        values[name] = 99
        written.write_text(json.dumps(values))
    with pytest.warns(UserWarning, match="checkpoint of step 3 is damaged .its checksum is another.; passed over"):
        _, values = Checkpoints(three).restore_latest(tree(0))
    assert values[name] != 99


def test_a_checkpoint_that_does_not_say_of_which_run_is_refused(three):
    for written in three.glob("*/values/metadata"):
        values = json.loads(written.read_text())
        del values["of"]
        written.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="checkpoint of step 3 is of an earlier version"):
        Checkpoints(three).restore_latest(tree(0))


# Weights ---------------------------------------------------------------------------------------------------------------------


class Two(nnx.Module):
    def __init__(self, seed=0, width=3):
        rngs = nnx.Rngs(seed)
        self.below = nnx.Linear(2, width, rngs=rngs)
        self.above = nnx.Linear(width, 1, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


def arrays(model):
    return {name: np.asarray(leaf[...]) for name, leaf in named_variables(model).items()}


def test_random_keys_are_no_weights(tmp_path):
    save_weights(tmp_path / "w.safetensors", Two(), {"about": "this"})
    with safe_open(str(tmp_path / "w.safetensors"), framework="np") as file:
        assert {name.split(".")[0] for name in file.keys()} >= {"below", "above"}  # noqa: SIM118
        assert file.metadata() == {"about": "this"}
    load_weights(tmp_path / "w.safetensors", model := Two(1))
    for name in ("below.kernel", "above.bias"):
        assert_close(arrays(model)[name], arrays(Two())[name], 0)


def test_parts_come_from_another_model(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, Two(0))
    model = Two(1)
    before = arrays(model)
    assert sorted(load_weights(path, model, ("below", "above.bias"))) == ["above.bias", "below.bias", "below.kernel"]
    for name in ("below.kernel", "below.bias", "above.bias"):
        assert_close(arrays(model)[name], arrays(Two(0))[name], 0)
    assert_close(arrays(model)["above.kernel"], before["above.kernel"], 0)
    with pytest.raises(ValueError, match=r"parts: expected a part that both have, got 'belo', which .*w.safetensors lacks"):
        load_weights(path, model, ("belo",))
    with pytest.raises(ValueError, match=r"w.safetensors: is of another model; expected below.* \(.*\) float32, got"):
        load_weights(path, Two(1, width=5), ("below",))


@pytest.mark.parametrize("greater", [True, False])
def test_the_best_weights_stay_and_their_mean_is_theirs(tmp_path, greater):
    scores = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 9.0]
    best = BestWeights(tmp_path / "best", keep=3, greater=greater)
    for step, score in enumerate(scores):
        best.add(step, score, Two(step))
        if step == 3:  # where a checkpoint was written
            best.drop_outdone()
            assert len(list((tmp_path / "best").iterdir())) == 3
    order = sorted(range(len(scores)), key=lambda step: (-scores[step] if greater else scores[step], step))[:3]
    best.load_mean(model := Two(99))  # of the best, though others are still there
    assert_close(arrays(model)["above.kernel"], np.mean([arrays(Two(k))["above.kernel"] for k in order], axis=0), 1e-6)
    best.drop_outdone()
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == sorted(f"step-{k:08}.safetensors" for k in order)
    best.load(order[0], model := Two(99))
    assert_close(arrays(model)["below.kernel"], arrays(Two(order[0]))["below.kernel"], 0)
    best.load_mean(model)
    for name in ("below.kernel", "above.kernel"):
        assert_close(arrays(model)[name], np.mean([arrays(Two(k))[name] for k in order], axis=0), 1e-6)
    with pytest.raises(FileNotFoundError, match="paths: expected at least one file of weights, got none"):
        load_mean_weights([], model)
