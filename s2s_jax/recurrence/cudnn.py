"""Backend `cudnn`: NVIDIA's LSTM through `jax.experimental.rnn`, in float32; whole stacks in one call.

It reads one flat vector of weights (its docstring tells the layout). For each layer, and in it each direction, the
matrices stand first, input before recurrent, [4H, D] and [4H, H], row by row; after those of all layers come the biases,
[4H] for the input and [4H] for the recurrence. Gates stand in the order i, f, g, o, as ours do. We have one bias: it is
the first of the two, and the second is zero. What is reversed within its length, and that the padding of the outputs is
zero, cuDNN does as we do; a length of 0 it refuses.

Matrix products are in TF32 as cuDNN's default is, unless `jax.default_matmul_precision("highest")` is set.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jaxtyping import Array

from s2s_jax.cells import LSTMParams, LSTMSpec
from s2s_jax.masks import reverse_sequence, where_valid
from s2s_jax.recurrence import scan
from s2s_jax.recurrence.adjoint import call_with_adjoint
from s2s_jax.recurrence.backend import Backend, Direction, Options, TimeMajor, default_platform
from s2s_jax.sharding import varying_as
from s2s_jax.types import Cell, Context, LSTMState, Params, State

Kernel = Callable[..., tuple[Array, Array, Array]]  # called as `jax.experimental.rnn.lstm`


class StackTimeMajor(NamedTuple):
    """What `run_stack` returns: outputs of the last layer [T, B, directions * H], and states[layer][direction]."""

    outputs: Array
    states: tuple[tuple[LSTMState, ...], ...]


def why_not(cell: Cell, directions: Sequence[Direction], lengths: Array | None, options: Options) -> str | None:
    """The reason why `run` does not apply to these arguments on the default device, or None."""
    return _why_not_here() or _why_not_layer(cell, directions, options)


def _why_not_layer(cell: Cell, directions: Sequence[Direction], options: Options) -> str | None:
    params, contexts = (tuple(d.params for d in directions),), (tuple(d.context for d in directions),)
    return _why_not_these(((cell,) * len(directions),), params, directions[0].xs, contexts, *options)


def _why_not_here() -> str | None:
    platform = default_platform()
    try:
        # "gpu" is AMD's name too.
        if platform in ("gpu", "cuda") and jax.devices("cuda"):
            config: Any = jax.config
            precision = config.jax_default_matmul_precision
            narrow = precision in ("bfloat16", "default", "fastest")
            return f"cuDNN's LSTM is float32 or TF32, and jax_default_matmul_precision is {precision!r}" if narrow else None
    except RuntimeError:
        pass
    return f"it needs an NVIDIA GPU, and the default device is of platform {platform!r}"


def _why_not_these(
    cells: Sequence[Sequence[Cell]],
    params: Sequence[Sequence[Params]],
    xs: Array,
    contexts: Sequence[Sequence[Context]],
    remat: int | None,
    history: bool,
) -> str | None:
    for spec in (cell.spec for of_layer in cells for cell in of_layer):
        if not isinstance(spec, LSTMSpec):
            return "it has the LSTM only"
        for option in ("projection", "peepholes", "layer_norm"):
            if getattr(spec, option):
                return f"it has the plain LSTM only, without {option}"
        if spec.recurrence != "dense":
            return f"it has the dense LSTM only, not a {spec.recurrence} one"
        if spec.activation != "tanh":
            return f'it has the activation "tanh" only, not {spec.activation!r}'
    if len({of_direction.u.shape for of_layer in params for of_direction in of_layer}) > 1:
        return "it needs all layers and directions of one size"
    if xs.dtype != jnp.float32:
        return f"it computes in float32, and xs is {xs.dtype}"
    if 0 in xs.shape:
        return "it needs a sequence: there are no elements in xs"
    if jax.tree.leaves(contexts):
        return "context: it has no recurrent dropout"
    if remat is not None:
        return "remat: it keeps what its backward pass needs"
    return "history: it returns the last state only" if history else None


def run(
    cell: Cell, directions: Sequence[Direction], lengths: Array | None, options: Options, kernel: Kernel | None = None
) -> list[TimeMajor]:
    """A layer, in one call where both directions read the same; derivatives but the first in reverse mode are `scan`'s.

    Args:
      cell, directions, lengths, options: see `s2s_jax.recurrence.backend.Backend`.
      kernel: None for cuDNN, or a function called in its place, on any platform: `reference`.

    Raises:
      ValueError: there is a reason why it does not apply.
    """
    names = tuple("backward" if d.reverse else "forward" for d in directions)
    if len(directions) > 1 and (names != ("forward", "backward") or directions[0].xs is not directions[1].xs):
        return [done for d in directions for done in run(cell, [d], lengths, options, kernel)]
    of_layer = [tuple(field) for field in zip(*directions, strict=True)]
    stacked = _checked(((cell,) * len(names),), (of_layer[0],), directions[0].xs, (of_layer[3],), *options, kernel)
    outputs, ((*states,),) = stacked((of_layer[0],), directions[0].xs, (of_layer[2],), lengths, names)
    parts = jnp.split(outputs, len(names), axis=-1)
    return [TimeMajor(part, state, None) for part, state in zip(parts, states, strict=True)]


def run_stack(
    cells: Sequence[Sequence[Cell]],
    params: Sequence[Sequence[Params]],
    xs: Array,
    states: Sequence[Sequence[State]],
    lengths: Array | None,
    contexts: Sequence[Sequence[Context]],
    *,
    directions: tuple[str, ...],
    remat: int | None,
    kernel: Kernel | None = None,
) -> StackTimeMajor:
    """Carries a stack of layers along time in one call, each in the same directions, their outputs side by side.

    There is nothing between the layers, no dropout and no residual, and above the first each reads [T, B, directions * H].

    Args:
      cells, params, states, contexts: indexed by layer, then by direction.
      xs: [T, B, D].
      lengths: int32 [B] within 0..T, or None.
      directions: ("forward",), ("backward",), or ("forward", "backward").
      remat: must be None.
      kernel: see `run`.

    Raises:
      ValueError: there is a reason why it does not apply, or the directions are others than those.
    """
    if directions not in (("forward",), ("backward",), ("forward", "backward")):
        raise ValueError(f'directions: expected "forward", "backward" or both in this order, got {directions!r}')
    stacked = _checked(cells, params, xs, contexts, remat, False, kernel)
    return stacked(params, xs, states, lengths, directions)


def _checked(cells: Any, params: Any, xs: Any, contexts: Any, remat: Any, history: bool, kernel: Kernel | None) -> Any:
    """A function of params, xs, states, lengths and directions; raises where there is a reason not to."""
    reason = None if kernel is not None else _why_not_here()
    reason = reason or _why_not_these(cells, params, xs, contexts, remat, history)
    if reason:
        raise ValueError(f"backend: cudnn does not apply: {reason}")
    kernel = kernel or _cudnn

    def stacked(params: Any, xs: Array, states: Any, lengths: Array | None, directions: tuple[str, ...]) -> StackTimeMajor:
        def scanned(args: Any) -> StackTimeMajor:
            return _scanned(cells, *args, directions=directions)

        def direct(inexact: tuple[Any, Any, Any], lengths: Array | None) -> StackTimeMajor:
            return _direct(kernel, *inexact, lengths, directions)

        structure: Any = None  # of what the backward pass reads: each trace makes one that equals no other

        # cuDNN's call cannot be batched: under `vmap` there is one call after the other.
        @sequential_vmap
        def plain(args: tuple[Any, ...]) -> StackTimeMajor:
            return direct(args[:3], args[3])

        @sequential_vmap
        def keeping(args: tuple[Any, ...]) -> tuple[StackTimeMajor, list[Array]]:
            nonlocal structure
            outputs, transpose = jax.vjp(lambda *inexact: direct(inexact, args[3]), *args[:3])
            kept, structure = jax.tree.flatten(transpose)
            return outputs, kept

        @sequential_vmap
        def pulled(kept: list[Array], cotangents: StackTimeMajor) -> Any:
            return structure.unflatten(kept)(cotangents)

        return call_with_adjoint(
            (params, xs, states, lengths),
            scanned,
            lambda args, keep: keeping(args) if keep else (plain(args), None),
            lambda args, kept, cotangents: (*pulled(kept, cotangents), None),
        )

    return stacked


# With rules of our own around the calls that those of `rnn.lstm` make, because the types of what the calls return say
# nothing of the mesh axes over which it varies inside `shard_map`.
@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8, 9))
def _cudnn(x: Array, h_0: Array, c_0: Array, weights: Array, seq_lengths: Array, *sizes: Any) -> tuple[Array, Array, Array]:
    return _cudnn_forward(x, h_0, c_0, weights, seq_lengths, *sizes)[0]


def _cudnn_forward(*args: Any) -> tuple[tuple[Array, Array, Array], Any]:
    from jax.experimental import rnn  # only here, because it is experimental

    outputs, kept = rnn.lstm_fwd(*args, precision=None)
    return varying_as(outputs, args[:5]), kept


def _cudnn_backward(*args: Any) -> tuple[Array | None, ...]:
    from jax.experimental import rnn

    *sizes, kept, cotangents = args
    found = rnn.lstm_bwd(*sizes, precision=None, residuals=kept, gradients=cotangents)
    return (*varying_as(found[:4], cotangents), None)


_cudnn.defvjp(_cudnn_forward, _cudnn_backward)


def reference(
    x: Array,
    h_0: Array,
    c_0: Array,
    weights: Array,
    seq_lengths: Array,
    input_size: int,
    hidden_size: int,
    num_layers: int,
    dropout: float,
    bidirectional: bool,
) -> tuple[Array, Array, Array]:
    """`jax.experimental.rnn.lstm_ref` on the packed weights: JAX's own statement of what cuDNN computes, for tests."""
    from jax.experimental import rnn

    sizes = input_size, hidden_size, num_layers
    unpacked = rnn.unpack_lstm_weights(weights, *sizes, bidirectional)
    return rnn.lstm_ref(x, h_0, c_0, *unpacked, seq_lengths, *sizes, dropout, bidirectional)


def pack(params: Sequence[Sequence[LSTMParams]]) -> Array:
    """The flat vector of weights that cuDNN reads, float32, of params[layer][direction]."""
    matrices, biases = [], []
    for of_layer in params:
        for p in of_layer:
            matrices += [p.w.T, p.u.T]
            bias = jnp.zeros(p.u.shape[1], p.u.dtype) if p.b is None else p.b
            biases += [bias, jnp.zeros_like(bias)]
    return jnp.concatenate([part.reshape(-1).astype(jnp.float32) for part in matrices + biases])


def _direct(
    kernel: Kernel, params: Any, xs: Array, states: Any, lengths: Array | None, directions: tuple[str, ...]
) -> StackTimeMajor:
    time, batch_size, in_features = xs.shape
    layers, hidden_features, both = len(params), params[0][0].u.shape[0], len(directions) == 2
    x = jnp.swapaxes(xs, 0, 1)
    counts = jnp.full(batch_size, time, jnp.int32) if lengths is None else lengths
    valid = None if lengths is None else jnp.arange(time)[None] < lengths[:, None]
    if valid is not None:  # NaN times zero is NaN
        x = where_valid(valid, x, jnp.zeros((), x.dtype))
    if directions == ("backward",):
        x = reverse_sequence(x, lengths)
    flat = [state for of_layer in states for state in of_layer]
    h, c = jnp.stack([state.h for state in flat]), jnp.stack([state.c for state in flat])
    # A row without a step takes one over zeros, and what comes of it is dropped.
    sizes = in_features, hidden_features, layers
    y, h_last, c_last = kernel(x, h, c, pack(params), jnp.maximum(counts, 1), *sizes, 0.0, both)
    if directions == ("backward",):
        y = reverse_sequence(y, lengths)
    if valid is not None:
        y = where_valid(valid, y, jnp.zeros((), y.dtype))
        some = (counts > 0)[None, :, None]
        h_last, c_last = jnp.where(some, h_last, h), jnp.where(some, c_last, c)
    last = [LSTMState(*pair) for pair in zip(h_last, c_last, strict=True)]
    width = len(directions)
    grouped = tuple(tuple(last[layer * width : (layer + 1) * width]) for layer in range(layers))
    return StackTimeMajor(jnp.swapaxes(y, 0, 1), grouped)


def _scanned(
    cells: Any, params: Any, xs: Array, states: Any, lengths: Array | None, directions: tuple[str, ...]
) -> StackTimeMajor:
    """The same by backend `scan`."""
    last = []
    for of_cells, of_params, of_states in zip(cells, params, states, strict=True):
        done = [
            scan.run(cell, Direction(p, xs, state, None, direction == "backward"), lengths, Options())
            for cell, p, state, direction in zip(of_cells, of_params, of_states, directions, strict=True)
        ]
        last.append(tuple(each.state for each in done))
        xs = jnp.concatenate([each.outputs for each in done], axis=-1)
    return StackTimeMajor(xs, tuple(last))


BACKEND = Backend(run, why_not)
