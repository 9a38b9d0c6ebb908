"""RNN, LSTM and GRU cells as pure functions, and the cached factories that make their variants.

`rnn`, `lstm` and `gru` are the plain ones. In all equations `x` is the input [B, D], `h` the state [B, H], `s` the
logistic function, `*` elementwise; gates are fused along the last axis of every parameter, in the order named.

Context of every cell here: None, or a recurrent dropout mask [B, H] that is constant in time and scales `h` where it
enters a matrix product, nowhere else (Gal & Ghahramani, arXiv 1512.05287, equation 7).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from s2s_jax.cells.parameters import (
    Initializer,
    Initializers,
    blocks,
    dot,
    init_gates,
    initializers_of,
    layer_norm,
    log_time_scales,
    masked,
    project,
    recurred,
)
from s2s_jax.types import Cell, LSTMState

_MEMORY_KEY = 3  # to fold in; beyond the numbers of the parts that the same key is split into, which folding would repeat

Activation = str | Callable[[Array], Array]


class RNNParams(NamedTuple):
    """`w` [D, H], `u` [H, H] ([H] if diagonal), `b` [H] (None without bias)."""

    w: Float[Array, "D H"]
    u: Float[Array, "... H"]
    b: Float[Array, " H"] | None


class LSTMParams(NamedTuple):
    """Gates i, f, g, o along the last axis. With a projection to P features, `u` is [P, 4H]; otherwise P is H. A diagonal `u`
    is [4H].

    The fields after `b` are None unless the option that needs them is on.
    """

    w: Float[Array, "D 4*H"]
    u: Float[Array, "... 4*H"]
    b: Float[Array, " 4*H"] | None
    peephole: Float[Array, " 3*H"] | None = None  # on gates i, f, o
    projection: Float[Array, "H P"] | None = None
    norm_w: Float[Array, " 4*H"] | None = None  # scales of the layer norms of x w, h u and c
    norm_u: Float[Array, " 4*H"] | None = None
    norm_c: Float[Array, " H"] | None = None
    norm_b: Float[Array, " H"] | None = None  # shift of the layer norm of c; those of x w and h u are in b


class GRUParams(NamedTuple):
    """Gates r, z, n along the last axis. `b_n` is the bias inside the reset gate, zero and unused with reset="before".

    A diagonal `u` is [3H].
    """

    w: Float[Array, "D 3*H"]
    u: Float[Array, "... 3*H"]
    b: Float[Array, " 3*H"] | None
    b_n: Float[Array, " H"] | None


class RNNSpec(NamedTuple):
    name = "rnn"
    gates = 1
    activation: Activation = "tanh"
    bias: bool = True
    recurrence: str = "dense"


class LSTMSpec(NamedTuple):
    name = "lstm"
    gates = 4
    projection: int | None = None
    peepholes: bool = False
    layer_norm: bool = False
    activation: Activation = "tanh"
    bias: bool = True
    recurrence: str = "dense"


class GRUSpec(NamedTuple):
    name = "gru"
    gates = 3
    reset: str = "after"
    activation: Activation = "tanh"
    bias: bool = True
    recurrence: str = "dense"


_ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


def make_rnn(
    *,
    activation: Activation = "tanh",
    bias: bool = True,
    recurrence: str = "dense",
    kernel_init: Initializer = "glorot_uniform",
    recurrent_init: Initializer = "orthogonal",
    bias_init: Initializer = "zeros",
) -> Cell:
    """Simple recurrent cell (Elman 1990): `h' = activation(x w + h u + b)`, output `h'`.

    Args:
      activation: "tanh", "relu", or any elementwise function.
      bias: whether there is `b`.
      recurrence: "dense", or "diagonal": then u is [gates * H], a weight for each unit and gate, and `h u` is elementwise,
        so that units meet in the input of the next layer only (IndRNN: Li et al., arXiv 1803.04831).
      kernel_init, recurrent_init, bias_init: "orthogonal", "glorot_uniform", "zeros", "uniform" (within ±1/√H, as PyTorch
        draws) or `(key, shape, dtype) -> array`; drawn anew for each gate's block.

    Raises:
      ValueError: an unknown name.
    """
    _check_activation(activation)
    _check_recurrence(recurrence)
    return _make_rnn(RNNSpec(activation, bias, recurrence), initializers_of(kernel_init, recurrent_init, bias_init))


def make_lstm(
    *,
    projection: int | None = None,
    peepholes: bool = False,
    layer_norm: bool = False,
    activation: Activation = "tanh",
    bias: bool = True,
    forget_bias: float = 1.0,
    recurrence: str = "dense",
    memory: int | None = None,
    kernel_init: Initializer = "glorot_uniform",
    recurrent_init: Initializer = "orthogonal",
    bias_init: Initializer = "zeros",
) -> Cell:
    """Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).

        [i f g o] = x w + h u + b
        c' = s(f) * c + s(i) * activation(g)
        h' = s(o) * activation(c')

    Args:
      projection: `h' = (s(o) * activation(c')) projection`, P features wide (Sak et al., arXiv 1402.1128).
      peepholes: adds `peephole * c` to i and f, and `peephole * c'` to o (Gers et al. 2002).
      layer_norm: `LN(x w) + LN(h u) + b`, and `activation(LN(c'))` in the output (Ba et al., arXiv 1607.06450, eq. 20-22),
        with a learned gain in each and 1e-5 added to the variance.
      activation: of candidate and output; "tanh", "relu", or any elementwise function.
      bias: whether there is `b`.
      recurrence: see `make_rnn`; "dense" with a projection.
      forget_bias: added to what `bias_init` draws for the forget gate; without `bias` there is none.
      memory: starts with units that remember for up to so many steps: biases of the forget gate are log U(1, memory - 1) and
        those of the input gate their negatives, whatever `bias_init` says (chrono initialisation, Tallec & Ollivier,
        arXiv 1804.11188). For tasks whose evidence is hundreds of steps back. Not together with a `forget_bias`.
      kernel_init, recurrent_init, bias_init: see `make_rnn`; the projection is drawn as w is, the peepholes as b is.

    Raises:
      ValueError: an unknown name, a forget bias or memory without bias, both together, a memory below 2 steps,
        or a projection that is not positive (in `init`: above hidden_features).
    """
    _check_activation(activation)
    if projection is not None and projection < 1:
        raise ValueError(f"projection: expected a positive number of features, got {projection}")
    if not bias and forget_bias not in (0.0, 1.0):  # 1.0 is what nobody asked for
        raise ValueError(f"forget_bias: expected bias=True with it, got {forget_bias} without")
    _check_memory(memory, bias)
    if memory is not None and forget_bias != 1.0:
        raise ValueError(f"forget_bias: expected none with memory={memory}, which draws it, got {forget_bias}")
    _check_recurrence(recurrence)
    if projection is not None and recurrence == "diagonal":
        raise ValueError(f"recurrence: expected dense with projection={projection}, which mixes the units, got diagonal")
    spec = LSTMSpec(projection, peepholes, layer_norm, activation, bias, recurrence)
    return _make_lstm(spec, float(forget_bias), memory, initializers_of(kernel_init, recurrent_init, bias_init))


def make_gru(
    *,
    reset: str = "after",
    activation: Activation = "tanh",
    bias: bool = True,
    recurrence: str = "dense",
    memory: int | None = None,
    kernel_init: Initializer = "glorot_uniform",
    recurrent_init: Initializer = "orthogonal",
    bias_init: Initializer = "zeros",
) -> Cell:
    """Gated recurrent unit (Cho et al., arXiv 1406.1078).

        r = s(x w_r + h u_r + b_r),  z = s(x w_z + h u_z + b_z)
        n = activation(x w_n + b_n1 + r * (h u_n + b_n))    reset="after": PyTorch, cuDNN, Keras' default
        n = activation(x w_n + b_n1 + (r * h) u_n)          reset="before": the paper, ONNX' default
        h' = (1 - z) * n + z * h

    where `b = [b_r b_z b_n1]`.

    Args:
      reset: whether the reset gate acts "after" or "before" the matrix product.
      activation: of the candidate; "tanh", "relu", or any elementwise function.
      bias: whether there are `b` and `b_n`.
      recurrence: see `make_rnn`.
      memory: as in `make_lstm`: biases of the update gate are log U(1, memory - 1).
      kernel_init, recurrent_init, bias_init: see `make_rnn`.

    Raises:
      ValueError: an unknown name, memory without bias, or a memory below 2 steps.
    """
    _check_activation(activation)
    if reset not in ("after", "before"):
        raise ValueError(f'reset: expected "after" or "before", got {reset!r}')
    _check_memory(memory, bias)
    _check_recurrence(recurrence)
    return _make_gru(
        GRUSpec(reset, activation, bias, recurrence), memory, initializers_of(kernel_init, recurrent_init, bias_init)
    )


@functools.cache
def _make_rnn(spec: RNNSpec, initializers: Initializers) -> Cell:
    activation = _activation(spec.activation)

    def init(key: Array, in_features: int, hidden_features: int) -> RNNParams:
        w, u, b = init_gates(key, in_features, hidden_features, hidden_features, 1, initializers, spec.recurrence)
        return RNNParams(w, u, b if spec.bias else None)

    def initial_state(params: RNNParams, batch_size: int, dtype: Any) -> Array:
        return jnp.zeros((batch_size, params.u.shape[-1] // spec.gates), dtype)

    def step(params: RNNParams, h: Array, z: Array, mask: Array | None) -> tuple[Array, Array]:
        h = activation(z + recurred(masked(h, mask), params.u))
        return h, h

    return Cell(init, initial_state, project, step, spec)


@functools.cache
def _make_lstm(spec: LSTMSpec, forget_bias: float, memory: int | None, initializers: Initializers) -> Cell:
    activation = _activation(spec.activation)

    def init(key: Array, in_features: int, hidden_features: int) -> LSTMParams:
        state_features = spec.projection or hidden_features
        if state_features > hidden_features:
            raise ValueError(f"projection: expected at most hidden_features = {hidden_features}, got {state_features}")
        keys = jax.random.split(key, 3)
        w, u, b = init_gates(keys[0], in_features, state_features, hidden_features, 4, initializers, spec.recurrence)
        if memory is None:
            b = b.at[hidden_features : 2 * hidden_features].add(forget_bias)
        else:
            remember = log_time_scales(jax.random.fold_in(key, _MEMORY_KEY), hidden_features, memory)
            b = b.at[: 2 * hidden_features].set(jnp.concatenate([-remember, remember]))
        peephole = projection = None
        if spec.peepholes:
            peephole = blocks(keys[1], (hidden_features,), 3, initializers.bias, hidden_features)
        if spec.projection:
            projection = blocks(keys[2], (hidden_features, spec.projection), 1, initializers.kernel, hidden_features)
        norms = [None] * 4
        if spec.layer_norm:
            norms = [jnp.ones(n * hidden_features, jnp.float32) for n in (4, 4, 1)]
            norms.append(jnp.zeros(hidden_features, jnp.float32))
        return LSTMParams(w, u, b if spec.bias else None, peephole, projection, *norms)

    def initial_state(params: LSTMParams, batch_size: int, dtype: Any) -> LSTMState:
        hidden_features = params.u.shape[-1] // 4
        h_features = hidden_features if params.projection is None else params.projection.shape[1]
        return LSTMState(jnp.zeros((batch_size, h_features), dtype), jnp.zeros((batch_size, hidden_features), dtype))

    def normed(params: LSTMParams, x: Array) -> Array:
        if params.norm_w is None:
            return project(params, x)
        z = layer_norm(project(params._replace(b=None), x)) * params.norm_w[None]
        return z if params.b is None else z + params.b[None]

    def step(params: LSTMParams, state: LSTMState, z: Array, mask: Array | None) -> tuple[LSTMState, Array]:
        recurrent = recurred(masked(state.h, mask), params.u)
        if params.norm_u is not None:
            recurrent = layer_norm(recurrent) * params.norm_u[None]
        i, f, g, o = jnp.split(z + recurrent, 4, axis=-1)
        peepholes = None if params.peephole is None else jnp.split(params.peephole[None], 3, axis=-1)
        if peepholes is not None:
            i, f = i + peepholes[0] * state.c, f + peepholes[1] * state.c
        c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * activation(g)
        if peepholes is not None:
            o = o + peepholes[2] * c
        shown = c
        if params.norm_c is not None and params.norm_b is not None:
            shown = layer_norm(c) * params.norm_c[None] + params.norm_b[None]
        h = jax.nn.sigmoid(o) * activation(shown)
        if params.projection is not None:
            h = dot(h, params.projection)
        return LSTMState(h, c), h

    return Cell(init, initial_state, normed, step, spec)


@functools.cache
def _make_gru(spec: GRUSpec, memory: int | None, initializers: Initializers) -> Cell:
    activation = _activation(spec.activation)

    def init(key: Array, in_features: int, hidden_features: int) -> GRUParams:
        key, key_n = jax.random.split(key)
        w, u, b = init_gates(key, in_features, hidden_features, hidden_features, 3, initializers, spec.recurrence)
        if not spec.bias:
            return GRUParams(w, u, None, None)
        b_n = blocks(key_n, (hidden_features,), 1, initializers.bias, hidden_features)
        if memory is not None:
            remember = log_time_scales(jax.random.fold_in(key, _MEMORY_KEY), hidden_features, memory)
            b = b.at[hidden_features : 2 * hidden_features].set(remember)
        return GRUParams(w, u, b, b_n if spec.reset == "after" else jnp.zeros_like(b_n))

    def initial_state(params: GRUParams, batch_size: int, dtype: Any) -> Array:
        return jnp.zeros((batch_size, params.u.shape[-1] // spec.gates), dtype)

    def step(params: GRUParams, h: Array, z: Array, mask: Array | None) -> tuple[Array, Array]:
        features = h.shape[-1]
        if spec.reset == "after":
            recurrent = recurred(masked(h, mask), params.u)
            rz = jax.nn.sigmoid((z + recurrent)[..., : 2 * features])
            inner = recurrent[..., 2 * features :]
            if params.b_n is not None:
                inner = inner + params.b_n[None]
            r, update = jnp.split(rz, 2, axis=-1)
            n = activation(z[..., 2 * features :] + r * inner)
        else:
            u_rz, u_n = params.u[..., : 2 * features], params.u[..., 2 * features :]
            rz = jax.nn.sigmoid(z[..., : 2 * features] + recurred(masked(h, mask), u_rz))
            r, update = jnp.split(rz, 2, axis=-1)
            n = activation(z[..., 2 * features :] + recurred(masked(r * h, mask), u_n))
        h = (1 - update) * n + update * h
        return h, h

    return Cell(init, initial_state, project, step, spec)


def _activation(activation: Activation) -> Callable[[Array], Array]:
    return _ACTIVATIONS[activation] if isinstance(activation, str) else activation


def _check_memory(memory: int | None, bias: bool) -> None:
    if memory is not None and memory < 2:
        raise ValueError(f"memory: expected at least 2 steps, got {memory}")
    if memory is not None and not bias:
        raise ValueError(f"memory: expected bias=True with it, got {memory} without")


def _check_recurrence(recurrence: str) -> None:
    if recurrence not in ("dense", "diagonal"):
        raise ValueError(f'recurrence: expected "dense" or "diagonal", got {recurrence!r}')


def _check_activation(activation: Activation) -> None:
    if isinstance(activation, str) and activation not in _ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(_ACTIVATIONS)} or a function, got {activation!r}")


rnn = make_rnn()
lstm = make_lstm()
gru = make_gru()
