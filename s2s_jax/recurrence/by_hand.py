"""The plain RNN, LSTM and GRU differentiated by hand, a step at a time for the loop and all steps at once for the weights.

Forms of the cells in `s2s_jax.cells` that keep their gates. All is accumulated in at least float32.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from s2s_jax.cells import GRUSpec, LSTMSpec, RNNSpec
from s2s_jax.sharding import explicit_sharding
from s2s_jax.types import Cell, LSTMState, State


class Rules(NamedTuple):
    """One kind of cell by hand; `mask` is None or the recurrent dropout mask, and the output of a step is h of its state.

    Attributes:
      step: `(params, state, z, mask) -> (state, saved)`, the values of the cell's own step.
      pull: `(params, before, saved, mask, d_state) -> (d_before, dz)`, the transpose of the step at the state `before`.
      weights: `(params, before, saved, mask, dz) -> (d_params, d_mask)` for all steps at once, arguments [T, B, ...];
        `d_params` is without the share of the projection.
      blocks: `(params, before, saved, mask) -> [T, B, H, L, L]`, of all steps at once: the part of the step's Jacobian
        that is within a unit, between the L leaves of its state; without what comes back to it by way of other units.
    """

    step: Callable[..., Any]
    pull: Callable[..., Any]
    weights: Callable[..., Any]
    blocks: Callable[..., Any]


def hidden(state: State) -> Array:
    return state.h if isinstance(state, LSTMState) else state


def rules_of(cell: Cell) -> Rules | None:
    """Rules by hand for the plain cells with a named activation."""
    spec = cell.spec
    if getattr(spec, "recurrence", None) != "dense":
        return None
    if isinstance(spec, LSTMSpec):
        plain = spec.projection is None and not spec.peepholes and not spec.layer_norm
        return _lstm(spec.activation) if plain and isinstance(spec.activation, str) else None
    if isinstance(spec, GRUSpec) and isinstance(spec.activation, str):
        return (_gru_after if spec.reset == "after" else _gru_before)(spec.activation)
    if isinstance(spec, RNNSpec) and isinstance(spec.activation, str):
        return _rnn(spec.activation)
    return None


_ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    # The function, and its derivative as a function of its value.
    "tanh": (jnp.tanh, lambda y: 1 - y * y),
    "relu": (jax.nn.relu, lambda y: (y > 0).astype(y.dtype)),
}


def _times(x: Array, w: Array) -> Array:
    """`x w`, accumulated in at least float32."""
    return jnp.matmul(x.astype(w.dtype), w, preferred_element_type=_accumulator(w))


def times_transposed(x: Array, w: Array) -> Array:
    """`x w^T`, accumulated in at least float32."""
    return jnp.einsum("...j,ij->...i", x.astype(w.dtype), w, preferred_element_type=_accumulator(w))


def outer(x: Array, dz: Array, like: Array) -> Array:
    """`sum_tb x[t, b]^T dz[t, b]`: the gradient of a matrix like `like`, one product over T * B."""
    return jnp.einsum(
        "tbi,tbj->ij",
        x.astype(dz.dtype),
        dz,
        preferred_element_type=_accumulator(dz),
        out_sharding=explicit_sharding(like, dz),
    )


def total(dz: Array) -> Array:
    return jnp.sum(dz, axis=(0, 1), dtype=_accumulator(dz))


def gathered(
    rules: Rules, params: Any, xs: Array, befores: Any, saved: Any, mask: Array | None, dzs: Array
) -> tuple[Any, Array, Array | None]:
    """Gradients of parameters, inputs and mask from those of z, all steps at once; all but parameters and mask [T, B, ...]."""
    d_params, d_mask = rules.weights(params, befores, saved, mask, dzs)
    d_params = d_params._replace(w=outer(xs, dzs, params.w))
    if params.b is not None:
        d_params = d_params._replace(b=total(dzs))
    return d_params, times_transposed(dzs, params.w), d_mask


def _accumulator(x: Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


def _masked(h: Array, mask: Array | None) -> Array:
    """The mask [B, H] times one step, or all of [T, B, H]."""
    return h if mask is None else h * mask.reshape((1,) * (h.ndim - mask.ndim) + mask.shape)


def _diagonals(u: Array, mask: Array | None) -> list[Array]:
    """Of each gate's square block, times the mask: [H], or [B, H] with a mask, in at least float32."""
    blocks = jnp.split(u.astype(_accumulator(u)), u.shape[1] // u.shape[0], axis=1)
    return [_masked(jnp.diagonal(block), mask) if mask is not None else jnp.diagonal(block) for block in blocks]


@functools.cache
def _lstm(activation: str) -> Rules:
    function, slope = _ACTIVATIONS[activation]

    def step(params: Any, state: LSTMState, z: Array, mask: Array | None) -> tuple[LSTMState, Any]:
        i, f, g, o = jnp.split(z + _times(_masked(state.h, mask), params.u), 4, axis=-1)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), function(g), jax.nn.sigmoid(o)
        c = f * state.c + i * g
        return LSTMState(o * function(c), c), (i, f, g, o)

    def pull(params: Any, before: LSTMState, saved: Any, mask: Array | None, d: LSTMState) -> tuple[LSTMState, Array]:
        i, f, g, o = saved
        shown = function(f * before.c + i * g)
        dc = d.c + d.h * o * slope(shown)
        dz = [dc * g * i * (1 - i), dc * before.c * f * (1 - f), dc * i * slope(g), d.h * shown * o * (1 - o)]
        dz = jnp.concatenate(dz, axis=-1)
        return LSTMState(_masked(times_transposed(dz, params.u), mask), dc * f), dz

    def weights(params: Any, before: LSTMState, saved: Any, mask: Array | None, dz: Array) -> tuple[Any, Array | None]:
        d_mask = None if mask is None else _total_over_time(before.h * times_transposed(dz, params.u))
        return params._replace(u=outer(_masked(before.h, mask), dz, params.u)), d_mask

    def blocks(params: Any, before: LSTMState, saved: Any, mask: Array | None) -> Array:
        i, f, g, o = saved
        u_i, u_f, u_g, u_o = _diagonals(params.u, mask)
        shown = function(f * before.c + i * g)
        c_by_h = g * i * (1 - i) * u_i + before.c * f * (1 - f) * u_f + i * slope(g) * u_g
        h_by_c = o * slope(shown)
        rows = [[shown * o * (1 - o) * u_o + h_by_c * c_by_h, h_by_c * f], [c_by_h, f]]
        return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)

    return Rules(step, pull, weights, blocks)


@functools.cache
def _rnn(activation: str) -> Rules:
    function, slope = _ACTIVATIONS[activation]

    def step(params: Any, h: Array, z: Array, mask: Array | None) -> tuple[Array, Any]:
        h = function(z + _times(_masked(h, mask), params.u))
        return h, h

    def pull(params: Any, before: Array, after: Array, mask: Array | None, dh: Array) -> tuple[Array, Array]:
        dz = dh * slope(after)
        return _masked(times_transposed(dz, params.u), mask), dz

    def weights(params: Any, before: Array, after: Array, mask: Array | None, dz: Array) -> tuple[Any, Array | None]:
        d_mask = None if mask is None else _total_over_time(before * times_transposed(dz, params.u))
        return params._replace(u=outer(_masked(before, mask), dz, params.u)), d_mask

    def blocks(params: Any, before: Array, after: Array, mask: Array | None) -> Array:
        return (slope(after) * _diagonals(params.u, mask)[0])[..., None, None]

    return Rules(step, pull, weights, blocks)


@functools.cache
def _gru_after(activation: str) -> Rules:
    function, slope = _ACTIVATIONS[activation]

    def step(params: Any, h: Array, z: Array, mask: Array | None) -> tuple[Array, Any]:
        z_r, z_u, z_n = jnp.split(z, 3, axis=-1)
        r, update, inner = jnp.split(_times(_masked(h, mask), params.u), 3, axis=-1)
        if params.b_n is not None:
            inner = inner + params.b_n[None]
        r, update = jax.nn.sigmoid(z_r + r), jax.nn.sigmoid(z_u + update)
        n = function(z_n + r * inner)
        return (1 - update) * n + update * h, (r, update, n, inner)

    def pull(params: Any, before: Array, saved: Any, mask: Array | None, dh: Array) -> tuple[Array, Array]:
        r, update, n, inner = saved
        dn = dh * (1 - update) * slope(n)
        d_update = dh * (before - n) * update * (1 - update)
        dr = dn * inner * r * (1 - r)
        recurrent = times_transposed(jnp.concatenate([dr, d_update, dn * r], axis=-1), params.u)
        return dh * update + _masked(recurrent, mask), jnp.concatenate([dr, d_update, dn], axis=-1)

    def weights(params: Any, before: Array, saved: Any, mask: Array | None, dz: Array) -> tuple[Any, Array | None]:
        features = before.shape[-1]
        d_inner = (dz[..., 2 * features :] * saved[0]).astype(dz.dtype)
        d_recurrent = jnp.concatenate([dz[..., : 2 * features], d_inner], axis=-1)
        d_mask = None if mask is None else _total_over_time(before * times_transposed(d_recurrent, params.u))
        b_n = None if params.b_n is None else total(d_inner)
        return params._replace(u=outer(_masked(before, mask), d_recurrent, params.u), b_n=b_n), d_mask

    def blocks(params: Any, before: Array, saved: Any, mask: Array | None) -> Array:
        r, update, n, inner = saved
        u_r, u_z, u_n = _diagonals(params.u, mask)
        dn = slope(n) * (r * u_n + inner * r * (1 - r) * u_r)
        return (update + (before - n) * update * (1 - update) * u_z + (1 - update) * dn)[..., None, None]

    return Rules(step, pull, weights, blocks)


@functools.cache
def _gru_before(activation: str) -> Rules:
    function, slope = _ACTIVATIONS[activation]

    def split(u: Array) -> tuple[Array, Array]:
        features = u.shape[0]
        return u[:, : 2 * features], u[:, 2 * features :]

    def step(params: Any, h: Array, z: Array, mask: Array | None) -> tuple[Array, Any]:
        u_gates, u_n = split(params.u)
        z_gates, z_n = z[..., : u_gates.shape[1]], z[..., u_gates.shape[1] :]
        r, update = jnp.split(jax.nn.sigmoid(z_gates + _times(_masked(h, mask), u_gates)), 2, axis=-1)
        n = function(z_n + _times(_masked(r * h, mask), u_n))
        return (1 - update) * n + update * h, (r, update, n)

    def pull(params: Any, before: Array, saved: Any, mask: Array | None, dh: Array) -> tuple[Array, Array]:
        u_gates, u_n = split(params.u)
        r, update, n = saved
        dn = dh * (1 - update) * slope(n)
        d_reset = _masked(times_transposed(dn, u_n), mask)  # of r * h
        d_gates = [d_reset * before * r * (1 - r), dh * (before - n) * update * (1 - update)]
        d_gates = jnp.concatenate(d_gates, axis=-1)
        d_before = dh * update + d_reset * r + _masked(times_transposed(d_gates, u_gates), mask)
        return d_before, jnp.concatenate([d_gates, dn], axis=-1)

    def weights(params: Any, before: Array, saved: Any, mask: Array | None, dz: Array) -> tuple[Any, Array | None]:
        u_gates, u_n = split(params.u)
        d_gates, dn = dz[..., : u_gates.shape[1]], dz[..., u_gates.shape[1] :]
        reset = saved[0] * before
        d_u = [outer(_masked(before, mask), d_gates, u_gates), outer(_masked(reset, mask), dn, u_n)]
        d_mask = None
        if mask is not None:
            d_mask = before * times_transposed(d_gates, u_gates) + reset * times_transposed(dn, u_n)
            d_mask = _total_over_time(d_mask)
        # There is a b_n, but it is unused.
        b_n = None if params.b_n is None else jnp.zeros_like(params.b_n)
        return params._replace(u=jnp.concatenate(d_u, axis=-1), b_n=b_n), d_mask

    def blocks(params: Any, before: Array, saved: Any, mask: Array | None) -> Array:
        r, update, n = saved
        u_r, u_z, u_n = _diagonals(params.u, mask)
        dn = slope(n) * u_n * (r + before * r * (1 - r) * u_r)
        return (update + (before - n) * update * (1 - update) * u_z + (1 - update) * dn)[..., None, None]

    return Rules(step, pull, weights, blocks)


def _total_over_time(x: Array) -> Array:
    return jnp.sum(x, axis=0)
