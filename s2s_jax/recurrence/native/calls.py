"""The native layer as JAX primitives: forward, its tangent, and its gradient.

The gradient of `forward` is one native call, but for few rows and steps with many weights: there the backend `fused` is faster,
and differentiates what it has computed itself. Where `vmap` goes over the sequences and not over the parameters, the mapped
axis becomes more rows of one call; all else takes one call after the other: parameters that differ, or whose gradients are kept
apart, and sequences that are shared, which would have to be copied. Whatever else may be asked for (derivatives of the
gradient, forward mode, another platform than the CPU) is that of the backend `scan`, which computes the same function.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from s2s_jax import cells
from s2s_jax.recurrence import fused, scan
from s2s_jax.recurrence.backend import Direction, Options, TimeMajor
from s2s_jax.types import Cell, LSTMState


class Arguments(NamedTuple):
    """What is differentiated; in each tuple one entry for each direction. Sequences are [B, T, D]."""

    params: tuple[Any, ...]
    xs: tuple[Array, ...]
    states: tuple[Any, ...]


class Results(NamedTuple):
    """Arrays, or their shapes; one entry for each direction. Outputs are [B, T, H]."""

    outputs: tuple[Any, ...]
    states: tuple[Any, ...]


class Call(NamedTuple):
    """What is fixed when a program is compiled. `arguments` is the structure of (Arguments, lengths or None)."""

    cell: Cell
    reversed: tuple[bool, ...]
    arguments: Any


class _Rows(NamedTuple):
    """Of the operands and the results of a primitive, which axis is that of the rows of the batch; None where none is.

    `sequences` are the numbers of the operands that are input sequences.
    """

    operands: Sequence[int | None]
    results: Sequence[int | None]
    sequences: Sequence[int]


class _Kind(NamedTuple):
    """A cell as the native code knows it: its number, gates, and values a unit and step that are kept for the gradient."""

    number: int
    gates: int
    saved: int


def kind(spec: Any) -> _Kind | None:
    """None for a cell that the native code does not know."""
    if getattr(spec, "recurrence", None) != "dense":
        return None
    if isinstance(spec, cells.RNNSpec) and spec.activation in ("tanh", "relu"):
        return _Kind(("tanh", "relu").index(spec.activation), 1, 0)  # the output of a simple cell says all
    if isinstance(spec, cells.LSTMSpec) and spec == cells.LSTMSpec(bias=spec.bias):
        return _Kind(2, 4, 5)
    if isinstance(spec, cells.GRUSpec) and spec.activation == "tanh":
        return _Kind(3, 3, 4) if spec.reset == "after" else _Kind(4, 3, 3)
    return None


def forward(cell: Cell, reversed: Sequence[bool], arguments: Arguments, lengths: Array | None) -> Results:
    """A layer in each direction; everything in float32. The library must have been loaded."""
    flat, structure = jax.tree.flatten((arguments, lengths))
    call = Call(cell, tuple(reversed), structure)
    return _results(call, _forward_p.bind(*flat, call=call, saving=False))


# By scan -------------------------------------------------------------------------------------------------------------------


def _forward_by(run: Callable[..., TimeMajor], *flat: Array, call: Call) -> list[Array]:
    """The results by a backend that carries one direction at a time."""
    arguments, lengths = jax.tree.unflatten(call.arguments, flat)
    done = [
        run(call.cell, Direction(params, jnp.swapaxes(xs, 0, 1), state, None, reverse), lengths, Options())
        for reverse, params, xs, state in zip(call.reversed, *arguments, strict=True)
    ]
    return jax.tree.leaves(Results(tuple(jnp.swapaxes(d.outputs, 0, 1) for d in done), tuple(d.state for d in done)))


def _forward_by_scan(*flat: Array, call: Call, saving: bool) -> list[Array]:
    # What is computed by scan is differentiated by scan, which does not look at it; whoever does shall see it.
    saved = [jnp.full(s.shape, jnp.nan, s.dtype) for s in _saved(call, flat)] if saving else []
    return [*_forward_by(scan.run, *flat, call=call), *saved]


def _tangent_by_scan(*operands: Array, call: Call, wrt: tuple[int, ...]) -> list[Array]:
    flat, _, tangents = _split(operands, call, len(wrt))
    primals = [flat[i] for i in wrt]
    return jax.jvp(_function_of(scan.run, flat, call, wrt), primals, tangents)[1]


def _gradient_by_scan(*operands: Array, call: Call, wrt: tuple[int, ...], given: tuple[bool, ...]) -> list[Array]:
    flat, results, cotangents = _split(operands, call, sum(given))
    _, pull = jax.vjp(_function_of(scan.run, flat, call, wrt), *[flat[i] for i in wrt])
    return list(pull(_all_cotangents(results, cotangents, given)))


def _function_of(
    run: Callable[..., TimeMajor], flat: Sequence[Array], call: Call, wrt: tuple[int, ...]
) -> Callable[..., list[Array]]:
    """The layer by a backend, as a function of some of its arguments."""

    def function(*some: Array) -> list[Array]:
        whole = list(flat)
        for i, value in zip(wrt, some, strict=True):
            whole[i] = value
        return _forward_by(run, *whole, call=call)

    return function


def _all_cotangents(results: Sequence[Array], cotangents: Sequence[Array], given: tuple[bool, ...]) -> list[Array]:
    rest = iter(cotangents)
    return [next(rest) if is_given else jnp.zeros_like(result) for is_given, result in zip(given, results, strict=False)]


# Natively ------------------------------------------------------------------------------------------------------------------


def _forward_natively(*flat: Array, call: Call, saving: bool) -> list[Array]:
    arguments, lengths = jax.tree.unflatten(call.arguments, flat)
    operands = [_lengths(lengths)]
    shapes = []
    results, saved = _result_shapes(call, flat), _saved(call, flat)
    for d, (params, xs, state) in enumerate(zip(*arguments, strict=True)):
        operands += [xs, params.w, params.u, _or_nothing(params.b), _or_nothing(getattr(params, "b_n", None)), *_both(state)]
        shapes += [results.outputs[d], *_both(results.states[d]), saved[d] if saving else _NOTHING]
    outs = _ffi_call("s2s_forward", shapes, operands, call)
    groups = [outs[i : i + 4] for i in range(0, len(outs), 4)]
    states = tuple(_state(s, h, c) for s, (_, h, c, _) in zip(arguments.states, groups, strict=True))
    done = Results(tuple(y for y, *_ in groups), states)
    return [*jax.tree.leaves(done), *([g[3] for g in groups] if saving else [])]


def _gradient_natively(*operands: Array, call: Call, wrt: tuple[int, ...], given: tuple[bool, ...]) -> list[Array]:
    flat, rest, cotangents = _split(operands, call, sum(given))
    arguments, lengths = jax.tree.unflatten(call.arguments, flat)
    count = len(call.reversed)
    results, saved = _results(call, rest), rest[-count:]
    whole = _results(call, _all_cotangents(rest, cotangents, given))
    wanted, _ = jax.tree.unflatten(call.arguments, [i in wrt for i in range(len(flat))])
    inputs = [_lengths(lengths)]
    shapes = []
    for d, (params, xs, state) in enumerate(zip(*arguments, strict=True)):
        inputs += [xs, params.w, params.u, *_both(state), results.outputs[d], saved[d]]
        inputs += [whole.outputs[d] if given[d] else _or_nothing(None), *_both(whole.states[d])]
        b, b_n = params.b, getattr(params, "b_n", None)
        shapes += [xs if wanted.xs[d] else _NOTHING, params.w, params.u, *(_NOTHING if x is None else x for x in (b, b_n))]
        shapes += _both(state)
    outs = _ffi_call("s2s_backward", shapes, inputs, call)
    gradients = []
    for d, (params, state) in enumerate(zip(arguments.params, arguments.states, strict=True)):
        dx, dw, du, db, db_n, dh, dc = outs[7 * d : 7 * d + 7]
        found = {"w": dw, "u": du, "b": db, "b_n": db_n}
        of_params = params._replace(**{name: found[name] for name, p in params._asdict().items() if p is not None})
        gradients.append((of_params, dx, _state(state, dh, dc)))
    of_arguments = Arguments(*zip(*gradients, strict=True))
    leaves = jax.tree.leaves((of_arguments, lengths))
    return [leaves[i] for i in wrt]


def _ffi_call(name: str, shapes: Sequence[Any], operands: Sequence[Array], call: Call) -> Sequence[Array]:
    known = kind(call.cell.spec)
    assert known is not None  # `why_not` has looked
    backward = sum(1 << d for d, reverse in enumerate(call.reversed) if reverse)
    return jax.ffi.ffi_call(name, [jax.ShapeDtypeStruct(s.shape, s.dtype) for s in shapes])(
        *operands, cell=np.int64(known.number), reversed=np.int64(backward), directions=np.int64(len(call.reversed))
    )


# Shapes --------------------------------------------------------------------------------------------------------------------

_NOTHING = jax.ShapeDtypeStruct((0,), jnp.float32)  # stands for an array that does not apply, or that nobody wants


def _or_nothing(array: Array | None) -> Array:
    return jnp.zeros((0,), jnp.float32) if array is None else array


def _lengths(lengths: Array | None) -> Array:
    return jnp.zeros((0,), jnp.int32) if lengths is None else lengths


def _both(state: Any) -> tuple[Any, Any]:
    """`h` and `c` of a state, which may be shapes; a cell without memory cells has nothing for the second."""
    if isinstance(state, LSTMState):
        return state.h, state.c
    return state, _NOTHING if isinstance(state, jax.ShapeDtypeStruct) else _or_nothing(None)


def _state(like: Any, h: Array, c: Array) -> Any:
    return LSTMState(h, c) if isinstance(like, LSTMState) else h


def _result_shapes(call: Call, flat: Sequence[Any]) -> Results:
    arguments, _ = jax.tree.unflatten(call.arguments, flat)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), arguments.states)
    hidden = [params.u.shape[0] for params in arguments.params]
    outputs = [jax.ShapeDtypeStruct((*x.shape[:2], h), jnp.float32) for x, h in zip(arguments.xs, hidden, strict=True)]
    return Results(tuple(outputs), shapes)


def _saved(call: Call, flat: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    known = kind(call.cell.spec)
    assert known is not None
    shapes = [output.shape for output in _result_shapes(call, flat).outputs]
    return [jax.ShapeDtypeStruct((time, batch, known.saved * hidden), jnp.float32) for batch, time, hidden in shapes]


def _results(call: Call, leaves: Sequence[Any]) -> Results:
    """Results from their leaves, whatever else follows those."""
    count = len(call.reversed)
    arguments, _ = jax.tree.unflatten(call.arguments, range(call.arguments.num_leaves))
    structure = jax.tree.structure(Results(tuple(range(count)), arguments.states))
    return jax.tree.unflatten(structure, list(leaves)[: structure.num_leaves])


def _rows_of_arguments(call: Call) -> tuple[list[int | None], Sequence[int]]:
    """Of the flat arguments, and which of them are sequences."""
    arguments, lengths = jax.tree.unflatten(call.arguments, range(call.arguments.num_leaves))
    parts = (arguments.params, None), ((arguments.xs, arguments.states, lengths), 0)
    return [row for part, row in parts for _ in jax.tree.leaves(part)], arguments.xs


def _rows_of_forward(call: Call, saving: bool) -> _Rows:
    arguments, sequences = _rows_of_arguments(call)
    return _Rows(arguments, _rows_of_results(call, saving), sequences)


def _rows_of_gradient(call: Call, wrt: tuple[int, ...], given: tuple[bool, ...]) -> _Rows:
    arguments, sequences = _rows_of_arguments(call)
    operands = [*arguments, *_rows_of_results(call, True), *[0] * sum(given)]
    return _Rows(operands, [arguments[i] for i in wrt], sequences)


def _rows_of_results(call: Call, saving: bool) -> list[int]:
    results = len(jax.tree.leaves(_results(call, range(call.arguments.num_leaves + len(call.reversed)))))
    return [0] * results + [1] * (len(call.reversed) if saving else 0)  # what is saved is time-major


def _split(operands: Sequence[Array], call: Call, last: int) -> tuple[list[Array], list[Array], list[Array]]:
    """Operands of a derivative: the arguments, results with what was saved, and the tangents or cotangents."""
    first, end = call.arguments.num_leaves, len(operands) - last
    return list(operands[:first]), list(operands[first:end]), list(operands[end:])


# Primitives ----------------------------------------------------------------------------------------------------------------


def _primitive(
    name: str,
    by_scan: Callable[..., list[Array]],
    on_cpu: tuple[Callable[..., list[Array]], Callable[..., _Rows]] | None = None,
) -> Primitive:
    """A primitive that is by the first of `on_cpu` on a CPU; elsewhere, and where it is differentiated, it is `by_scan`."""
    primitive = Primitive(name)
    primitive.multiple_results = True

    @functools.cache
    def compiled(**static: Any) -> Callable[..., list[Array]]:
        return jax.jit(functools.partial(primitive.bind, **static))

    def run(*operands: Array, **static: Any) -> list[Array]:
        with jax.disable_jit(False):
            return compiled(**static)(*operands)

    def shapes(*operands: Any, **static: Any) -> list[Any]:
        given = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands]
        outs = jax.eval_shape(functools.partial(by_scan, **static), *given)
        return [jax.core.ShapedArray(out.shape, out.dtype) for out in outs]

    def batched(operands: Sequence[Array], axes: Sequence[Any], **static: Any) -> tuple[list[Array], Sequence[Any]]:
        if on_cpu is None:
            outs = jax.vmap(functools.partial(by_scan, **static), in_axes=list(axes))(*operands)
            return outs, [0] * len(outs)
        own, made, sequences = on_cpu[1](**static)
        shared = all(axis is None for row, axis in zip(own, axes, strict=True) if row is None)
        if shared and None not in made and all(axes[k] is not None for k in sequences):
            size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
            folded = [_folded(x, axis, row, size) for x, axis, row in zip(operands, axes, own, strict=True)]
            outs = primitive.bind(*folded, **static)
            apart = size, np.delete(operands[sequences[0]].shape, axes[sequences[0]])[0]
            return [
                out.reshape(*out.shape[:row], *apart, *out.shape[row + 1 :]) for out, row in zip(outs, made, strict=True)
            ], made
        # One call after the other; what one of them saves must be what its gradient expects.
        mapped = [k for k, axis in enumerate(axes) if axis is not None]

        def one(some: list[Array]) -> list[Array]:
            whole = list(operands)
            for k, value in zip(mapped, some, strict=True):
                whole[k] = value
            return primitive.bind(*whole, **static)

        outs = jax.lax.map(one, [jnp.moveaxis(operands[k], axes[k], 0) for k in mapped])
        return outs, [0] * len(outs)

    def differentiated(primals: Sequence[Array], tangents: Sequence[Any], **static: Any) -> tuple[Any, Any]:
        moving = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, ad.Zero)]

        def function(*some: Array) -> list[Array]:
            whole = list(primals)
            for i, value in zip(moving, some, strict=True):
                whole[i] = value
            return by_scan(*whole, **static)

        return jax.jvp(function, [primals[i] for i in moving], [tangents[i] for i in moving])

    primitive.def_impl(run)
    primitive.def_abstract_eval(shapes)
    batching.primitive_batchers[primitive] = batched
    ad.primitive_jvps[primitive] = differentiated
    mlir.register_lowering(primitive, mlir.lower_fun(by_scan, multiple_results=True))
    if on_cpu is not None:
        mlir.register_lowering(primitive, mlir.lower_fun(on_cpu[0], multiple_results=True), platform="cpu")
    return primitive


def _folded(x: Array, axis: int | None, row: int | None, size: int) -> Array:
    """With the mapped axis, of that size, made part of the rows."""
    if row is None:
        return x
    apart = jnp.repeat(jnp.expand_dims(x, row), size, row) if axis is None else jnp.moveaxis(x, axis, row)
    return apart.reshape(*apart.shape[:row], size * apart.shape[row + 1], *apart.shape[row + 2 :])


_forward_p = _primitive("native_recurrence", _forward_by_scan, (_forward_natively, _rows_of_forward))
_tangent_p = _primitive("native_recurrence_tangent", _tangent_by_scan)
_gradient_p = _primitive("native_recurrence_gradient", _gradient_by_scan, (_gradient_natively, _rows_of_gradient))


# Rows times steps up to which the gradient is that of `fused`: the square of the number of weights over the first two, and no
# more than the third. The native way back arranges the weights anew, which then takes longer than all else: with 512 units and
# one row up to four times as long as the whole of `fused`, at up to fifty steps. Of two steps or fewer there is hardly an order
# to keep.
_HARDLY_A_SEQUENCE, _A_SEQUENCE, _FEW = 2**31, 2**35, 256


def _has_few_rows(primals: Sequence[Array], call: Call) -> bool:
    arguments, _ = jax.tree.unflatten(call.arguments, primals)
    batch_size, time, _ = arguments.xs[0].shape
    weights = arguments.params[0].w.size + arguments.params[0].u.size
    rows = batch_size * time
    return 0 < rows <= min(_FEW, weights**2 // (_HARDLY_A_SEQUENCE if time <= 2 else _A_SEQUENCE))


def _forward_jvp(primals: Sequence[Array], tangents: Sequence[Any], *, call: Call, saving: bool) -> tuple[Any, Any]:
    wrt = tuple(i for i, tangent in enumerate(tangents) if not isinstance(tangent, ad.Zero))
    if not saving and _has_few_rows(primals, call):
        along = [tangents[i] for i in wrt]
        return jax.jvp(_function_of(fused.run, primals, call, wrt), [primals[i] for i in wrt], along)
    outs = _forward_p.bind(*primals, call=call, saving=True)
    results = len(outs) - len(call.reversed)
    moved = _tangent_p.bind(*primals, *outs, *[tangents[i] for i in wrt], call=call, wrt=wrt)
    if not saving:
        return outs[:results], moved
    return outs, [*moved, *[ad.Zero(jax.typeof(saved).to_tangent_aval()) for saved in outs[results:]]]


def _tangent_transpose(cotangents: Sequence[Any], *operands: Any, call: Call, wrt: tuple[int, ...]) -> list[Any]:
    known = operands[: len(operands) - len(wrt)]
    given = tuple(not isinstance(cotangent, ad.Zero) for cotangent in cotangents)
    present = [cotangent for cotangent, is_given in zip(cotangents, given, strict=True) if is_given]
    gradients = _gradient_p.bind(*known, *present, call=call, wrt=wrt, given=given)
    return [*[None] * len(known), *gradients]


ad.primitive_jvps[_forward_p] = _forward_jvp
ad.primitive_transposes[_tangent_p] = _tangent_transpose
