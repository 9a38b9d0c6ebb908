"""Loops inside `jax.shard_map`."""

from typing import Any

import jax


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
