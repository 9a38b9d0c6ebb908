"""Backend `parallel`: any cell, all steps at once, by Newton's method over the whole trajectory.

The unknown is the sequence of all states, which must satisfy `s_t = f_t(s_{t-1})`. From a guess, f and its Jacobian are taken
at all steps at once, and the affine recurrence that they make is solved for a better guess (DEER: Lim et al., arXiv
2309.12252; with a part of the Jacobian, quasi-DEER: Gonzalez et al., arXiv 2407.19115):

    s_t^{k+1} = f_t(s_{t-1}^k) + J_t (s_{t-1}^{k+1} - s_{t-1}^k)

J is whole for small states, else what it has within each unit (h and c of an LSTM's unit, say): all of it for a cell with a
diagonal recurrence, whose iteration is then Newton's own, and a part for a dense one, whose iteration converges as fast as what
is left out is small. Each step's equation is checked in the end, each number beside the greatest that it, or the usual number
of its row, is at any step. Where it does not hold to the tolerance within the bound of iterations, or where errors would grow
along the sequence as far as that part of J tells, all is computed again in order, as `fused` does: it may be slow, and not
wrong. So is what comes to hold only because the start of a sequence is right after as many iterations as it has steps, as it
is where the states are chaotic.

The gradient is not biased by what is left out: its recurrence `g_{t-1} = J_t^T g_t + d_t`, with all of J, is solved by the
same iteration, and checked at each step beside the greatest number of that step, so that gradients that vanish do so rightly.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from s2s_jax.masks import where_valid
from s2s_jax.recurrence import fused, scan
from s2s_jax.recurrence.adjoint import is_inexact
from s2s_jax.recurrence.affine import KINDS, jacobian_blocks, layout_of, solve, times
from s2s_jax.recurrence.associative import before, last
from s2s_jax.recurrence.backend import Backend, Direction, Options, TimeMajor, one_by_one
from s2s_jax.recurrence.by_hand import rules_of
from s2s_jax.sharding import varying_as
from s2s_jax.types import Cell, State

_WHOLE = 16  # numbers of a state up to which the whole Jacobian is taken: its products cost the third power of this
_GROWTH = 1e3  # of an error along the sequence, beyond which a small residual says little about the states


class Newton(NamedTuple):
    """When the iteration stops.

    Attributes:
      tolerance: greatest residual of an equation, relative to the greatest value of that number of the state at any step of
        its row, or the median of all numbers' if that is more; None for 16 times the spacing of floating-point numbers of the
        state's dtype, float32 at least.
      max_iterations: bound, and so is half the number of steps and 4 more; the serial way is taken where it does not suffice.
      jacobian: "whole", "units" (within each unit), "elements" (the diagonal), or None: whole for states of up to 16 numbers
        a row, else units.
    """

    tolerance: float | None = None
    max_iterations: int = 100
    jacobian: str | None = None

    def checked(self) -> "Newton":
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ValueError(f"newton.tolerance: expected a number above 0 and below 1, got {self.tolerance}")
        if self.max_iterations < 1:
            raise ValueError(f"newton.max_iterations: expected a positive number, got {self.max_iterations}")
        if self.jacobian not in (None, *KINDS):
            raise ValueError(f"newton.jacobian: expected None or one of {', '.join(KINDS)}, got {self.jacobian!r}")
        return self


class Solved(NamedTuple):
    """How a sequence was solved: iterations, the greatest relative residual, and whether it counts or was done in order.

    It tells of the way along time, not of the gradient's way back, which is solved and checked by itself.
    """

    iterations: Int[Array, ""]
    residual: Float[Array, ""]
    converged: Bool[Array, ""]


def why_not(cell: Cell, directions: Sequence[Direction], lengths: Array | None, options: Options) -> str | None:
    if not all(map(is_inexact, jax.tree.leaves([direction.state for direction in directions]))):
        return "the state holds numbers that have no derivative"
    return fused.why_not(cell, directions, lengths, options)


def run(cell: Cell, direction: Direction, lengths: Array | None, options: Options) -> TimeMajor:
    """Carries `cell` along time. Derivatives but the first in reverse mode are those of the backend `scan`."""
    return solved(cell, direction, lengths, options, Newton())[0]


def solved(
    cell: Cell, direction: Direction, lengths: Array | None, options: Options, newton: Newton
) -> tuple[TimeMajor, Solved]:
    """`run`, and how it went."""
    dtype = scan.compute_dtype(direction.xs, direction.params)
    if newton.tolerance is None:
        widest = jnp.result_type(*jax.tree.leaves(direction.state))
        newton = newton._replace(tolerance=16 * float(jnp.finfo(widest).eps))
    if newton.jacobian is None:
        numbers = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(direction.state))
        newton = newton._replace(jacobian="whole" if numbers <= _WHOLE else None)
    within_units = (None, "units", *(["elements"] if len(jax.tree.leaves(direction.state)) == 1 else []))
    by_hand = newton.jacobian in within_units and rules_of(cell) is not None

    def blocks(how: fused.How, args: fused.Args, kept: Any) -> Array:
        params = scan.cast_floating(args.params, dtype)
        rules: Any = how.rules
        found = rules.blocks(params, *kept, args.context)
        valid = fused.valid_steps(args)
        return found if valid is None else where_valid(valid, found, jnp.eye(found.shape[-1], dtype=found.dtype))

    def along(how: fused.How, args: fused.Args) -> fused.Carry:
        of_emitted = (lambda emitted: blocks(how, args, emitted[-1])) if by_hand else None
        return functools.partial(parallel_scan, newton=newton, beside=_each_number, blocks=of_emitted)

    def back(how: fused.How, args: fused.Args, kept: Any) -> fused.Carry:
        transposed = (lambda _: jnp.swapaxes(blocks(how, args, kept), -1, -2)) if by_hand else None
        return functools.partial(parallel_scan, newton=newton, beside=_each_step, blocks=transposed)

    loops = fused.Loops(along, back, reads_kept=by_hand, in_order=_in_order(dtype))
    return fused.carried(cell, direction, lengths, options, loops)


def parallel_scan(
    f: Callable[[State, Any], tuple[State, Any]],
    init: State,
    xs: Any,
    *,
    newton: Newton,
    beside: Callable[[Array], Array],
    reverse: bool,
    blocks: Callable[[Any], Float[Array, "T B M L L"]] | None = None,
) -> tuple[State, Any, Solved]:
    """`jax.lax.scan(f, init, xs, reverse=reverse)`, and how it was solved; rows of the batch must not mix in `f`.

    Args:
      f, init, xs, reverse: as of `jax.lax.scan`; leaves of `init` are [B, ...], and floating.
      newton: its tolerance is a number.
      beside: from absolute values [T, B, M, L] what residuals are relative to, in a shape that goes with theirs.
      blocks: from what `f` returned besides the states, for all steps, the blocks of its Jacobian; None to find them.
    """
    init = varying_as(init, xs)
    assert newton.tolerance is not None
    layout, every = layout_of(init, newton.jacobian), jax.vmap(f)
    time = jax.tree.leaves(xs)[0].shape[0]

    def linearized(states: State) -> tuple[State, Array]:
        befores = before(states, init, reverse)
        if blocks is not None:
            after, emitted = every(befores, xs)
            return after, blocks(emitted)
        after, push = jax.linearize(lambda befores: every(befores, xs)[0], befores)
        return after, jacobian_blocks(push, befores, layout)

    def residual(states: State, after: State) -> Array:
        """Of the equation that holds least."""
        ours, theirs = layout.cut(states), layout.cut(after)
        scale = beside(jnp.abs(theirs))
        return jnp.max(jnp.abs(theirs - ours) / jnp.maximum(scale, jnp.finfo(theirs.dtype).tiny), initial=0)

    def improved(carry: Any) -> Any:
        count, states, after, a, _ = carry
        b = layout.cut(after) - times(a, layout.cut(before(states, init, reverse)))
        states = layout.joined(solve(a, b, layout.cut(init), reverse))
        after, a = linearized(states)
        return count + 1, states, after, a, residual(states, after)

    def unfinished(carry: Any) -> Array:
        count, *_, error = carry
        return (count < min(newton.max_iterations, time // 2 + 4)) & (error > newton.tolerance) & jnp.isfinite(error)

    states = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (time, *leaf.shape)), init)
    after, a = linearized(states)
    count, _, states, a, _ = jax.lax.while_loop(unfinished, improved, (jnp.int32(0), states, after, a, residual(states, after)))

    after, emitted = every(before(states, init, reverse), xs)
    error = residual(states, after)
    noise = jnp.ones_like(a[..., 0]) * jax.random.rademacher(jax.random.key(1), a.shape[2:4], a.dtype)
    growth = jnp.max(jnp.abs(solve(a, noise, jnp.zeros_like(a[0, ..., 0]), reverse)), initial=0)
    converged = (error <= newton.tolerance) & (growth <= _GROWTH)
    state, emitted = jax.lax.cond(
        converged,
        lambda: (last(after, reverse), emitted),
        lambda: jax.lax.scan(f, init, xs, reverse=reverse),
    )
    return state, emitted, Solved(count, error, converged)


def _each_number(values: Array) -> Array:
    """The greatest value of each number in its row at any step, or that of the usual number if it is less.

    A number that is small because its terms cancel is known as well as they are.
    """
    greatest = jnp.max(values, 0, keepdims=True, initial=0)
    return jnp.maximum(greatest, jnp.median(greatest, (2, 3), keepdims=True))


def _each_step(values: Array) -> Array:
    """The greatest value in a row at each step."""
    return jnp.max(values, (2, 3), keepdims=True, initial=0)


def _in_order(dtype: Any) -> Solved:
    """Of a sequence of at most one step, where there is nothing to solve."""
    return Solved(jnp.int32(0), jnp.zeros((), jnp.promote_types(dtype, jnp.float32)), jnp.bool_(True))


BACKEND = Backend(one_by_one(run), why_not)
