"""Layers and directions of cells along time: `unroll_stack`."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from s2s_jax.cells import LSTMSpec
from s2s_jax.masks import where_valid
from s2s_jax.recurrence.backend import Direction, Options, swap_batch_and_time
from s2s_jax.recurrence.checks import check_cell, checked_direction, checked_lengths
from s2s_jax.recurrence.choice import BACKENDS, How, choose, how, run_layer, scope
from s2s_jax.types import Cell, Context, Inputs, Params, State, Unrolled

DIRECTIONS = ("forward", "backward")
MERGES = ("concat", "sum", "mean", "product", "none")


class _Layer(NamedTuple):
    """A cell, and of each direction what it is given."""

    cell: Cell
    params: Sequence[Params]
    states: Sequence[State]
    contexts: Sequence[Context]

    def checked(self, inputs: Sequence[Inputs], directions: tuple[str, ...], at: int) -> list[Direction]:
        """With what each direction reads; `at` is the number of the layer."""
        given = zip(self.params, inputs, self.states, self.contexts, directions, strict=True)
        return [
            checked_direction(self.cell, params, xs, state, context, direction == "backward", where=f"[{at}][{d}]")
            for d, (params, xs, state, context, direction) in enumerate(given)
        ]


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
        how=how(backend, Options(remat)),
    )


def _example(cell: Cell) -> str:
    """What the states of one layer in one direction look like."""
    state = "LSTMState(h, c)" if isinstance(cell.spec, LSTMSpec) else "state"
    return f"; of one layer and direction it is (({state},),)"


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
    how: How,
) -> Unrolled:
    layers = [_Layer(*of_layer) for of_layer in zip(cells, params, states, contexts, strict=True)]
    xs = swap_batch_and_time(xs)
    nothing_between = not residual and (merge == "concat" or len(directions) == 1)
    if len(layers) > 1 and nothing_between and all(mask is None for mask in dropout_masks[1:]):
        done = _run_at_once(layers, _scaled(xs, dropout_masks[0], lengths, 0), lengths, directions, how)
        if done is not None:
            return done
    apart = merge == "none" and len(directions) > 1
    inputs = [xs] * (len(directions) if apart else 1)
    final = []
    for k, (layer, mask) in enumerate(zip(layers, dropout_masks, strict=True)):
        dropped = [_scaled(x, mask, lengths, k) for x in inputs]
        checked = layer.checked(dropped if apart else dropped * len(directions), directions, k)
        ran = run_layer(layer.cell, checked, lengths, how)
        final.append(tuple(done.state for done in ran))
        outputs = [done.outputs for done in ran] if apart else [_merged([done.outputs for done in ran], merge)]
        if residual and k > 0:
            outputs = [_with_residual(y, x, k) for y, x in zip(outputs, inputs, strict=True)]
        inputs = outputs
    outputs = jax.tree.map(lambda *ys: jnp.stack(ys, axis=2), *inputs) if apart else inputs[0]
    return Unrolled(swap_batch_and_time(outputs), tuple(final))


def _run_at_once(
    layers: Sequence[_Layer], xs: Inputs, lengths: Array | None, directions: tuple[str, ...], how: How
) -> Unrolled | None:
    """All layers in one call of a backend, or None where it has no such call, or not for these."""
    checked = [layers[0].checked([xs] * len(directions), directions, 0)]
    name = choose(layers[0].cell, checked[0], lengths, how)
    stack = BACKENDS[name].stack
    if stack is None:
        return None
    for below, layer in itertools.pairwise(layers):
        widths = [features for params in below.params if (features := stack.features(below.cell, params)) is not None]
        if len(widths) < len(directions):
            return None
        # In the place of what the layer below gives: only its type is looked at.
        read = jnp.broadcast_to(jnp.sum(xs, axis=-1, keepdims=True, dtype=xs.dtype), (*xs.shape[:2], sum(widths)))
        checked.append(layer.checked([read] * len(directions), directions, len(checked)))
    given = [layer.cell for layer in layers], checked, lengths, how.options
    if stack.why_not(*given) is not None:
        return None
    with scope(name):
        outputs, states = stack.run(*given)
    return Unrolled(swap_batch_and_time(outputs), states)


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
    return (xs * swap_batch_and_time(mask)).astype(xs.dtype)
