"""Affine recurrences `s_t = A_t s_{t-1} + b_t` along time, where A_t mixes only a few numbers of the state.

A state is cut into M blocks of L numbers that do not mix: M = H units of an LSTM with L = 2, its h and its c; or M = 1 and all
numbers of a small state.

On a GPU there are kernels for blocks of up to four numbers: kernels.cuh, started by launch.cu, called by ffi.cc.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from s2s_jax.recurrence import cuda
from s2s_jax.recurrence.backend import default_platform
from s2s_jax.recurrence.batching import over_rows
from s2s_jax.sharding import varying_as
from s2s_jax.types import State

_WRITTEN_OUT = 4  # blocks up to this size are multiplied number by number: XLA's batched products of tiny matrices are slow
_HERE = Path(__file__).parent
KERNELS = cuda.Kernels("affine", (_HERE / "launch.cu", _HERE / "ffi.cc"), ("s2s_affine",))
_THREADS = 2**16  # that a GPU is to have: 500 a multiprocessor of an H200
_LEAST_CHUNK, _MOST_CHUNKS = 32, 2**16 - 1


KINDS = ("units", "elements", "whole")


class Layout(NamedTuple):
    """How a state is cut: into "units" (a number of each leaf), "elements" (each number by itself), or as a "whole".

    "units" is for leaves of one shape.
    """

    kind: str
    leaves: tuple[jax.ShapeDtypeStruct, ...]
    structure: Any

    @property
    def block(self) -> int:
        """L, the numbers of a block."""
        sizes = [_size(leaf) for leaf in self.leaves]
        return {"units": len(sizes), "elements": 1, "whole": sum(sizes)}[self.kind]

    def cut(self, state: State) -> Float[Array, "*at M L"]:
        """Blocks of states whose leaves are [*at, ...], where those of the layout are [...]."""
        flat = [
            leaf.reshape(*leaf.shape[: leaf.ndim - len(of.shape)], _size(of))
            for leaf, of in zip(jax.tree.leaves(state), self.leaves, strict=True)
        ]
        if self.kind == "units":
            return jnp.stack(flat, axis=-1)
        joined = jnp.concatenate(flat, axis=-1)
        return joined[..., None] if self.kind == "elements" else joined[..., None, :]

    def joined(self, blocks: Float[Array, "*at M L"]) -> State:
        """The states that blocks are cut from."""
        if self.kind == "units":
            flat = [blocks[..., k] for k in range(len(self.leaves))]
        else:
            ends = [sum(_size(leaf) for leaf in self.leaves[: k + 1]) for k in range(len(self.leaves))]
            flat = jnp.split(blocks.reshape(*blocks.shape[:-2], sum(map(_size, self.leaves))), ends[:-1], axis=-1)
        at = blocks.shape[:-2]
        leaves = [part.reshape(*at, *of.shape).astype(of.dtype) for part, of in zip(flat, self.leaves, strict=True)]
        return jax.tree.unflatten(self.structure, leaves)


def layout_of(state: State, kind: str | None = None) -> Layout:
    """For a state with leaves [B, ...]; None for units where its leaves are of one shape, else elements."""
    leaves, structure = jax.tree.flatten(state)
    of_row = tuple(jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in leaves)
    if kind == "units" and len({leaf.shape for leaf in of_row}) > 1:
        raise ValueError(
            f"newton.jacobian: expected leaves of one shape in the state with units, got {[x.shape for x in of_row]}"
        )
    if kind is None:
        kind = "units" if len({leaf.shape for leaf in of_row}) == 1 else "elements"
    return Layout(kind, of_row, structure)


def jacobian_blocks(push: Callable[[State], State], at: State, layout: Layout, probes: int = 1) -> Float[Array, "*at M L L"]:
    """The blocks of the Jacobian J whose product with a tangent is `push`; what J mixes between blocks is left out.

    It is asked for as few products as there are numbers in a block, so many times as there are probes. One finds the blocks
    where J does not mix them. Where it does, what it adds to a number has a random sign in each: of several the least is taken
    where all agree on the sign, and nought where they do not. An iteration that has too little of J goes on more slowly, and
    one that has what is not in it goes astray.
    """
    zero = jnp.zeros_like(layout.cut(at))

    def column(signs: Array, k: int | Array) -> Array:
        probe = zero + signs[:, None] * (jnp.arange(layout.block) == k)
        return layout.cut(push(layout.joined(probe))) * signs[:, None]

    def found(probe: int) -> Array:
        # The same at each step and in each row.
        signs = jax.random.rademacher(jax.random.key(probe), zero.shape[-2:-1], zero.dtype)
        if layout.block <= _WRITTEN_OUT:
            return jnp.stack([column(signs, k) for k in range(layout.block)], axis=-1)
        return jnp.moveaxis(jax.lax.map(functools.partial(column, signs), jnp.arange(layout.block)), 0, -1)

    every = [found(probe) for probe in range(probes)]
    if jnp.iscomplexobj(zero):
        return jax.lax.complex(_agreed([each.real for each in every]), _agreed([each.imag for each in every]))
    return _agreed(every)


def _agreed(every: list[Array]) -> Array:
    """Of estimates the nearest to nought, nought where they differ in sign."""
    if len(every) == 1:
        return every[0]
    least, greatest = functools.reduce(jnp.minimum, every), functools.reduce(jnp.maximum, every)
    return jnp.maximum(least, 0) + jnp.minimum(greatest, 0)


def solve(
    a: Float[Array, "T *B M L L"], b: Float[Array, "T *B M L"], first: Float[Array, "*B M L"], reverse: bool
) -> Float[Array, "T *B M L"]:
    """All s_t, s_0 from `first` on; with `reverse` from the last step to the first.

    On a CPU one after the other: that loop has nothing in it but the products, and was 3 to 40 times faster there than the
    tree, whose strided slices XLA copies. On an NVIDIA GPU in chunks, by kernels that have never run on one; elsewhere, and
    where there are none, as a tree of depth log T.
    """
    ways = {"cpu": functools.partial(in_order, reverse=reverse), "default": functools.partial(as_tree, reverse=reverse)}
    if why_no_kernels(b) is None:
        ways["cuda"] = functools.partial(in_chunks, reverse=reverse)
    return jax.lax.platform_dependent(a, b, first, **ways)


def why_no_kernels(b: Float[Array, "T *B M L"]) -> str | None:
    """Why `in_chunks` does not apply; compiles it on a GPU if it does."""
    if b.dtype != jnp.float32 or b.shape[-1] > _WRITTEN_OUT:
        return f"they are for blocks of up to {_WRITTEN_OUT} numbers in float32"
    if any(jax.typeof(b).sharding.spec):
        return "the arrays are split over a mesh whose axes are explicit"
    if default_platform() not in ("gpu", "cuda"):
        return "there is no GPU"
    return KERNELS.why_not()


def in_chunks(a: Array, b: Array, first: Array, reverse: bool) -> Array:
    """By the kernels: each chunk of steps as one map, the states between chunks, and all states from those."""
    time, *beside, numbers = b.shape

    def run(a: Array, b: Array, first: Array) -> list[Array]:
        blocks = b.shape[1]
        steps = max(_LEAST_CHUNK, -(-time * blocks // _THREADS), -(-time // _MOST_CHUNKS))
        chunks = -(-time // steps)
        scratch = chunks * blocks * numbers * (numbers + 2) if chunks > 1 else 0
        shapes = [jax.ShapeDtypeStruct(b.shape, b.dtype), jax.ShapeDtypeStruct((scratch,), b.dtype)]
        states, _ = jax.ffi.ffi_call(target(), shapes)(a, b, first, reverse=reverse, steps=np.int64(steps))
        return [states]

    many = math.prod(beside)
    flat = a.reshape(time, many, numbers, numbers), b.reshape(time, many, numbers), first.reshape(many, numbers)
    (states,) = over_rows(run, (1, 1, 0), (1,))(*flat)
    return varying_as(states.reshape(b.shape), (a, b, first))


def target() -> str:
    """The name under which XLA knows the kernels."""
    return KERNELS.targets[0]


def in_order(a: Array, b: Array, first: Array, reverse: bool) -> Array:
    def step(s: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        s = times(at[0], s) + at[1]
        return s, s

    return jax.lax.scan(step, first, (a, b), reverse=reverse)[1]


def as_tree(a: Array, b: Array, first: Array, reverse: bool) -> Array:
    def both(before: tuple[Array, Array], after: tuple[Array, Array]) -> tuple[Array, Array]:
        (a_before, b_before), (a_after, b_after) = before, after
        return _product(a_after, a_before), times(a_after, b_before) + b_after

    start = -1 if reverse else 0
    b = b.at[start].add(times(a[start], first))
    return jax.lax.associative_scan(both, (a, b), reverse=reverse)[1]


def times(a: Float[Array, "*at L L"], s: Float[Array, "*at L"]) -> Float[Array, "*at L"]:
    if s.shape[-1] == 1:
        return a[..., 0] * s
    if s.shape[-1] <= _WRITTEN_OUT:
        return functools.reduce(jnp.add, (a[..., k] * s[..., k, None] for k in range(s.shape[-1])))
    return jnp.einsum("...ij,...j->...i", a, s, precision=jax.lax.Precision.HIGHEST)


def _product(a: Float[Array, "*at L L"], b: Float[Array, "*at L L"]) -> Float[Array, "*at L L"]:
    size = a.shape[-1]
    if size <= _WRITTEN_OUT:
        return functools.reduce(jnp.add, (a[..., :, k, None] * b[..., k, None, :] for k in range(size)))
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _size(leaf: jax.ShapeDtypeStruct) -> int:
    return math.prod(leaf.shape)
