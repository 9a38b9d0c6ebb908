"""The floor of a step of recurrence on a GPU: the time to exchange a state and to wait for each other, computing nothing."""

import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.benchmark.pool import Patience
from s2s_jax import cache
from s2s_jax.recurrence import cuda, library
from s2s_jax.recurrence.persistent import build, plan


class Exchange(NamedTuple):
    """Between the blocks of each of so many teams, through "block", "cluster" or "grid": chunks of 64 bytes for each row."""

    through: str
    blocks: int
    teams: int
    chunks: int
    rows: int


THROUGH = ("block", "cluster", "grid")
_TOLD = "microseconds: "  # what a line begins with that says what was measured


def of_layer(layer: plan.Layer, way: str, device: plan.Device) -> Exchange:
    """What the best division of a layer exchanges in a step.

    Raises:
      ValueError: it has none.
    """
    split = plan.best(layer, way, device)
    if split is None:
        raise ValueError(f"{layer} does not fit onto {device}")
    rows = plan.BATCH_MULTIPLE * split.batch_tiles
    return Exchange("grid", plan.blocks(layer, split), plan.teams(layer, split, device), plan.chunks(layer, way), rows)


def of_each_kind() -> list[Exchange]:
    """8 rows of 128 and of 512 units of 2 bytes: one block, clusters, the grid."""
    some = [Exchange("block", 1, 1, 4, 8)]
    some += [Exchange("cluster", blocks, 1, chunks, 8) for blocks, chunks in ((4, 4), (8, 16), (16, 16))]
    return [*some, *(Exchange("grid", blocks, 1, 16, 8) for blocks in (8, 32, 128))]


def build_library(folder: Path | None = None, seconds: float = 600.0) -> Path:
    """Compiles exchange.cu if that was not done before; the library's path. Raises as `build.build` does."""
    source, kernels = Path(__file__).with_name("exchange.cu"), Path(build.__file__).parent
    recipe = library.Recipe(
        cuda.nvcc(),
        [*build.FLAGS, f"-I{kernels}", str(source)],
        [source, *sorted(kernels.glob("*.cuh")), *sorted(kernels.parent.glob("*.cuh"))],
        "",
        "compiling the kernels that measure an exchange between blocks; this takes some seconds",
    )
    return library.compiled(recipe, folder or cache.folder() / "persistent", "exchange", seconds)


def microseconds(path: Path, exchanges: Sequence[Exchange], patience: Patience) -> dict[Exchange, float | str]:
    """Of a step of each, or why it could not be measured.

    A process measures one after the other; where one goes wrong, or the patience ends, another process measures the rest.
    """
    told: dict[Exchange, float | str] = {}
    while left := [exchange for exchange in exchanges if exchange not in told]:
        seconds = patience.seconds()
        if seconds == 0:
            return told | dict.fromkeys(left, "left out: the time is over")
        command = [sys.executable, "-m", "experiments.benchmark.exchange", str(path), json.dumps(left)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
            printed, why = done.stdout, (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        except subprocess.TimeoutExpired as expired:
            printed, why = (expired.stdout or b"").decode(), f"no answer before its process had run for {expired.timeout:.0f} s"
        found = [float(line.removeprefix(_TOLD)) for line in printed.split("\n")[:-1] if line.startswith(_TOLD)]
        told |= zip(left, found, strict=False)
        if len(found) < len(left):
            told[left[len(found)]] = why
    return told


def _measure(path: str, exchange: Exchange) -> float:
    function = ctypes.CDLL(path).exchange_microseconds
    function.restype = ctypes.c_char_p
    found = ctypes.c_float()
    error = function(THROUGH.index(exchange.through), *exchange[1:], ctypes.byref(found))
    if error is not None:
        raise SystemExit(error.decode())
    return found.value


if __name__ == "__main__":
    for numbers in json.loads(sys.argv[2]):
        print(f"{_TOLD}{_measure(sys.argv[1], Exchange(*numbers))}", flush=True)
