"""Checkpoints of a training state (Orbax), and a model's weights as one file (safetensors)."""

import json
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from s2s_jax.files import replacing
from s2s_jax.training.optimizers import is_under
from s2s_jax.training.state import split_model


class Checkpoints:
    """A folder of checkpoints, each an atomic copy of a pytree and of a few plain values; the newest `keep` stay.

    A tree is stored by the names of its leaves, so that one of another model is refused by name, and with a checksum of
    their bytes and of the values, so that a damaged one is found out. With it goes what
    identifies its run, `of`, as values of JSON by name.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2, of: dict[str, Any] | None = None):
        import orbax.checkpoint as ocp  # when first used: slow to import, and not needed to train without a run folder

        if keep < 1:
            raise ValueError(f"keep: expected a positive number of checkpoints, got {keep}")
        self._ocp = ocp
        self.folder = Path(folder).absolute()
        self._of = json.loads(json.dumps(of or {}))  # with lists for tuples, as it will come back
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True)
        # With the handlers named, a fresh process can look at what is in a checkpoint before it restores it.
        handlers = {"tree": ocp.StandardCheckpointHandler(), "values": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def steps(self) -> list[int]:
        """Steps of the checkpoints that there are, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, tree: Any, values: dict[str, Any]) -> None:
        """Writes `tree` and `values` (of JSON) as the checkpoint of `step`; one that is there already stays."""
        if step in self._manager.all_steps():
            return
        leaves = {name: np.asarray(_as_numbers(leaf)) for name, leaf in named_leaves(tree).items()}
        values = json.loads(json.dumps({**values, _OF: self._of}))  # as they will come back
        values[_CHECKSUM] = _checksum(leaves, values)
        args = self._ocp.args
        self._manager.save(step, args=args.Composite(tree=args.StandardSave(leaves), values=args.JsonSave(values)))

    def restore_latest(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest whole checkpoint as a tree like `like` and its values, or None where there is none.

        A damaged one is removed with a warning, and the one before it is taken.

        Raises:
          ValueError: the checkpoint is of another run or of an earlier version; it holds other leaves, shapes or dtypes, as
            one of another model does; or all are damaged.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                restored = self.restore(step, like)
            except DamagedError as error:
                damaged.append(step)
                warnings.warn(f"{error}; passed over", stacklevel=2)
                continue
            for later in damaged:  # they would stand in the way of new ones
                self._manager.delete(later)
            return restored
        if damaged:
            raise ValueError(f"{self.folder}: all checkpoints are damaged (steps {damaged}); delete the folder to train anew")
        return None

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """One checkpoint; see `restore_latest`.

        Raises:
          DamagedError: it cannot be read, or its bytes are not those that were written.
        """
        where = f"checkpoint of step {step}"
        try:
            stored = self._manager.item_metadata(step)["tree"]
            stored = {name: (tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in dict(stored).items()}
        except Exception as error:  # whatever Orbax and its libraries raise on damaged files
            raise DamagedError(f"{self.folder}: {where} is damaged ({_first_line(error)})") from error
        wanted = named_leaves(like)
        numbers = {name: jax.eval_shape(_as_numbers, leaf) for name, leaf in wanted.items()}
        expected = {name: (leaf.shape, np.dtype(leaf.dtype)) for name, leaf in numbers.items()}
        _check_same(expected, stored, where)
        args = self._ocp.args
        abstract = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in expected.items()}
        try:
            restored = self._manager.restore(
                step, args=args.Composite(tree=args.StandardRestore(abstract), values=args.JsonRestore())
            )
            leaves, values = restored["tree"], dict(restored["values"])
            sound = _OF not in values or values.pop(_CHECKSUM) == _checksum(
                {name: np.asarray(leaf) for name, leaf in leaves.items()}, values
            )
        except Exception as error:
            raise DamagedError(f"{self.folder}: {where} is damaged ({_first_line(error)})") from error
        if not sound:
            raise DamagedError(f"{self.folder}: {where} is damaged (its checksum is another)")
        of = values.pop(_OF, None)
        if of is None:
            raise ValueError(f"{self.folder}: {where} is of an earlier version, which did not write of which run; train anew")
        if different := changes(of, self._of):
            raise ValueError(f"{self.folder}: {where} is of another run, with {different}; delete the folder to train anew")
        ordered = [_as_key(leaves[name], leaf) if _is_key(leaf) else leaves[name] for name, leaf in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(like), ordered), values

    def close(self) -> None:
        """Waits for what is still being written."""
        self._manager.close()


class BestWeights:
    """The weights of the best evaluations of a run, `step-<N>.safetensors` with their scores.

    The best `keep` stay; those that they outdo go with `drop_outdone`, and not before: a run that is killed goes on from a
    checkpoint for which they may be the best.
    """

    def __init__(self, folder: str | Path, *, keep: int, greater: bool):
        import safetensors  # noqa: F401  # an error now, and not after the first evaluation

        self.folder = Path(folder)
        self._keep = keep
        self._sign = 1 if greater else -1

    def add(self, step: int, score: float, model: nnx.Module) -> None:
        """Writes the weights of a step, if they are among the best."""
        self.folder.mkdir(parents=True, exist_ok=True)
        scores = {**self._scores(), step: score}
        if step in self._best(scores):
            # One entry: safetensors writes several in an order of its own, and the same weights should be the same bytes.
            save_weights(self._path(step), model, {"evaluation": json.dumps({"step": step, "score": score})})

    def drop_outdone(self) -> None:
        """Removes all but the best `keep`."""
        scores = self._scores()
        for step in scores.keys() - set(self._best(scores)):
            self._path(step).unlink(missing_ok=True)

    def forget_after(self, step: int) -> None:
        """Removes those of later steps."""
        for later in self._scores():
            if later > step:
                self._path(later).unlink(missing_ok=True)

    def load(self, step: int, model: nnx.Module) -> None:
        """Fills `model` with the weights of a step."""
        load_weights(self._path(step), model)

    def load_mean(self, model: nnx.Module) -> None:
        """Fills `model` with the mean of all weights that are kept (Junczys-Dowmunt et al., arXiv 1605.04809, section 2)."""
        load_mean_weights([self._path(step) for step in sorted(self._best(self._scores()))], model)

    def _best(self, scores: dict[int, float]) -> list[int]:
        # Of equal scores the earlier stays, so that a run that went on after a kill keeps the same ones.
        return sorted(scores, key=lambda step: (-self._sign * scores[step], step))[: self._keep]

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08}.safetensors"

    def _scores(self) -> dict[int, float]:
        from safetensors import safe_open

        scores = {}
        for path in sorted(self.folder.glob("step-*.safetensors")):
            with safe_open(str(path), framework="np") as file:
                evaluation = json.loads(file.metadata()["evaluation"])
            scores[evaluation["step"]] = evaluation["score"]
        return scores


class DamagedError(ValueError):
    """A checkpoint that cannot be read, or not as it was written."""


_CHECKSUM = "crc32"
_OF = "of"


def changes(there: dict[str, Any], now: dict[str, Any]) -> str:
    """In which names two runs differ, and how; "" if they do not."""
    names = [name for name in now | there if now.get(name) != there.get(name)]
    return ", ".join(f"{name} {there.get(name)} (now {now.get(name)})" for name in names)


def _checksum(leaves: dict[str, np.ndarray], values: dict[str, Any]) -> int:
    value = zlib.crc32(json.dumps(values, sort_keys=True).encode())
    for name in sorted(leaves):
        value = zlib.crc32(np.ascontiguousarray(leaves[name]).tobytes(), value)
    return value


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


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


def save_weights(path: str | Path, model: nnx.Module, about: dict[str, str] | None = None) -> None:
    """Writes parameters and statistics of `model` as safetensors, each under its path in the model, joined by dots.

    `about` is kept in the file's metadata.
    """
    from safetensors.numpy import save_file

    with replacing(path) as temporary:
        save_file({name: np.asarray(leaf[...]) for name, leaf in named_variables(model).items()}, str(temporary), about)


def load_weights(path: str | Path, model: nnx.Module, parts: Sequence[str] = ()) -> list[str]:
    """Fills `model` from a file that `save_weights` wrote, and returns the names of what was filled.

    Args:
      path: of the file.
      model: is changed.
      parts: paths in the model, "encoder" or "decoder.output", to fill these only; whatever else the file holds is of no
        concern then, so that part of a model can come from another one. Without any, file and model have to be alike.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that is damaged or of another model, or a part that one of them lacks.
    """
    weights = read_weights(path)
    variables = named_variables(model)
    if parts:
        for part in parts:
            for where, names in ((str(path), weights), ("the model", variables)):
                if not any(is_under(name, part) for name in names):
                    raise ValueError(f"parts: expected a part that both have, got {part!r}, which {where} lacks")
        weights = {name: value for name, value in weights.items() if any(is_under(name, part) for part in parts)}
        variables = {name: leaf for name, leaf in variables.items() if any(is_under(name, part) for part in parts)}
    expected = {name: (leaf[...].shape, np.dtype(leaf[...].dtype)) for name, leaf in variables.items()}
    _check_same(expected, {name: (value.shape, value.dtype) for name, value in weights.items()}, str(path))
    for name, leaf in variables.items():
        leaf[...] = jax.numpy.asarray(weights[name])
    return list(variables)


def load_mean_weights(paths: Sequence[str | Path], model: nnx.Module) -> None:
    """Fills `model` with the mean of several files of weights; statistics are averaged as well.

    Raises:
      FileNotFoundError: a file is not there, or none is given.
      ValueError: a damaged file, or one of another model.
    """
    if not paths:
        raise FileNotFoundError("paths: expected at least one file of weights, got none")
    totals: dict[str, np.ndarray] = {}
    for path in paths:
        load_weights(path, model)  # which checks names, shapes and dtypes
        for name, leaf in named_variables(model).items():
            totals[name] = totals.get(name, 0) + np.asarray(leaf[...], np.float64)
    for name, leaf in named_variables(model).items():
        leaf[...] = jax.numpy.asarray(totals[name] / len(paths), leaf[...].dtype)


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged one.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error


def named_variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Parameters and statistics of a model, each under its path in the model, joined by dots."""
    _, params, rest = split_model(model)
    flat = [*nnx.to_flat_state(params), *nnx.to_flat_state(rest)]
    # Random keys (of `nnx.Rngs`) are no weights, and no file of weights can hold them.
    return {".".join(map(str, path)): variable for path, variable in flat if not _is_key(variable[...])}


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
