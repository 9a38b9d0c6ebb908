"""Backend `persistent`: one launch for whole sequences on an NVIDIA Hopper GPU, on which the weights stay in place.

Each block of threads owns some hidden units and keeps their recurrent weights in registers and shared memory. In each step it
reads the state of all units, which the blocks exchange through the L2 cache, multiplies on the tensor cores, applies the
gates, and writes its share of the next state (Diamos et al. 2016, "Persistent RNNs"). What needs no order in time is one
matrix product of XLA, before the loop for the inputs and after it for the gradients of weights and inputs.

Both directions of a layer, or all layers of a stack in one direction, go in one launch. In a stack each layer also multiplies
what the one below has made of the same step, so that layers follow each other at a distance of a step (a wavefront) and not of
a sequence.

State and sums are float32; the products are in the dtype of `xs`, float32 as TF32, as XLA's own are by default on such a GPU.
Compiled, and tested by running the same source on a CPU; it has never run on a GPU yet.

- layer.cuh: blocks, the exchange between them, the product of a step; how layers of a stack read each other
- forward.cuh, backward.cuh: the two passes
- platform.cuh: the instructions of the GPU that they use
- launch.cu, launch.h, ffi.cc: how they are started, and the two calls that XLA makes
- plan.py: how layers are divided among the multiprocessors
- build.py: compiles all that where it is used
- calls.py: the calls and their arrays
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jaxtyping import Array

from s2s_jax.cells import GRUSpec, LSTMSpec
from s2s_jax.masks import where_valid
from s2s_jax.recurrence import by_hand, scan
from s2s_jax.recurrence.adjoint import call_with_adjoint
from s2s_jax.recurrence.backend import Backend, Direction, Options, Stack, TimeMajor, default_platform
from s2s_jax.recurrence.persistent import build, calls, plan
from s2s_jax.sharding import varying_as
from s2s_jax.types import Cell, LSTMState

MOST_LAYERS = 8  # `kMostChains` of layer.cuh


class Args(NamedTuple):
    """What is differentiated, in each tuple one entry for each chain, and the lengths.

    A chain is a direction of a layer, or a layer of a stack; of a stack only the lowest one reads `xs`.
    """

    params: tuple[Any, ...]
    xs: tuple[Array, ...]
    states: tuple[Any, ...]
    lengths: Array | None


def run(cell: Cell, directions: Sequence[Direction], lengths: Array | None, options: Options) -> list[TimeMajor]:
    """A layer in one launch a pass; derivatives but the first in reverse mode are `scan`'s.

    Both directions at once, or one after the other where their weights do not stay in place together.
    """
    call = _call(cell, directions, stacked=False)
    if len(directions) > 1 and not _fits(directions, call.device):
        return [done for direction in directions for done in run(cell, [direction], lengths, options)]
    params, xs, states = (tuple(getattr(d, name) for d in directions) for name in ("params", "xs", "state"))

    def reference(args: Args) -> list[TimeMajor]:
        given = zip(*args[:3], call.reversed, strict=True)
        whole = [Direction(params, xs, state, None, reverse) for params, xs, state, reverse in given]
        return scan.BACKEND.run(cell, whole, args.lengths, Options())

    return _carried(cell, call, Args(params, xs, states, lengths), reference)


def run_stack(
    cells: Sequence[Cell], directions: Sequence[Sequence[Direction]], lengths: Array | None, options: Options
) -> tuple[Array, Any]:
    """Layers in one direction in one launch a pass; see `s2s_jax.recurrence.backend.Stack`."""
    layers = [only for (only,) in directions]
    call = _call(cells[0], layers, stacked=True)
    params, states = (tuple(getattr(layer, name) for layer in layers) for name in ("params", "state"))

    def reference(args: Args) -> list[TimeMajor]:
        (xs,), done = args.xs, list[TimeMajor]()
        for params, state, reverse in zip(args.params, args.states, call.reversed, strict=True):
            (of_layer,) = scan.BACKEND.run(cells[0], [Direction(params, xs, state, None, reverse)], args.lengths, Options())
            xs, done = of_layer.outputs, [*done, of_layer]
        return _of_last(done)

    done = _carried(cells[0], call, Args(params, (layers[0].xs,), states, lengths), reference)
    return done[-1].outputs, tuple((each.state,) for each in done)


def _of_last(done: Sequence[Any]) -> list[TimeMajor]:
    """Of a stack only the outputs of the last layer are returned."""
    return [TimeMajor(each.outputs if k == len(done) - 1 else None, each.state) for k, each in enumerate(done)]


def _call(cell: Cell, chains: Sequence[Direction], stacked: bool) -> calls.Call:
    known = _kind(cell)
    assert known is not None  # `why_not` has looked
    name = f"Stacked{known.cell}" if stacked else known.cell
    device = build.load(name, chains[0].xs.dtype.name).device
    assert device is not None
    return calls.Call(name, known.relu, known.saved, tuple(chain.reverse for chain in chains), device)


def _carried(cell: Cell, call: calls.Call, args: Args, reference: Callable[[Args], list[TimeMajor]]) -> list[TimeMajor]:
    """All chains along time; `reference` gives the same, for derivatives that the kernels do not have."""

    def returned(done: list[calls.Forward]) -> list[TimeMajor]:
        return _of_last(done) if call.stacked else [TimeMajor(each.outputs, each.state) for each in done]

    # A call of a kernel cannot be batched: under `vmap` there is one after the other.
    @sequential_vmap
    def plain(args: Args) -> list[TimeMajor]:
        return returned(_forward(cell, call, args, keep=False))

    @sequential_vmap
    def keeping(args: Args) -> list[calls.Forward]:
        return _forward(cell, call, args, keep=True)

    @sequential_vmap
    def pulled(args: Args, done: list[calls.Forward], cotangents: list[Any]) -> Any:
        return _backward(cell, call, args, done, cotangents)

    def forward(args: Args, keep: bool) -> tuple[list[TimeMajor], Any]:
        if not keep:
            return plain(args), None
        done = keeping(args)
        return returned(done), done

    def backward(args: Args, done: list[calls.Forward], cotangents: list[TimeMajor]) -> Args:
        d_params, d_xs, d_states = pulled(args, done, [(each.outputs, each.state) for each in cotangents])
        return Args(d_params, d_xs, d_states, None)

    return call_with_adjoint(args, reference, forward, backward)


def why_not(cell: Cell, directions: Sequence[Direction], lengths: Array | None, options: Options) -> str | None:
    """Why it does not apply to these arguments, or not here; compiles the kernels if it does."""
    return why_not_at_a_glance(cell, directions, lengths, options) or _why_no_kernel(cell, directions)


def why_not_at_a_glance(cell: Cell, directions: Sequence[Direction], lengths: Array | None, options: Options) -> str | None:
    """As `why_not`, but for what only the kernels tell, which are not compiled."""
    return why_not_these(cell, directions, options) or _why_not_here(directions)


def why_not_these(cell: Cell, directions: Sequence[Direction], options: Options) -> str | None:
    """The reason that is in the arguments, whatever the device is."""
    if _kind(cell) is None:
        return "the cell is not a plain RNN, LSTM or GRU (reset after) of s2s_jax.cells with tanh or relu"
    first = directions[0]
    if first.xs.dtype.name not in build.ELEMENTS:
        return f"it computes in {', '.join(build.ELEMENTS)}, and xs is {first.xs.dtype}"
    if 0 in first.xs.shape:
        return "it needs a sequence: there are no elements in xs"
    if any(d.xs.shape != first.xs.shape or d.params.u.shape != first.params.u.shape for d in directions):
        return "the directions differ in size"
    if len(directions) > 2:
        return "it has two directions at most"
    if any(d.context is not None for d in directions):
        return "context: it has no recurrent dropout"
    if options.remat is not None:
        return "remat: it keeps what its backward pass needs"
    if options.history:
        return "history: it returns the last state only"
    types = [jax.typeof(leaf) for d in directions for leaf in jax.tree.leaves((d.params, d.xs, d.state))]
    if any(any(of_leaf.sharding.spec) for of_leaf in types):
        return "the arrays are split over a mesh whose axes are explicit"
    return None


def _why_not_here(directions: Sequence[Direction]) -> str | None:
    platform = default_platform()
    needed = "it needs an NVIDIA GPU of compute capability 9.0 (Hopper)"
    if platform not in ("gpu", "cuda"):
        return f"{needed}, and the default device is of platform {platform!r}"
    found = getattr(jax.devices()[0], "compute_capability", None)  # what does not say will be asked by the kernels
    if found not in (None, "9.0"):
        return f"{needed}, and the device's is {found}"
    config: Any = jax.config
    precision = config.jax_default_matmul_precision
    if directions[0].xs.dtype == jnp.float32 and precision not in (None, "default", "fastest", "tensorfloat32"):
        return f"its products of float32 are TF32, and jax_default_matmul_precision is {precision!r}"
    return None


def _why_no_kernel(cell: Cell, directions: Sequence[Direction]) -> str | None:
    known = _kind(cell)
    assert known is not None
    device, reason = build.load(known.cell, directions[0].xs.dtype.name)
    if device is None:
        return reason
    return None if _fits(directions[:1], device) else _no_room(directions[0], "one direction", device)


def why_not_stack(
    cells: Sequence[Cell], directions: Sequence[Sequence[Direction]], lengths: Array | None, options: Options
) -> str | None:
    """Why all layers do not go in one launch; then they go one after the other. Asked of layers whose lowest can be run."""
    if any(len(of_layer) > 1 for of_layer in directions):
        return "with two directions an upper layer begins where those below it end"
    layers = [only for (only,) in directions]
    if any(cell.spec != cells[0].spec for cell in cells) or len({layer.params.u.shape for layer in layers}) > 1:
        return "it needs layers of one cell and size"
    if len(layers) > MOST_LAYERS:
        return f"it has {MOST_LAYERS} layers at most"
    for layer in layers[1:]:
        if reason := why_not_these(cells[0], [layer], options):
            return reason
    known = _kind(cells[0])
    assert known is not None
    device, reason = build.load(known.cell, layers[0].xs.dtype.name)
    if device is None:
        return reason
    one, steps = calls.layer(layers[0].params.u, layers[0].xs, 1), layers[0].xs.shape[0]
    together = plan.stack(one, len(layers), steps)
    if not plan.fits(together, device):
        return _no_room(layers[0], f"{len(layers)} layers", device)
    if (wanted := plan.most_scratch_bytes(together, device)) > plan.MOST_SCRATCH:
        return f"its layers would exchange {wanted} bytes, which are kept for all steps"
    if not plan.gains_by_stacking(one, len(layers), steps, device):
        return "layer by layer it should take less time"
    return build.load(f"Stacked{known.cell}", layers[0].xs.dtype.name).why_not


def _features(cell: Cell, params: Any) -> int | None:
    return None if _kind(cell) is None else params.u.shape[0]


def _fits(directions: Sequence[Direction], device: plan.Device) -> bool:
    """Whether the weights of these directions stay in place at the same time, in both passes."""
    return plan.fits(calls.layer(directions[0].params.u, directions[0].xs, len(directions)), device)


def _no_room(chain: Direction, what: str, device: plan.Device) -> str:
    room = f"{device.multiprocessors} multiprocessors of {device.shared_bytes} bytes of shared memory"
    return f"weights of {chain.params.u.shape[0]} units in {what} do not stay in {room}"


class _Kind(NamedTuple):
    """A cell as the kernels know it: its name, activation, and numbers of a unit and step that are kept for the way back."""

    cell: str
    relu: bool
    saved: int


def _kind(cell: Cell) -> _Kind | None:
    """None for a cell that the kernels do not know."""
    spec: Any = cell.spec
    if by_hand.rules_of(cell) is None or (isinstance(spec, GRUSpec) and spec.reset != "after"):
        return None
    relu = spec.activation == "relu"
    if isinstance(spec, LSTMSpec):
        return _Kind("LSTM", relu, 4)
    return _Kind("GRU", relu, 4) if isinstance(spec, GRUSpec) else _Kind("RNN", relu, 0)


def _forward(cell: Cell, call: calls.Call, args: Args, keep: bool) -> list[calls.Forward]:
    valid = _valid(args)
    params = _cast(args)
    reading, above = params[: len(args.xs)], params[len(args.xs) :]
    zs = [jax.vmap(cell.project, in_axes=(None, 0))(p, _zeroed(xs, valid)) for p, xs in zip(reading, args.xs, strict=True)]
    zs += [cell.project(p, jnp.zeros((1, p.w.shape[0]), p.w.dtype))[0] for p in above]  # the biases
    ws = [*[None] * len(args.xs), *(p.w for p in above)]
    b_ns = [getattr(p, "b_n", None) for p in params]
    done = calls.forward(call, zs, ws, [p.u for p in params], b_ns, args.states, args.lengths, keep)
    return varying_as(done, args)


def _backward(cell: Cell, call: calls.Call, args: Args, done: list[calls.Forward], cotangents: list[Any]) -> Any:
    """Cotangents of parameters, inputs and states; each a tuple, over what `args` has of them."""
    valid, params = _valid(args), _cast(args)
    rules: Any = by_hand.rules_of(cell)
    # Whatever the loss does with the padding ends here, NaN too.
    cotangents = [(d if d is None else _zeroed(d, valid), d_state) for d, d_state in cotangents]
    above = params[len(args.xs) :]
    ws = [*(p.w for p in above), *[None] * (len(params) - len(above))]
    back = calls.backward(call, ws, [p.u for p in params], args.states, done, cotangents, args.lengths)
    back = varying_as(back, args)
    read = [_zeroed(xs, valid) for xs in args.xs] + [did.outputs for did in done[: len(above)]]
    found = []
    for p, xs, state, did, (dz, d_state), reverse in zip(params, read, args.states, done, back, call.reversed, strict=True):
        befores = _before(did.outputs, by_hand.hidden(state), args.lengths, reverse)
        befores = LSTMState(befores, did.c) if isinstance(state, LSTMState) else befores
        saved = jnp.split(did.saved, call.saved, axis=-1) if call.saved else did.outputs
        d_params, d_xs, _ = by_hand.gathered(rules, p, xs, befores, saved, None, dz)
        found.append((d_params, _zeroed(d_xs.astype(xs.dtype), valid), d_state))
    d_params, d_read, d_states = zip(*found, strict=True)
    return d_params, d_read[: len(args.xs)], d_states


def _before(outputs: Array, h_0: Array, lengths: Array | None, reverse: bool) -> Array:
    """The h before each step, [T, B, H], of the outputs after it; whatever in the padding."""
    first = h_0.astype(outputs.dtype)[None]
    if not reverse:
        return jnp.concatenate([first, outputs[:-1]])
    shifted = jnp.concatenate([outputs[1:], first])
    if lengths is None:
        return shifted
    last = jnp.arange(outputs.shape[0])[:, None] == lengths[None] - 1
    return where_valid(last, jnp.broadcast_to(first, outputs.shape), shifted)


def _cast(args: Args) -> list[Any]:
    dtype = scan.compute_dtype(args.xs[0], args.params[0])
    return [scan.cast_floating(params, dtype) for params in args.params]


def _valid(args: Args) -> Array | None:
    if args.lengths is None:
        return None
    return jnp.arange(args.xs[0].shape[0], dtype=jnp.int32)[:, None] < args.lengths[None]


def _zeroed(x: Array, valid: Array | None) -> Array:
    """Zero where not valid; selected and not multiplied, because NaN times zero is NaN."""
    return x if valid is None else where_valid(valid, x, jnp.zeros((), x.dtype))


BACKEND = Backend(run, why_not, Stack(run_stack, why_not_stack, _features), at_a_glance=why_not_at_a_glance)
