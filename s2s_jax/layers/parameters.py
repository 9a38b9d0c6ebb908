"""The parameters of pure functions, kept in a Flax NNX module."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from s2s_jax.types import Params


class Parameters(nnx.Module):
    """The parameters of a cell or an attention: an `nnx.Param` for each real or complex leaf, under the field's own name."""

    def __init__(self, params: Any):
        paths, self._structure = jax.tree_util.tree_flatten_with_path(params)
        self._names = tuple(jax.tree_util.keystr(path, simple=True, separator="_") for path, _ in paths)
        if len(set(self._names)) < len(paths):
            raise ValueError(f"cell.init: expected names that differ when joined by _, got {', '.join(self._names)}")
        for name, (_, leaf) in zip(self._names, paths, strict=True):
            setattr(self, name, nnx.Param(leaf) if jnp.issubdtype(leaf.dtype, jnp.inexact) else nnx.Variable(leaf))

    def __call__(self) -> Params:
        return jax.tree.unflatten(self._structure, [getattr(self, name)[...] for name in self._names])
