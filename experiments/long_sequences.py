"""A cell learns what takes a long memory, and the serial and the parallel way along time are held beside each other.

    python -m experiments.long_sequences                              the adding problem, 200 steps: a minute
    python -m experiments.long_sequences --length 600 --steps 6000    the published length
    python -m experiments.long_sequences --task copy --cell gru       ten digits across 200 steps of nothing
    python -m experiments.long_sequences evaluate --times             time against length, in order and in parallel
    python -m experiments.long_sequences predict 3                    three test sequences: what was asked, said and right

`--task adding`: of a sequence of numbers two are marked; their sum is asked for (mean squared error; 1/6 for who says 1).
`--task copy`: ten digits, to be said again after `--length` steps (nats a step). Published at 600 and 1000 steps: Bai et al.
All cells of this package go by name: `min_gru`, `min_lstm` and `lru` are linear in their state, `diagonal_lstm` and
`diagonal_gru` have units that read themselves alone. There is no stand-in: the sequences are drawn, by definition.

`evaluate --times` carries the trained weights and freshly drawn ones along sequences of up to `--longest` steps, at batch 1,
forward and with gradients: by what `auto` takes, by `scan`, by `diagonal` and `persistent` where they apply, and by `parallel`
(`associative` where the cell is linear). How far their results are apart is told with each line; where they are alike they are
timed in turns. Parallel in time pays where it
needs fewer iterations than fit into the time that the same steps take in order, less a first look at them and a last check.
"""

import dataclasses
import functools
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from s2s_jax import cells, explain_backend, plots, published, unroll, unroll_in_parallel
from s2s_jax.data.long_tasks import SIGNAL, copied_digits, marked_sums
from s2s_jax.data.pipeline import Batches
from s2s_jax.layers import Recurrent
from s2s_jax.losses import cross_entropy
from s2s_jax.metrics import Mean, mean_over, token_accuracy
from s2s_jax.training import checkpoint
from s2s_jax.training.command import main
from s2s_jax.training.loop import make_measure
from s2s_jax.training.provenance import describe_device
from s2s_jax.training.recipe import TrainingConfig, train_by_recipe
from s2s_jax.training.run import Run
from s2s_jax.training.state import count_parameters

WARMED = 0.25  # seconds; what takes less is called once more, and that counts
# Ways along time whose results differ by more are not timed; a GPU rounds what it multiplies to TF32.
ALIKE = {"cpu": 1e-3, "gpu": 2e-2}
DRAW = {"adding": marked_sums, "copy": copied_digits}
SPLIT_SEEDS = {"validation": (1, 1_000), "test": (2, 10_000)}  # seed and number of sequences, the same for all runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timed:
    """What `evaluate` does."""

    times: bool = False
    """Also time the ways along time against the length."""
    longest: int = 65536
    """Steps of the longest sequence that is timed; the others are a quarter each of the next."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    steps: int = 2000
    task: Literal["adding", "copy"] = "adding"
    """What is asked of the cell."""
    length: int = 200
    """Steps of a sequence (copy: between the digits and their saying)."""
    cell: cells.Name = "gru"
    """Recurrent cell."""
    hidden_features: int = 128
    """Width of the state."""
    num_layers: int = 1
    """Layers."""
    backend: str = "auto"
    """What carries the cell along time: auto, scan, native, diagonal, fused, associative or parallel."""
    batch_size: int = 64
    """Sequences in a step."""
    learning_rate: float = 2e-3
    evaluate_every: int = 250

    fractions: ClassVar[tuple[str, ...]] = ("accuracy",)
    flags_of: ClassVar[Mapping[str, tuple[type, ...]]] = {"evaluate": (Timed,)}


class LongReader(nnx.Module):
    """A recurrent stack, and a linear layer over its last output (adding) or each of them (copy)."""

    def __init__(self, config: Config):
        rngs = nnx.Rngs(config.seed)
        self.task = config.task
        inputs, outputs = (2, 1) if config.task == "adding" else (SIGNAL + 1, SIGNAL)
        stack = {"num_layers": config.num_layers, "backend": config.backend, "rngs": rngs}
        self.recurrent = Recurrent(cells.BY_NAME[config.cell], inputs, config.hidden_features, **stack)
        self.output = nnx.Linear(self.recurrent.out_features, outputs, rngs=rngs)

    def __call__(self, sequence: Array) -> Float[Array, "B ..."]:
        """Sums [B], or logits [B, T, 9] of blank and digits."""
        if self.task == "adding":
            return self.output(self.recurrent(sequence).outputs[:, -1])[:, 0]
        dtype = self.output.kernel[...].dtype
        return self.output(self.recurrent(jax.nn.one_hot(sequence, SIGNAL + 1, dtype=dtype)).outputs)


def measure(model: LongReader, batch: Any) -> dict[str, Mean]:
    said = model(batch["sequence"])
    rows = batch.get("mask", np.ones(len(said), bool))
    if model.task == "adding":
        return {"loss": mean_over((said - batch["sum"]) ** 2, rows)}
    target = batch["target"]
    valid = jnp.broadcast_to(rows[:, None], target.shape)
    digits = valid & (target > 0)
    return {"loss": cross_entropy(said, target, valid), "accuracy": token_accuracy(said.argmax(-1), target, digits)}


def loss(model: LongReader, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, Mean]]:
    told = measure(model, batch)
    return told["loss"].total / told["loss"].count, {"loss": told["loss"]}


def training_batch(config: Config, step: int) -> dict[str, np.ndarray]:
    return DRAW[config.task](np.random.default_rng((3, config.seed, step)), config.batch_size, config.length)


def split_of(config: Config, split: str) -> dict[str, np.ndarray]:
    seed, count = SPLIT_SEEDS[split]
    return DRAW[config.task](np.random.default_rng(seed), count, config.length)


def train(run: Run[Config]) -> None:
    config = run.config
    run.trained_on(f"{config.task}{config.length}", "drawn")
    measure_over = make_measure(measure)
    validation = Batches(split_of(config, "validation"), 250, seed=None)
    trained = train_by_recipe(
        run, LongReader(config), loss, functools.partial(training_batch, config), lambda model: measure_over(model, validation)
    )
    report(run, trained.model)


def report(run: Run[Config], model: LongReader) -> None:
    """Scores the test sequences, draws the learning curve, and writes result.json."""
    config = run.config
    test = split_of(config, "test")
    metrics = make_measure(measure)(model, Batches(test, 250, seed=None))
    unit = "squared error" if config.task == "adding" else "nats a step"
    run.say(
        f"\n{SPLIT_SEEDS['test'][1]} test sequences of {config.length} steps: "
        + ", ".join(
            f"{name} {value:.3g}{f' ({unit})' if name == 'loss' else ' (of the digits)'}" for name, value in metrics.items()
        )
    )
    title = f"{config.task.capitalize()}, {config.length} steps, {config.cell}"
    run.figure("learning_curve", plots.learning_curve([run.history()], config.fractions, title, unit=unit))
    result = run.finish(
        split=f"test: {SPLIT_SEEDS['test'][1]} sequences drawn with a seed of their own",
        metrics=metrics,
        published=published.LONG_SEQUENCES.get((config.task, config.length, config.cell), []),
        examples_per_step=config.batch_size,
        parameters=count_parameters(model),
    )
    run.say_end(result)


def load(run: Run[Config]) -> LongReader:
    config = run.config
    run.trained_on(f"{config.task}{config.length}", "drawn")
    model = LongReader(config)
    checkpoint.load_weights(run.weights, model)
    return model


def evaluate(run: Run[Config]) -> None:
    model = load(run)
    report(run, model)
    if run.flags.times:
        timings(run, model)


def predict(run: Run[Config], inputs: list[str]) -> None:
    """So many of the test sequences: what is right, and what the model says."""
    if len(inputs) != 1 or not inputs[0].isdigit() or int(inputs[0]) < 1:
        raise ValueError(f"expected how many test sequences to show, got {' '.join(inputs) or 'nothing'}")
    config, model = run.config, load(run)
    shown = {name: values[: int(inputs[0])] for name, values in split_of(config, "test").items()}
    said = np.asarray(jax.jit(lambda parts, xs: nnx.merge(*parts)(xs))(nnx.split(model), shown["sequence"]))
    for row in range(len(said)):
        if config.task == "adding":
            values, marks = shown["sequence"][row].T
            places = np.flatnonzero(marks)
            asked = " + ".join(f"{values[place]:.4f} (step {place})" for place in places)
            print(f"{asked} = {shown['sum'][row]:.4f}, said {said[row]:.4f}")
        else:
            digits, answer = shown["target"][row, -10:], said[row, -10:].argmax(-1)
            print(f"{''.join(map(str, digits))} said {''.join(map(str, answer))}")


# Time against length ----------------------------------------------------------------------------------------------------


def timings(run: Run[Config], model: LongReader) -> None:
    """Prints and draws how long the ways along time take, for the first layer of the trained model and for a fresh one."""
    config = run.config
    cell, (trained, *_) = model.recurrent.cell, [of_layer[0] for of_layer in model.recurrent.params()]
    fresh = cell.init(jax.random.key(config.seed), model.recurrent.in_features[0], config.hidden_features)
    lengths = [length for power in (3, 2, 1, 0) if (length := run.flags.longest // 4**power) >= 2]
    sizes = f"{config.cell} of {config.hidden_features} units, float32"
    run.say(f"\nOne sequence at a time, {sizes}, on {describe_device()}: milliseconds, medians of five in turns.")
    for weights, params in (("trained", trained), ("fresh", fresh)):
        drawn: dict[str, dict[float, float]] = {}
        for length in lengths:
            found = time_one(cell, params, sequence_of(config, length))
            run.say(f"{weights} weights, {length} steps: {found['told']}")
            for name, seconds in found["seconds"].items():
                drawn.setdefault(name, {})[length] = 1e3 * seconds
        title = f"{config.cell} of {config.hidden_features} units, {weights} weights, one sequence"
        figure = plots.curves(drawn, xlabel="steps", ylabel="milliseconds", title=title)
        run.say(f"Drawn in {run.figure(f'time_by_length_{weights}', figure)}")
    run.say(f"This process took {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB at most.")


def sequence_of(config: Config, length: int) -> jax.Array:
    rng = np.random.default_rng(4)
    if config.task == "adding":
        return jnp.asarray(marked_sums(rng, 1, length)["sequence"])
    return jax.nn.one_hot(rng.integers(0, SIGNAL + 1, (1, length)), SIGNAL + 1)  # blanks alone are solved at a glance


def time_one(cell: Any, params: Any, xs: jax.Array) -> dict[str, Any]:
    """Seconds of each way, forward and with gradients, and a line that tells them; none where they do not give the same."""
    auto = explain_backend(cell, params, xs).backend
    at_once = "associative" if getattr(cell.spec, "linear_by_unit", False) else "parallel"
    by_name = [name for name in ("diagonal", "persistent") if _applies(name, cell, params, xs)]
    ways = dict.fromkeys([auto, "scan", *by_name, at_once])
    calls: dict[str, Callable[[], Any]] = {}
    for way in ways:
        forward = jax.jit(lambda params, xs, way=way: unroll(cell, params, xs, backend=way).outputs)
        gradient = jax.jit(jax.grad(lambda params, xs, forward=forward: jnp.mean(forward(params, xs) ** 2), argnums=(0, 1)))
        calls |= {
            f"{way}": functools.partial(forward, params, xs),
            f"{way} with gradient": functools.partial(gradient, params, xs),
        }
    answers = {name: jax.block_until_ready(call()) for name, call in calls.items()}
    apart = np.max([_apart(answers[name], answers["scan" + name.removeprefix(name.split(" ")[0])]) for name in calls])
    if not apart <= ALIKE.get(jax.default_backend(), 1e-3):
        return {"seconds": {}, "told": f"not timed, as the ways differ by {apart:.0e}"}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(5):
        for name, call in calls.items():
            taken = _seconds(call)
            # After another way caches are cold and threads asleep, which counts where a call takes no time to speak of.
            seconds[name].append(_seconds(call) if taken < WARMED else taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    told = ", ".join(f"{name} {1e3 * value:.2f}" for name, value in medians.items()) + f"; equal to {apart:.0e}"
    if "parallel" in ways:
        solved = unroll_in_parallel(cell, params, xs).solved
        count = int(solved.iterations)
        if bool(solved.converged):
            # Besides the iterations there is a first look at all steps, and a last one that costs as much as two.
            room = medians[auto] * (count + 3) / medians["parallel"] - 3
            told += f"; parallel: {count} iterations, and in order takes " + (
                f"as long as {room:.1f}" if room > 0 else "less than its first look at all steps and the last one together"
            )
        else:
            told += f"; parallel: not converged after {count} iterations, done in order"
    return {"seconds": medians, "told": told}


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def _applies(backend: str, cell: Any, params: Any, xs: jax.Array) -> bool:
    try:
        explain_backend(cell, params, xs, backend=backend)
    except ValueError:
        return False
    return True


def _apart(got: Any, want: Any) -> float:
    """Greatest difference of a leaf, relative to its greatest number; NaN if any is: by NumPy, whose maximum sees each."""
    pairs = [map(np.asarray, pair) for pair in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)]
    return float(np.max([np.max(np.abs(a - b)) / np.max(np.abs(b)) for a, b in pairs]))


if __name__ == "__main__":
    main("long_sequences", Config, train=train, evaluate=evaluate, predict=predict)
