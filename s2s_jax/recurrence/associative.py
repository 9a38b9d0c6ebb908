"""Backend `associative`: cells that are linear in their state, all steps at once.

Of minGRU, minLSTM and LRU the recurrence is `s_t = a_t * s_{t-1} + b_t`, with a and b read off the cell's own step; the
gradient is such a recurrence too, run backward. Everything else is done for all steps at once, as in `fused`. On a CPU a
forward pass without a gradient is that of `scan`, which is faster there.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from s2s_jax.cells import is_built_in
from s2s_jax.recurrence import fused
from s2s_jax.recurrence.affine import jacobian_blocks, layout_of, solve, times
from s2s_jax.recurrence.backend import Backend, Direction, Options, TimeMajor, one_by_one
from s2s_jax.sharding import varying_as
from s2s_jax.types import Cell, State


def promised(cell: Cell) -> bool:
    """Whether its spec says that it is linear in its state, unit by unit."""
    return getattr(cell.spec, "linear_by_unit", False)


def why_not(cell: Cell, directions: Sequence[Direction], lengths: Array | None, options: Options) -> str | None:
    if not promised(cell):
        return "the cell is not linear in its state, unit by unit: its spec does not say `linear_by_unit`"
    return fused.why_not(cell, directions, lengths, options)


def run(cell: Cell, direction: Direction, lengths: Array | None, options: Options) -> TimeMajor:
    """Carries `cell` along time. Derivatives but the first in reverse mode are those of the backend `scan`."""
    carry = functools.partial(affine_scan, verify=not is_built_in(cell.spec))
    # What A and b are of each step costs a CPU more than the steps in order do; with the way back it pays.
    loops = fused.Loops(lambda how, args: carry, lambda how, args, kept: carry, scan_on_cpu_without_gradient=True)
    return fused.carried(cell, direction, lengths, options, loops)


def affine_scan(
    f: Callable[[State, Any], tuple[State, Any]], init: State, xs: Any, *, reverse: bool, verify: bool
) -> tuple[State, Any, None]:
    """`jax.lax.scan(f, init, xs, reverse=reverse)` where `f` is affine in the state, unit by unit.

    That is: the new number k of a unit is a sum of that unit's numbers with weights that depend on `xs` alone, and of what
    does too. With `verify` what comes out is put through `f` again, each number beside the terms that it is the sum of, and
    where it is not the same it is done in order.
    """
    init = varying_as(init, xs)
    layout = layout_of(init)
    time = jax.tree.leaves(xs)[0].shape[0]
    zero = jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.zeros_like(leaf), (time, *leaf.shape)), init)
    every = jax.vmap(f)
    # Linear, so the Jacobian is the same anywhere: at zero, where what is left over is b.
    offset, push = jax.linearize(lambda states: every(states, xs)[0], zero)
    blocks = jacobian_blocks(push, zero, layout)

    start, rest = layout.cut(init), layout.cut(offset)
    after = layout.joined(solve(blocks, rest, start, reverse))
    befores = before(after, init, reverse)
    again, emitted = every(befores, xs)
    if not verify:
        return last(after, reverse), emitted, None
    terms = times(jnp.abs(blocks), jnp.abs(layout.cut(befores))) + jnp.abs(rest)
    gap = jnp.abs(layout.cut(again) - layout.cut(after))
    same = jnp.all(gap <= 64 * jnp.finfo(gap.dtype).eps * terms)  # of NaN it is not
    return *jax.lax.cond(
        same,
        lambda: (last(after, reverse), emitted),
        lambda: jax.lax.scan(f, init, xs, reverse=reverse),
    ), None


def before(after: State, init: State, reverse: bool) -> State:
    """States before each step, from those after each, leaves [T, ...]."""
    if reverse:
        return jax.tree.map(lambda leaf, first: jnp.concatenate([leaf[1:], first[None]]), after, init)
    return jax.tree.map(lambda leaf, first: jnp.concatenate([first[None], leaf[:-1]]), after, init)


def last(after: State, reverse: bool) -> State:
    return jax.tree.map(lambda leaf: leaf[0 if reverse else -1], after)


BACKEND = Backend(one_by_one(run), why_not)
