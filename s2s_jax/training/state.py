"""What training changes from step to step, as one value."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int

REMEMBERED = 16  # how many skipped steps a state can name, and so the steps between two looks at them


class Skipped(NamedTuple):
    """Steps that changed nothing as their loss or gradient was not finite.

    `count` of all, and `in_row` of those without a good one since. Of the last ones, newest first, the numbers `steps` (-1:
    none), and `rows`: which each was in its row, from 1.
    """

    count: Int[Array, ""]
    in_row: Int[Array, ""]
    steps: Int[Array, " N"]
    rows: Int[Array, " N"]


class TrainState(NamedTuple):
    """Steps done, parameters, other model state (batch statistics), the optimiser's state, steps skipped, averaged model.

    `average` is like (params, rest): statistics are averaged as the parameters are, since those of the last step are of values
    that the averaged parameters do not give. What is no floating-point number, a count say, is that of the last step.
    There is no random key in it: the key of a step is a function of the run's seed and the step.
    """

    step: Int[Array, ""]
    params: nnx.State
    rest: nnx.State
    opt_state: Any
    skipped: Skipped
    average: tuple[nnx.State, nnx.State] | None = None


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Structure, parameters, and all other state of a model."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return graphdef, params, rest


def initial_train_state(
    model: nnx.Module, optimizer: optax.GradientTransformation, *, average: bool = False
) -> tuple[nnx.GraphDef, TrainState]:
    """The structure of a model, and the state before the first step; with `average` it holds an averaged model too."""
    graphdef, params, rest = split_model(model)
    none = jnp.full(REMEMBERED, -1, jnp.int32)
    nothing = Skipped(jnp.int32(0), jnp.int32(0), none, jnp.zeros_like(none))
    return graphdef, TrainState(
        jnp.int32(0), params, rest, optimizer.init(params), nothing, (params, rest) if average else None
    )


def model_of(graphdef: nnx.GraphDef, state: TrainState) -> nnx.Module:
    """A model of its own with the parameters and statistics of `state`, the averaged ones where it has them."""
    return nnx.merge(graphdef, *(state.average or (state.params, state.rest)), copy=True)


def count_parameters(model: nnx.Module) -> int:
    """Numbers that training changes."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
