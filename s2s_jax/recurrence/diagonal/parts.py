"""A sequence in parts, one after the other, so that what is between two products stays in the caches of a CPU."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from s2s_jax.recurrence.backend import default_platform

_NUMBERS = 2**18  # a megabyte of float32
_MOST_WEIGHTS = 2**20


class Part(NamedTuple):
    """How many steps of a part are valid in each row, an array of no elements for all; and a mask of them, None for all."""

    lengths: Int[Array, " B"]
    valid: Bool[Array, "T B 1"] | None

    def zeroed(self, x: Float[Array, "T B F"]) -> Float[Array, "T B F"]:
        return x if self.valid is None else jnp.where(self.valid, x, 0)


def steps_of_each(time: int, batch_size: int, into: Float[Array, "D F"]) -> int:
    """How many steps a part has, of a sequence whose inputs are multiplied by a matrix; one part is all but on a CPU.

    As many as give `_NUMBERS` products, but no fewer than make up for adding to the matrix's gradient once a part, and all
    where that gradient has no place in the caches itself.
    """
    features, numbers = into.shape
    if default_platform() != "cpu" or features * numbers > _MOST_WEIGHTS:
        return max(1, time)
    rows = max(_NUMBERS // max(1, numbers), features)
    return max(1, min(time, rows // max(1, batch_size)))


def one_after_the_other(
    step: Callable[..., tuple[Any, Any]],
    carry: Any,
    arrays: tuple[Float[Array, "T B F"], ...],
    lengths: Int[Array, " B"] | None,
    size: int,
    *,
    back: bool,
    of_parts: list[Any] | None = None,
) -> tuple[Any, list[Any]]:
    """`step(carry, part, *arrays of the part)` for one part of `size` steps after the other, from the last on if `back`.

    Args:
      step: returns the next carry, and what it has done.
      of_parts: what such a pass returned; `step` gets what was done for its part as one more argument.

    Returns:
      The last carry, and what was done, in the order of time: a pytree with leaves [parts, ...] for all parts of that size,
      and one with leaves [1, ...] for the steps that are left over, if there are any.
    """
    time = arrays[0].shape[0]
    whole = time - time % size
    cuts = [cut for cut in (slice(0, whole), slice(whole, time)) if cut.start < cut.stop] or [slice(0, 0)]
    done: list[Any] = [None] * len(cuts)

    def of_part(carry: Any, at: Any) -> tuple[Any, Any]:
        start, arrays, *rest = at
        steps = arrays[0].shape[0]
        part = Part(jnp.zeros((0,), jnp.int32), None)
        if lengths is not None:
            within = jnp.clip(lengths.astype(jnp.int32) - start, 0, steps)
            part = Part(within, (jnp.arange(steps, dtype=jnp.int32)[:, None] < within[None])[..., None])
        return step(carry, part, *arrays, *rest)

    for k in reversed(range(len(cuts))) if back else range(len(cuts)):
        steps = min(size, cuts[k].stop - cuts[k].start)
        starts = jnp.arange(cuts[k].start, max(cuts[k].stop, 1), max(steps, 1), dtype=jnp.int32)
        folded = tuple(x[cuts[k]].reshape(len(starts), steps, *x.shape[1:]) for x in arrays)
        rest = () if of_parts is None else (of_parts[k],)
        if len(starts) == 1:
            carry, only = of_part(carry, jax.tree.map(lambda leaf: leaf[0], (starts, folded, *rest)))
            done[k] = jax.tree.map(lambda leaf: leaf[None], only)
        else:
            carry, done[k] = jax.lax.scan(of_part, carry, (starts, folded, *rest), reverse=back)
    return carry, done


def joined(done: list[Float[Array, "parts steps B F"]]) -> Float[Array, "T B F"]:
    """Sequences of the parts as one."""
    flat = [x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]) for x in done]
    return flat[0] if len(flat) == 1 else jnp.concatenate(flat)
