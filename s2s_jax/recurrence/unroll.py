"""The door to recurrence: `unroll` carries one cell along time; `stack.py` does layers and directions of cells.

Sequences come and go batch-major, [B, T, ...]; time-major lives only inside.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from s2s_jax.recurrence.backend import Options, swap_batch_and_time
from s2s_jax.recurrence.checks import check_cell, checked_direction, checked_lengths
from s2s_jax.recurrence.choice import Choice, How, explain, how, run_layer
from s2s_jax.recurrence.parallel import Newton, Solved
from s2s_jax.types import Cell, Context, Inputs, Params, State, Unrolled, UnrolledHistory


class UnrolledInParallel(NamedTuple):
    """As `Unrolled`, and how it was solved."""

    outputs: Any
    state: State
    solved: Solved


def unroll(
    cell: Cell,
    params: Params,
    xs: Inputs,
    state: State | None = None,
    *,
    lengths: Int[Array, " B"] | None = None,
    context: Context = None,
    reverse: bool = False,
    remat: int | None = None,
    backend: str = "auto",
) -> Unrolled:
    """Carries `cell` along time: `state[t], y[t] = cell.step(params, state[t-1], cell.project(params, x[t]), context)`.

    Works under `jit`, `vmap`, `grad` (to any order) and `shard_map`, and compiles once per shape; what `jax.export` is to write
    down for a CPU needs `backend="scan"`. For truncated
    back-propagation call it on one part of the sequence after the other and hand on `jax.lax.stop_gradient(state)`.

    Args:
      cell: `s2s_jax.cells.lstm`, say, or your own; made once, not anew for each call.
      params: what `cell.init` gave; all floating arrays of one dtype. They are cast to the dtype of `xs`.
      xs: [B, T, D], or a pytree of [B, T, ...].
      state: the initial state; None for `cell.initial_state`. In float32 if `xs` is narrower, else in the dtype of `xs`.
      lengths: how many steps of each row are valid; the rest is padding on the right. At a padded step the state stays and
        the output is exactly zero, and nothing that stands there (NaN too) reaches an output or a gradient. So `state` is
        the state after the last valid step, and length 0 gives the initial state back. A cell of your own sees zeros in
        place of the padding and must have finite derivatives there.
      context: a pytree with a leading batch axis, the same at each step. For the cells in `s2s_jax.cells`: None, or a
        recurrent dropout mask [B, H].
      reverse: runs from the last valid step to the first; outputs stay at the position of their input.
      remat: keep the state once in so many steps and recompute what lies between in the backward pass, so that memory
        grows with T / remat + remat instead of T.
      backend: "auto" (see `explain_backend`; the environment variable S2S_JAX_BACKEND decides where it applies), or "scan",
        or another of `s2s_jax.recurrence.choice.BACKENDS`.

    Returns:
      `Unrolled(outputs, state)`: outputs [B, T, H] in the dtype of `xs`.

    Raises:
      TypeError: `xs` not floating (cells of this package), lengths not integers, a state or parameters of another dtype.
      ValueError: wrong rank or size, a state of another shape, concrete lengths outside 0..T, a backend that is unknown or
        does not apply. Traced lengths cannot be looked at; they are clipped into 0..T.
    """
    done, _ = _unroll(cell, params, xs, state, lengths, context, reverse, how(backend, Options(remat)))
    return Unrolled(done.outputs, done.state)


def unroll_with_history(
    cell: Cell,
    params: Params,
    xs: Inputs,
    state: State | None = None,
    *,
    lengths: Int[Array, " B"] | None = None,
    context: Context = None,
    reverse: bool = False,
    remat: int | None = None,
    backend: str = "auto",
) -> UnrolledHistory:
    """As `unroll`, and returns all states too, each leaf [B, T + 1, ...].

    `states[:, 0]` is the initial state and `states[:, t + 1]` the one after step t; with `reverse`, `states[:, T]` is the
    initial state and `states[:, t]` the one after step t.
    """
    return _unroll(cell, params, xs, state, lengths, context, reverse, how(backend, Options(remat, history=True)))[0]


def unroll_in_parallel(
    cell: Cell,
    params: Params,
    xs: Inputs,
    state: State | None = None,
    *,
    lengths: Int[Array, " B"] | None = None,
    context: Context = None,
    reverse: bool = False,
    newton: Newton | None = None,
) -> UnrolledInParallel:
    """As `unroll` with the backend "parallel", with a say in its iteration, and told how that went.

    Args:
      newton: tolerance, bound, and which part of the Jacobian; see `s2s_jax.recurrence.Newton`, whose defaults None stands for.
      cell, params, xs, state, lengths, context, reverse: as for `unroll`.

    Returns:
      `UnrolledInParallel(outputs, state, solved)`: `solved` holds the number of iterations, the greatest residual, and
      whether it converged; where it did not, outputs and state were computed in order.

    Raises:
      As `unroll`; ValueError also for a tolerance or bound that is not positive and an unknown part of the Jacobian.
    """
    by_newton = how("parallel", Options(newton=(newton or Newton()).checked()))
    done, solved = _unroll(cell, params, xs, state, lengths, context, reverse, by_newton)
    return UnrolledInParallel(done.outputs, done.state, solved)


@functools.singledispatch  # `s2s_jax.layers` registers its layers: nothing here knows Flax
def explain_backend(
    cell: Cell | Any,
    params: Params,
    xs: Inputs,
    state: State | None = None,
    *,
    lengths: Int[Array, " B"] | None = None,
    context: Context = None,
    reverse: bool = False,
    remat: int | None = None,
    history: bool = False,
    backend: str = "auto",
) -> Choice:
    """Which backend `unroll` would take for these arguments, why, and why none of the others; nothing is computed.

    A layer of `s2s_jax.layers` is taken as well, with the arguments that it is called with: `explain_backend(layer, xs)` gives
    a tuple of choices, one for each of its layers.

    Args:
      history: whether it is `unroll_with_history`.
      cell, params, xs, state, lengths, context, reverse, remat, backend: as for `unroll`.

    Returns:
      `Choice(backend, why, others)`; printed, it is one line for each backend.

    Raises:
      As `unroll`.
    """
    check_cell(cell)
    lengths = checked_lengths(xs, lengths)
    asked = how(backend, Options(remat, history))

    def chosen(params: Params, xs: Inputs, state: State, lengths: Array | None, context: Context) -> None:
        direction = checked_direction(cell, params, swap_batch_and_time(xs), state, context, bool(reverse), where="")
        found.append(explain(cell, [direction], lengths, asked))

    found: list[Choice] = []
    jax.eval_shape(chosen, params, xs, state, lengths, context)
    return found[0]


def _unroll(
    cell: Cell, params: Params, xs: Inputs, state: State, lengths: Array | None, context: Context, reverse: bool, how: How
) -> tuple[UnrolledHistory, Any]:
    """All that is known of it, and what the backend reports."""
    check_cell(cell)
    return _run(cell, params, xs, state, checked_lengths(xs, lengths), context, reverse=bool(reverse), how=how)


# What a call outside of any `jit` compiles, once per shape.
@functools.partial(jax.jit, static_argnames=("cell", "reverse", "how"))
def _run(
    cell: Cell, params: Params, xs: Inputs, state: State, lengths: Array | None, context: Context, *, reverse: bool, how: How
) -> tuple[UnrolledHistory, Any]:
    direction = checked_direction(cell, params, swap_batch_and_time(xs), state, context, reverse, where="")
    (done,) = run_layer(cell, [direction], lengths, how)
    states = None
    if how.options.history:
        order = slice(None, None, -1 if reverse else 1)
        states = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest][order]), direction.state, done.states)
        states = swap_batch_and_time(states)
    return UnrolledHistory(swap_batch_and_time(done.outputs), done.state, states), done.report
