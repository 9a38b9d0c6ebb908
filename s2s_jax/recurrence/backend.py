"""What a backend is: how it carries one layer along time, and for what it does not apply."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
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
    """What comes back for one direction: `outputs` leaves [T, B, ...]; `states` as well if asked for, each after its step."""

    outputs: Any
    state: State
    states: State | None


class Options(NamedTuple):
    """What is the same for all directions and fixed when a program is compiled; see `s2s_jax.unroll`."""

    remat: int | None = None
    history: bool = False


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


class Backend(NamedTuple):
    """`why_not` names the reason why `run` does not apply to its arguments, or returns None. Lengths are int32 [B] in 0..T."""

    run: Run
    why_not: WhyNot
