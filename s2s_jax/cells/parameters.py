"""What the cells have in common: how their parameters are drawn, and the products in which those take part."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

Initializer = str | Callable[[Array, tuple[int, ...], Any], Array]


class Initializers(NamedTuple):
    kernel: Initializer
    recurrent: Initializer
    bias: Initializer


_NAMED = {
    "orthogonal": jax.nn.initializers.orthogonal(),
    "glorot_uniform": jax.nn.initializers.glorot_uniform(),
    "zeros": jax.nn.initializers.zeros,
}


def project(params: Any, x: Array) -> Array:
    check_inputs(params, x)
    z = dot(x, params.w)
    return z if params.b is None else z + params.b[None]


def check_inputs(params: Any, x: Array) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"xs: expected floating point [B, T, D], got dtype {x.dtype}")
    if x.shape[-1] != params.w.shape[0]:
        raise ValueError(f"xs: expected {params.w.shape[0]} features (the rows of params.w), got {x.shape[-1]}")


def dot(x: Array, w: Array) -> Array:
    """Matrix product in the dtype of the weights, accumulated and returned in at least float32."""
    accumulator = jnp.promote_types(w.dtype, jnp.float32)
    return jnp.matmul(x.astype(w.dtype), w, preferred_element_type=accumulator)


def masked(h: Array, mask: Array | None) -> Array:
    return h if mask is None else h * mask


def layer_norm(x: Array, epsilon: float = 1e-5) -> Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)


def check_features(in_features: int, hidden_features: int) -> None:
    for name, value in (("in_features", in_features), ("hidden_features", hidden_features)):
        if value < 1:
            raise ValueError(f"{name}: expected a positive number, got {value}")


def recurred(h: Array, u: Array) -> Array:
    """`h u` with a matrix u; with a diagonal one, given as [gates * H], each unit reads itself alone."""
    return dot(h, u) if u.ndim == 2 else jnp.tile(h, u.shape[0] // h.shape[-1]) * u[None]


def init_gates(
    key: Array,
    in_features: int,
    state_features: int,
    hidden_features: int,
    gates: int,
    initializers: Initializers,
    recurrence: str = "dense",
) -> tuple[Array, Array, Array]:
    check_features(in_features, hidden_features)
    keys = jax.random.split(key, 3)
    w = blocks(keys[0], (in_features, hidden_features), gates, initializers.kernel, hidden_features)
    u_shape, u_init = (state_features, hidden_features), initializers.recurrent
    if recurrence == "diagonal":
        u_shape = (hidden_features,)
        u_init = _signs if u_init == "orthogonal" else u_init  # the orthogonal matrices of one unit
    u = blocks(keys[1], u_shape, gates, u_init, hidden_features)
    b = blocks(keys[2], (hidden_features,), gates, initializers.bias, hidden_features)
    return w, u, b


def _signs(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    return jax.random.rademacher(key, shape, dtype)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))  # one small program instead of a dozen: models start sooner
def blocks(key: Array, shape: tuple[int, ...], count: int, initializer: Initializer, hidden_features: int) -> Array:
    """`count` blocks, each drawn by itself, side by side along the last axis."""
    if initializer == "uniform":
        bound = hidden_features**-0.5
        draw = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
    else:
        draw = _NAMED[initializer] if isinstance(initializer, str) else initializer
    return jnp.concatenate([draw(k, shape, jnp.float32) for k in jax.random.split(key, count)], axis=-1)


def initializers_of(kernel: Initializer, recurrent: Initializer, bias: Initializer) -> Initializers:
    for name, value in (("kernel_init", kernel), ("recurrent_init", recurrent), ("bias_init", bias)):
        known = ("uniform", *(_NAMED if name != "bias_init" else ("zeros",)))
        if isinstance(value, str) and value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)} or a function, got {value!r}")
    return Initializers(kernel, recurrent, bias)


def log_time_scales(key: Array, features: int, memory: int) -> Array:
    """Biases [H] log(n) of gates that keep a share 1 - 1 / (1 + n) of a state at each step, n from 1 to memory - 1."""
    return jnp.log(jax.random.uniform(key, (features,), jnp.float32, 1, memory - 1))
