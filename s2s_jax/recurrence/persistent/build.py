"""Builds the CUDA C++ of this folder, for one cell and one dtype at a time, and loads it; see `recurrence.cuda`.

The environment variable S2S_JAX_PERSISTENT, read once, may say "off".
"""

import ctypes
import functools
import logging
import os
import subprocess
import threading
from pathlib import Path
from typing import NamedTuple

import jax

from s2s_jax import cache
from s2s_jax.recurrence import cuda, library
from s2s_jax.recurrence.persistent.plan import Device

_log = logging.getLogger("s2s_jax")
_lock = threading.Lock()
FLAGS = (*cuda.FLAGS, "-gencode=arch=compute_90a,code=sm_90a")
ELEMENTS = {"float32": "float", "bfloat16": "__nv_bfloat16", "float16": "__half"}
CELLS = ("RNN", "LSTM", "GRU", "StackedRNN", "StackedLSTM", "StackedGRU")
PASSES = ("forward", "backward")


class Loaded(NamedTuple):
    """The device that the kernels were built for, or why there are none."""

    device: Device | None
    why_not: str | None


def target(way: str, cell: str, dtype: str) -> str:
    """The name under which XLA knows a pass, "forward" or "backward"."""
    return f"s2s_persistent_{way}_{cell}_{dtype}"


def load(cell: str, dtype: str) -> Loaded:
    """Builds and loads the kernels at the first call, or says once in the log why it cannot; later calls return the same.

    Raises:
      ValueError: S2S_JAX_PERSISTENT says something else than it may.
    """
    with _lock:
        return _load(cell, dtype)


@functools.cache
def _load(cell: str, dtype: str) -> Loaded:
    mode = os.environ.get("S2S_JAX_PERSISTENT") or "on"
    if mode not in ("on", "off"):
        raise ValueError(f"S2S_JAX_PERSISTENT: expected on or off, got {mode!r}")
    if mode == "off":
        return Loaded(None, "S2S_JAX_PERSISTENT is off")
    try:
        found = library.opened(lambda folder: build(cell, dtype, folder), lambda found: register(found, cell, dtype, "CUDA"))
        return Loaded(device(found), None)
    except (AttributeError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        _log.warning("backend persistent is not available: %s", error)
        return Loaded(None, str(error).splitlines()[0])


def register(found: ctypes.CDLL, cell: str, dtype: str, on: str) -> None:
    """Makes the passes of a library known to XLA on a platform."""
    symbols = {way: getattr(found, f"s2s_persistent_{way}") for way in PASSES}
    for way, symbol in symbols.items():
        jax.ffi.register_ffi_target(target(way, cell, dtype), jax.ffi.pycapsule(symbol), platform=on)


def device(found: ctypes.CDLL) -> Device:
    """What a library says of the current device.

    Raises:
      RuntimeError: there is none, or of another kind than the kernels are for.
    """
    multiprocessors, shared_bytes = ctypes.c_int(), ctypes.c_int()
    found.s2s_persistent_limits.restype = ctypes.c_char_p
    if why := found.s2s_persistent_limits(ctypes.byref(multiprocessors), ctypes.byref(shared_bytes)):
        raise RuntimeError(f"CUDA finds no device of compute capability 9.0: {why.decode()}")
    return Device(multiprocessors.value, shared_bytes.value)


def build(cell: str, dtype: str, folder: Path | None = None, seconds: float = 600.0) -> Path:
    """Compiles the kernels of a cell, one of `CELLS`, for a dtype, if that was not done before; the library's path.

    Raises:
      RuntimeError: there is no nvcc, or it refuses the sources.
      subprocess.TimeoutExpired: it takes longer than so many seconds.
      OSError: the folder cannot be written, or others than this user may write there.
    """
    here, include = Path(__file__).parent, Path(jax.ffi.include_dir())
    how = recipe(cuda.nvcc(), FLAGS, cell, dtype, [here, include])
    return library.compiled(how, folder or cache.folder() / "persistent", cell, seconds)


def recipe(compiler: list[str], flags: tuple[str, ...], cell: str, dtype: str, folders: list[Path]) -> library.Recipe:
    """How a compiler makes the kernels; headers are looked for in the folders."""
    here = Path(__file__).parent
    named = (f"-DS2S_CELL={cell}", f"-DS2S_ELEMENT={ELEMENTS[dtype]}")
    notice = f"compiling the persistent backend for {cell} in {dtype}, once for this machine; this takes a minute or so"
    return cuda.recipe(compiler, [*flags, *named], [here / "launch.cu", here / "ffi.cc"], folders, notice)
