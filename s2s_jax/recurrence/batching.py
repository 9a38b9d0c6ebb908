"""`vmap` over calls that know rows of a batch, and no further axes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array


def over_rows(run: Callable[..., list[Array]], rows: Sequence[int | None], made: Sequence[int]) -> Callable[..., Any]:
    """`run`, for which `vmap` makes more rows of one call, but one call after the other where parameters are mapped.

    Args:
      run: takes and gives arrays.
      rows: of each operand the axis of the batch, None for parameters; an operand that does not apply has the shape [0].
      made: of each result the axis of the batch; or it has the shape [0].
    """
    batched = custom_vmap(run)

    @batched.def_vmap
    def mapped(size: int, is_mapped: Sequence[bool], *operands: Array) -> tuple[Any, list[bool]]:
        results = [True] * len(made)
        if any(of for of, axis in zip(is_mapped, rows, strict=True) if axis is None):
            spread = [x if of else jnp.broadcast_to(x, (size, *x.shape)) for x, of in zip(operands, is_mapped, strict=True)]
            return jax.lax.map(lambda each: batched(*each), spread), results

        def folded(x: Array, of: bool, axis: int | None) -> Array:
            if axis is None:
                return x
            x = x if of else jnp.broadcast_to(x, (size, *x.shape))
            if x.ndim == 2 and axis == 1:  # it does not apply
                return x[0]
            x = jnp.moveaxis(x, 0, axis)
            return x.reshape(*x.shape[:axis], size * x.shape[axis + 1], *x.shape[axis + 2 :])

        def unfolded(x: Array, axis: int) -> Array:
            if x.ndim == 1:
                return jnp.broadcast_to(x, (size, *x.shape))
            x = x.reshape(*x.shape[:axis], size, x.shape[axis] // size, *x.shape[axis + 1 :])
            return jnp.moveaxis(x, axis, 0)

        done = batched(*(folded(x, of, axis) for x, of, axis in zip(operands, is_mapped, rows, strict=True)))
        return [unfolded(x, axis) for x, axis in zip(done, made, strict=True)], results

    return batched
