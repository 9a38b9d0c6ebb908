"""The training loop: a jitted step, evaluation on whole splits, and what is written on the way."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from s2s_jax.metrics import Mean
from s2s_jax.training.run import Progress, Run
from s2s_jax.training.state import TrainState, initial_train_state, model_of

Batch = Any  # a pytree of arrays with a leading batch axis
Metrics = dict[str, Mean]
Loss = Callable[[Any, Batch, Array], tuple[Array, Metrics]]  # (model, batch, key) -> (loss, metrics)
Measure = Callable[[Any, Batch], Metrics]  # (model, batch) -> metrics


class Trained(NamedTuple):
    """The model after the last step, and the seconds that all steps took, with compiling, evaluation and checkpoints."""

    model: Any
    state: TrainState
    seconds: float


def make_train_step(graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation, loss: Loss) -> Callable[..., Any]:
    """Jitted `(state, totals, batch, seed) -> (state, totals)`; the old state and totals are given up to the new ones.

    `totals` holds the metrics added up since it was last emptied ({} is empty too, but compiles once more): those of
    `loss`, and its value as "loss" if it is not among them.
    """

    def step(state: TrainState, totals: Metrics, batch: Batch, seed: Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def run(params: nnx.State) -> tuple[Array, tuple[Metrics, nnx.State]]:
            model = nnx.merge(graphdef, params, state.rest, copy=True)
            value, metrics = loss(model, batch, key)
            return value, (metrics, nnx.state(model, nnx.Not(nnx.Param)))

        (value, (metrics, rest)), gradients = jax.value_and_grad(run, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        state = TrainState(state.step + 1, params, rest, opt_state)
        metrics = {
            "loss": Mean(value, jnp.ones_like(value)),
            **metrics,
            "gradient_norm": Mean(optax.tree.norm(gradients), jnp.float32(1)),
        }
        return state, add_metrics(totals, metrics)

    return jax.jit(step, donate_argnums=(0, 1))


def make_measure(measure: Measure) -> Callable[[Any, Iterable[Batch]], dict[str, float]]:
    """`(model, batches) -> {name: value}` over all batches of a split, jitted once for each shape.

    What it returns raises a ValueError where there are no batches.
    """

    @jax.jit
    def of_batch(parts: tuple[nnx.GraphDef, nnx.State], batch: Batch) -> Metrics:
        return measure(nnx.merge(*parts, copy=True), batch)

    def over(model: Any, batches: Iterable[Batch]) -> dict[str, float]:
        parts = nnx.split(model)
        totals: Metrics = {}
        for batch in batches:  # added up on the host, in double precision
            metrics = of_batch(parts, batch)
            totals = add_metrics(totals, {name: Mean(float(m.total), float(m.count)) for name, m in metrics.items()})
        if not totals:
            raise ValueError("batches: expected at least one, got none")
        return {name: mean.value() for name, mean in totals.items()}

    return over


def fit(
    model: nnx.Module,
    loss: Loss,
    batches: Callable[[int], Batch],
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    seed: int = 0,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    run: Run | None = None,
    checkpoint_every: int = 0,
    log_every: int = 100,
) -> Trained:
    """Trains `model` for `steps` steps of `optimizer` on `loss`.

    Args:
      model: where training starts; it is not changed.
      loss: `(model, batch, key) -> (scalar, metrics)`; the key is a function of `seed` and the step.
      batches: the batch of each step, a pure function of the step, so that a run can go on anywhere.
      optimizer: any optax transformation; clipping and schedule are part of it.
      steps: how many steps the whole run has.
      seed: of the keys.
      evaluate: `model -> {name: value}`, every `evaluate_every` steps and after the last.
      run: the folder of the run: its logs are written, and where it holds a checkpoint training goes on from there.
      checkpoint_every: steps between two checkpoints; the last step has one as well. 0 for none.
      log_every: steps between two lines of the log.

    Raises:
      ValueError: the run's checkpoint is of another model; a number out of its range.
      KeyboardInterrupt: after the state was saved.
    """
    for name, number in (("steps", steps), ("log_every", log_every)):
        if number < 1:
            raise ValueError(f"{name}: expected a positive number, got {number}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: expected a number from 0 to 2**32 - 1, got {seed}")
    began = time.perf_counter()
    graphdef, state = initial_train_state(model, optimizer)
    before = 0.0  # seconds that earlier sittings of this run took
    checkpoints = run.checkpoints() if run is not None and (checkpoint_every or run.has_checkpoints()) else None
    if checkpoints is not None:
        restored = checkpoints.restore_latest({"state": state, "seconds": jnp.float32(0)})
        if restored is not None:
            state, before = restored["state"], float(restored["seconds"])
    # The step gives its state up, and the model's own arrays must outlive that.
    state = jax.tree.map(jnp.copy, state)
    train_step = make_train_step(graphdef, optimizer, loss)
    seed_array = jnp.uint32(seed)
    done = int(state.step)
    totals = _empty_totals(train_step, state, batches(min(done, steps - 1)), seed_array)

    def seconds() -> float:
        return before + time.perf_counter() - began

    def save() -> None:
        if checkpoints is not None:
            checkpoints.save(done, {"state": state, "seconds": jnp.float32(seconds())})

    with Progress(steps, done) as progress, _interrupts() as interrupted:
        if done == steps:
            progress.say(f"Trained already, {done} steps; nothing is left to do.")
        elif done:
            progress.say(f"Goes on from the checkpoint of step {done}.")
        while done < steps and not interrupted:
            state, totals = train_step(state, totals, batches(done), seed_array)
            done += 1
            last = done == steps
            if last or done % log_every == 0:
                values = {f"train/{name}": mean.value() for name, mean in totals.items()}
                totals = jax.tree.map(jnp.zeros_like, totals)
                progress.show(done, values["train/loss"])
                if run is not None:
                    run.log(done, {**values, "steps_per_second": progress.rate(done), "seconds": seconds()})
            if evaluate is not None and (last or (evaluate_every and done % evaluate_every == 0)):
                values = {f"validation/{name}": value for name, value in evaluate(model_of(graphdef, state)).items()}
                told = ", ".join(f"{name.split('/')[1].replace('_', ' ')} {value:.4g}" for name, value in values.items())
                progress.say(f"step {done}/{steps}  validation: {told}")
                if run is not None:
                    run.log(done, {**values, "seconds": seconds()})
            if checkpoint_every and (last or done % checkpoint_every == 0):
                save()
        if interrupted:
            save()
            if checkpoints is not None:
                progress.say(f"Stopped at step {done} and saved. The same command goes on from there.")
    if checkpoints is not None:
        checkpoints.close()
    if interrupted:
        raise KeyboardInterrupt
    return Trained(model_of(graphdef, state), state, seconds())


def add_metrics(totals: Metrics, metrics: Metrics) -> Metrics:
    """The sums and counts of both; a name that only one of them has is taken as it is."""
    both = {name: totals[name] + mean if name in totals else mean for name, mean in metrics.items()}
    return {**totals, **both}


def _empty_totals(train_step: Any, state: TrainState, batch: Batch, seed: Array) -> Metrics:
    """Zeros in the shape of the metrics of a step, so that one program serves the first step and all others."""
    _, totals = jax.eval_shape(train_step, state, {}, batch, seed)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), totals)


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collects Ctrl-C instead of raising it, so that a step in progress ends and its state can be saved.

    A second Ctrl-C raises at once.
    """
    caught: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield caught
        return
    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, previous)
