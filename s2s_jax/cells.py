"""RNN, LSTM and GRU cells as pure functions, and the cached factories that make their variants.

`rnn`, `lstm` and `gru` are the plain ones. The factories return the same object for the same options, so that nothing
that is jitted over a cell is traced twice. In all equations `x` is the input [B, D], `h` the state [B, H], `s` the
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

from s2s_jax.types import Cell as Cell
from s2s_jax.types import LSTMState as LSTMState

_MEMORY_KEY = 3  # to fold in; beyond the numbers of the parts that the same key is split into, which folding would repeat

Initializer = str | Callable[[Array, tuple[int, ...], Any], Array]
Activation = str | Callable[[Array], Array]


class RNNParams(NamedTuple):
    """`w` [D, H], `u` [H, H], `b` [H] (None without bias)."""

    w: Float[Array, "D H"]
    u: Float[Array, "H H"]
    b: Float[Array, " H"] | None


class LSTMParams(NamedTuple):
    """Gates i, f, g, o along the last axis. With a projection to P features, `u` is [P, 4H]; otherwise P is H.

    The fields after `b` are None unless the option that needs them is on.
    """

    w: Float[Array, "D 4*H"]
    u: Float[Array, "P 4*H"]
    b: Float[Array, " 4*H"] | None
    peephole: Float[Array, " 3*H"] | None = None  # on gates i, f, o
    projection: Float[Array, "H P"] | None = None
    norm_w: Float[Array, " 4*H"] | None = None  # scales of the layer norms of x w, h u and c
    norm_u: Float[Array, " 4*H"] | None = None
    norm_c: Float[Array, " H"] | None = None
    norm_b: Float[Array, " H"] | None = None  # shift of the layer norm of c; those of x w and h u are in b


class GRUParams(NamedTuple):
    """Gates r, z, n along the last axis. `b_n` is the bias inside the reset gate, zero and unused with reset="before"."""

    w: Float[Array, "D 3*H"]
    u: Float[Array, "H 3*H"]
    b: Float[Array, " 3*H"] | None
    b_n: Float[Array, " H"] | None


class RNNSpec(NamedTuple):
    gates = 1
    activation: Activation = "tanh"
    bias: bool = True


class LSTMSpec(NamedTuple):
    gates = 4
    projection: int | None = None
    peepholes: bool = False
    layer_norm: bool = False
    activation: Activation = "tanh"
    bias: bool = True


class GRUSpec(NamedTuple):
    gates = 3
    reset: str = "after"
    activation: Activation = "tanh"
    bias: bool = True


class _Initializers(NamedTuple):
    kernel: Initializer
    recurrent: Initializer
    bias: Initializer


_INITIALIZERS = {
    "orthogonal": jax.nn.initializers.orthogonal(),
    "glorot_uniform": jax.nn.initializers.glorot_uniform(),
    "zeros": jax.nn.initializers.zeros,
}
_ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


def make_rnn(
    *,
    activation: Activation = "tanh",
    bias: bool = True,
    kernel_init: Initializer = "glorot_uniform",
    recurrent_init: Initializer = "orthogonal",
    bias_init: Initializer = "zeros",
) -> Cell:
    """Simple recurrent cell (Elman 1990): `h' = activation(x w + h u + b)`, output `h'`.

    Args:
      activation: "tanh", "relu", or any elementwise function.
      bias: whether there is `b`.
      kernel_init, recurrent_init, bias_init: "orthogonal", "glorot_uniform", "zeros", "uniform" (within ±1/√H, as PyTorch
        draws) or `(key, shape, dtype) -> array`; drawn anew for each gate's block.

    Raises:
      ValueError: an unknown name.
    """
    _check_activation(activation)
    return _make_rnn(RNNSpec(activation, bias), _initializers(kernel_init, recurrent_init, bias_init))


def make_lstm(
    *,
    projection: int | None = None,
    peepholes: bool = False,
    layer_norm: bool = False,
    activation: Activation = "tanh",
    bias: bool = True,
    forget_bias: float = 1.0,
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
    spec = LSTMSpec(projection, peepholes, layer_norm, activation, bias)
    return _make_lstm(spec, float(forget_bias), memory, _initializers(kernel_init, recurrent_init, bias_init))


def make_gru(
    *,
    reset: str = "after",
    activation: Activation = "tanh",
    bias: bool = True,
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
      memory: as in `make_lstm`: biases of the update gate are log U(1, memory - 1).
      kernel_init, recurrent_init, bias_init: see `make_rnn`.

    Raises:
      ValueError: an unknown name, memory without bias, or a memory below 2 steps.
    """
    _check_activation(activation)
    if reset not in ("after", "before"):
        raise ValueError(f'reset: expected "after" or "before", got {reset!r}')
    _check_memory(memory, bias)
    return _make_gru(GRUSpec(reset, activation, bias), memory, _initializers(kernel_init, recurrent_init, bias_init))


@functools.cache
def _make_rnn(spec: RNNSpec, initializers: _Initializers) -> Cell:
    activation = _activation(spec.activation)

    def init(key: Array, in_features: int, hidden_features: int) -> RNNParams:
        w, u, b = _init_gates(key, in_features, hidden_features, hidden_features, 1, initializers)
        return RNNParams(w, u, b if spec.bias else None)

    def initial_state(params: RNNParams, batch_size: int, dtype: Any) -> Array:
        return jnp.zeros((batch_size, params.u.shape[0]), dtype)

    def step(params: RNNParams, h: Array, z: Array, mask: Array | None) -> tuple[Array, Array]:
        h = activation(z + _dot(_masked(h, mask), params.u))
        return h, h

    return Cell(init, initial_state, _project, step, spec)


@functools.cache
def _make_lstm(spec: LSTMSpec, forget_bias: float, memory: int | None, initializers: _Initializers) -> Cell:
    activation = _activation(spec.activation)

    def init(key: Array, in_features: int, hidden_features: int) -> LSTMParams:
        state_features = spec.projection or hidden_features
        if state_features > hidden_features:
            raise ValueError(f"projection: expected at most hidden_features = {hidden_features}, got {state_features}")
        keys = jax.random.split(key, 3)
        w, u, b = _init_gates(keys[0], in_features, state_features, hidden_features, 4, initializers)
        if memory is None:
            b = b.at[hidden_features : 2 * hidden_features].add(forget_bias)
        else:
            remember = _log_time_scales(jax.random.fold_in(key, _MEMORY_KEY), hidden_features, memory)
            b = b.at[: 2 * hidden_features].set(jnp.concatenate([-remember, remember]))
        peephole = projection = None
        if spec.peepholes:
            peephole = _blocks(keys[1], (hidden_features,), 3, initializers.bias, hidden_features)
        if spec.projection:
            projection = _blocks(keys[2], (hidden_features, spec.projection), 1, initializers.kernel, hidden_features)
        norms = [None] * 4
        if spec.layer_norm:
            norms = [jnp.ones(n * hidden_features, jnp.float32) for n in (4, 4, 1)]
            norms.append(jnp.zeros(hidden_features, jnp.float32))
        return LSTMParams(w, u, b if spec.bias else None, peephole, projection, *norms)

    def initial_state(params: LSTMParams, batch_size: int, dtype: Any) -> LSTMState:
        h_features, gates = params.u.shape
        return LSTMState(jnp.zeros((batch_size, h_features), dtype), jnp.zeros((batch_size, gates // 4), dtype))

    def project(params: LSTMParams, x: Array) -> Array:
        if params.norm_w is None:
            return _project(params, x)
        z = _layer_norm(_project(params._replace(b=None), x)) * params.norm_w[None]
        return z if params.b is None else z + params.b[None]

    def step(params: LSTMParams, state: LSTMState, z: Array, mask: Array | None) -> tuple[LSTMState, Array]:
        recurrent = _dot(_masked(state.h, mask), params.u)
        if params.norm_u is not None:
            recurrent = _layer_norm(recurrent) * params.norm_u[None]
        i, f, g, o = jnp.split(z + recurrent, 4, axis=-1)
        peepholes = None if params.peephole is None else jnp.split(params.peephole[None], 3, axis=-1)
        if peepholes is not None:
            i, f = i + peepholes[0] * state.c, f + peepholes[1] * state.c
        c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * activation(g)
        if peepholes is not None:
            o = o + peepholes[2] * c
        shown = c
        if params.norm_c is not None and params.norm_b is not None:
            shown = _layer_norm(c) * params.norm_c[None] + params.norm_b[None]
        h = jax.nn.sigmoid(o) * activation(shown)
        if params.projection is not None:
            h = _dot(h, params.projection)
        return LSTMState(h, c), h

    return Cell(init, initial_state, project, step, spec)


@functools.cache
def _make_gru(spec: GRUSpec, memory: int | None, initializers: _Initializers) -> Cell:
    activation = _activation(spec.activation)

    def init(key: Array, in_features: int, hidden_features: int) -> GRUParams:
        key, key_n = jax.random.split(key)
        w, u, b = _init_gates(key, in_features, hidden_features, hidden_features, 3, initializers)
        if not spec.bias:
            return GRUParams(w, u, None, None)
        b_n = _blocks(key_n, (hidden_features,), 1, initializers.bias, hidden_features)
        if memory is not None:
            remember = _log_time_scales(jax.random.fold_in(key, _MEMORY_KEY), hidden_features, memory)
            b = b.at[hidden_features : 2 * hidden_features].set(remember)
        return GRUParams(w, u, b, b_n if spec.reset == "after" else jnp.zeros_like(b_n))

    def initial_state(params: GRUParams, batch_size: int, dtype: Any) -> Array:
        return jnp.zeros((batch_size, params.u.shape[0]), dtype)

    def step(params: GRUParams, h: Array, z: Array, mask: Array | None) -> tuple[Array, Array]:
        features = h.shape[-1]
        if spec.reset == "after":
            recurrent = _dot(_masked(h, mask), params.u)
            rz = jax.nn.sigmoid((z + recurrent)[..., : 2 * features])
            inner = recurrent[..., 2 * features :]
            if params.b_n is not None:
                inner = inner + params.b_n[None]
            r, update = jnp.split(rz, 2, axis=-1)
            n = activation(z[..., 2 * features :] + r * inner)
        else:
            u_rz, u_n = params.u[:, : 2 * features], params.u[:, 2 * features :]
            rz = jax.nn.sigmoid(z[..., : 2 * features] + _dot(_masked(h, mask), u_rz))
            r, update = jnp.split(rz, 2, axis=-1)
            n = activation(z[..., 2 * features :] + _dot(_masked(r * h, mask), u_n))
        h = (1 - update) * n + update * h
        return h, h

    return Cell(init, initial_state, _project, step, spec)


def _project(params: Any, x: Array) -> Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"xs: expected floating point [B, T, D], got dtype {x.dtype}")
    if x.shape[-1] != params.w.shape[0]:
        raise ValueError(f"xs: expected {params.w.shape[0]} features (the rows of params.w), got {x.shape[-1]}")
    z = _dot(x, params.w)
    return z if params.b is None else z + params.b[None]


def _dot(x: Array, w: Array) -> Array:
    """Matrix product in the dtype of the weights, accumulated and returned in at least float32."""
    accumulator = jnp.promote_types(w.dtype, jnp.float32)
    return jnp.matmul(x.astype(w.dtype), w, preferred_element_type=accumulator)


def _masked(h: Array, mask: Array | None) -> Array:
    return h if mask is None else h * mask


def _layer_norm(x: Array, epsilon: float = 1e-5) -> Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)


def _init_gates(
    key: Array, in_features: int, state_features: int, hidden_features: int, gates: int, initializers: _Initializers
) -> tuple[Array, Array, Array]:
    for name, value in (("in_features", in_features), ("hidden_features", hidden_features)):
        if value < 1:
            raise ValueError(f"{name}: expected a positive number, got {value}")
    keys = jax.random.split(key, 3)
    w = _blocks(keys[0], (in_features, hidden_features), gates, initializers.kernel, hidden_features)
    u = _blocks(keys[1], (state_features, hidden_features), gates, initializers.recurrent, hidden_features)
    b = _blocks(keys[2], (hidden_features,), gates, initializers.bias, hidden_features)
    return w, u, b


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))  # one small program instead of a dozen: models start sooner
def _blocks(key: Array, shape: tuple[int, ...], count: int, initializer: Initializer, hidden_features: int) -> Array:
    """`count` blocks, each drawn by itself, side by side along the last axis."""
    if initializer == "uniform":
        bound = hidden_features**-0.5
        draw = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
    else:
        draw = _INITIALIZERS[initializer] if isinstance(initializer, str) else initializer
    return jnp.concatenate([draw(k, shape, jnp.float32) for k in jax.random.split(key, count)], axis=-1)


def _log_time_scales(key: Array, features: int, memory: int) -> Array:
    """Biases [H] log(n) of gates that keep a share 1 - 1 / (1 + n) of a state at each step, n from 1 to memory - 1."""
    return jnp.log(jax.random.uniform(key, (features,), jnp.float32, 1, memory - 1))


def _initializers(kernel: Initializer, recurrent: Initializer, bias: Initializer) -> _Initializers:
    for name, value in (("kernel_init", kernel), ("recurrent_init", recurrent), ("bias_init", bias)):
        known = ("uniform", *(_INITIALIZERS if name != "bias_init" else ("zeros",)))
        if isinstance(value, str) and value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)} or a function, got {value!r}")
    return _Initializers(kernel, recurrent, bias)


def _activation(activation: Activation) -> Callable[[Array], Array]:
    return _ACTIVATIONS[activation] if isinstance(activation, str) else activation


def _check_memory(memory: int | None, bias: bool) -> None:
    if memory is not None and memory < 2:
        raise ValueError(f"memory: expected at least 2 steps, got {memory}")
    if memory is not None and not bias:
        raise ValueError(f"memory: expected bias=True with it, got {memory} without")


def _check_activation(activation: Activation) -> None:
    if isinstance(activation, str) and activation not in _ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(_ACTIVATIONS)} or a function, got {activation!r}")


rnn = make_rnn()
lstm = make_lstm()
gru = make_gru()
PLAIN = {"rnn": rnn, "lstm": lstm, "gru": gru}  # by name, for those who choose by a flag
