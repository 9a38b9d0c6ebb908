"""Loops inside `jax.shard_map`, and on meshes whose axes are explicit."""

from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def varying_as(carry: Any, operands: Any) -> Any:
    """`carry` marked as varying over every mesh axis that it or anything in `operands` varies over.

    Inside `jax.shard_map` the carry of a loop must enter it as it leaves it; outside, nothing changes.
    """

    def axes_of(leaf: Any) -> frozenset[str]:
        return jax.typeof(leaf).manual_axis_type.varying

    axes = frozenset().union(*map(axes_of, jax.tree.leaves((carry, operands))))

    def vary(leaf: Any) -> Any:
        missing = tuple(sorted(axes - axes_of(leaf)))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, carry)


def batch_split_as(state: Any, xs: Any, axis: int) -> Any:
    """`state` [B, ...], its batch split over the devices as that of `xs`, which is `axis`, where that split is explicit.

    With an explicit mesh (`jax.set_mesh`) it is part of an array's type, and the carry of a loop must not change its type.
    """
    spec = next((jax.typeof(leaf).sharding.spec for leaf in jax.tree.leaves(xs)), PartitionSpec())
    if len(spec) <= axis or spec[axis] is None:
        return state
    return jax.tree.map(lambda leaf: jax.sharding.reshard(leaf, PartitionSpec(spec[axis])), state)


def explicit_sharding(like: Any, made_of: Any) -> NamedSharding | None:
    """The `out_sharding` of a sum over the batch of `made_of`, split as `like` is; None where splits are not explicit."""
    mesh = jax.typeof(made_of).sharding.mesh
    return NamedSharding(mesh, jax.typeof(like).sharding.spec) if AxisType.Explicit in mesh.axis_types else None
