"""The two passes as calls of XLA, with the arrays of pass.h; under `vmap` they are one call over more rows."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from s2s_jax.recurrence.batching import over_rows
from s2s_jax.recurrence.diagonal import build


class Kind(NamedTuple):
    """A cell as cells.h knows it: its number there, sizes, activation, and whether its way back reads z."""

    number: int
    gates: int
    outputs: int
    states: int
    relu: bool = False
    pull_reads_z: bool = True


class Call(NamedTuple):
    """The two calls, whose arrays are those of pass.h."""

    kind: Kind
    reverse: bool

    def forward(
        self,
        lengths: Int[Array, " B"],
        z: Float[Array, "T B gates*H"],
        w: Float[Array, "rows H"],
        first: Float[Array, "states B H"],
        dtype: Any,
        keep: bool,
    ) -> tuple[Array, Array, Array]:
        """Outputs y [T, B, outputs * H] in a dtype, the last state [states, B, H], and c [T, B, H] where it is kept."""
        outputs, states = self.kind.outputs, self.kind.states

        def run(lengths: Array, z: Array, w: Array, first: Array) -> list[Array]:
            time, batch, hidden = *z.shape[:2], first.shape[-1]
            shapes = [
                jax.ShapeDtypeStruct((time, batch, outputs * hidden), dtype),
                jax.ShapeDtypeStruct(first.shape, jnp.float32),
                jax.ShapeDtypeStruct((time, batch, hidden) if keep and states > outputs else (0,), jnp.float32),
            ]
            return self._ffi("forward", shapes, lengths, z, w, first)

        return tuple(over_rows(run, (0, 1, None, 1), (1, 1, 1))(lengths, z, w, first))

    def backward(
        self, lengths: Array, z: Array, w: Array, first: Array, y: Array, c: Array, dy: Array, d_last: Array
    ) -> tuple[Array, Array, Array]:
        """Gradients of z, in the dtype of y, of the first state, and of w for each row, [B, rows, H].

        z may be of no elements where the cell does not read it.
        """

        def run(lengths: Array, z: Array, w: Array, first: Array, y: Array, *rest: Array) -> list[Array]:
            time, batch, hidden = *y.shape[:2], first.shape[-1]
            shapes = [
                jax.ShapeDtypeStruct((time, batch, self.kind.gates * hidden), y.dtype),
                jax.ShapeDtypeStruct(first.shape, jnp.float32),
                jax.ShapeDtypeStruct((batch, *w.shape), jnp.float32),
            ]
            return self._ffi("backward", shapes, lengths, z, w, first, y, *rest)

        rows = (0, 1, None, 1, 1, 1, 1, 1), (1, 1, 0)
        return tuple(over_rows(run, *rows)(lengths, z, w, first, y, c, dy, d_last))

    def _ffi(self, way: str, shapes: list[Any], *operands: Array) -> list[Array]:
        call = jax.ffi.ffi_call(build.target(way), shapes)
        return list(call(*operands, cell=self.kind.number, relu=self.kind.relu, reverse=self.reverse))
