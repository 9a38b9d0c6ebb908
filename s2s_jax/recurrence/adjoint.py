"""A function with a backward pass of its own that keeps every other derivative.

`jax.custom_vjp` gives up forward mode, and second derivatives go through whatever code the backward pass is made of. Here
the first derivative in reverse mode is custom, and all others are those of a reference.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive, unmapped_aval
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from s2s_jax.sharding import varying_as


def is_inexact(leaf: Any) -> bool:
    """Whether there is such a thing as a derivative with respect to it: not for integers, booleans and keys."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def call_with_adjoint(
    args: Any,
    reference: Callable[[Any], Any],
    forward: Callable[[Any, bool], tuple[Any, Any]],
    backward: Callable[[Any, Any, Any], Any],
) -> Any:
    """`forward(args, False)[0]`, differentiated in reverse mode by `backward`, and in any other way by `reference`.

    Works under `jit`, `vmap`, `shard_map`, and `grad` and `jvp` in any nesting.

    Args:
      args: a pytree of arrays.
      reference: `args -> outputs`; the same values in plain JAX.
      forward: `(args, keep) -> (outputs, kept)`: `kept` is a pytree of whatever `backward` needs, None unless `keep`.
      backward: `(args, kept, cotangents) -> cotangents of args`, linear in `cotangents`, a pytree like `outputs`. In both
        pytrees of cotangents None stands for each leaf that has none, integers for instance.
    """
    # Whatever varies over a mesh axis inside `shard_map` makes all of it vary, so that the sum over devices in the
    # gradient of what they share is made outside of `backward`.
    args = varying_as(args, args)
    leaves, structure = jax.tree.flatten(args)
    positions = [k for k, leaf in enumerate(leaves) if is_inexact(leaf)]

    def inexact(flat: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(flat[k] for k in positions)

    def referred(flat: Sequence[Array]) -> Callable[..., list[Array]]:
        """The inexact outputs as a function of the inexact arguments."""

        def function(*replaced: Array) -> list[Array]:
            whole = list(flat)
            for k, leaf in zip(positions, replaced, strict=True):
                whole[k] = leaf
            return [leaf for leaf in jax.tree.leaves(reference(structure.unflatten(whole))) if is_inexact(leaf)]

        return function

    @jax.custom_jvp
    def plain(*flat: Array) -> Any:
        return forward(structure.unflatten(flat), False)[0]

    @jax.custom_jvp
    def keeping(*flat: Array) -> tuple[Any, Any]:
        return forward(structure.unflatten(flat), True)

    @jax.custom_jvp
    def pulled(flat: list[Array], kept: Any, cotangents: Any) -> tuple[Array, ...]:
        of_args = backward(structure.unflatten(flat), kept, cotangents)
        found = structure.flatten_up_to(of_args)
        return tuple(found[k].astype(flat[k].dtype) for k in positions)

    @pulled.defjvp
    def second(primals: Any, tangents: Any) -> tuple[Any, Any]:
        # What was kept is a function of the arguments, whose tangents are there: its own count for nothing.
        (flat, _, cotangents), (along, _, cotangents_along) = primals, tangents

        def adjoint(replaced: tuple[Array, ...], cotangents: Any) -> tuple[Array, ...]:
            return jax.vjp(referred(flat), *replaced)[1](jax.tree.leaves(cotangents))

        points, directions = (inexact(flat), cotangents), (inexact(along), cotangents_along)
        return pulled(*primals), jax.jvp(adjoint, points, directions)[1]

    def pushed(flat: Sequence[Array], tangents: Sequence[Any], outputs: Any, kept: Any) -> Any:
        """Tangents of the outputs: one linear equation, that `pulled` is the transpose of."""
        moving = [i for i, k in enumerate(positions) if not isinstance(tangents[k], SymbolicZero)]
        kept_leaves, kept_structure = jax.tree.flatten(kept)
        output_leaves, output_structure = jax.tree.flatten(outputs)

        def push(constants: Sequence[Array], directions: Sequence[Array]) -> list[Array]:
            points = inexact(constants[: len(flat)])
            along = list(map(jnp.zeros_like, points))
            for i, direction in zip(moving, directions, strict=True):
                along[i] = direction
            return jax.jvp(referred(constants[: len(flat)]), points, tuple(along))[1]

        def pull(constants: Sequence[Array], cotangents: Sequence[Array]) -> list[Array]:
            found = iter(cotangents)
            of_outputs = output_structure.unflatten([next(found) if is_inexact(leaf) else None for leaf in output_leaves])
            kept = kept_structure.unflatten(constants[len(flat) :])
            got = pulled(list(constants[: len(flat)]), kept, of_outputs)
            return [got[i] for i in moving]

        moved = iter(
            _linear.bind(
                *flat,
                *kept_leaves,
                *(tangents[positions[i]] for i in moving),
                push=push,
                pull=pull,
                constants=len(flat) + len(kept_leaves),
                avals=tuple(jax.typeof(leaf) for leaf in output_leaves if is_inexact(leaf)),
            )
        )
        return output_structure.unflatten([next(moved) if is_inexact(leaf) else _no_tangent(leaf) for leaf in output_leaves])

    def of_plain(primals: Any, tangents: Any) -> tuple[Any, Any]:
        outputs, kept = keeping(*primals)
        return outputs, pushed(primals, tangents, outputs, kept)

    def of_keeping(primals: Any, tangents: Any) -> tuple[Any, Any]:
        outputs, kept = keeping(*primals)
        return (outputs, kept), (pushed(primals, tangents, outputs, kept), jax.tree.map(_no_tangent, kept))

    plain.defjvp(of_plain, symbolic_zeros=True)
    keeping.defjvp(of_keeping, symbolic_zeros=True)
    return plain(*leaves)


def _no_tangent(leaf: Array) -> Any:
    # By its aval, because that of float0 must name the same mesh axes.
    return SymbolicZero(jax.typeof(leaf).to_tangent_aval())


# `push(constants, directions)`, linear in the directions and transposed by `pull`. `jax.custom_derivatives.linear_call`
# has neither a rule for `vmap` nor one for derivatives with respect to its constants.
_linear = Primitive("linear_with_adjoint")
_linear.multiple_results = True


def _evaluate(*args: Any, push: Any, pull: Any, constants: int, avals: Any) -> Any:
    return push(args[:constants], args[constants:])


def _derivative(primals: Any, tangents: Any, *, push: Any, pull: Any, constants: int, avals: Any) -> Any:
    options = {"push": push, "pull": pull, "constants": constants, "avals": avals}
    outputs = _linear.bind(*primals, **options)
    unmoved = all(type(tangent) is ad.Zero for tangent in tangents[:constants])
    tangents = [ad.instantiate_zeros(tangent) for tangent in tangents]
    if unmoved:
        return outputs, _linear.bind(*primals[:constants], *tangents[constants:], **options)

    def evaluate(*args: Array) -> list[Array]:
        return push(args[:constants], args[constants:])

    return outputs, jax.jvp(evaluate, tuple(primals), tuple(tangents))[1]


def _transpose(cotangents: Any, *args: Any, push: Any, pull: Any, constants: int, avals: Any) -> list[Any]:
    found = pull(args[:constants], [ad.instantiate_zeros(cotangent) for cotangent in cotangents])
    wanted = [ad.is_undefined_primal(arg) for arg in args[constants:]]
    return [None] * constants + [leaf if want else None for leaf, want in zip(found, wanted, strict=True)]


def _batch(args: Any, axes: Any, *, push: Any, pull: Any, constants: int, avals: Any) -> Any:
    size = next(arg.shape[axis] for arg, axis in zip(args, axes, strict=True) if axis is not None)
    args = [arg if axis is None else jnp.moveaxis(arg, axis, 0) for arg, axis in zip(args, axes, strict=True)]
    mapped = [None if axis is None else 0 for axis in axes[:constants]]
    # A direction that is the same for all is spread out here, so that the sum in its cotangent is JAX's.
    directions = [
        jnp.broadcast_to(arg[None], (size, *arg.shape)) if axis is None else arg
        for arg, axis in zip(args[constants:], axes[constants:], strict=True)
    ]

    def over(function: Any) -> Any:
        batched = jax.vmap(function, in_axes=(mapped, 0), axis_size=size)
        return lambda constants, moved: batched(list(constants), list(moved))

    outputs = _linear.bind(
        *args[:constants],
        *directions,
        push=over(push),
        pull=over(pull),
        constants=constants,
        avals=tuple(unmapped_aval(size, 0, aval) for aval in avals),
    )
    return outputs, [0] * len(outputs)


_linear.def_impl(_evaluate)
_linear.def_abstract_eval(lambda *_, avals, **__: list(avals))
ad.primitive_jvps[_linear] = _derivative
ad.primitive_transposes[_linear] = _transpose
batching.primitive_batchers[_linear] = _batch
mlir.register_lowering(_linear, mlir.lower_fun(_evaluate, multiple_results=True))
