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
from s2s_jax.recurrence.backend import Backend, Direction, Options, Stack, TimeMajor, default_platform
from s2s_jax.sharding import varying_as
from s2s_jax.types import Cell, LSTMState

Kernel = Callable[..., tuple[Array, Array, Array]]  # called as `jax.experimental.rnn.lstm`


class StackTimeMajor(NamedTuple):
    """Outputs of the last layer [T, B, directions * H], and states[layer][direction]."""

    outputs: Array
    states: tuple[tuple[LSTMState, ...], ...]


def why_not(cell: Cell, directions: Sequence[Direction], lengths: Array | None, options: Options) -> str | None:
    return _why_not_here() or why_not_these([cell], [directions], options)


def why_not_stack(
    cells: Sequence[Cell], directions: Sequence[Sequence[Direction]], lengths: Array | None, options: Options
) -> str | None:
    return _why_not_here() or why_not_order(directions) or why_not_these(cells, directions, options)


def why_not_order(directions: Sequence[Sequence[Direction]]) -> str | None:
    both = len(directions[0]) > 1
    return 'it has both directions in the order "forward", "backward" only' if both and directions[0][0].reverse else None


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


def features(cell: Cell, params: LSTMParams) -> int | None:
    """How wide the outputs of a cell are; None for one that it does not have, and for parameters of another."""
    known = _why_not_cell(cell) is None and isinstance(params, LSTMParams)
    return params.u.shape[0] if known else None


def _why_not_cell(cell: Cell) -> str | None:
    spec = cell.spec
    if not isinstance(spec, LSTMSpec):
        return "it has the LSTM only"
    for option in ("projection", "peepholes", "layer_norm"):
        if getattr(spec, option):
            return f"it has the plain LSTM only, without {option}"
    if spec.recurrence != "dense":
        return f"it has the dense LSTM only, not a {spec.recurrence} one"
    return None if spec.activation == "tanh" else f'it has the activation "tanh" only, not {spec.activation!r}'


def why_not_these(cells: Sequence[Cell], directions: Sequence[Sequence[Direction]], options: Options) -> str | None:
    """The reason that is in the arguments, whatever the device is."""
    if reason := next((reason for cell in cells if (reason := _why_not_cell(cell))), None):
        return reason
    every = [direction for of_layer in directions for direction in of_layer]
    if len({direction.params.u.shape for direction in every}) > 1:
        return "it needs all layers and directions of one size"
    xs = every[0].xs
    if xs.dtype != jnp.float32:
        return f"it computes in float32, and xs is {xs.dtype}"
    if 0 in xs.shape:
        return "it needs a sequence: there are no elements in xs"
    if any(direction.context is not None for direction in every):
        return "context: it has no recurrent dropout"
    if options.remat is not None:
        return "remat: it keeps what its backward pass needs"
    return "history: it returns the last state only" if options.history else None


def run(
    cell: Cell, directions: Sequence[Direction], lengths: Array | None, options: Options, kernel: Kernel | None = None
) -> list[TimeMajor]:
    """A layer, in one call where both directions read the same; derivatives but the first in reverse mode are `scan`'s.

    Args:
      cell, directions, lengths, options: see `s2s_jax.recurrence.backend.Backend`.
      kernel: None for cuDNN, or a function called in its place, on any platform: `reference`.
    """
    if len(directions) > 1 and (_reversed(directions) != (False, True) or directions[0].xs is not directions[1].xs):
        return [done for d in directions for done in run(cell, [d], lengths, options, kernel)]
    outputs, (states,) = run_stack([cell], [directions], lengths, options, kernel)
    parts = jnp.split(outputs, len(directions), axis=-1)
    return [TimeMajor(part, state) for part, state in zip(parts, states, strict=True)]


def run_stack(
    cells: Sequence[Cell],
    directions: Sequence[Sequence[Direction]],
    lengths: Array | None,
    options: Options,
    kernel: Kernel | None = None,
) -> StackTimeMajor:
    """Carries a stack of layers along time in one call; see `s2s_jax.recurrence.backend.Stack`."""
    params, states = (tuple(tuple(d[field] for d in of_layer) for of_layer in directions) for field in (0, 2))
    backward = _reversed(directions[0])

    def scanned(args: Any) -> StackTimeMajor:
        return _scanned(cells, *args, backward=backward)

    def direct(inexact: tuple[Any, Any, Any], lengths: Array | None) -> StackTimeMajor:
        return _direct(kernel or _cudnn, *inexact, lengths, backward)

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
        (params, directions[0][0].xs, states, lengths),
        scanned,
        lambda args, keep: keeping(args) if keep else (plain(args), None),
        lambda args, kept, cotangents: (*pulled(kept, cotangents), None),
    )


def _reversed(directions: Sequence[Direction]) -> tuple[bool, ...]:
    return tuple(direction.reverse for direction in directions)


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
    kernel: Kernel, params: Any, xs: Array, states: Any, lengths: Array | None, backward: tuple[bool, ...]
) -> StackTimeMajor:
    time, batch_size, in_features = xs.shape
    layers, hidden_features, both = len(params), params[0][0].u.shape[0], len(backward) == 2
    x = jnp.swapaxes(xs, 0, 1)
    counts = jnp.full(batch_size, time, jnp.int32) if lengths is None else lengths
    valid = None if lengths is None else jnp.arange(time)[None] < lengths[:, None]
    if valid is not None:  # NaN times zero is NaN
        x = where_valid(valid, x, jnp.zeros((), x.dtype))
    if backward == (True,):
        x = reverse_sequence(x, lengths)
    flat = [state for of_layer in states for state in of_layer]
    h, c = jnp.stack([state.h for state in flat]), jnp.stack([state.c for state in flat])
    # A row without a step takes one over zeros, and what comes of it is dropped.
    sizes = in_features, hidden_features, layers
    y, h_last, c_last = kernel(x, h, c, pack(params), jnp.maximum(counts, 1), *sizes, 0.0, both)
    if backward == (True,):
        y = reverse_sequence(y, lengths)
    if valid is not None:
        y = where_valid(valid, y, jnp.zeros((), y.dtype))
        some = (counts > 0)[None, :, None]
        h_last, c_last = jnp.where(some, h_last, h), jnp.where(some, c_last, c)
    last = [LSTMState(*pair) for pair in zip(h_last, c_last, strict=True)]
    width = len(backward)
    grouped = tuple(tuple(last[layer * width : (layer + 1) * width]) for layer in range(layers))
    return StackTimeMajor(jnp.swapaxes(y, 0, 1), grouped)


def _scanned(
    cells: Any, params: Any, xs: Array, states: Any, lengths: Array | None, backward: tuple[bool, ...]
) -> StackTimeMajor:
    """The same by backend `scan`."""
    last = []
    for cell, of_params, of_states in zip(cells, params, states, strict=True):
        given = zip(of_params, of_states, backward, strict=True)
        done = [scan.run(cell, Direction(p, xs, state, None, reverse), lengths, Options()) for p, state, reverse in given]
        last.append(tuple(each.state for each in done))
        xs = jnp.concatenate([each.outputs for each in done], axis=-1)
    return StackTimeMajor(xs, tuple(last))


BACKEND = Backend(run, why_not, Stack(run_stack, why_not_stack, features))
