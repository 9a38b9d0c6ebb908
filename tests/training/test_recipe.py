"""The flags that every training has, from the command line to the weights."""

import dataclasses
import json
import os
import re
import signal
import statistics
import sys
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file

from s2s_jax.data.pipeline import Batches
from s2s_jax.training.checkpoint import load_weights, read_weights
from s2s_jax.training.command import main
from s2s_jax.training.loop import fit
from s2s_jax.training.recipe import TrainingConfig, train_by_recipe
from tests.samples import assert_close
from tests.training.test_loop import BATCHES, loss, small_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    steps: int = 12
    evaluate_every: int = 3
    learning_rate: float = 0.01


def evaluation(model):
    return {"bias": float(model.output.bias[...][0])}


def train(run):
    run.trained_on("noise", "generated")
    trained = train_by_recipe(run, seeded(run.config.seed), loss, BATCHES, evaluation)
    run.finish(split="none", metrics=evaluation(trained.model), published=[], examples_per_step=8)


def seeded(seed):
    graphdef, params, rest = nnx.split(small_model(), nnx.Param, ...)
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf * (1 + 0.1 * seed), params), rest)


def nothing(*_):
    raise AssertionError


def call(folder, *flags):
    main("task", Config, train=train, evaluate=nothing, predict=nothing, arguments=[*flags, "--runs-dir", str(folder)])


def weights(folder, name="default"):
    return load_file(str(folder / "task" / name / "weights.safetensors"))


def by_hand(optimizer, steps=12, **options):
    return fit(small_model(), loss, BATCHES, optimizer=optimizer, steps=steps, seed=0, **options).model


def clipped(optimizer):
    return optax.chain(optax.clip_by_global_norm(1.0), optimizer)


COSINE = optax.warmup_cosine_decay_schedule(0.0, 0.01, 1, 12)
SGD = ["--optimizer", "sgd(momentum=0.9)", "--schedule", "constant", "--warmup-steps", "0", "--clip", "0"]
CALLED = ["--optimizer", "adamw(weight_decay=0.1)"]
CALLED += ["--schedule", "exponential_decay(init_value=0.1, transition_steps=3, decay_rate=0.5)"]


@pytest.mark.parametrize(
    ("flags", "optimizer"),
    [
        ([], clipped(optax.adam(COSINE))),
        (SGD, optax.sgd(0.01, momentum=0.9)),
        (CALLED, clipped(optax.adamw(optax.exponential_decay(0.1, 3, 0.5), weight_decay=0.1))),
    ],
    ids=["defaults", "sgd", "called"],
)
def test_optimiser_and_schedule_are_those_named(tmp_path, flags, optimizer):
    call(tmp_path, *flags)
    load_weights(tmp_path / "task" / "default" / "weights.safetensors", got := small_model())
    assert_close(nnx.state(got), nnx.state(by_hand(optimizer)), 1e-6)


def test_a_run_starts_from_another_in_part_with_frozen_parts(tmp_path, capsys):
    call(tmp_path, "--name", "first")
    first = weights(tmp_path, "first")
    options = ["--init-from", str(tmp_path / "task" / "first"), "--init-parts", "recurrent", "--freeze", "recurrent", "--name"]
    call(tmp_path, *options, "second")
    second = weights(tmp_path, "second")
    frozen = sum(value.size for name, value in first.items() if name.startswith("recurrent"))
    told = capsys.readouterr().out
    assert re.search(rf"^frozen +{frozen}$", told, re.MULTILINE)
    assert re.search(rf"^trained +{sum(value.size for value in first.values()) - frozen}$", told, re.MULTILINE)
    for name in first:
        if name.startswith("recurrent"):
            assert_close(second[name], first[name], 0)
        else:  # from nothing, and trained
            assert np.any(second[name] != first[name])
    # All of it, and none frozen: what the first steps of the first run's end would give.
    call(tmp_path, "--init-from", str(tmp_path / "task" / "first"), "--learning-rate", "0.0", "--name", "third")
    assert_close(weights(tmp_path, "third"), first, 0)


def test_padding_and_shapes_are_said(tmp_path, capsys):
    def train_on_batches(run):
        batches = Batches({"xs": np.ones((21, 5, 3), np.float32), "labels": np.zeros(21, np.int32)}, 8, seed=0)
        train_by_recipe(run, small_model(), loss, batches, evaluation)

    main(
        "task",
        Config,
        train=train_on_batches,
        evaluate=nothing,
        predict=nothing,
        arguments=["--runs-dir", str(tmp_path)],
    )
    told = capsys.readouterr().out
    assert "Batches: 21 examples; batches in an epoch: 3 of [8]; 12.5% padding, 3 rows without an example." in told


def test_several_seeds_are_several_runs_with_mean_and_deviation(tmp_path, capsys):
    call(tmp_path, "--seeds", "3", "--seed", "4", "--name", "many")
    values = []
    for seed in (4, 5, 6):
        result = json.loads((tmp_path / "task" / f"many-seed{seed}" / "result.json").read_text())
        assert result["seed"] == seed
        values.append(result["metrics"]["bias"])
    assert len(set(values)) == 3
    line = f"bias {statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"
    assert line in capsys.readouterr().out
    summary = json.loads((tmp_path / "task" / "many-seeds" / "summary.json").read_text())
    assert summary["seeds"] == [4, 5, 6]
    assert [Path(folder).name for folder in summary["runs"]] == ["many-seed4", "many-seed5", "many-seed6"]
    assert summary["bias"] == {"mean": statistics.mean(values), "deviation": statistics.stdev(values), "values": values}
    assert matplotlib.image.imread(tmp_path / "task" / "many-seeds" / "learning_curve.png").std() > 0.01
    before = (tmp_path / "task" / "many-seed5" / "result.json").read_text()
    call(tmp_path, "--seeds", "3", "--seed", "4", "--name", "many")
    assert line in capsys.readouterr().out
    assert (tmp_path / "task" / "many-seed5" / "result.json").read_text() == before
    scored_before = tmp_path / "task" / "many-seed4" / "result.json"  # by a version that knew another metric
    scored_before.write_text(scored_before.read_text().replace('"metrics": {', '"metrics": {"old": 1.0,'))
    call(tmp_path, "--seeds", "3", "--seed", "4", "--name", "many")
    assert line in (told := capsys.readouterr().out)
    assert "old 1.0000 ±" not in told


def test_seeds_of_runs_without_a_log_have_no_learning_curve(tmp_path, capsys):
    def begin_and_finish(run):
        run.trained_on("nothing", "generated")
        run.trained(1, {"step": 0.1})
        run.finish(split="none", metrics={"seed": run.config.seed}, published=[], examples_per_step=1)

    arguments = ["--seeds", "2", "--name", "many", "--runs-dir", str(tmp_path)]
    main("task", Config, train=begin_and_finish, evaluate=nothing, predict=nothing, arguments=arguments)
    folder = tmp_path / "task" / "many-seeds"
    assert [path.name for path in folder.iterdir()] == ["summary.json"]
    assert f"summary.json is in {folder}." in capsys.readouterr().out


def test_what_the_end_of_training_needs_is_asked_for_at_its_beginning(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(SystemExit, match=r"import of safetensors halted; .*the experiments need more than the package"):
        call(tmp_path)
    assert not (tmp_path / "task" / "default" / "metrics.jsonl").exists()


def test_the_best_models_and_their_mean(tmp_path):
    call(tmp_path, "--goal", "max:bias", "--keep-best", "2")
    best = sorted((tmp_path / "task" / "default" / "best").iterdir())
    assert len(best) == 2
    scores = {path: float(read_weights(path)["output.bias"][0]) for path in best}
    assert weights(tmp_path)["output.bias"][0] == max(scores.values())
    call(tmp_path, "--goal", "max:bias", "--keep-best", "2", "--average-best", "--name", "mean")
    assert_close(
        weights(tmp_path, "mean")["output.bias"], np.mean([read_weights(path)["output.bias"] for path in best], axis=0), 1e-6
    )


def test_all_devices_give_the_same_weights(tmp_path):
    call(tmp_path, "--name", "one")
    call(tmp_path, "--name", "eight", "--data-parallel")
    assert_close(weights(tmp_path, "eight"), weights(tmp_path, "one"), 1e-3)


def test_narrow_precision_and_averages_reach_the_training(tmp_path):
    call(tmp_path, "--precision", "bfloat16", "--average-decay", "0.5", "--accumulate", "2")
    want = by_hand(
        clipped(optax.adam(COSINE)),
        compute_dtype=jax.numpy.bfloat16,
        average_decay=0.5,
        accumulate=2,
    )
    load_weights(tmp_path / "task" / "default" / "weights.safetensors", got := small_model())
    assert_close(nnx.state(got), nnx.state(want), 1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--goal", "bias"], "goal: expected min:METRIC or max:METRIC, got 'bias'"),
        (["--goal", "max:acc"], "goal: expected one of the metrics bias, got 'acc'"),
        (["--patience", "3"], "goal: expected one with --patience or --average-best"),
        (["--init-parts", "recurrent"], "--init-parts: expected --init-from as well"),
        (["--init-from", "nowhere"], r"nowhere.*weights.safetensors"),
        (["--freeze", "encoder"], "freeze: expected a part of the model such as"),
        (["--processes", "2"], "processes: expected --data-parallel with --processes 2"),
        (["--processes", "2", "--data-parallel", "--seeds", "3"], "seeds: expected 1 with --processes 2, got 3"),
        (["--optimizer", "adamm"], "optimizer: expected a name of optax, got 'adamm'"),
        (["--average-decay", "1.0"], r"--average-decay: expected a rate in \[0, 1\), got 1.0"),
        (["--accumulate", "3"], "accumulate: expected a divisor of the batch's 8 rows, got 3"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_that_do_not_fit_are_named(tmp_path, flags, message):
    with pytest.raises(SystemExit, match=message):
        call(tmp_path, *flags)


def test_errors_of_functions_name_the_flags_that_people_type(tmp_path):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Named(Config):
        dataset: str = "digits"

    def fail(message):
        def train(run):
            raise ValueError(message)

        flags = ["--runs-dir", str(tmp_path)]
        with pytest.raises(SystemExit) as error:
            main("task", Named, train=train, evaluate=nothing, predict=nothing, arguments=flags)
        return str(error.value).split(": ", 1)[1]

    assert fail("name: expected one of a, b: got c") == "--dataset: expected one of a, b: got c"
    assert fail("learning_rate, clip: expected both") == "--learning-rate, --clip: expected both"
    for message in ("state: no flag", "learning_rate, state: not both flags", "learning_rate", "/a/learning_rate: a path"):
        assert fail(message) == message


@pytest.mark.parametrize(("field", "value"), [("learning_rate", float("nan")), ("clip", -1.0), ("keep", 0), ("patience", -1)])
def test_numbers_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=rf"{field}: expected (a number from 0 on|at least [01]), got {value}"):
        Config(**{field: value})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_before_the_first_step_waits_for_it(tmp_path, capsys, number):
    """While data is read, say, or libraries are imported; then the same command goes on."""

    def interrupted(run):
        os.kill(os.getpid(), number)
        train(run)

    handler = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        main("task", Config, train=interrupted, evaluate=nothing, predict=nothing, arguments=["--runs-dir", str(tmp_path)])
    assert stopped.value.code == 128 + number
    assert "Stopped at step 0 and saved; the same command goes on from there." in capsys.readouterr().out
    assert signal.getsignal(number) == handler
    call(tmp_path)
    assert_close(weights(tmp_path)["output.bias"], np.asarray(by_hand(clipped(optax.adam(COSINE))).output.bias[...]), 1e-6)
