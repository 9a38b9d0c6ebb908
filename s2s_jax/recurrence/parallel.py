"""Backend `parallel`: any cell, all steps at once, by Newton's method over the whole trajectory.

The unknown is the sequence of all states, which must satisfy `s_t = f_t(s_{t-1})`. From a guess, f and its Jacobian are taken
at all steps at once, and the affine recurrence that they make is solved for a better guess (DEER: Lim et al., arXiv
2309.12252; with a part of the Jacobian, quasi-DEER: Gonzalez et al., arXiv 2407.19115):

    s_t^{k+1} = f_t(s_{t-1}^k) + J_t (s_{t-1}^{k+1} - s_{t-1}^k)

J is whole for small states, else what it has within each unit (h and c of an LSTM's unit, say): all of it for a cell with a
diagonal recurrence, whose iteration is then Newton's own, and a part for a dense one, whose iteration converges as fast as what
is left out is small. Each step's equation is checked in the end. Where it does not hold to the tolerance within the bound of
iterations, or where errors would grow along the sequence, all is computed again in order, as `fused` does: it may be slow, and
never wrong.

The gradient is the exact one: its recurrence `g_{t-1} = J_t^T g_t + d_t` is linear, and solved by the same iteration with
the same check, with all of J in the equation whatever part of it the iteration uses.
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
_GROWTH = 1e4  # of an error along the sequence, beyond which a small residual says little about the states


class Newton(NamedTuple):
    """When the iteration stops.

    Attributes:
      tolerance: greatest residual of an equation, relative to the greatest number in that row's states; None for 16 times
        the spacing of floating-point numbers of the dtype of the computation.
      max_iterations: bound; the serial way is taken where it does not suffice.
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
    """How a sequence was solved: iterations, the greatest relative residual, and whether it counts or was done in order."""

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
        newton = newton._replace(tolerance=16 * float(jnp.finfo(dtype).eps))
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
        return functools.partial(parallel_scan, newton=newton, blocks=of_emitted)

    def back(how: fused.How, args: fused.Args, kept: Any) -> fused.Carry:
        transposed = (lambda _: jnp.swapaxes(blocks(how, args, kept), -1, -2)) if by_hand else None
        return functools.partial(parallel_scan, newton=newton, blocks=transposed)

    loops = fused.Loops(along, back, reads_kept=by_hand, in_order=_in_order(dtype))
    return fused.carried(cell, direction, lengths, options, loops)


def parallel_scan(
    f: Callable[[State, Any], tuple[State, Any]],
    init: State,
    xs: Any,
    *,
    newton: Newton,
    reverse: bool,
    blocks: Callable[[Any], Float[Array, "T B M L L"]] | None = None,
) -> tuple[State, Any, Solved]:
    """`jax.lax.scan(f, init, xs, reverse=reverse)`, and how it was solved; rows of the batch must not mix in `f`.

    Args:
      f, init, xs, reverse: as of `jax.lax.scan`; leaves of `init` are [B, ...], and floating.
      newton: its tolerance is a number.
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
        """Of the row that is farthest from its equations."""
        ours, theirs = layout.cut(states), layout.cut(after)
        over = (0, 2, 3)
        scale = jnp.maximum(jnp.max(jnp.abs(theirs), over, initial=0), jnp.finfo(theirs.dtype).tiny)
        return jnp.max(jnp.max(jnp.abs(theirs - ours), over, initial=0) / scale, initial=0)

    def improved(carry: Any) -> Any:
        count, states, after, a, _ = carry
        b = layout.cut(after) - times(a, layout.cut(before(states, init, reverse)))
        states = layout.joined(solve(a, b, layout.cut(init), reverse))
        after, a = linearized(states)
        return count + 1, states, after, a, residual(states, after)

    def unfinished(carry: Any) -> Array:
        count, *_, error = carry
        return (count < newton.max_iterations) & (error > newton.tolerance) & jnp.isfinite(error)

    states = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (time, *leaf.shape)), init)
    after, a = linearized(states)
    count, _, states, a, _ = jax.lax.while_loop(unfinished, improved, (jnp.int32(0), states, after, a, residual(states, after)))

    after, emitted = every(before(states, init, reverse), xs)
    error = residual(states, after)
    noise = jax.random.rademacher(jax.random.key(1), a.shape[:-1], a.dtype)
    growth = jnp.max(jnp.abs(solve(a, noise, jnp.zeros_like(a[0, ..., 0]), reverse)), initial=0)
    converged = (error <= newton.tolerance) & (growth <= _GROWTH)
    state, emitted = jax.lax.cond(
        converged,
        lambda: (last(after, reverse), emitted),
        lambda: jax.lax.scan(f, init, xs, reverse=reverse),
    )
    return state, emitted, Solved(count, error, converged)


def _in_order(dtype: Any) -> Solved:
    """Of a sequence too short for anything else."""
    return Solved(jnp.int32(0), jnp.zeros((), jnp.promote_types(dtype, jnp.float32)), jnp.bool_(False))


BACKEND = Backend(one_by_one(run), why_not)
