"""Cells that are linear in their state: gates and candidates read the input alone.

So `h_t = a_t * h_{t-1} + b_t`, elementwise, with `a` and `b` known for all steps before the first: the backend `associative`
needs no order in time. What such a cell cannot do in one layer is decide by its state; stacks of them do. In all equations
`x` is the input [B, D], `h` the state [B, H], `s` the logistic function, `*` elementwise. No context: there is no product of
the state that a recurrent dropout mask could act on.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from s2s_jax.cells.parameters import (
    Initializer,
    Initializers,
    blocks,
    check_features,
    check_inputs,
    dot,
    initializers_of,
    project,
)
from s2s_jax.types import Cell, Context


class MinGRUParams(NamedTuple):
    """Gates z, n along the last axis."""

    w: Float[Array, "D 2*H"]
    b: Float[Array, " 2*H"] | None


class MinLSTMParams(NamedTuple):
    """Gates i, f, g along the last axis."""

    w: Float[Array, "D 3*H"]
    b: Float[Array, " 3*H"] | None


class LRUParams(NamedTuple):
    """Real and imaginary parts of B and C side by side along the last axis of `w` and, below each other, the first of `c`."""

    w: Float[Array, "D 2*H"]
    log_decay: Float[Array, " H"]
    log_phase: Float[Array, " H"]
    log_scale: Float[Array, " H"]
    c: Float[Array, "2*H H"]
    skip: Float[Array, "D H"]


class LRUState(NamedTuple):
    """A complex number for each unit, its parts [B, H]."""

    re: Float[Array, "B H"]
    im: Float[Array, "B H"]


class MinGRUSpec(NamedTuple):
    name = "min_gru"
    gates = 2
    linear_by_unit = True
    bias: bool = True


class MinLSTMSpec(NamedTuple):
    name = "min_lstm"
    gates = 3
    linear_by_unit = True
    bias: bool = True


class LRUSpec(NamedTuple):
    name = "lru"
    gates = 2
    linear_by_unit = True


def make_min_gru(*, bias: bool = True, kernel_init: Initializer = "glorot_uniform", bias_init: Initializer = "zeros") -> Cell:
    """The minGRU (Feng et al., arXiv 2410.01201, section 3.1): a GRU whose gates do not read the state, and without a tanh.

        z = s(x w_z + b_z),  n = x w_n + b_n
        h' = (1 - z) * h + z * n

    Beware: z is the share of what is new here, as in that paper; in `make_gru` it is the share of what stays.

    Args:
      bias: whether there is `b`.
      kernel_init, bias_init: see `make_rnn`.

    Raises:
      ValueError: an unknown name.
    """
    return _make_min_gru(MinGRUSpec(bias), initializers_of(kernel_init, "orthogonal", bias_init))


def make_min_lstm(*, bias: bool = True, kernel_init: Initializer = "glorot_uniform", bias_init: Initializer = "zeros") -> Cell:
    """The minLSTM (Feng et al., arXiv 2410.01201, section 3.2), gates normalised so that they sum to 1; output and state are h.

        [i f g] = x w + b
        h' = (s(f) * h + s(i) * g) / (s(f) + s(i))

    Args:
      bias, kernel_init, bias_init: see `make_min_gru`.

    Raises:
      ValueError: an unknown name.
    """
    return _make_min_lstm(MinLSTMSpec(bias), initializers_of(kernel_init, "orthogonal", bias_init))


def make_lru(*, radius: tuple[float, float] = (0.0, 1.0), max_phase: float = 2 * math.pi) -> Cell:
    """Linear recurrent unit (Orvieto et al., arXiv 2303.06349, section 3): a diagonal complex recurrence.

        k' = exp(-exp(log_decay) + i exp(log_phase)) * k + exp(log_scale) * (x B)
        y = Re(k' C) + x skip

    with a state of H complex numbers and outputs H wide. Nothing here is nonlinear: stacked with nothing in between, layers
    are one linear map. With narrow inputs the parameters are rounded as all are, and the phase of an eigenvalue is then known
    to two or three digits: over long sequences that is another system.

    Args:
      radius: least and greatest modulus of the eigenvalues to begin with, drawn uniformly over the ring; near 1 for long
        memories. log_scale starts as log sqrt(1 - modulus^2).
      max_phase: their greatest phase, in radians; phases are drawn uniformly up to it.

    Raises:
      ValueError: `radius` not within 0..1, in order; a phase outside (0, 2 pi].
    """
    least, most = radius
    if not 0 <= least < most <= 1:
        raise ValueError(f"radius: expected two numbers in order within 0 and 1, got {radius}")
    if not 0 < max_phase <= 2 * math.pi:
        raise ValueError(f"max_phase: expected an angle above 0 and up to 2 pi, got {max_phase}")
    return _make_lru(float(least), float(most), float(max_phase))


@functools.cache
def _make_min_gru(spec: MinGRUSpec, initializers: Initializers) -> Cell:
    def init(key: Array, in_features: int, hidden_features: int) -> MinGRUParams:
        return MinGRUParams(*_init_gates(key, in_features, hidden_features, spec, initializers))

    def step(params: MinGRUParams, h: Array, z: Array, context: Context) -> tuple[Array, Array]:
        _check_context(context)
        gate, candidate = jnp.split(z, 2, axis=-1)
        share = jax.nn.sigmoid(gate)
        h = (1 - share) * h + share * candidate
        return h, h

    return Cell(init, functools.partial(_zeros, spec), project, step, spec)


@functools.cache
def _make_min_lstm(spec: MinLSTMSpec, initializers: Initializers) -> Cell:
    def init(key: Array, in_features: int, hidden_features: int) -> MinLSTMParams:
        return MinLSTMParams(*_init_gates(key, in_features, hidden_features, spec, initializers))

    def step(params: MinLSTMParams, h: Array, z: Array, context: Context) -> tuple[Array, Array]:
        _check_context(context)
        i, f, g = jnp.split(z, 3, axis=-1)
        # s(f) / (s(f) + s(i)) as one logistic function: never 0 / 0 where both gates are shut.
        keep = jax.nn.sigmoid(jax.nn.softplus(-i) - jax.nn.softplus(-f))
        h = keep * h + (1 - keep) * g
        return h, h

    return Cell(init, functools.partial(_zeros, spec), project, step, spec)


@functools.cache
def _make_lru(least: float, most: float, max_phase: float) -> Cell:
    def init(key: Array, in_features: int, hidden_features: int) -> LRUParams:
        check_features(in_features, hidden_features)
        keys = jax.random.split(key, 5)
        shape, tiny = (hidden_features,), jnp.finfo(jnp.float32).tiny
        modulus = jnp.sqrt(jax.random.uniform(keys[0], shape, jnp.float32, max(least**2, 1e-6), min(most**2, 1 - 1e-6)))
        decay = -jnp.log(modulus)
        phase = jax.random.uniform(keys[1], shape, jnp.float32, tiny, max_phase)
        w = jax.random.normal(keys[2], (in_features, 2 * hidden_features)) / math.sqrt(2 * in_features)
        c = jax.random.normal(keys[3], (2 * hidden_features, hidden_features)) / math.sqrt(hidden_features)
        skip = jax.random.normal(keys[4], (in_features, hidden_features)) / math.sqrt(in_features)
        scale = 0.5 * jnp.log1p(-(modulus**2))
        return LRUParams(w, jnp.log(decay), jnp.log(phase), scale, c, skip)

    def initial_state(params: LRUParams, batch_size: int, dtype: Any) -> LRUState:
        zeros = jnp.zeros((batch_size, params.log_decay.shape[0]), dtype)
        return LRUState(zeros, zeros)

    def lru_project(params: LRUParams, x: Array) -> tuple[Array, Array]:
        check_inputs(params, x)
        scale = jnp.tile(jnp.exp(params.log_scale), 2)[None]
        return dot(x, params.w) * scale, dot(x, params.skip)

    def step(params: LRUParams, state: LRUState, z: tuple[Array, Array], context: Context) -> tuple[LRUState, Array]:
        _check_context(context)
        inputs, skipped = z
        re, im = (part[None] for part in lru_factors(params))
        in_re, in_im = jnp.split(inputs, 2, axis=-1)
        state = LRUState(re * state.re - im * state.im + in_re, re * state.im + im * state.re + in_im)
        return state, dot(jnp.concatenate([state.re, -state.im], axis=-1), params.c) + skipped

    return Cell(init, initial_state, lru_project, step, LRUSpec())


def lru_factors(params: LRUParams) -> tuple[Float[Array, " H"], Float[Array, " H"]]:
    """Real and imaginary parts of what the state is multiplied by at each step, in at least float32."""
    wide = jnp.promote_types(params.log_decay.dtype, jnp.float32)  # a modulus near 1 is 1 in a narrow dtype
    log_decay, log_phase = params.log_decay.astype(wide), params.log_phase.astype(wide)
    modulus, phase = jnp.exp(-jnp.exp(log_decay)), jnp.exp(log_phase)
    return modulus * jnp.cos(phase), modulus * jnp.sin(phase)


def lru_input_weights(params: LRUParams) -> Float[Array, "D 2*H"]:
    """`w` scaled: of many steps at once that is less to do than to scale their products."""
    scale = jnp.tile(jnp.exp(params.log_scale), 2)[None]
    return (params.w * scale).astype(params.w.dtype)


def _init_gates(key: Array, in_features: int, hidden_features: int, spec: Any, initializers: Initializers) -> tuple[Any, Any]:
    check_features(in_features, hidden_features)
    key_w, key_b = jax.random.split(key)
    w = blocks(key_w, (in_features, hidden_features), spec.gates, initializers.kernel, hidden_features)
    b = blocks(key_b, (hidden_features,), spec.gates, initializers.bias, hidden_features)
    return w, b if spec.bias else None


def _zeros(spec: Any, params: Any, batch_size: int, dtype: Any) -> Array:
    return jnp.zeros((batch_size, params.w.shape[1] // spec.gates), dtype)


def _check_context(context: Context) -> None:
    if context is not None:
        raise ValueError("context: expected None, as no product reads the state that a dropout mask could scale, got one")


min_gru = make_min_gru()
min_lstm = make_min_lstm()
lru = make_lru()
