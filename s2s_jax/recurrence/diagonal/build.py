"""Makes the two calls known to XLA: on a CPU by the library of the backend `native`, on a GPU by one that nvcc compiles.

See `native.build` and `recurrence.cuda`.
"""

import ctypes
import functools
import logging
import subprocess
import threading
from pathlib import Path

import jax

from s2s_jax import cache
from s2s_jax.recurrence import cuda, library
from s2s_jax.recurrence.native import build as native_build

_log = logging.getLogger("s2s_jax")
_lock = threading.Lock()
# In the machine's own instructions for what is at hand, and in those that the driver translates for whatever comes later.
FLAGS = (*cuda.FLAGS, "-gencode=arch=compute_80,code=[sm_80,compute_80]", "-gencode=arch=compute_90,code=sm_90")
PASSES = ("forward", "backward")


def target(way: str) -> str:
    """The name under which XLA knows a pass, "forward" or "backward"."""
    return f"s2s_diagonal_{way}"


def why_not(platform: str) -> str | None:
    """Why the calls cannot be made on a platform; the first time it compiles what they need, or the log says why it cannot."""
    with _lock:
        return _why_not(platform)


@functools.cache
def _why_not(platform: str) -> str | None:
    if platform == "cpu":
        return native_build.load().why_not
    if platform not in ("gpu", "cuda"):
        return f"it runs on a CPU or an NVIDIA GPU, and the default device is of platform {platform!r}"
    try:
        library.opened(build, lambda found: register(found, "CUDA"))
    except (AttributeError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        _log.warning("backend diagonal is not available: %s", error)
        return str(error).splitlines()[0]
    return None


def register(found: ctypes.CDLL, on: str) -> None:
    """Makes the passes of a library known to XLA on a platform."""
    symbols = {way: getattr(found, target(way)) for way in PASSES}
    for way, symbol in symbols.items():
        jax.ffi.register_ffi_target(target(way), jax.ffi.pycapsule(symbol), platform=on)


def build(folder: Path | None = None) -> Path:
    """Compiles the kernels if that was not done before; the library's path.

    Raises:
      RuntimeError: there is no nvcc, or it refuses the sources.
      subprocess.TimeoutExpired: it takes longer than ten minutes.
      OSError: the folder cannot be written, or others than this user may write there.
    """
    how = recipe(cuda.nvcc(), FLAGS, [Path(jax.ffi.include_dir())])
    return library.compiled(how, folder or cache.folder() / "diagonal", "diagonal")


def recipe(compiler: list[str], flags: tuple[str, ...], folders: list[Path]) -> library.Recipe:
    """How a compiler makes the kernels; headers are looked for in the folders."""
    here = Path(__file__).parent
    notice = "compiling the diagonal backend, once for this machine; this takes half a minute or so"
    return cuda.recipe(compiler, flags, [here / "gpu.cu", here / "gpu.cc"], folders, notice)
