"""What `unroll` and its siblings demand of their arguments, with an error that names what was expected."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from s2s_jax.cells import is_built_in
from s2s_jax.masks import check_lengths
from s2s_jax.recurrence import scan
from s2s_jax.recurrence.backend import Direction
from s2s_jax.sharding import batch_split_as
from s2s_jax.types import Cell, Context, Inputs, Params, State


def check_cell(cell: Any) -> None:
    if not isinstance(cell, Cell):
        raise TypeError(f"cell: expected a Cell such as s2s_jax.cells.lstm, got {cell!r}")


def checked_lengths(xs: Inputs, lengths: Array | None) -> Array | None:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(xs)]
    if not shapes or any(len(shape) < 2 or shape[:2] != shapes[0][:2] for shape in shapes):
        raise ValueError(f"xs: expected leaves [B, T, ...] that agree on B and T, got {shapes}")
    for leaf in jax.tree.leaves(xs):
        try:
            jax.typeof(leaf)
        except TypeError as error:  # which a compiled function would say at length
            got = f"{type(leaf).__module__}.{type(leaf).__qualname__} of {getattr(leaf, 'dtype', 'no dtype')}"
            raise TypeError(f"xs: expected arrays of JAX or NumPy in dtypes that JAX has, got {got}") from error
    batch_size, time = shapes[0][:2]
    return None if lengths is None else check_lengths(lengths, batch_size, time)


def checked_direction(
    cell: Cell, params: Params, xs: Inputs, state: State, context: Context, reverse: bool, where: str
) -> Direction:
    """Checks what one direction of a layer is given, and fills in the initial state."""
    time, batch_size = jax.tree.leaves(xs)[0].shape[:2]
    if is_built_in(cell.spec) and (not hasattr(xs, "ndim") or xs.ndim != 3):
        raise ValueError(f"xs: expected [B, T, D], got {jax.tree.map(lambda x: (batch_size, time, *x.shape[2:]), xs)}")
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    if len(dtypes) > 1:
        raise TypeError(f"params{where}: expected one floating dtype, got {', '.join(sorted(dtypes))}")
    if is_built_in(cell.spec):
        _check_builtin(cell, params, context, xs.shape[-1], batch_size, where)
    for leaf in jax.tree.leaves(context):
        if leaf.ndim < 1 or leaf.shape[0] != batch_size:
            raise ValueError(f"context{where}: expected leaves with a leading batch axis of {batch_size}, got {leaf.shape}")
    dtype = jnp.promote_types(scan.compute_dtype(xs, params), jnp.float32)
    if state is None:
        state = batch_split_as(cell.initial_state(params, batch_size, dtype), xs, axis=1)
        for leaf in jax.tree.leaves(state):
            if jnp.shape(leaf)[:1] != (batch_size,):
                raise ValueError(f"cell.initial_state: expected leaves [{batch_size}, ...], got {_described(state)}")
    else:
        expected = jax.eval_shape(lambda params: cell.initial_state(params, batch_size, dtype), params)
        _check_state(state, expected, where)
    return Direction(params, xs, state, context, reverse)


def _check_builtin(cell: Cell, params: Params, context: Context, in_features: int, batch_size: int, where: str) -> None:
    """A cell of this package knows what its parameters and its context look like."""
    spec: Any = cell.spec
    w: Any = getattr(params, "w", None)
    if getattr(w, "ndim", 0) != 2 or in_features != w.shape[0]:
        if getattr(w, "ndim", 0) == 2:
            raise ValueError(f"xs: expected {w.shape[0]} features (the rows of params{where}.w), got {in_features}")
        raise ValueError(f"params{where}: expected what init of a cell with {spec} gives, got {_described(params)}")
    hidden_features = w.shape[1] // spec.gates
    expected = jax.eval_shape(lambda key: cell.init(key, in_features, hidden_features), jax.random.key(0))
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (expected, params)]
    if type(expected) is not type(params):  # whose sizes say nothing about those that are expected
        raise ValueError(f"params{where}: expected the {type(expected).__name__} that init of this cell gives, got {shapes[1]}")
    if jax.tree.structure(expected) != jax.tree.structure(params) or shapes[0] != shapes[1]:
        raise ValueError(f"params{where}: expected {shapes[0]}, got {shapes[1]}")
    if context is None:
        return
    mask_shape = jax.tree.leaves(jax.eval_shape(lambda p: cell.initial_state(p, batch_size, jnp.float32), params))[0].shape
    if jnp.shape(context) != mask_shape:
        raise ValueError(f"context{where}: expected None or a recurrent dropout mask {mask_shape}, got {_described(context)}")


def _check_state(state: State, expected: State, where: str) -> None:
    if jax.tree.structure(state) != jax.tree.structure(expected):
        plain = type(state) is tuple and type(expected) is not tuple and isinstance(expected, tuple)
        why = (
            f"; a plain tuple is not taken for an {type(expected).__name__}: not all mean the same order by it" if plain else ""
        )
        raise ValueError(f"state{where}: expected {_described(expected)}, got {_described(state)}{why}")
    paths = jax.tree.leaves_with_path(expected)
    for (path, want), leaf in zip(paths, jax.tree.leaves(state), strict=True):
        name = f"state{where}{jax.tree_util.keystr(path)}"
        if leaf.shape != want.shape:
            raise ValueError(f"{name}: expected shape {want.shape}, got {leaf.shape}")
        if leaf.dtype != want.dtype:
            raise TypeError(f"{name}: expected dtype {want.dtype}, got {leaf.dtype}")


def _described(tree: Any) -> str:
    """A pytree with dtype and shape in place of each array."""
    return str(jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree)).replace("'", "")
