"""Backend `parallel`: any cell, all steps at once, by Newton's method over the whole trajectory.

The unknown is the sequence of all states, which must satisfy `s_t = f_t(s_{t-1})`. From a guess, f and its Jacobian are taken
at all steps at once, and the affine recurrence that they make is solved for a better guess (DEER: Lim et al., arXiv
2309.12252; with a part of the Jacobian, quasi-DEER: Gonzalez et al., arXiv 2407.19115):

    s_t^{k+1} = f_t(s_{t-1}^k) + J_t (s_{t-1}^{k+1} - s_{t-1}^k)

Where that is beyond all numbers, as it may be far from what is sought, a plain step is made, `s_t^{k+1} = f_t(s_{t-1}^k)`; that
is for the few, so that if they do not become half as many with each iteration, it ends.

J is whole for small states, else what it has within each unit (h and c of an LSTM's unit, say): all of it for a cell with a
diagonal recurrence, whose iteration is then Newton's own, and a part for a dense one, whose iteration converges as fast as
what is left out is small; of a cell of one's own it is estimated, see `jacobian_blocks`. Steps are computed in float32 at
least, and what they multiply is not rounded (inputs before them and gradients of weights after them are, as JAX is set to). In
the end each number's equation is checked at each step, beside that number and what it is made of, up to four steps away: the
terms of its affine equation, and what all states together move it by when each changes by a share of itself. Those are what
rounding is a share of, so that nothing is demanded that arithmetic does not give, and nothing passes because another number is
great; a number that falls to less than a thirtieth or so at each step may keep the error of what it was. Where an equation
does not hold to the tolerance within the bound of iterations, or where errors would grow along the sequence as far as that
part of J tells, all is computed again in order, in the same precision: it may be slow, and not wrong. So is what comes to hold
only because the start of a sequence is right after as many iterations as it has steps, as it is where the states are chaotic.

The gradient is not biased by what is left out: its recurrence `g_{t-1} = J_t^T g_t + d_t`, with all of J, is solved by the
same iteration, and checked likewise: gradients that vanish do so rightly, unless they do faster than that.
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
from s2s_jax.recurrence.associative import before, last, promised
from s2s_jax.recurrence.backend import Backend, Direction, Options, TimeMajor, one_by_one
from s2s_jax.recurrence.by_hand import rules_of
from s2s_jax.sharding import varying_as
from s2s_jax.types import Cell, State

_WHOLE = 16  # numbers of a state up to which the whole Jacobian is taken: its products cost the third power of this
_GROWTH = 1e3  # of a relative error along the sequence, beyond which a small residual says little about the states
_NEARLY = 1e-4  # a relative residual that, once it is lowered no more in `_PATIENCE` iterations, is what rounding allows
_PATIENCE = 5
_PROBES = 3  # with fewer the dense cells of `test_a_dense_cell_of_ones_own_converges` do not converge


class Newton(NamedTuple):
    """When the iteration stops.

    Attributes:
      tolerance: greatest residual of an equation, relative to its number and the terms that this is made of, the greatest of
        those up to four steps away; None for 16 times the spacing of floating-point numbers of the state's dtype, the
        narrowest if there are several.
      max_iterations: bound, and so is half the number of steps and 4 more; the serial way is taken where it does not suffice.
      jacobian: "whole", "units" (within each unit), "elements" (the diagonal), or None: whole for states of up to 16 numbers
        a row, else units.
      on_gradient: called with the `Solved` of the gradient's way back each time that one has been solved; None: nobody asks.
    """

    tolerance: float | None = None
    max_iterations: int = 100
    jacobian: str | None = None
    on_gradient: Callable[["Solved"], None] | None = None

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

    What `unroll_in_parallel` returns tells of the way along time; the gradient's way back is solved and checked by itself, and
    told to `Newton.on_gradient`.
    """

    iterations: Int[Array, ""]
    residual: Float[Array, ""]
    converged: Bool[Array, ""]


def why_not(cell: Cell, directions: Sequence[Direction], lengths: Array | None, options: Options) -> str | None:
    leaves = jax.tree.leaves([direction.state for direction in directions])
    if not leaves:
        return "there is no state"
    if not all(map(is_inexact, leaves)):
        return "the state holds numbers that have no derivative"
    if any(jnp.finfo(leaf.dtype).bits < 32 for leaf in leaves):
        return "the state is narrower than float32, and is known too roughly to be checked"
    return fused.why_not(cell, directions, lengths, options)


def run(cell: Cell, direction: Direction, lengths: Array | None, options: Options) -> TimeMajor:
    """Carries `cell` along time; the report is a `Solved`. Derivatives but the first in reverse mode are those of `scan`."""
    newton: Newton = options.newton or Newton()
    dtype = scan.compute_dtype(direction.xs, direction.params)
    if any(map(_is_narrow, (jnp.zeros((), dtype), *jax.tree.leaves((direction.xs, direction.context))))):
        # It would round what it multiplies, see below.
        return _widened(cell, direction, lengths, options, dtype)
    if newton.tolerance is None:
        coarsest = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(direction.state))
        newton = newton._replace(tolerance=16 * coarsest)
    if newton.jacobian is None:
        numbers = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(direction.state))
        newton = newton._replace(jacobian="whole" if numbers <= _WHOLE else None)
    within_units = (None, "units", *(["elements"] if len(jax.tree.leaves(direction.state)) == 1 else []))
    by_hand = newton.jacobian in within_units and rules_of(cell) is not None
    apart = newton.jacobian in within_units and (promised(cell) or getattr(cell.spec, "recurrence", None) == "diagonal")
    probes = 1 if newton.jacobian == "whole" or apart else _PROBES
    solved = functools.partial(parallel_scan, newton=newton, probes=probes)

    def blocks(how: fused.How, args: fused.Args, kept: Any) -> Array:
        params = scan.cast_floating(args.params, dtype)
        rules: Any = how.rules
        found = rules.blocks(params, *kept, args.context)
        valid = fused.valid_steps(args)
        return found if valid is None else where_valid(valid, found, jnp.eye(found.shape[-1], dtype=found.dtype))

    def along(how: fused.How, args: fused.Args) -> fused.Carry:
        of_emitted = (lambda emitted: blocks(how, args, emitted[-1])) if by_hand else None
        return functools.partial(solved, valid=fused.valid_steps(args), blocks=of_emitted)

    def back(how: fused.How, args: fused.Args, kept: Any) -> fused.Carry:
        transposed = (lambda _: jnp.swapaxes(blocks(how, args, kept), -1, -2)) if by_hand else None

        def told(*given: Any, **options: Any) -> tuple[State, Any, Solved]:
            *done, report = solved(*given, **options, valid=fused.valid_steps(args), blocks=transposed)
            if newton.on_gradient is not None:
                jax.debug.callback(newton.on_gradient, report)
            return *done, report

        return told

    nothing_to_solve = Solved(jnp.int32(0), jnp.float32(0), jnp.bool_(True))  # in a sequence of at most one step
    # A GPU rounds what it multiplies to TF32, a TPU to bfloat16, if nothing else is said: a step would be a staircase, on which
    # no iteration finds its place as closely as states are kept.
    loops = fused.Loops(along, back, reads_kept=by_hand, report_of_scan=nothing_to_solve, precision="highest")
    return fused.carried(cell, direction, lengths, options, loops)


def _widened(cell: Cell, direction: Direction, lengths: Array | None, options: Options, dtype: Any) -> TimeMajor:
    """What `run` gives where nothing is narrower than float32; outputs in `dtype`, as `scan` has them."""
    given = direction.params, direction.xs, direction.context
    params, xs, context = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if _is_narrow(leaf) else leaf, given)
    done = run(cell, direction._replace(params=params, xs=xs, context=context), lengths, options)
    return done._replace(outputs=scan.cast_floating(done.outputs, dtype))


def _is_narrow(leaf: Array) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32)


def parallel_scan(
    f: Callable[[State, Any], tuple[State, Any]],
    init: State,
    xs: Any,
    *,
    newton: Newton,
    probes: int,
    reverse: bool,
    valid: Bool[Array, "T B"] | None = None,
    blocks: Callable[[Any], Float[Array, "T B M L L"]] | None = None,
) -> tuple[State, Any, Solved]:
    """`jax.lax.scan(f, init, xs, reverse=reverse)`, and how it was solved; rows of the batch must not mix in `f`.

    Args:
      f, init, xs, reverse: as of `jax.lax.scan`; leaves of `init` are [B, ...], and floating.
      newton: its tolerance is a number.
      probes: see `jacobian_blocks`; one where the Jacobian has nothing beside its blocks.
      valid: which steps do more than hand the state on, and so make errors of their own; None for all.
      blocks: from what `f` returned besides the states, for all steps, the blocks of its Jacobian; None to find them.
    """
    init = varying_as(init, xs)
    assert newton.tolerance is not None
    tolerance, bound = newton.tolerance, newton.max_iterations
    layout, every = layout_of(init, newton.jacobian), jax.vmap(f)
    time = jax.tree.leaves(xs)[0].shape[0]

    def linearized(states: State) -> tuple[State, Array]:
        befores = before(states, init, reverse)
        if blocks is not None:
            after, emitted = every(befores, xs)
            return after, blocks(emitted)
        after, push = jax.linearize(lambda befores: every(befores, xs)[0], befores)
        return after, jacobian_blocks(push, befores, layout, probes)

    def terms(after: State, a: Array, befores: State) -> Array:
        """The size of each number and of the terms of its affine equation."""
        return jnp.maximum(jnp.abs(layout.cut(after)), times(jnp.abs(a), jnp.abs(layout.cut(befores))))

    def relative(values: Array, sizes: Array) -> Array:
        # What is less than a few of the least normal numbers may be nought on one way and not on the other.
        limits = jnp.finfo(sizes.dtype)
        least = 1e3 * float(limits.tiny) / max(tolerance, float(limits.eps))
        return jnp.abs(values) / jnp.maximum(sizes, least)

    def residual(states: State, after: State, a: Array) -> Array:
        sizes = _near(terms(after, a, before(states, init, reverse)))
        return _greatest(relative(layout.cut(after) - layout.cut(states), sizes))

    def improved(carry: Any) -> Any:
        count, states, after, a, least, since, beyond, _ = carry
        b = layout.cut(after) - times(a, layout.cut(before(states, init, reverse)))
        better = solve(a, b, layout.cut(init), reverse)
        # Far from what is sought the affine steps may grow beyond all numbers: there only a plain step is made.
        finite = jnp.abs(better) < 1e-4 * jnp.finfo(better.dtype).max  # what is made of them is finite then too
        states = layout.joined(jnp.where(finite, better, layout.cut(after)))
        before_it, beyond = beyond, jnp.sum(~finite, dtype=jnp.int32)
        after, a = linearized(states)
        error = residual(states, after, a)
        # A minimum hands NaN on, and so ends the loop.
        since = jnp.where(error < least, 0, since + 1)
        return count + 1, states, after, a, jnp.minimum(error, least), since, beyond, beyond > before_it // 2

    def unfinished(carry: Any) -> Array:
        count, *_, least, since, _, hopeless = carry
        stuck = (least < _NEARLY) & (since >= _PATIENCE)
        return (count < min(bound, time // 2 + 4)) & (least > tolerance) & jnp.isfinite(least) & ~stuck & ~hopeless

    states = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (time, *leaf.shape)), init)
    after, a = linearized(states)
    nothing, most = varying_as((jnp.int32(0), jnp.int32(2**31 - 1)), xs)
    begun = jnp.int32(0), states, after, a, residual(states, after, a), nothing, most, nothing > 0
    count, _, states, a, *_ = jax.lax.while_loop(unfinished, improved, begun)

    befores = before(states, init, reverse)
    signs = jax.random.rademacher(jax.random.key(1), (time, 1, *a.shape[2:4]), a.dtype)
    along = layout.joined(layout.cut(befores) * signs)
    after, moved, emitted = jax.jvp(lambda befores: every(befores, xs), (befores,), (along,), has_aux=True)
    sizes = _near(jnp.maximum(terms(after, a, befores), jnp.abs(layout.cut(moved))))
    error = _greatest(relative(layout.cut(after) - layout.cut(states), sizes))
    noise = sizes * signs
    noise = noise if valid is None else where_valid(valid, noise, jnp.zeros((), noise.dtype))
    errors = solve(a, noise, jnp.zeros_like(noise[0]), reverse)
    growth = _greatest(relative(errors, jax.lax.cummax(sizes, reverse=reverse)))
    converged = (error <= tolerance) & (growth <= _GROWTH)  # of NaN neither holds
    state, emitted = jax.lax.cond(
        converged,
        lambda: (last(after, reverse), emitted),
        lambda: jax.lax.scan(f, init, xs, reverse=reverse),
    )
    return state, emitted, jax.lax.stop_gradient(Solved(count, error.astype(jnp.float32), converged))


def _near(sizes: Float[Array, "T B M L"]) -> Float[Array, "T B M L"]:
    """The greatest of each number within four steps: it may pass through zero, and does not stay there unless it is small."""

    def with_later(x: Array, by: int) -> Array:
        return jnp.maximum(x, jnp.concatenate([x[by:], x[-by:]]))  # its own at the end: that changes nothing there

    def with_earlier(x: Array, by: int) -> Array:
        return jnp.maximum(x, jnp.concatenate([x[:by], x[:-by]]))

    for by in (1, 1, 2):
        if by < sizes.shape[0]:
            sizes = with_later(with_earlier(sizes, by), by)
    return sizes


def _greatest(values: Array) -> Array:
    """The greatest of absolute values, NaN if any is not finite: XLA's maximum on a CPU passes over NaN in large arrays."""
    return jnp.where(jnp.all(jnp.isfinite(values)), jnp.max(values, initial=0), jnp.nan)


BACKEND = Backend(one_by_one(run), why_not)
