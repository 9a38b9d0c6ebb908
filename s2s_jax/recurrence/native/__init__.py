"""Backend `native`: a layer's whole sequence in one call of C++, forward and backward, on a CPU, in float32.

- forward.h, backward.h: the passes, on threads that XLA lends (team.h) and memory that is kept (memory.h)
- layer.h: sizes, rows in the order of their lengths, weights in panels
- product.h, simd.h: matrix products in registers, gate functions
- ffi.cc: the two calls that XLA makes
- build.py: compiles all that, once for each machine
- calls.py: the calls as JAX primitives with their derivatives
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from s2s_jax.recurrence import scan
from s2s_jax.recurrence.backend import Backend, Direction, Options, TimeMajor, default_platform
from s2s_jax.recurrence.native import build, calls
from s2s_jax.types import Cell


def run(cell: Cell, directions: Sequence[Direction], lengths: Array | None, options: Options) -> list[TimeMajor]:
    """Both directions of a layer in one call; see `Backend`. On a mesh it is the backend `scan` that runs.

    Where rows and steps are few for so many weights, derivatives are those of the backend `fused`: see calls.py.
    """
    if on_a_mesh(directions, lengths):
        return scan.BACKEND.run(cell, directions, lengths, options)
    arguments = calls.Arguments(
        tuple(scan.cast_floating(d.params, jnp.dtype(jnp.float32)) for d in directions),
        tuple(jnp.swapaxes(d.xs, 0, 1) for d in directions),  # XLA takes it out against the one that the door has put in
        tuple(d.state for d in directions),
    )
    done = calls.forward(cell, [d.reverse for d in directions], arguments, lengths)
    return [TimeMajor(jnp.swapaxes(y, 0, 1), state) for y, state in zip(*done, strict=True)]


def why_not(cell: Cell, directions: Sequence[Direction], lengths: Array | None, options: Options) -> str | None:
    """Why there is no native code for these arguments, or on this machine; builds it if there is."""
    return why_not_these(cell, directions, options) or build.load().why_not


def why_not_these(cell: Cell, directions: Sequence[Direction], options: Options) -> str | None:
    """Why there is no native code for these arguments; builds nothing."""
    if calls.kind(cell.spec) is None:
        return "the cell is not a plain RNN (tanh or relu), LSTM or GRU of s2s_jax.cells"
    for d in directions:
        dtypes = {leaf.dtype.name for leaf in jax.tree.leaves((d.params, d.xs, d.state))}
        if d.xs.dtype != jnp.float32 or "float64" in dtypes:
            return f"it computes in float32, and the arrays are of {', '.join(sorted(dtypes))}"
        if d.context is not None:
            return "there is a recurrent dropout mask"
        if d.xs.shape != directions[0].xs.shape or d.params.u.shape != directions[0].params.u.shape:
            return "the directions differ in size"
    if options.history:
        return "all states are asked for"
    if options.remat is not None:
        return "remat is asked for"
    if default_platform() != "cpu":
        return f"it runs on a CPU, and the default device is of platform {default_platform()!r}"
    return None


def reads_in_place(directions: Sequence[Direction]) -> bool:
    """Whether the forward pass reads the weights where they are, on any CPU, instead of arranging them: see forward.h."""
    time, batch_size = directions[0].xs.shape[:2]
    return time <= 2 and batch_size <= 4 and directions[0].params.u.shape[0] % 32 == 0


def on_a_mesh(directions: Sequence[Direction], lengths: Array | None) -> bool:
    """Whether the types of the arrays name axes of a mesh, inside `shard_map` or where splits are explicit."""
    types = [jax.typeof(leaf) for leaf in jax.tree.leaves(([d[:-1] for d in directions], lengths))]  # all but `reverse`
    return any(of_leaf.manual_axis_type.varying or any(of_leaf.sharding.spec) for of_leaf in types)


BACKEND = Backend(run, why_not)
