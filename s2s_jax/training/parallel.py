"""Data-parallel training: one mesh of all devices, batches split over it, everything else the same everywhere."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "batch"


def data_mesh() -> Mesh:
    """All devices of all processes in one row."""
    return Mesh(np.array(jax.devices()), (AXIS,))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The arrays of a pytree, equal in all processes, on each device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def local(tree: Any) -> Any:
    """What `replicate` gave, as arrays of one device of this process; arrays of one device stay as they are."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def split_batch(batch: Any, mesh: Mesh) -> Any:
    """A pytree of arrays [B / processes, ...], this process's rows of the batch, split over the devices of the mesh.

    Raises:
      ValueError: rows that the devices of this process cannot share evenly.
    """
    devices = len(mesh.local_devices)
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def placed(rows: Any) -> jax.Array:
        if len(rows) % devices:
            raise ValueError(f"batch: expected a number of rows that {devices} devices can share, got {len(rows)}")
        return jax.make_array_from_process_local_data(sharding, np.asarray(rows))

    return jax.tree.map(placed, batch)


class OwnRows:
    """The rows of one process of batches that all processes could make: the `index`-th of `count` equal parts.

    Raises:
      ValueError: from a call, where the rows of a batch cannot be shared evenly.
    """

    def __init__(self, batches: Callable[[int], Any], index: int, count: int):
        self._batches: Any = batches
        self._index = index
        self._count = count
        if hasattr(batches, "ids"):
            self.ids = batches.ids

    def __call__(self, step: int) -> Any:
        return self._own(self._batches(step))

    def iterate(self, step: int) -> Iterator[Any]:
        """The batches from a step on."""
        prefetched = hasattr(self._batches, "iterate")
        return map(self._own, self._batches.iterate(step) if prefetched else map(self._batches, itertools.count(step)))

    def _own(self, batch: Any) -> Any:
        def cut(rows: Any) -> Any:
            part, left = divmod(len(rows), self._count)
            if left:
                raise ValueError(f"batch: expected a number of rows that {self._count} processes can share, got {len(rows)}")
            return rows[self._index * part : (self._index + 1) * part]

        return jax.tree.map(cut, batch)


def greatest(number: int) -> int:
    """The greatest of the numbers that the processes give; every process has to ask, and waits for the others."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def of_first_process(values: dict[str, float]) -> dict[str, float]:
    """The numbers of process 0, to the bit; every process has to ask, with the same names, and waits for the others."""
    if jax.process_count() == 1:
        return values
    halves = np.array(list(values.values()), np.float64).view(np.uint32)  # JAX would make float32 of a float64
    numbers = np.asarray(multihost_utils.broadcast_one_to_all(halves)).view(np.float64)
    return dict(zip(values, numbers.tolist(), strict=True))


def waits_for_each_step(mesh: Mesh | None) -> bool:
    """Whether the next step may begin only when this one has ended.

    Virtual CPU devices share one pool of threads: with several steps under way they can wait for each other forever.
    """
    return mesh is not None and mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
