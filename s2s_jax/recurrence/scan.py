"""Backend `scan`: any cell along time by `jax.lax.scan`. The reference that every other backend is held against."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from s2s_jax.masks import where_valid
from s2s_jax.recurrence.backend import Backend, Direction, Options, TimeMajor, one_by_one
from s2s_jax.sharding import varying_as
from s2s_jax.types import Cell, Inputs, Params, State


def run(cell: Cell, direction: Direction, lengths: Array | None, options: Options) -> TimeMajor:
    """Carries `cell` along time; `lengths` int32 [B] within 0..T."""
    params, xs, state, context, reverse = direction
    remat = options.remat
    time = jax.tree.leaves(xs)[0].shape[0]
    dtype = compute_dtype(xs, params)

    def advance(state: State, at: tuple[Array, Any]) -> tuple[State, Any]:
        t, x = at
        # Cast here and not before the loop: the gradients of all steps then add up in the dtype of the parameters.
        cast = cast_floating(params, dtype)
        valid = None if lengths is None else t < lengths
        if valid is not None:
            # Zeroed, and not only selected away behind the step: NaN * 0 in the gradient of a select is NaN.
            x = jax.tree.map(lambda leaf: where_valid(valid, leaf, jnp.zeros((), leaf.dtype)), x)
        # The input product stays inside the loop: [T, B, 4H] at once would be the largest array of the pass.
        new, y = check_step(cell.step(cast, state, cell.project(cast, x), context), state)
        new = jax.tree.map(lambda a, b: a.astype(b.dtype), new, state)
        y = cast_floating(y, dtype)
        if valid is not None:
            new = jax.tree.map(lambda a, b: where_valid(valid, a, b), new, state)
            y = jax.tree.map(lambda leaf: where_valid(valid, leaf, jnp.zeros((), leaf.dtype)), y)
        return new, (y, new if options.history else None)

    at = (jnp.arange(time, dtype=jnp.int32), xs)
    state = varying_as(state, (params, xs, lengths, context))
    if time == 1:  # streaming: no loop to set up
        state, emitted = advance(state, jax.tree.map(lambda leaf: leaf[0], at))
        emitted = jax.tree.map(lambda leaf: leaf[None], emitted)
    elif remat is None or remat >= time:
        state, emitted = jax.lax.scan(advance, state, at, reverse=reverse)
    else:
        state, emitted = _scan_in_chunks(advance, state, at, remat, reverse)
    return TimeMajor(emitted[0], state, emitted[1])


def check_step(returned: Any, state: State) -> tuple[State, Any]:
    """What a cell's step returned, if it can be carried on from `state`; a cell of a user's own may get that wrong."""
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise TypeError(f"cell.step: expected a tuple of two, (state, y), got {_shapes(returned)}")
    new, y = returned
    leaves, before = jax.tree.leaves(new), jax.tree.leaves(state)
    if jax.tree.structure(new) != jax.tree.structure(state) or list(map(jnp.shape, leaves)) != list(map(jnp.shape, before)):
        raise ValueError(f"cell.step: expected a state of {_shapes(state)} as it was given, got {_shapes(new)}")
    for leaf, given in zip(leaves, before, strict=True):
        # A floating state is cast to its dtype; anything else would be cut off.
        floating = jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.issubdtype(given.dtype, jnp.floating)
        if leaf.dtype != given.dtype and not floating:
            raise TypeError(f"cell.step: expected a state of {given.dtype} as it was given, got {leaf.dtype}")
    batch_sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves((new, y))}
    if len(batch_sizes) > 1 or () in batch_sizes:
        raise ValueError(
            f"cell.step: expected state and y with the same leading batch axis, got {_shapes(new)} and {_shapes(y)}"
        )
    return new, y


def _shapes(tree: Any) -> Any:
    """The shape of an array, or those of the arrays of a pytree by their path."""
    named = {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return named[""] if list(named) == [""] else named


def _scan_in_chunks(advance: Any, state: State, at: Any, size: int, reverse: bool) -> tuple[State, Any]:
    """A scan of scans that keeps the state at the start of each chunk only, and recomputes the chunk in the backward pass."""

    @jax.checkpoint
    def chunk(state: State, at: Any) -> tuple[State, Any]:
        return jax.lax.scan(advance, state, at, reverse=reverse)

    time = jax.tree.leaves(at)[0].shape[0]
    whole = time // size * size
    body = jax.tree.map(lambda leaf: leaf[:whole].reshape(whole // size, size, *leaf.shape[1:]), at)
    rest = jax.tree.map(lambda leaf: leaf[whole:], at)
    if reverse:
        state, last = chunk(state, rest)
        state, first = jax.lax.scan(chunk, state, body, reverse=True)
    else:
        state, first = jax.lax.scan(chunk, state, body)
        state, last = chunk(state, rest)
    first = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), first)
    return state, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, last)


def compute_dtype(xs: Inputs, params: Params) -> Any:
    """The floating dtype of the input; where it has none (token ids), that of the parameters."""
    for tree in (xs, params):
        for leaf in jax.tree.leaves(tree):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                return leaf.dtype
    return jnp.dtype(jnp.float32)


def cast_floating(tree: Any, dtype: Any) -> Any:
    """Every floating leaf in `dtype`, the others as they are."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)


BACKEND = Backend(one_by_one(run), lambda *_: None)
