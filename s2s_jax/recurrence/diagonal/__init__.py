"""Backend `diagonal`: cells whose units do not read each other, in one call a pass: a thread carries a unit along all of time.

The plain RNN, LSTM and GRU with `recurrence="diagonal"`, minGRU, minLSTM and LRU. There is nothing to exchange between units,
so that a step is a few operations on numbers that a thread has at hand, and what it takes is the memory that is read and
written: forward the projected input and the outputs once each, backward those, the gradients of both, and nothing that was
kept but the outputs, and c of an LSTM; gates are computed again. What needs no order in time, the projection and the gradients
of its weights, are XLA's products before and after. State and gates are float32, sequences are in the dtype of `xs`.

- cells.h: the steps of a unit and their transposes, the same source everywhere
- cpu.h, cpu.cc: the loops on a CPU, with a vector of units in a register; part of the library of the backend `native`
- gpu.cuh, gpu.cu: a thread for each unit of each row on a GPU, with loads several steps ahead
- pass.h, ffi.h: the two calls and their arrays
- calls.py: the calls and their arrays in Python
- parts.py: how a CPU takes a sequence in parts
- build.py: compiles what the GPU needs

A further cell is a struct in cells.h and a case at its end, and its sizes in `kind_of`; arrays of other sizes are refused.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from s2s_jax.cells import GRUSpec, LRUSpec, LSTMSpec, MinGRUSpec, MinLSTMSpec, RNNSpec
from s2s_jax.cells.linear import lru_factors, lru_input_weights
from s2s_jax.cells.parameters import check_inputs, dot
from s2s_jax.recurrence import scan
from s2s_jax.recurrence.adjoint import call_with_adjoint
from s2s_jax.recurrence.backend import Backend, Direction, Options, TimeMajor, default_platform, one_by_one
from s2s_jax.recurrence.by_hand import outer, times_transposed
from s2s_jax.recurrence.diagonal import build, calls, parts
from s2s_jax.recurrence.fused import Args
from s2s_jax.sharding import varying_as
from s2s_jax.types import Cell


def kind_of(cell: Cell) -> calls.Kind | None:
    """None for a cell that there is no code for."""
    spec: Any = cell.spec
    if isinstance(spec, MinGRUSpec):
        return calls.Kind(4, 2, 1, 1)
    if isinstance(spec, MinLSTMSpec):
        return calls.Kind(5, 3, 1, 1)
    if isinstance(spec, LRUSpec):
        return calls.Kind(6, 2, 2, 2, pull_reads_z=False)
    if getattr(spec, "recurrence", None) != "diagonal" or spec.activation not in ("tanh", "relu"):
        return None
    relu = spec.activation == "relu"
    if isinstance(spec, RNNSpec):
        return calls.Kind(0, 1, 1, 1, relu)
    if isinstance(spec, GRUSpec):
        return calls.Kind(2 if spec.reset == "after" else 3, 3, 1, 1, relu)
    if isinstance(spec, LSTMSpec) and not spec.peepholes and not spec.layer_norm:
        return calls.Kind(1, 4, 1, 2, relu)
    return None


def run(cell: Cell, direction: Direction, lengths: Array | None, options: Options) -> TimeMajor:
    """Carries `cell` along time; derivatives but the first in reverse mode are those of the backend `scan`."""
    check_inputs(direction.params, direction.xs)
    kind = kind_of(cell)
    assert kind is not None  # `why_not` has looked
    call = calls.Call(kind, direction.reverse)
    structure = jax.tree.structure(direction.state)
    dtype = scan.compute_dtype(direction.xs, direction.params)
    arranged = functools.partial(_arranged, cell, dtype)
    time, batch_size, _ = direction.xs.shape
    size = parts.steps_of_each(time, batch_size, direction.params.w)

    def reference(args: Args) -> TimeMajor:
        whole = Direction(args.params, args.xs, args.state, None, direction.reverse)
        return scan.run(cell, whole, args.lengths, options)

    def forward(args: Args, keep: bool) -> tuple[TimeMajor, Any]:
        weights = arranged(args.params)

        def along(first: Array, part: parts.Part, xs: Array) -> tuple[Array, Any]:
            xs = part.zeroed(xs)
            y, last, c = varying_as(call.forward(part.lengths, dot(xs, weights.into), weights.own, first, dtype, keep), args)
            outputs = y
            if weights.onto is not None:
                from_states, from_inputs = weights.onto
                outputs = part.zeroed((dot(y, from_states) + dot(xs, from_inputs)).astype(dtype))
            return last, (outputs, (first, y, c) if keep else None)

        carried = parts.one_after_the_other(along, _stacked(args.state), (args.xs,), args.lengths, size, back=direction.reverse)
        last, done = carried
        state = [new.astype(old.dtype) for new, old in zip(last, jax.tree.leaves(args.state), strict=True)]
        outputs = parts.joined([outputs for outputs, _ in done])
        return TimeMajor(outputs, jax.tree.unflatten(structure, state)), [kept for _, kept in done] if keep else None

    def backward(args: Args, kept: Any, cotangents: TimeMajor) -> Args:
        # So that XLA does not see that z is computed again, and keep it: to keep it is to write and read it.
        args = args._replace(xs=jax.lax.optimization_barrier(args.xs))
        weights, to_params = jax.vjp(arranged, args.params)

        def back(carry: Any, part: parts.Part, xs: Array, d_outputs: Array, kept: Any) -> tuple[Any, Array]:
            (d_last, sums), (first, y, c) = carry, kept
            # Whatever the loss does with the padding ends here, NaN too.
            xs, d_outputs = part.zeroed(xs), part.zeroed(d_outputs)
            dy, d_beside, onto = d_outputs, None, None
            if weights.onto is not None:
                dy, d_beside = (times_transposed(d_outputs, matrix).astype(dtype) for matrix in weights.onto)
                onto = outer(y, d_outputs, weights.onto[0]), outer(xs, d_outputs, weights.onto[1])
            z = dot(xs, weights.into) if kind.pull_reads_z else jnp.zeros((0,), jnp.float32)
            dz, d_first, of_rows = varying_as(call.backward(part.lengths, z, weights.own, first, y, c, dy, d_last), args)
            d_xs = times_transposed(dz, weights.into)
            d_xs = d_xs if d_beside is None else d_xs + d_beside
            found = _Weights(jnp.sum(of_rows, axis=0), outer(xs, dz, weights.into), onto)
            return (d_first, jax.tree.map(jnp.add, sums, found)), part.zeroed(d_xs.astype(xs.dtype))

        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), weights)
        carry = _stacked(cotangents.state), varying_as(nothing, args)
        (d_first, sums), d_xs = parts.one_after_the_other(
            back, carry, (args.xs, cotangents.outputs), args.lengths, size, back=not direction.reverse, of_parts=kept
        )
        (d_params,) = to_params(jax.tree.map(lambda total, leaf: total.astype(leaf.dtype), sums, weights))
        return Args(d_params, parts.joined(d_xs), jax.tree.unflatten(structure, list(d_first)), None, None)

    args = Args(direction.params, direction.xs, direction.state, lengths, None)
    return call_with_adjoint(args, reference, forward, backward)


class _Weights(NamedTuple):
    """Parameters, arranged.

    Attributes:
      own: what a unit has of its own, in the order of cells.h, and then the biases of its gates; float32.
      into: the matrix from inputs to z.
      onto: the matrices from states and from inputs to the outputs of an LRU, [2 * H, H] and [D, H]; of others None.
    """

    own: Float[Array, "rows H"]
    into: Float[Array, "D gates*H"]
    onto: tuple[Array, Array] | None


def _arranged(cell: Cell, dtype: Any, params: Any) -> _Weights:
    spec: Any = cell.spec
    cast = scan.cast_floating(params, dtype)
    if isinstance(spec, LRUSpec):
        out = jnp.concatenate([cast.c[: cast.c.shape[1]], -cast.c[cast.c.shape[1] :]])
        return _Weights(jnp.stack(lru_factors(cast)).astype(jnp.float32), lru_input_weights(cast), (out, cast.skip))
    own = [cast.u] if hasattr(cast, "u") else []
    if isinstance(spec, GRUSpec) and spec.reset == "after":
        own.append(jnp.zeros(cast.u.shape[0] // spec.gates) if cast.b_n is None else cast.b_n)
    own += [] if cast.b is None else [cast.b]
    joined = jnp.concatenate([x.astype(jnp.float32) for x in own] or [jnp.zeros(0)])
    return _Weights(joined.reshape(-1, params.w.shape[1] // spec.gates), cast.w, None)


def _stacked(state: Any) -> Float[Array, "states B H"]:
    return jnp.stack([leaf.astype(jnp.float32) for leaf in jax.tree.leaves(state)])


def why_not(cell: Cell, directions: Sequence[Direction], lengths: Array | None, options: Options) -> str | None:
    """Why it does not apply to these arguments, or not here; compiles what it needs if it does."""
    return why_not_at_a_glance(cell, directions, lengths, options) or build.why_not(default_platform())


def why_not_at_a_glance(cell: Cell, directions: Sequence[Direction], lengths: Array | None, options: Options) -> str | None:
    """As `why_not`, but for what only the libraries tell, which are not compiled."""
    if kind_of(cell) is None:
        return 'the cell is not a plain one with diagonal recurrence (activation "tanh" or "relu"), minGRU, minLSTM or LRU'
    dtypes = ("float32",) if default_platform() == "cpu" else ("float32", "bfloat16", "float16")
    for d in directions:
        found = {leaf.dtype.name for leaf in jax.tree.leaves((d.params, d.xs, d.state))}
        floating = jnp.issubdtype(d.xs.dtype, jnp.floating)  # anything else is an error that `run` names
        if floating and (d.xs.dtype.name not in dtypes or "float64" in found):
            return f"it computes in {', '.join(dtypes)} here, and the arrays are of {', '.join(sorted(found))}"
        if d.context is not None:
            return "context: it has no recurrent dropout"
        if any(any(jax.typeof(leaf).sharding.spec) for leaf in jax.tree.leaves((d.params, d.xs, d.state))):
            return "the arrays are split over a mesh whose axes are explicit"
    if options.remat is not None:
        return "remat: it keeps what its backward pass needs"
    return "history: it returns the last state only" if options.history else None


BACKEND = Backend(one_by_one(run), why_not, at_a_glance=why_not_at_a_glance)
