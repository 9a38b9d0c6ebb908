"""Backend `fused`: what needs no order in time is done for all steps at once, in the backward pass too.

JAX differentiates a loop into a loop that adds up the gradient of each weight step by step: it reads and writes the whole
matrix T times, in the accuracy of its dtype. Here the loops hold the recurrence alone. Before the forward loop the input
is projected, after the backward loop one product over T * B makes the gradient of each matrix,

    dW = sum_t x_t^T dz_t,    dU = sum_t h_{t-1}^T dz_t,    dX = dZ W^T,

as cuDNN does it (Appleyard et al., arXiv 1604.01946, section 3.2, for the weights).

The plain RNN, LSTM and GRU keep their gates and are differentiated by hand. Any other cell is linearised at all states
at once when the backward pass begins, from the states that the forward pass kept; so no step is computed again in a loop.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal, jaxpr_as_fun
from jaxtyping import Array, Bool

from s2s_jax.masks import where_valid
from s2s_jax.recurrence import scan
from s2s_jax.recurrence.adjoint import call_with_adjoint, is_inexact
from s2s_jax.recurrence.backend import Backend, Direction, Options, TimeMajor, one_by_one
from s2s_jax.recurrence.by_hand import Rules, gathered, hidden, rules_of
from s2s_jax.types import Cell, Context, Inputs, LSTMState, Params, State

Carry = Callable[..., tuple[State, Any, Any]]


def why_not(cell: Cell, directions: Sequence[Direction], lengths: Array | None, options: Options) -> str | None:
    """Only `remat` is against what it does."""
    return None if options.remat is None else "remat is asked for, and it keeps every state for the products over all steps"


def run(cell: Cell, direction: Direction, lengths: Array | None, options: Options) -> TimeMajor:
    """Carries `cell` along time. Derivatives but the first in reverse mode are those of the backend `scan`.

    Takes [T, B, G] for the projected input, and for the backward pass as much again for the gates, or for whatever the
    step of a user's cell needs to be differentiated.
    """
    return carried(cell, direction, lengths, options, Loops(lambda how, args: by_scan, lambda how, args, kept: by_scan))


def carried(cell: Cell, direction: Direction, lengths: Array | None, options: Options, loops: "Loops") -> TimeMajor:
    """`run` with loops of another kind; the report is that of the one along time."""
    args = Args(direction.params, direction.xs, direction.state, lengths, direction.context)

    def reference(args: Args) -> TimeMajor:
        whole = Direction(args.params, args.xs, args.state, args.context, direction.reverse)
        return scan.run(cell, whole, args.lengths, options)._replace(report=loops.report_of_scan)

    if jax.tree.leaves(direction.xs)[0].shape[0] <= 1:  # nothing to gather over time
        return reference(args)
    how = How(cell, rules_of(cell), direction.reverse, options.history, loops.precision)

    def forward(args: Args, keep: bool) -> tuple[TimeMajor, Any]:
        def along_time(args: Args) -> tuple[TimeMajor, Any]:
            done, kept = _forward(how, args, keep or loops.reads_kept, loops.along(how, args))
            return done, kept if keep else None

        if keep or not loops.scan_on_cpu_without_gradient:
            return along_time(args)
        return jax.lax.platform_dependent(args, cpu=reference, default=lambda args: along_time(args)[0]), None

    def backward(args: Args, kept: Any, cotangents: TimeMajor) -> Args:
        return _backward(how, args, kept, cotangents, loops.back(how, args, kept))

    return call_with_adjoint(args, reference, forward, backward)


class Loops(NamedTuple):
    """How state is carried along time, and its cotangent back.

    Attributes:
      along: `(how, args) -> carry`; `carry(f, init, xs, reverse=...)` returns what `jax.lax.scan` does, and a report.
      back: `(how, args, kept) -> carry`.
      scan_on_cpu_without_gradient: whether a CPU is faster with the backend `scan` where no way back follows.
      reads_kept: whether the carry along time reads what is kept for the way back, the last of what `f` emits.
      report_of_scan: what is reported where the backend `scan` does it instead: a sequence of one step, say.
      precision: of products in the functions that are carried, as of `jax.default_matmul_precision`; None for that itself.
    """

    along: Callable[["How", "Args"], Carry]
    back: Callable[["How", "Args", Any], Carry]
    scan_on_cpu_without_gradient: bool = False
    reads_kept: bool = False
    report_of_scan: Any = None
    precision: str | None = None


class Args(NamedTuple):
    params: Params
    xs: Inputs
    state: State
    lengths: Array | None
    context: Context


class _Adjoint(NamedTuple):
    """The transpose of the loop in two parts.

    Attributes:
      stepwise: what `pull` reads, leaves [T, B, ...].
      pull: `(stepwise[t], d_state, d_output) -> (d_before, emitted)`, one step.
      gather: `(emitted, d_outputs) -> (d_params, d_xs, d_context)`, all steps at once, leaves [T, B, ...].
    """

    stepwise: Any
    pull: Callable[..., Any]
    gather: Callable[..., Any]


class How(NamedTuple):
    cell: Cell
    rules: Rules | None
    reverse: bool
    history: bool
    precision: str | None

    def precisely(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """`f` with products of that precision."""

        def precise(*args: Any) -> Any:
            with jax.default_matmul_precision(self.precision):
                return f(*args)

        return f if self.precision is None else precise


def by_scan(f: Callable[..., Any], init: State, xs: Any, *, reverse: bool) -> tuple[State, Any, None]:
    return *jax.lax.scan(f, init, xs, reverse=reverse), None


def _forward(how: How, args: Args, keep: bool, carry: Carry) -> tuple[TimeMajor, Any]:
    """What `scan.run` returns; kept, the state before each step and what was saved of it, or else z."""
    cell, rules = how.cell, how.rules
    valid = valid_steps(args)
    dtype = scan.compute_dtype(args.xs, args.params)
    params = scan.cast_floating(args.params, dtype)
    zs = _projected(cell, params, _zeroed(args.xs, valid))

    def advance(state: State, at: Any) -> tuple[State, Any]:
        z, valid = at
        if rules is None:
            new, y = _step(cell, dtype, params, state, z, args.context)
            saved = None
        else:
            new, saved = rules.step(params, state, z, args.context)
            y = hidden(new).astype(dtype)
        if valid is not None:
            new = jax.tree.map(lambda a, b: where_valid(valid, a, b), new, state)
            y = _zeroed(y, valid)
        return new, (y, new if how.history else None, (state, saved) if keep else None)

    state, (outputs, states, kept), report = carry(how.precisely(advance), args.state, (zs, valid), reverse=how.reverse)
    if keep and rules is None:
        kept = kept[0], zs
    return TimeMajor(outputs, state, states, report), kept


def _backward(how: How, args: Args, kept: Any, cotangents: TimeMajor, carry: Carry) -> Args:
    """Cotangents of the arguments."""
    valid = valid_steps(args)
    # Whatever the loss does with the padding ends here, NaN too.
    d_outputs, d_state, d_states = _zeroed(cotangents.outputs, valid), cotangents.state, cotangents.states
    stepwise, pull, gather = (_any_cell if how.rules is None else _by_hand)(how, args, kept, valid)

    def retreat(d_state: State, at: Any) -> tuple[State, Any]:
        stepwise, d_output, d_seen, valid = at
        if how.history:
            d_state = jax.tree.map(jnp.add, d_state, d_seen)
        d_before, emitted = pull(stepwise, _zeroed(d_state, valid), d_output)
        if valid is not None:
            d_before = jax.tree.map(lambda a, b: where_valid(valid, a, b), d_before, d_state)
        return d_before, emitted

    d_state, emitted, _ = carry(
        how.precisely(retreat), d_state, (stepwise, d_outputs, d_states, valid), reverse=not how.reverse
    )
    d_params, d_xs, d_context = gather(emitted, d_outputs)
    return Args(d_params, _zeroed(d_xs, valid), d_state, None, d_context)


def _projected(cell: Cell, params: Params, xs: Inputs) -> Any:
    """The projection of all steps; where it is a matrix product, one of T * B rows."""
    return jax.vmap(cell.project, in_axes=(None, 0))(params, xs)


def _step(cell: Cell, dtype: Any, params: Params, state: State, z: Any, context: Context) -> tuple[State, Any]:
    """The cell's own step, in the dtypes in which state and outputs are carried on."""
    new, y = scan.check_step(cell.step(params, state, z, context), state)
    return jax.tree.map(lambda a, b: a.astype(b.dtype), new, state), scan.cast_floating(y, dtype)


def valid_steps(args: Args) -> Bool[Array, "T B"] | None:
    if args.lengths is None:
        return None
    return jnp.arange(jax.tree.leaves(args.xs)[0].shape[0], dtype=jnp.int32)[:, None] < args.lengths[None]


def _zeroed(tree: Any, valid: Array | None) -> Any:
    """Zero where not valid; selected and not multiplied, because NaN times zero is NaN."""
    if valid is None:
        return tree
    return jax.tree.map(lambda leaf: where_valid(valid, leaf, jnp.zeros((), leaf.dtype)), tree)


# Any cell ---------------------------------------------------------------------------------------------------------------


def _any_cell(how: How, args: Args, kept: Any, valid: Array | None) -> _Adjoint:
    """JAX's transpose of the step with respect to state and z for the loop, of all steps to params and context after it."""
    befores, zs = kept
    dtype = scan.compute_dtype(args.xs, args.params)
    step = functools.partial(_step, how.cell, dtype)

    def linearized(before: State, z: Any) -> Any:
        cast = scan.cast_floating(args.params, dtype)

        def moving(before_part: State, z_part: Any) -> Any:
            return _inexact(step(cast, _with(before, before_part), _with(z, z_part), args.context))

        return jax.vjp(moving, _inexact(before), _inexact(z))[1]  # a pytree: its leaves are what the transpose reads

    first = jax.tree.map(lambda leaf: leaf[0], (befores, zs))
    program, shapes = jax.make_jaxpr(how.precisely(linearized), return_shape=True)(*first)
    structure, evaluate = jax.tree.structure(shapes), jaxpr_as_fun(program)
    # What depends on parameters and context alone, a weight above all, is not to be copied for each step.
    varies = _dependent(program, [True] * len(jax.tree.leaves(first)))
    fixed = [leaf for leaf, moves in zip(evaluate(*jax.tree.leaves(first)), varies, strict=True) if not moves]

    def moving(*at: Array) -> list[Array]:
        return [leaf for leaf, moves in zip(evaluate(*at), varies, strict=True) if moves]

    def pull(stepwise: list[Array], d_state: State, d_output: Any) -> tuple[State, Any]:
        each, same = iter(stepwise), iter(fixed)
        transpose = structure.unflatten([next(each if moves else same) for moves in varies])
        d_before, dz = transpose((d_state, d_output))
        return d_before, (d_state, dz)

    def gather(emitted: Any, d_outputs: Any) -> tuple[Params, Inputs, Context]:
        d_states, dzs = emitted
        cast = functools.partial(scan.cast_floating, dtype=dtype)
        xs = _zeroed(args.xs, valid)

        def all_steps(params: Params, context: Context) -> Any:
            # Over time only, so that parameters and context are shared, and their cotangents one sum.
            stepped = jax.vmap(step, in_axes=(None, 0, 0, None))
            return _inexact(stepped(cast(_with(args.params, params)), befores, zs, _with(args.context, context)))

        def projected(params: Params, inputs: Inputs) -> Any:
            return _inexact(_projected(how.cell, cast(_with(args.params, params)), _with(xs, inputs)))

        d_params, d_context = jax.vjp(all_steps, _inexact(args.params), _inexact(args.context))[1]((d_states, d_outputs))
        d_params_too, d_xs = jax.vjp(projected, _inexact(args.params), _inexact(xs))[1](dzs)
        return jax.tree.map(jnp.add, d_params, d_params_too), d_xs, d_context

    return _Adjoint(jax.vmap(moving)(*jax.tree.leaves((befores, zs))), pull, gather)


def _inexact(tree: Any) -> Any:
    """The tree with None for every leaf that has no derivative."""
    return jax.tree.map(lambda leaf: leaf if is_inexact(leaf) else None, tree)


def _with(tree: Any, part: Any) -> Any:
    """The tree with the leaves of `part`, where that has any."""
    return jax.tree.map(lambda leaf, other: leaf if other is None else other, tree, part)


def _dependent(program: Any, inputs: list[bool]) -> list[bool]:
    """Which outputs of a jaxpr depend on those of its inputs."""
    jaxpr = getattr(program, "jaxpr", program)
    found = {variable for variable, counts in zip(jaxpr.invars, inputs, strict=True) if counts}

    def depends(variable: Any) -> bool:
        return not isinstance(variable, Literal) and variable in found

    for equation in jaxpr.eqns:
        used = list(map(depends, equation.invars))
        # A function that is jitted inside a step is one equation: looked into, or all of it would count as dependent.
        inner = equation.params.get("jaxpr") if equation.primitive.name in ("jit", "pjit") else None
        made = [any(used)] * len(equation.outvars) if inner is None else _dependent(inner, used)
        found |= {variable for variable, counts in zip(equation.outvars, made, strict=True) if counts}
    return list(map(depends, jaxpr.outvars))


# By hand ----------------------------------------------------------------------------------------------------------------


def _by_hand(how: How, args: Args, kept: Any, valid: Array | None) -> _Adjoint:
    rules: Any = how.rules
    dtype = scan.compute_dtype(args.xs, args.params)
    params = scan.cast_floating(args.params, dtype)
    befores, saved = kept

    def pull(stepwise: Any, d_state: State, d_output: Array) -> tuple[State, Array]:
        dh = hidden(d_state) + d_output.astype(hidden(d_state).dtype)
        d_state = d_state._replace(h=dh) if isinstance(d_state, LSTMState) else dh
        d_before, dz = rules.pull(params, *stepwise, args.context, d_state)
        return d_before, dz.astype(dtype)  # as it enters the products; narrow floats take half the memory

    def gather(dzs: Array, d_outputs: Array) -> tuple[Params, Array, Context]:
        d_params, d_xs, d_mask = gathered(rules, params, _zeroed(args.xs, valid), befores, saved, args.context, dzs)
        return d_params, d_xs.astype(args.xs.dtype), d_mask

    return _Adjoint((befores, saved), pull, gather)


BACKEND = Backend(one_by_one(run), why_not)
