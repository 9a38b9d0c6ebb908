"""The two passes as calls of XLA: the arrays that they take and give, in the order of ffi.cc."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from s2s_jax.recurrence.persistent import build, plan
from s2s_jax.types import LSTMState


class Call(NamedTuple):
    """What is fixed when a program is compiled.

    Attributes:
      cell: one of `build.CELLS`; of the stacked ones each chain is a layer, of the others a direction.
      relu: whether the activation is relu and not tanh.
      saved: numbers of a unit and step that are kept for the way back.
      reversed: of each chain.
      device: what the layers are divided for.
    """

    cell: str
    relu: bool
    saved: int
    reversed: tuple[bool, ...]
    device: plan.Device

    @property
    def stacked(self) -> bool:
        return self.cell.startswith("Stacked")


class Forward(NamedTuple):
    """Of one chain; `saved` and `c` are empty where no way back follows, `c` also for a cell without memory cells."""

    outputs: Float[Array, "T B H"]
    state: Any
    saved: Float[Array, "T B saved*H"]
    c: Float[Array, "T B H"]


class Backward(NamedTuple):
    """Of one chain: gradients of z and of the first state."""

    dz: Float[Array, "T B gates*H"]
    d_state: Any


def layer(u: Any, xs: Any, directions: int) -> plan.Layer:
    """How `plan` sees a layer of recurrent weights `u` [H, gates * H] that reads or gives a sequence like `xs`, [T, B, ...]."""
    return plan.Layer(u.shape[1] // u.shape[0], u.shape[0], xs.shape[1], directions, xs.dtype.itemsize)


def forward(
    call: Call,
    zs: Sequence[Float[Array, "T B gates*H"] | Float[Array, " gates*H"]],
    ws: Sequence[Float[Array, "H gates*H"] | None],
    us: Sequence[Float[Array, "H gates*H"]],
    b_ns: Sequence[Float[Array, " H"] | None],
    states: Sequence[Any],
    lengths: Int[Array, " B"] | None,
    keep: bool,
) -> list[Forward]:
    """All chains along time; z, biases and states in float32, weights and outputs in theirs.

    Of a layer of a stack above another z is its biases alone, and only such a one has a `w`.
    """
    time, batch, _ = zs[0].shape
    hidden, dtype = us[0].shape[0], us[0].dtype
    operands, shapes = [_or_nothing(lengths, jnp.int32)], []
    for z, w, u, b_n, state in zip(zs, ws, us, b_ns, states, strict=True):
        operands += [z, _or_nothing(w, dtype), u, _or_nothing(b_n), *_both(state)]
        of_state = jax.ShapeDtypeStruct((batch, hidden), jnp.float32)
        memory = isinstance(state, LSTMState)
        shapes += [
            jax.ShapeDtypeStruct((time, batch, hidden), dtype),
            of_state,
            of_state if memory else _NOTHING,
            jax.ShapeDtypeStruct((time, batch, call.saved * hidden) if keep and call.saved else (0,), dtype),
            jax.ShapeDtypeStruct((time, batch, hidden) if keep and memory else (0,), jnp.float32),
        ]
    outs = _ffi_call("forward", call, us[0], shapes[0], operands, shapes)
    found = []
    for d, state in enumerate(states):
        y, h, c_last, saved, c = outs[5 * d : 5 * d + 5]
        found.append(Forward(y, _state(state, h, c_last), saved, c))
    return found


def backward(
    call: Call,
    ws: Sequence[Float[Array, "H gates*H"] | None],
    us: Sequence[Float[Array, "H gates*H"]],
    states: Sequence[Any],
    done: Sequence[Forward],
    cotangents: Sequence[tuple[Float[Array, "T B H"] | None, Any]],
    lengths: Int[Array, " B"] | None,
) -> list[Backward]:
    """The way back through what `forward` did, for the cotangents of outputs and last state.

    `ws`: of each layer of a stack that of the layer above it, which alone reads its outputs; these have no cotangent then.
    """
    time, batch, hidden = done[0].outputs.shape
    operands, shapes = [_or_nothing(lengths, jnp.int32)], []
    for w, u, state, did, (d_outputs, d_state) in zip(ws, us, states, done, cotangents, strict=True):
        operands += [_or_nothing(w, u.dtype), u, *_both(state), did.outputs, did.saved, did.c]
        operands += [_or_nothing(d_outputs, u.dtype), *_both(d_state)]
        of_state = jax.ShapeDtypeStruct((batch, hidden), jnp.float32)
        shapes += [jax.ShapeDtypeStruct((time, batch, u.shape[1]), u.dtype)]
        shapes += [of_state, of_state if isinstance(state, LSTMState) else _NOTHING]
    outs = _ffi_call("backward", call, us[0], done[0].outputs, operands, shapes)
    return [Backward(outs[3 * d], _state(state, *outs[3 * d + 1 : 3 * d + 3])) for d, state in enumerate(states)]


def _ffi_call(way: str, call: Call, u: Array, outputs: Any, operands: list[Array], shapes: list[Any]) -> Sequence[Array]:
    chains, steps = len(call.reversed), outputs.shape[0]
    divided = plan.stack(layer(u, outputs, 1), chains, steps) if call.stacked else layer(u, outputs, chains)
    split = plan.best(divided, way, call.device)
    assert split is not None  # `why_not` has looked
    scratch = jax.ShapeDtypeStruct((plan.scratch_bytes(divided, way, split, call.device),), jnp.uint8)
    backward = sum(1 << d for d, reverse in enumerate(call.reversed) if reverse)
    attributes = {"relu": call.relu, "reversed": backward, "chains": len(call.reversed), **split._asdict()}
    run = jax.ffi.ffi_call(build.target(way, call.cell, u.dtype.name), [*shapes, scratch])
    return run(*operands, **{name: np.int64(value) for name, value in attributes.items()})


_NOTHING = jax.ShapeDtypeStruct((0,), jnp.float32)  # stands for an array that does not apply


def _or_nothing(array: Array | None, dtype: Any = jnp.float32) -> Array:
    return jnp.zeros((0,), dtype) if array is None else array.astype(dtype)


def _both(state: Any) -> tuple[Array, Array]:
    """`h` and `c` of a state; a cell without memory cells has nothing for the second."""
    return (state.h, state.c) if isinstance(state, LSTMState) else (state, _or_nothing(None))


def _state(like: Any, h: Array, c: Array) -> Any:
    return LSTMState(h, c) if isinstance(like, LSTMState) else h
