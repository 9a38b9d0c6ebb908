"""Which model of a training is the best one, and when to stop for want of a better."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from s2s_jax.training.checkpoint import BestWeights
from s2s_jax.training.run import Run


class Goal(NamedTuple):
    """Which number of the evaluation shall get better, and what follows from it.

    The model that comes back is the best one; `keep` of the best are written, where there is a run. With `patience` training
    stops after so many evaluations in a row that bring nothing better. Of equal ones the first is the best; NaN never is.
    """

    metric: str
    greater: bool = False
    patience: int | None = None
    keep: int = 1

    def improves(self, score: float, best: float | None) -> bool:
        return score == score and (best is None or (score > best if self.greater else score < best))


class Past(NamedTuple):
    """What a run knows besides its state, as plain values that go into its checkpoints."""

    best: float | None = None
    best_step: int = 0
    worse: int = 0  # evaluations since the best one
    ended: bool = False  # by patience
    skipped: int = 0  # steps that were told of
    times: dict[str, float] = {}  # noqa: RUF012 (never changed in place)
    backends: Sequence[str] = ()  # of recurrence, in the steps that were compiled; in the order of names


class Best:
    """Keeps the best model, in the run's folder `best/` or in memory."""

    def __init__(self, goal: Goal, run: Run | None, done: int):
        self._goal = goal
        self._kept: nnx.Module | None = None
        self._writes = run is not None and run.writes
        self._files = None if run is None else BestWeights(run.folder / "best", keep=goal.keep, greater=goal.greater)
        if self._files is not None and self._writes:
            self._files.forget_after(done)  # what a killed sitting found will be found again, or on another machine not

    def judge(self, past: Past, step: int, scores: dict[str, float], model: nnx.Module) -> Past:
        if self._goal.metric not in scores:
            raise ValueError(f"goal: expected one of the metrics {', '.join(scores)}, got {self._goal.metric!r}")
        score = float(scores[self._goal.metric])
        if self._files is not None and self._writes and score == score:
            self._files.add(step, score, model)
        if self._goal.improves(score, past.best):
            graphdef, state = nnx.split(model)
            self._kept = nnx.merge(graphdef, jax.tree.map(jnp.copy, state))  # its arrays are given up to the next step
            return past._replace(best=score, best_step=step, worse=0)
        worse = past.worse + 1
        return past._replace(worse=worse, ended=self._goal.patience is not None and worse >= self._goal.patience)

    def settle(self) -> None:
        """Removes the files of models that others have outdone, now that no checkpoint speaks of them."""
        if self._files is not None and self._writes:
            self._files.drop_outdone()

    def model(self, past: Past, last: nnx.Module) -> nnx.Module:
        """The best model; `last` where no evaluation gave a number."""
        if past.best is None or self._kept is not None:
            return last if self._kept is None else self._kept
        if self._files is not None:  # of an earlier sitting
            self._files.load(past.best_step, last)
        return last
