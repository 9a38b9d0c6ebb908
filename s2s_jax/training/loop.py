"""The training loop: a jitted step, evaluation on whole splits, and what is written on the way."""

import contextlib
import functools
import itertools
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from s2s_jax.metrics import Mean
from s2s_jax.recurrence.choice import traced_backends
from s2s_jax.training import interrupts
from s2s_jax.training.checkpoint import Checkpoints
from s2s_jax.training.clock import Clock
from s2s_jax.training.goal import Best, Goal, Past
from s2s_jax.training.optimizers import with_frozen
from s2s_jax.training.parallel import greatest, local, of_first_process, replicate, split_batch, waits_for_each_step
from s2s_jax.training.progress import Progress
from s2s_jax.training.run import Run
from s2s_jax.training.state import REMEMBERED, Skipped, TrainState, initial_train_state, model_of
from s2s_jax.training.step import Batch, Loss, Metrics, add_metrics, make_train_step

Measure = Callable[[Any, Batch], Metrics]  # (model, batch) -> metrics


class Trained(NamedTuple):
    """What training ends with.

    `model`: the best by the goal; without one that of the last step (averaged parameters, where there are any).
    `state`: after the last step. `times`: seconds by what they were for: step (compiling included), data,
    evaluation, checkpoints, log, start.
    """

    model: Any
    state: TrainState
    times: dict[str, float]

    @property
    def seconds(self) -> float:
        """Of all sittings."""
        return sum(self.times.values())


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
    goal: Goal | None = None,
    run: Run | None = None,
    checkpoint_every: int | None = None,
    keep: int = 2,
    log_every: int = 100,
    accumulate: int = 1,
    average_decay: float = 0.0,
    compute_dtype: Any = None,
    max_skipped: int = 100,
    freeze: Sequence[str] = (),
    mesh: Mesh | None = None,
) -> Trained:
    """Trains `model` for `steps` steps of `optimizer` on `loss`.

    Killed at any moment and called again with the same arguments, it goes on from the newest whole checkpoint of `run` and
    ends with the same bits (on the same hardware). Ctrl-C and SIGTERM end the step in progress and save. With several
    processes one of them is enough: all stop after the same step, at most 16 later. The evaluation of process 0 counts for
    all; it runs on one device of each process.

    Args:
      model: where training starts; it is not changed.
      loss: `(model, batch, key) -> (scalar, metrics)`; the key is a function of `seed` and the step.
      batches: the batch of each step, a pure function of the step, so that a run can go on anywhere. If it has a method
        `iterate(step)`, the batches from that step on come from there (prefetched, say), and if it has `ids(step)`, that
        names the examples of a skipped step.
      optimizer: any optax transformation; clipping and schedule are part of it.
      steps: how many steps the whole run has.
      seed: of the keys.
      evaluate: `model -> {name: value}`, every `evaluate_every` steps and after the last.
      goal: which of these numbers counts: the best model is kept and comes back, and training may stop early.
      run: the folder of the run: its logs are written, and where it holds a checkpoint training goes on from there.
      checkpoint_every: steps between two checkpoints; the last step has one as well. 0 for none but at an interrupt; None for
        what the run's config says.
      keep: how many of the newest checkpoints stay.
      log_every: steps between two lines of the log.
      accumulate: the batch is cut into so many parts that go through the model one after the other; the gradient is that of
        the whole batch (where the loss is its metric "loss" as total / count, each part weighs by its count). Saves memory.
      average_decay: of the exponential moving average of the parameters that evaluation, and what comes back, then use
        (Polyak & Juditsky 1992), and of the batch statistics with them; smaller over the first steps. 0 for none.
      compute_dtype: floating arrays of parameters and batch are cast to it in the loss; the parameters themselves, their
        updates and the optimiser's state stay as they are. None: no cast.
      max_skipped: after so many steps in a row whose loss or gradient was not finite, training stops: at once, or up to 15
        steps later, as skipped steps are looked at and named every 16 steps and with each line of the log.
      freeze: paths in the model, "encoder" or "decoder.output": the parameters and batch statistics under them stay as they
        are. (A batch norm among them still normalises by the batch, where the loss calls it as in training.)
      mesh: the devices to train on, data-parallel; see `s2s_jax.training.parallel`. Each process then gives its own rows.

    Raises:
      ValueError: the run's checkpoint is of another model, config or seed; another process trains in its folder; a number out
        of its range; an unknown metric as goal; a path in `freeze` under which nothing is trained.
      FloatingPointError: `max_skipped` steps in a row were not finite.
      KeyboardInterrupt: after the state was saved; `SystemExit` after SIGTERM.
    """
    if not callable(batches):
        raise TypeError(f"batches: expected a function of the step, got {type(batches).__name__}")
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"optimizer: expected one of optax, such as optax.adam(1e-3), got {optimizer!r}")
    if checkpoint_every is None:
        checkpoint_every = 0 if run is None else int(run.config.checkpoint_every)
    for name, number in (("steps", steps), ("log_every", log_every), ("accumulate", accumulate), ("max_skipped", max_skipped)):
        if number < 1:
            raise ValueError(f"{name}: expected a positive number, got {number}")
    for name, number in (("evaluate_every", evaluate_every), ("checkpoint_every", checkpoint_every)):
        if number < 0:
            raise ValueError(f"{name}: expected a number of steps, or 0 for none, got {number}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: expected a number from 0 to 2**32 - 1, got {seed}")
    if not 0 <= average_decay < 1:
        raise ValueError(f"average_decay: expected a number in [0, 1), got {average_decay}")
    if goal is not None and (evaluate is None or goal.keep < 1):
        raise ValueError(f"goal: expected one with keep of at least 1 and an evaluation, got {goal}")
    with contextlib.nullcontext() if run is None else run.locked():
        clock = Clock()
        optimizer = with_frozen(optimizer, model, freeze)
        graphdef, state = initial_train_state(model, optimizer, average=average_decay > 0)
        train_step: Any = make_train_step(
            graphdef,
            optimizer,
            loss,
            accumulate=accumulate,
            average_decay=average_decay,
            compute_dtype=compute_dtype,
            freeze=freeze,
        )
        opened = functools.partial(_checkpoints, run, seed, keep)
        checkpoints = opened() if checkpoint_every or (run is not None and run.has_checkpoints()) else None
        sample = batches(min(max([0, *(checkpoints.steps() if checkpoints else ())]), steps - 1))
        totals = _empty_totals(train_step, state, sample, jnp.uint32(seed))
        past = Past()
        restored = checkpoints.restore_latest({"state": state, "totals": totals}) if checkpoints else None
        if restored is not None:
            (state, totals), past = (restored[0]["state"], restored[0]["totals"]), Past(**restored[1])
            if int(state.step) > steps:
                raise ValueError(f"steps: expected at least {int(state.step)}, which the run has done already, got {steps}")
            clock.add(past.times)
        best = None if goal is None else Best(goal, run, int(state.step))
        # The step gives its state up, and the model's own arrays must outlive that.
        state, totals, seed_array = jax.tree.map(jnp.copy, (state, totals, jnp.uint32(seed)))
        if mesh is not None:
            state, totals, seed_array = replicate((state, totals, seed_array), mesh)
        done = int(state.step)
        nothing_left = done == steps or past.ended

        def save() -> None:
            if checkpoints is not None:
                values = past._replace(times=clock.times)._asdict()
                checkpoints.save(done, {"state": state, "totals": totals}, values)
            if best is not None:
                best.settle()
            clock.lap("checkpoints")

        clock.lap("start")
        with Progress(steps, done) as progress, interrupts.held() as interrupted:
            if nothing_left:
                progress.say(f"Trained already, {done} steps; nothing is left to do.")
            elif done:
                progress.say(f"Goes on from the checkpoint of step {done}.")
            stream = batches.iterate(done) if hasattr(batches, "iterate") else map(batches, itertools.count(done))

            def signalled() -> int:
                """The number of a signal that any of the processes got, or 0."""
                return greatest(interrupted[0] if interrupted else 0)

            stop, due, compiled = signalled(), False, 0
            while done < steps and not past.ended and not stop:
                batch = next(stream) if mesh is None else split_batch(next(stream), mesh)
                # As long as the step before is under way, nobody waits for a batch.
                clock.lap("data" if jax.tree.leaves(totals)[0].is_ready() else "step")
                state, totals = train_step(state, totals, batch, seed_array)
                if waits_for_each_step(mesh):
                    jax.block_until_ready(totals)
                if train_step._cache_size() > compiled:  # a shape that no step before had
                    compiled = train_step._cache_size()
                    ran = traced_backends(train_step.trace(state, totals, batch, seed_array).jaxpr)
                    past = past._replace(backends=sorted({*past.backends, *ran}))
                done += 1
                last = done == steps
                clock.lap("step")
                logged = last or done % log_every == 0
                looked = logged or done % REMEMBERED == 0
                new = int(state.skipped.count) - past.skipped if looked else 0
                clock.lap("step")  # what this look waited for
                if logged:
                    values = {f"train/{name}": mean.value() for name, mean in totals.items()}
                    totals = jax.tree.map(jnp.zeros_like, totals)
                    clock.lap("step")  # what the line above waited for
                    rate = progress.show(done, values["train/loss"])
                    if run is not None:
                        run.log(done, {**values, "steps_per_second": rate, "seconds": clock.seconds()})
                clock.lap("log")
                if new:
                    _tell_skipped(state.skipped, new, done, batches, progress, run)
                    past = past._replace(skipped=past.skipped + new)
                    if (row := int(state.skipped.rows[:new].max())) >= max_skipped:
                        raise FloatingPointError(_gave_up(row, done, checkpoints))
                evaluated = evaluate is not None and (last or (evaluate_every and done % evaluate_every == 0))
                due = due or bool(checkpoint_every and done % checkpoint_every == 0)
                # Not in a row of skipped steps: what went wrong may be in the state, and the last good one would have to go.
                saved = checkpoint_every and (last or (due and not int(state.skipped.in_row)))
                if evaluated or saved:
                    jax.block_until_ready(totals)  # or evaluation and checkpoints are charged for steps under way
                    clock.lap("step")
                if evaluate is not None and evaluated:
                    measured = model_of(graphdef, local(state))
                    scores = of_first_process(evaluate(measured))
                    told = ", ".join(f"{name.replace('_', ' ')} {score:.4f}" for name, score in scores.items())
                    progress.say(f"step {done}/{steps}  validation: {told}")
                    if run is not None:
                        values = {f"validation/{name}": score for name, score in scores.items()}
                        run.log(done, {**values, "seconds": clock.seconds()})
                    if best is not None:
                        past = best.judge(past, done, scores, measured)
                        if not checkpoint_every:
                            best.settle()
                        if past.ended:
                            progress.say(f"Stops: nothing better in {past.worse} evaluations since step {past.best_step}.")
                    clock.lap("evaluation")
                if saved or (checkpoint_every and past.ended):
                    save()
                    due = False
                if jax.process_count() == 1 or looked or past.ended:  # several have to ask after the same steps
                    stop = signalled()
                    clock.lap("step")  # the other processes are waited for
            if stop:
                with contextlib.suppress(ModuleNotFoundError):  # no Orbax, which nothing needed up to here
                    checkpoints = checkpoints or opened()
                save()
                where = "and saved; the same command goes on from there" if checkpoints is not None else "; nothing was saved"
                progress.say(f"Stopped at step {done} {where}.")
            elif best is not None and past.best is not None:
                progress.say(f"The best model is that of step {past.best_step}.")
            if not stop and clock.seconds() > 1:
                count = train_step._cache_size()
                progress.say(f"Time: {clock.told()}. Shapes of batches that the training step was compiled for: {count}.")
        if checkpoints is not None:
            checkpoints.close()
        if stop := stop or greatest(next(iter(interrupted), 0)):  # one may have come after the last step
            raise KeyboardInterrupt if stop == signal.SIGINT else SystemExit(128 + stop)
        if run is not None and not (nothing_left and run.has_trained()):
            run.trained(done, clock.times, past.backends, train_step._cache_size())
        trained = model_of(graphdef, local(state))
        return Trained(trained if best is None else best.model(past, trained), state, clock.times)


def _checkpoints(run: Run | None, seed: int, keep: int) -> Checkpoints | None:
    """Those of the run, which hold for this seed and its config only."""
    if run is None:
        return None
    return Checkpoints(run.folder / "checkpoints", keep=keep, of={**run.identity(), "seed of the keys": seed})


def _tell_skipped(skipped: Skipped, new: int, done: int, batches: Any, progress: Progress, run: Run | None) -> None:
    """Says which steps were skipped since the last time, and what their examples were."""
    named = np.asarray(skipped.steps)[:new][::-1].tolist()
    lines = [
        {"step": step, **({"ids": np.asarray(batches.ids(step)).tolist()} if hasattr(batches, "ids") else {})} for step in named
    ]
    if run is not None:
        run.log_skipped(lines)
    told_ids = "; ".join(f"{line['step']}" + (f" (examples {line['ids']})" if "ids" in line else "") for line in lines)
    progress.say(f"step {done}: skipped {new}, loss or gradient not finite, at step {told_ids}")


def _gave_up(row: int, done: int, checkpoints: Checkpoints | None) -> str:
    where = "no checkpoint"
    if checkpoints is not None and checkpoints.steps():  # none is written in a row of skipped steps
        where = f"the last checkpoint before them is that of step {checkpoints.steps()[-1]} in {checkpoints.folder}"
    return f"{row} steps in a row whose loss or gradient was not finite, by step {done}; {where}"


def _empty_totals(train_step: Any, state: TrainState, batch: Batch, seed: Array) -> Metrics:
    """Zeros in the shape of the metrics of a step, so that one program serves the first step and all others."""
    _, totals = jax.eval_shape(train_step, state, {}, batch, seed)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), totals)
