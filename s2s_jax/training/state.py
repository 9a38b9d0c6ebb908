"""What training changes from step to step, as one value."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int


class TrainState(NamedTuple):
    """Steps done, parameters, other model state (batch statistics), and the optimiser's state.

    There is no random key in it: the key of a step is a function of the run's seed and the step.
    """

    step: Int[Array, ""]
    params: nnx.State
    rest: nnx.State
    opt_state: Any


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Structure, parameters, and all other state of a model."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return graphdef, params, rest


def initial_train_state(model: nnx.Module, optimizer: optax.GradientTransformation) -> tuple[nnx.GraphDef, TrainState]:
    """The structure of a model, and the state before the first step."""
    graphdef, params, rest = split_model(model)
    return graphdef, TrainState(jnp.int32(0), params, rest, optimizer.init(params))


def model_of(graphdef: nnx.GraphDef, state: TrainState) -> nnx.Module:
    """A model of its own that holds the parameters and statistics of `state`."""
    return nnx.merge(graphdef, state.params, state.rest, copy=True)


def count_parameters(model: nnx.Module) -> int:
    """Numbers that training changes."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
