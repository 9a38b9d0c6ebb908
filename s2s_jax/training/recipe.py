"""The recipe of a training as flags: optimiser, precision, best model, transfer, devices; and training by it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from s2s_jax.data.pipeline import Batches
from s2s_jax.training.checkpoint import BestWeights, load_weights, save_weights
from s2s_jax.training.config import RunConfig
from s2s_jax.training.loop import Goal, Trained, fit
from s2s_jax.training.optimizers import make_optimizer, make_schedule
from s2s_jax.training.parallel import OwnRows, data_mesh
from s2s_jax.training.run import Run
from s2s_jax.training.step import Batch, Loss
from s2s_jax.training.summary import summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig(RunConfig):
    """Flags of every experiment that trains by `train_by_recipe`."""

    optimizer: str = "adam"
    """Any optimiser of optax by name, arguments included: "adamw(weight_decay=0.01)"."""
    learning_rate: float = 1e-3
    """Peak of the schedule."""
    schedule: str = "cosine"
    """constant, cosine, linear or inverse_sqrt, after a warm-up; or any of optax, arguments included."""
    warmup_steps: int = 200
    """Steps from a learning rate of zero to its peak; at most a tenth of all."""
    clip: float = 1.0
    """Greatest norm of the gradient; 0 for none."""
    accumulate: int = 1
    """Parts of a batch that go through the model one after the other, to save memory."""
    average_decay: float = 0.0
    """Decay of the moving average of parameters and batch statistics that is evaluated and kept; 0 for none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; the parameters themselves are float32."""
    evaluate_every: int = 1000
    """Steps between two looks at the validation split."""
    goal: str | None = None
    """Which validation metric chooses the model, "max:accuracy" or "min:loss"; without it that of the last step stays."""
    patience: int = 0
    """Evaluations in a row without a better goal after which training stops; 0 for none."""
    keep: int = 2
    """Newest checkpoints that stay."""
    keep_best: int = 1
    """Best models by the goal that stay, in the folder best/."""
    average_best: bool = False
    """The mean of their weights becomes the model."""
    max_skipped: int = 100
    """Steps in a row without a finite loss and gradient after which training stops."""
    init_from: Path | None = None
    """Folder of another run whose weights training starts from."""
    init_parts: tuple[str, ...] = ()
    """Parts of the model that come from there, such as encoder; all if none is named."""
    freeze: tuple[str, ...] = ()
    """Parts of the model that stay as they are."""
    seeds: int = 1
    """Train this many times, with the seeds from SEED on, each in a run NAME-seed<N>."""
    data_parallel: bool = False
    """Split each batch over all devices."""
    processes: int = 1
    """Processes that train together, each started with the same flags but for --process."""
    process: int = 0
    """Number of this one, from 0."""
    coordinator: str = "localhost:12355"
    """Address of process 0."""

    may_be_zero: ClassVar[tuple[str, ...]] = (*RunConfig.may_be_zero, "warmup_steps", "patience", "process")
    places: ClassVar[tuple[str, ...]] = (
        *RunConfig.places,
        "keep",
        "data_parallel",
        "processes",
        "process",
        "coordinator",
        "max_skipped",
    )
    fractions: ClassVar[tuple[str, ...]] = ("accuracy",)  # validation metrics from 0 to 1, which learning curves show
    validated: ClassVar[tuple[str, ...]] = ()  # names of all validation metrics, where they are known before the training

    def join_processes(self) -> None:
        """Joins the other processes; has to come before anything asks JAX for its devices."""
        if self.processes > 1:
            if not self.data_parallel:
                raise ValueError(f"processes: expected --data-parallel with --processes {self.processes}, got it without")
            if self.seeds > 1:
                raise ValueError(f"seeds: expected 1 with --processes {self.processes}, got {self.seeds}; start each by itself")
            jax.distributed.initialize(self.coordinator, self.processes, self.process)

    def goal_of_training(self) -> Goal | None:
        """What `fit` takes as its goal."""
        if self.goal is None:
            if self.patience or self.average_best:
                raise ValueError("goal: expected one with --patience or --average-best, such as max:accuracy, got none")
            return None
        way, _, metric = self.goal.partition(":")
        if way not in ("min", "max") or not metric:
            raise ValueError(f"goal: expected min:METRIC or max:METRIC, got {self.goal!r}")
        if self.validated and metric not in self.validated:
            raise ValueError(f"goal: expected one of the metrics {', '.join(self.validated)}, got {metric!r}")
        return Goal(metric, way == "max", self.patience or None, self.keep_best)


def train_by_recipe(
    run: Run[Any],
    model: nnx.Module,
    loss: Loss,
    batches: Callable[[int], Batch],
    evaluate: Callable[[Any], dict[str, float]] | None,
) -> Trained:
    """`fit` with the flags of the run, from another run's weights where they say so; writes `weights.safetensors`.

    Prints a summary of the model first. `model` is changed only by `--init-from`. With several processes `batches` gives
    whole batches in each of them, and each trains on its own rows; of `Batches` it reads no others. `evaluate` is None where
    there is nothing to validate on.

    Raises:
      ValueError, FileNotFoundError: a flag that does not fit the model; see `fit` and `load_weights`.
    """
    import safetensors  # noqa: F401  # an error now, and not after the training, for want of a file of weights

    config: TrainingConfig = run.config
    goal = config.goal_of_training()
    if config.init_from is not None:
        filled = load_weights(config.init_from / "weights.safetensors", model, config.init_parts)
        run.say(f"{len(filled)} arrays come from {config.init_from}.")
    elif config.init_parts:
        raise ValueError("init_parts: expected --init-from as well, which says where the parts come from")
    run.say(summary(model, config.freeze))
    if hasattr(batches, "usage"):
        run.say(f"Batches: {batches.usage()}.")
    schedule = make_schedule(config.schedule, config.learning_rate, config.warmup_steps, config.steps)
    if config.data_parallel and jax.device_count() == 1:
        run.say("--data-parallel: there is one device, and nothing to split.")
    if jax.process_count() > 1:
        place = jax.process_index(), jax.process_count()
        batches = batches.of_process(*place) if isinstance(batches, Batches) else OwnRows(batches, *place)
    trained = fit(
        model,
        loss,
        batches,
        optimizer=make_optimizer(config.optimizer, schedule, clip=config.clip),
        steps=config.steps,
        seed=config.seed,
        evaluate=evaluate,
        evaluate_every=config.evaluate_every,
        goal=goal,
        run=run,
        checkpoint_every=config.checkpoint_every,
        keep=config.keep,
        accumulate=config.accumulate,
        average_decay=config.average_decay,
        compute_dtype=jnp.bfloat16 if config.precision == "bfloat16" else None,
        max_skipped=config.max_skipped,
        freeze=config.freeze,
        mesh=data_mesh() if config.data_parallel else None,
    )
    if config.average_best:
        run.say(f"The model is the mean of the best {config.keep_best} by {config.goal}.")
        BestWeights(run.folder / "best", keep=config.keep_best, greater=goal is not None and goal.greater).load_mean(
            trained.model
        )
    if run.writes:
        save_weights(run.weights, trained.model)
    return trained
