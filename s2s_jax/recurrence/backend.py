"""What a backend is: how it carries one layer along time, and for what it does not apply."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from s2s_jax.types import Cell, Context, Inputs, Params, State


class Direction(NamedTuple):
    """One direction of a layer: `xs` leaves are [T, B, ...], and `state` is never None."""

    params: Params
    xs: Inputs
    state: State
    context: Context
    reverse: bool


class TimeMajor(NamedTuple):
    """What comes back for one direction.

    Attributes:
      outputs: leaves [T, B, ...].
      state: after the last valid step.
      states: if asked for, the state after each step, leaves [T, B, ...].
      report: what there is to tell of how it went; of the backend `parallel` a `Solved`.
    """

    outputs: Any
    state: State
    states: State | None = None
    report: Any = None


class Options(NamedTuple):
    """What is the same for all directions and fixed when a program is compiled.

    Attributes:
      remat, history: see `s2s_jax.unroll` and `unroll_with_history`.
      newton: for the backend `parallel`, the only one that reads it, a `Newton`; None for its defaults.
    """

    remat: int | None = None
    history: bool = False
    newton: Any = None


def swap_batch_and_time(tree: Any) -> Any:
    """[B, T, ...] to [T, B, ...] or back, each leaf."""
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), tree)


def default_platform() -> str:
    """The platform of the device that computes what is not placed elsewhere: "cpu", "gpu", "tpu"."""
    config: Any = jax.config
    chosen = config.jax_default_device  # a device, or the name of a platform
    return jax.default_backend() if chosen is None else getattr(chosen, "platform", chosen)


Run = Callable[[Cell, Sequence[Direction], Array | None, Options], list[TimeMajor]]
WhyNot = Callable[[Cell, Sequence[Direction], Array | None, Options], str | None]


def one_by_one(run: Callable[..., TimeMajor]) -> Run:
    """The `run` of a backend that carries one direction at a time, by a function of cell, direction, lengths and options."""

    def run_all(cell: Cell, directions: Sequence[Direction], lengths: Array | None, options: Options) -> list[TimeMajor]:
        return [run(cell, direction, lengths, options) for direction in directions]

    return run_all


class Stack(NamedTuple):
    """How a backend carries layers with nothing between them at once; `directions[layer][direction]`, one cell a layer.

    Attributes:
      run: of cells, directions, lengths and options; gives outputs of the last layer, directions side by side,
        [T, B, directions * H], and states[layer][direction]. Of `directions` above the first layer `xs` is not read.
      why_not: the reason why `run` does not apply to these arguments, or None.
      features: of a cell and its parameters, how wide its outputs are; None for a cell that `run` does not know.
    """

    run: Callable[[Sequence[Cell], Sequence[Sequence[Direction]], Array | None, Options], tuple[Array, Any]]
    why_not: Callable[[Sequence[Cell], Sequence[Sequence[Direction]], Array | None, Options], str | None]
    features: Callable[[Cell, Params], int | None]


class Backend(NamedTuple):
    """`why_not` names the reason why `run` does not apply to its arguments, or returns None. Lengths are int32 [B] in 0..T.

    `at_a_glance`: of a backend whose `why_not` may take a minute, as much of it as takes no time.
    """

    run: Run
    why_not: WhyNot
    stack: Stack | None = None
    at_a_glance: WhyNot | None = None
