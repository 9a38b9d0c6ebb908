"""Checkpoints of a training state (Orbax), and a model's weights as one file (safetensors)."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from s2s_jax.training.state import split_model


class Checkpoints:
    """A folder of checkpoints, each an atomic copy of a pytree; the newest `keep` stay.

    A tree is stored by the names of its leaves, so that one of another model is refused by name.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2):
        import orbax.checkpoint as ocp  # when first used: slow to import, and not needed to train without a run folder

        self._ocp = ocp
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        # With the handler named, a fresh process can look at what is in a checkpoint before it restores it.
        handler = ocp.StandardCheckpointHandler()
        self._manager = ocp.CheckpointManager(Path(folder).absolute(), options=options, item_handlers=handler)

    def save(self, step: int, tree: Any) -> None:
        """Writes `tree` as the checkpoint of `step`; one that is there already stays."""
        if self._manager.latest_step() == step:
            return
        leaves = {name: np.asarray(_as_numbers(leaf)) for name, leaf in named_leaves(tree).items()}
        self._manager.save(step, args=self._ocp.args.StandardSave(leaves))

    def restore_latest(self, like: Any) -> Any | None:
        """The newest checkpoint as a tree like `like`, or None where there is none.

        Raises:
          ValueError: the checkpoint holds other leaves, shapes or dtypes, as one of another model does.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        stored = self._manager.item_metadata(step)
        stored = {name: (tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in dict(stored).items()}
        wanted = named_leaves(like)
        numbers = {name: jax.eval_shape(_as_numbers, leaf) for name, leaf in wanted.items()}
        expected = {name: (leaf.shape, np.dtype(leaf.dtype)) for name, leaf in numbers.items()}
        _check_same(expected, stored, f"checkpoint of step {step}")
        abstract = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in expected.items()}
        leaves = self._manager.restore(step, args=self._ocp.args.StandardRestore(abstract))
        restored = [_as_key(leaves[name], leaf) if _is_key(leaf) else leaves[name] for name, leaf in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(like), restored)

    def close(self) -> None:
        """Waits for what is still being written."""
        self._manager.close()


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as_numbers(leaf: Any) -> Any:
    """Random keys (of `nnx.Rngs`, say) have no dtype of NumPy; what they are made of has."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _as_key(numbers: Any, like: Any) -> Any:
    return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(like))


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by name, in the order of `jax.tree.leaves`."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def save_weights(path: str | Path, model: nnx.Module) -> None:
    """Writes parameters and statistics of `model` as safetensors, each under its path in the model, joined by dots."""
    from safetensors.numpy import save_file

    save_file({name: np.asarray(leaf[...]) for name, leaf in named_variables(model).items()}, str(path))


def load_weights(path: str | Path, model: nnx.Module) -> None:
    """Fills `model` from a file that `save_weights` wrote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that is damaged, or of another model.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        weights = load_file(str(path))
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
    variables = named_variables(model)
    expected = {name: (leaf[...].shape, np.dtype(leaf[...].dtype)) for name, leaf in variables.items()}
    _check_same(expected, {name: (value.shape, value.dtype) for name, value in weights.items()}, str(path))
    for name, leaf in variables.items():
        leaf[...] = jax.numpy.asarray(weights[name])


def named_variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Parameters and statistics of a model, each under its path in the model, joined by dots."""
    _, params, rest = split_model(model)
    flat = [*nnx.to_flat_state(params), *nnx.to_flat_state(rest)]
    return {".".join(map(str, path)): variable for path, variable in flat}


def _check_same(expected: dict[str, Any], got: dict[str, Any], where: str) -> None:
    for name in expected.keys() | got.keys():
        if name not in got:
            raise ValueError(f"{where}: is of another model; it lacks {name}")
        if name not in expected:
            raise ValueError(f"{where}: is of another model; it has {name}, which this one lacks")
        if expected[name] != got[name]:
            shape, dtype = expected[name]
            raise ValueError(
                f"{where}: is of another model; expected {name} {shape} {dtype}, got {got[name][0]} {got[name][1]}"
            )
