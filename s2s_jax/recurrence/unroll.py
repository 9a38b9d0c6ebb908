"""The one door to recurrence: `unroll` carries a cell along time, `unroll_stack` layers and directions of cells.

Sequences come and go batch-major, [B, T, ...]; time-major lives only inside.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from s2s_jax.cells import LSTMSpec
from s2s_jax.masks import where_valid
from s2s_jax.recurrence import parallel
from s2s_jax.recurrence.backend import Direction, Options, TimeMajor
from s2s_jax.recurrence.checks import check_cell, checked_direction, checked_lengths
from s2s_jax.recurrence.choice import AUTO, BACKENDS, Choice, choose, explain, forced, scope
from s2s_jax.recurrence.parallel import Newton, Solved
from s2s_jax.types import Cell, Context, Inputs, Params, State, Unrolled, UnrolledHistory

DIRECTIONS = ("forward", "backward")
MERGES = ("concat", "sum", "mean", "product", "none")


class UnrolledInParallel(NamedTuple):
    """As `Unrolled`, and how it was solved."""

    outputs: Any
    state: State
    solved: Solved


class _How(NamedTuple):
    """What is fixed when a program is compiled. `forced` is the backend that the environment asks for, or None."""

    reverse: bool
    backend: str
    forced: str | None
    options: Options


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
    done = _unroll(cell, params, xs, state, lengths, context, _how(reverse, remat, backend))
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
    return _unroll(cell, params, xs, state, lengths, context, _how(reverse, remat, backend, history=True))


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
    newton = (newton or Newton()).checked()
    check_cell(cell)
    lengths = checked_lengths(xs, lengths)
    return _run_in_parallel(cell, params, xs, state, lengths, context, reverse=bool(reverse), newton=newton)


def unroll_stack(
    cells: Cell | Sequence[Cell],
    params: Sequence[Sequence[Params]],
    xs: Inputs,
    states: Sequence[Sequence[State]] | None = None,
    *,
    lengths: Int[Array, " B"] | None = None,
    contexts: Sequence[Sequence[Context]] | None = None,
    dropout_masks: Sequence[Array | None] | None = None,
    directions: tuple[str, ...] = ("forward",),
    merge: str = "concat",
    residual: bool = False,
    remat: int | None = None,
    backend: str = "auto",
) -> Unrolled:
    """Carries a stack of layers, each in one or both directions, along time.

    Args:
      cells: one cell for all layers, or one for each.
      params, states, contexts: indexed by layer, then by direction; see `unroll`.
      xs, lengths, remat, backend: see `unroll`.
      dropout_masks: for each layer None, or what its input is multiplied by: [B, T, D], or [B, 1, D] for a mask that is
        constant in time.
      directions: ("forward",), ("backward",) or ("forward", "backward").
      merge: how both directions become one sequence: "concat" [B, T, 2H]; "sum", "mean", "product" [B, T, H]; "none"
        [B, T, 2, H], where the directions never mix: each layer reads its own direction of the layer below. With one
        direction there is nothing to merge, and the outputs are [B, T, H].
      residual: adds each layer's input (before dropout) to its output, from the second layer on (Wu et al., arXiv
        1609.08144, section 3.1). Needs equal widths.

    Returns:
      `Unrolled(outputs, state)`: outputs of the last layer, and `state[layer][direction]`, a tuple of tuples.

    Raises:
      As `unroll`; ValueError also for layers or directions that do not match in number and for unequal residual widths.
    """
    layers = len(params)
    cells = (cells,) * layers if isinstance(cells, Cell) else tuple(cells)
    for cell in cells:
        check_cell(cell)
    if not directions or len(set(directions)) != len(directions) or not set(directions) <= set(DIRECTIONS):
        raise ValueError(f"directions: expected a selection of {DIRECTIONS}, got {directions!r}")
    if merge not in MERGES:
        raise ValueError(f"merge: expected one of {', '.join(MERGES)}, got {merge!r}")
    if layers == 0:
        raise ValueError("params: expected at least one layer, got none")
    for name, value in (("cells", cells), ("states", states), ("contexts", contexts), ("dropout_masks", dropout_masks)):
        if value is not None and len(value) != layers:
            indexed = "" if name in ("cells", "dropout_masks") else f", indexed {name}[layer][direction]"
            such = _example(cells[0]) if name == "states" else ""
            raise ValueError(f"{name}: expected {layers} layers{indexed}, got {type(value).__name__} of {len(value)}{such}")
    for name, value in (("params", params), ("states", states), ("contexts", contexts)):
        for layer, of_layer in enumerate(() if value is None else value):
            if not isinstance(of_layer, Sequence) or len(of_layer) != len(directions):
                got = len(of_layer) if isinstance(of_layer, Sequence) else type(of_layer).__name__
                such = _example(cells[0]) if name == "states" else ""
                raise ValueError(f"{name}[{layer}]: expected a sequence of {len(directions)} directions, got {got}{such}")
    lengths = checked_lengths(xs, lengths)
    nothing = ((None,) * len(directions),) * layers
    return _run_stack(
        cells,
        tuple(map(tuple, params)),
        xs,
        tuple(map(tuple, states)) if states is not None else nothing,
        lengths,
        tuple(map(tuple, contexts)) if contexts is not None else nothing,
        tuple(dropout_masks) if dropout_masks is not None else (None,) * layers,
        directions=tuple(directions),
        merge=merge,
        residual=residual,
        how=_how(False, remat, backend),
    )


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
    how = _how(reverse, remat, backend, history)

    def chosen(params: Params, xs: Inputs, state: State, lengths: Array | None, context: Context) -> None:
        xs = jax.tree.map(_swap_batch_and_time, xs)
        direction = checked_direction(cell, params, xs, state, context, how.reverse, where="")
        found.append(explain(cell, [direction], lengths, how.options, how.backend, how.forced))

    found: list[Choice] = []
    jax.eval_shape(chosen, params, xs, state, lengths, context)
    return found[0]


def _example(cell: Cell) -> str:
    """What the states of one layer in one direction look like."""
    state = "LSTMState(h, c)" if isinstance(cell.spec, LSTMSpec) else "state"
    return f"; of one layer and direction it is (({state},),)"


def _how(reverse: bool, remat: int | None, backend: str, history: bool = False) -> _How:
    if backend != AUTO and backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {AUTO}, {', '.join(BACKENDS)}, got {backend!r}")
    if remat is not None and (not isinstance(remat, int) or remat < 1):
        raise ValueError(f"remat: expected a positive number of steps, got {remat!r}")
    # Looked up here and not when traced: it belongs to what a compiled program is kept under.
    return _How(bool(reverse), backend, forced(), Options(remat, history))


def _unroll(
    cell: Cell, params: Params, xs: Inputs, state: State, lengths: Array | None, context: Context, how: _How
) -> UnrolledHistory:
    check_cell(cell)
    return _run_one(cell, params, xs, state, checked_lengths(xs, lengths), context, how=how)


# The jitted functions below are what a call outside of any `jit` compiles, once per shape.
@functools.partial(jax.jit, static_argnames=("cell", "how"))
def _run_one(
    cell: Cell, params: Params, xs: Inputs, state: State, lengths: Array | None, context: Context, *, how: _How
) -> UnrolledHistory:
    xs = jax.tree.map(_swap_batch_and_time, xs)
    direction = checked_direction(cell, params, xs, state, context, how.reverse, where="")
    state = direction.state
    (done,) = _run_layer(cell, [direction], lengths, how)
    outputs = jax.tree.map(_swap_batch_and_time, done.outputs)
    if not how.options.history:
        return UnrolledHistory(outputs, done.state, None)
    order = slice(None, None, -1 if how.reverse else 1)
    states = jax.tree.map(
        lambda first, rest: _swap_batch_and_time(jnp.concatenate([first[None], rest][order])), state, done.states
    )
    return UnrolledHistory(outputs, done.state, states)


@functools.partial(jax.jit, static_argnames=("cell", "reverse", "newton"))
def _run_in_parallel(
    cell: Cell,
    params: Params,
    xs: Inputs,
    state: State,
    lengths: Array | None,
    context: Context,
    *,
    reverse: bool,
    newton: Newton,
) -> UnrolledInParallel:
    xs = jax.tree.map(_swap_batch_and_time, xs)
    direction = checked_direction(cell, params, xs, state, context, reverse, where="")
    if reason := parallel.why_not(cell, [direction], lengths, Options()):
        raise ValueError(f"backend: parallel does not apply: {reason}")
    with scope("parallel"):
        done, solved = parallel.solved(cell, direction, lengths, Options(), newton)
    return UnrolledInParallel(jax.tree.map(_swap_batch_and_time, done.outputs), done.state, solved)


@functools.partial(jax.jit, static_argnames=("cells", "directions", "merge", "residual", "how"))
def _run_stack(
    cells: tuple[Cell, ...],
    params: Any,
    xs: Inputs,
    states: Any,
    lengths: Array | None,
    contexts: Any,
    dropout_masks: tuple[Array | None, ...],
    *,
    directions: tuple[str, ...],
    merge: str,
    residual: bool,
    how: _How,
) -> Unrolled:
    apart = merge == "none" and len(directions) > 1
    xs = jax.tree.map(_swap_batch_and_time, xs)
    inputs = [xs] * len(directions)
    final = []
    for layer, (cell, mask) in enumerate(zip(cells, dropout_masks, strict=True)):
        dropped = [_scaled(x, mask, lengths, layer) for x in inputs]
        given = zip(params[layer], dropped, states[layer], contexts[layer], directions, strict=True)
        ran = _run_layer(
            cell,
            [
                checked_direction(cell, p, x, state, context, direction == "backward", where=f"[{layer}][{d}]")
                for d, (p, x, state, context, direction) in enumerate(given)
            ],
            lengths,
            how,
        )
        final.append(tuple(done.state for done in ran))
        outputs = [done.outputs for done in ran] if apart else [_merged([done.outputs for done in ran], merge)]
        if residual and layer > 0:
            outputs = [_with_residual(y, x, layer) for y, x in zip(outputs, inputs, strict=False)]
        inputs = outputs if apart else outputs * len(directions)
    outputs = jax.tree.map(lambda *ys: jnp.stack(ys, axis=2), *inputs) if apart else inputs[0]
    return Unrolled(jax.tree.map(_swap_batch_and_time, outputs), tuple(final))


def _run_layer(cell: Cell, directions: list[Direction], lengths: Array | None, how: _How) -> list[TimeMajor]:
    name = choose(cell, directions, lengths, how.options, how.backend, how.forced)
    with scope(name):
        return BACKENDS[name].run(cell, directions, lengths, how.options)


def _with_residual(y: Any, x: Any, layer: int) -> Any:
    sizes = [[leaf.shape[-1] for leaf in jax.tree.leaves(tree)] for tree in (x, y)]
    if jax.tree.structure(x) != jax.tree.structure(y) or sizes[0] != sizes[1]:
        raise ValueError(
            f"residual: layer {layer} has {_listed(sizes[0])} features in and {_listed(sizes[1])} out; they must be equal"
        )
    return jax.tree.map(jnp.add, y, x)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _merged(outputs: list[Any], merge: str) -> Any:
    if len(outputs) == 1:
        return outputs[0]
    return jax.tree.map(functools.partial(_merged_arrays, merge), *outputs)


def _merged_arrays(merge: str, forward: Array, backward: Array) -> Array:
    if merge == "concat":
        return jnp.concatenate([forward, backward], axis=-1)
    if merge == "product":
        return forward * backward
    total = forward + backward
    return total / 2 if merge == "mean" else total


def _scaled(xs: Inputs, mask: Array | None, lengths: Array | None, layer: int) -> Inputs:
    if mask is None:
        return xs
    time, batch_size, features = xs.shape
    if mask.shape not in ((batch_size, time, features), (batch_size, 1, features)):
        wanted = f"[{batch_size}, {time} or 1, {features}]"
        raise ValueError(f"dropout_masks[{layer}]: expected {wanted}, got {mask.shape}")
    if lengths is not None:  # NaN in the padding must not reach the gradient of the mask either
        xs = where_valid((jnp.arange(time)[:, None] < lengths), xs, jnp.zeros((), xs.dtype))
    return (xs * _swap_batch_and_time(mask)).astype(xs.dtype)


def _swap_batch_and_time(x: Array) -> Array:
    return jnp.swapaxes(x, 0, 1)
