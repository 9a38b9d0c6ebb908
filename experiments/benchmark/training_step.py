"""A whole training step of experiments, on every backend, and what it divides into.

The models, losses, batches and optimisers are those of `experiments.addition` and `experiments.pixels` at their defaults; a
test holds them to that. Pictures are drawn: what is on them changes no time.
"""

import itertools
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.benchmark import chart, machine
from experiments.benchmark.report import Report
from experiments.benchmark.timing import Plan, interleaved, ratio
from s2s_jax import cells
from s2s_jax.data.images import augmented, drawn_digits
from s2s_jax.data.pipeline import Batches
from s2s_jax.data.sums import Sums
from s2s_jax.data.vocabulary import PAD, START
from s2s_jax.layers.recurrent import Recurrent
from s2s_jax.losses import cross_entropy
from s2s_jax.metrics import mean_over
from s2s_jax.models.classifier import SequenceClassifier
from s2s_jax.models.seq2seq import Seq2Seq
from s2s_jax.recurrence.choice import BACKENDS
from s2s_jax.training.optimizers import make_optimizer, make_schedule
from s2s_jax.training.state import initial_train_state
from s2s_jax.training.step import make_train_step

EXAMPLES = 128  # in a batch
PLANS = {"small": Plan(2.0, 3, 200), "full": Plan(20.0, 10, 1000)}


class Task(NamedTuple):
    """What an experiment trains; `inputs` names the recurrent stacks of a model and the shapes of what they read."""

    name: str
    model: Callable[[], nnx.Module]
    loss: Callable[[Any, Any, jax.Array], Any]
    batches: Callable[[int], dict[str, np.ndarray]]
    optimizer: optax.GradientTransformation
    inputs: Callable[[Any, Any], list[tuple[Recurrent, tuple[int, int, int], Any]]]


def addition() -> Task:
    sums = Sums("decimal", 3)
    even = EXAMPLES // 4

    def batch(step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((0, step))
        pairs = sums.draw(rng, 0, EXAMPLES - even, 3), sums.draw(rng, 0, even, 3, even=True)
        a, b = (np.concatenate(sides) for sides in zip(*pairs, strict=True))
        return sums.encode(a, b, 3)

    def model() -> Seq2Seq:
        sizes = {"embedding_features": 16, "hidden_features": 128}
        symbols = len(sums.source_alphabet), len(sums.target_alphabet)
        return Seq2Seq(*symbols, **sizes, decoder="autoregressive", reverse_source=True, rngs=nnx.Rngs(0))

    def loss(model: Seq2Seq, batch: Any, key: jax.Array) -> Any:
        target = batch["target"]
        before = jnp.concatenate([jnp.full_like(target[:, :1], START), target[:, :-1]], axis=1)
        logits = model(batch["source"], batch["source_lengths"], before, key=key, teacher_forcing=1.0)
        nats = cross_entropy(logits, target, target != PAD)
        return nats.total / nats.count, {"loss": nats}

    def inputs(model: Any, batch: Any) -> Any:
        encoder, decoder = model.encoder.recurrent, model.decoder.recurrent
        return [
            (encoder, (*batch["source"].shape, encoder.in_features[0]), batch["source_lengths"]),
            (decoder, (*batch["target"].shape, decoder.in_features[0]), None),
        ]

    return Task("addition", model, loss, batch, _optimizer("adam", 1e-2, 4500), inputs)


def digits(order: str, cell: str, layers: int) -> Task:
    drawn = drawn_digits(8 * EXAMPLES, seed=0)
    features = 28 if order == "rows" else 1

    def model() -> SequenceClassifier:
        return SequenceClassifier(
            features, 128, 10, cell=getattr(cells, cell), num_layers=layers, dropout=0.2, rngs=nnx.Rngs(0)
        )

    def loss(model: SequenceClassifier, batch: Any, key: jax.Array) -> Any:
        key_augment, key_dropout = jax.random.split(key)
        scaled = (augmented(batch["image"], key_augment) / 255 - 0.1307) / 0.3081
        logits = model(scaled.reshape(len(scaled), -1, features), key=key_dropout)
        nats = cross_entropy(logits, batch["label"], batch["mask"])
        right = mean_over(logits.argmax(-1) == batch["label"], batch["mask"])
        return nats.total / nats.count, {"loss": nats, "accuracy": right}

    def inputs(model: Any, batch: Any) -> Any:
        return [(model.recurrent, (len(batch["image"]), 784 // features, features), None)]

    batches = Batches({"image": drawn.images, "label": drawn.labels}, EXAMPLES, seed=0)
    optimizer = _optimizer("adamw(weight_decay=0.01)", 2e-3, 6000)
    return Task(f"MNIST by {order}, {cell.upper()}", model, loss, batches, optimizer, inputs)


def _optimizer(name: str, learning_rate: float, steps: int) -> optax.GradientTransformation:
    return make_optimizer(name, make_schedule("cosine", learning_rate, 200, steps), clip=1.0)


def tasks() -> Iterator[Task]:
    yield addition()
    yield digits("rows", "lstm", 2)
    yield digits("pixels", "lstm", 1)
    yield digits("pixels", "gru", 1)


class Parts:
    """The programs of a step that are timed; each waits for its results.

    The step is what `fit` runs. To say what it divides into, parts of it are run alone: `gradient` is the step without
    optimiser and bookkeeping; `recurrence` the stacks of the model, forward and backward, on inputs of the same shapes, without
    dropout masks; `dispatch` a program that takes and returns all that the step does, and computes nothing.
    """

    def __init__(self, task: Task, backend: str):
        model = task.model()
        for _, node in nnx.iter_graph(model):
            if isinstance(node, Recurrent):
                node.backend = backend
        self.task = task
        graphdef, self.state = initial_train_state(model, task.optimizer)
        self.train_step = make_train_step(graphdef, task.optimizer, task.loss)
        self.batches = itertools.cycle([task.batches(k) for k in range(8)])
        self.seed = np.uint32(0)
        first = next(self.batches)
        _, totals = jax.eval_shape(self.train_step, self.state, {}, first, self.seed)
        self.totals = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), totals)
        self.idle = jax.jit(lambda state, totals, batch, seed: (state, totals), donate_argnums=(0, 1))
        self.stream = task.batches.iterate(0) if isinstance(task.batches, Batches) else map(task.batches, itertools.count())

        @jax.jit
        def gradient(params: Any, rest: Any, batch: Any, seed: Any) -> Any:
            def run(params: Any) -> Any:
                return task.loss(nnx.merge(graphdef, params, rest, copy=True), batch, jax.random.key(seed))

            return jax.value_and_grad(run, has_aux=True)(params)

        @jax.jit
        def recurrence(params: Any, rest: Any, given: Any) -> Any:
            def run(params: Any, xs: Any) -> Any:
                model = nnx.merge(graphdef, params, rest, copy=True)
                stacks = task.inputs(model, first)
                return [
                    stack(x, lengths=given[1][k]).outputs for k, ((stack, _, _), x) in enumerate(zip(stacks, xs, strict=True))
                ]

            outputs, back = jax.vjp(run, params, given[0])
            return outputs, back(given[2])

        stacks = task.inputs(model, first)
        xs = [jax.random.normal(jax.random.key(k), shape) for k, (_, shape, _) in enumerate(stacks)]
        back = [
            jax.random.normal(jax.random.key(k), (*shape[:2], stack.out_features)) for k, (stack, shape, _) in enumerate(stacks)
        ]
        self.given = xs, [lengths for _, _, lengths in stacks], back
        self._gradient, self._recurrence = gradient, recurrence

    def step(self, batch: Any = None) -> None:
        batch = next(self.batches) if batch is None else batch
        self.state, self.totals = jax.block_until_ready(self.train_step(self.state, self.totals, batch, self.seed))

    def step_with_data(self) -> None:
        self.step(next(self.stream))

    def dispatch(self) -> None:
        self.state, self.totals = jax.block_until_ready(self.idle(self.state, self.totals, next(self.batches), self.seed))

    def gradient(self) -> None:
        jax.block_until_ready(self._gradient(self.state.params, self.state.rest, next(self.batches), self.seed))

    def recurrence(self) -> None:
        jax.block_until_ready(self._recurrence(self.state.params, self.state.rest, self.given))


TIMED = ("step", "step_with_data", "gradient", "recurrence", "dispatch")


def measured(task: Task, backends: list[str], plan: Plan) -> list[dict[str, Any]]:
    """A row for each backend; all their programs are timed in turns."""
    timers = {}
    for backend in backends:
        try:
            parts = Parts(task, backend)
        except (ValueError, NotImplementedError) as error:  # a backend that says that it does not apply
            print(f"{task.name}: {backend} is left out: {error}")
            continue
        for name in TIMED:
            run = getattr(parts, name)
            run()  # compiles
            timers[backend, name] = _timer(run)
    samples = interleaved(timers, plan)
    rows = []
    for backend in dict.fromkeys(backend for backend, _ in timers):
        ms = {name: 1e3 * statistics.median(samples[backend, name]) for name in TIMED}
        against = ratio(samples["scan", "step"], samples[backend, "step"])
        rows.append(
            {
                "task": task.name,
                "backend": backend,
                "step_ms": ms["step"],
                "scan_ms": 1e3 * statistics.median(samples["scan", "step"]),
                "ratio": against.value,
                "ratio_quartiles": [against.low, against.high],
                "step_with_data_ms": ms["step_with_data"],
                "examples_per_second": 1e3 * EXAMPLES / ms["step"],
                "examples_per_second_with_data": 1e3 * EXAMPLES / ms["step_with_data"],
                "rounds": len(samples[backend, "step"]),
                "division_ms": {
                    "recurrence": ms["recurrence"] - ms["dispatch"],
                    "loss and the rest of the model": ms["gradient"] - ms["recurrence"],
                    "optimiser and bookkeeping": ms["step"] - ms["gradient"],
                    "dispatch": ms["dispatch"],
                },
            }
        )
    return rows


def _timer(run: Callable[[], None]) -> Callable[[int, bool], list[float]]:
    from time import perf_counter

    def timed(calls: int, warm: bool) -> list[float]:
        seconds = []
        for k in range(calls + warm):
            start = perf_counter()
            run()
            if k >= warm:
                seconds.append(perf_counter() - start)
        return seconds

    return timed


def run(config: Any, platform: str, path: Path) -> None:
    """All tasks, on ours and every backend that can carry them; prints, and writes what it found as it goes."""
    report = Report(path, machine.describe(platform))
    found: list[dict[str, Any]] = []
    for task in tasks():
        backends = [config.backend, *(name for name in BACKENDS if name != config.backend)]
        for row in measured(task, backends, PLANS[config.grid]):
            found.append(row)
            low, high = row["ratio_quartiles"]
            division = ", ".join(f"{name} {ms:.2f}" for name, ms in row["division_ms"].items())
            print(
                f"{row['task']}, {row['backend']}: {row['step_ms']:.2f} ms a step, {row['examples_per_second']:.0f} examples "
                f"a second ({row['examples_per_second_with_data']:.0f} with its data); scan takes {row['ratio']:.2f} times "
                f"as long ({low:.2f} to {high:.2f})\n    ms: {division}",
                flush=True,
            )
        report.keep("training_steps", found)
    picture = path.with_suffix(".png")
    chart.steps(found).savefig(picture, dpi=150)
    print(f"\nAll figures are in {path}, and a chart in {picture}.")
