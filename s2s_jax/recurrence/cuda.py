"""Libraries of CUDA C++, compiled where they are used by nvcc; see `s2s_jax.recurrence.library`.

The compiler is `$NVCC`, or nvcc on the path or in /usr/local/cuda.
"""

import ctypes
import functools
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from s2s_jax import cache
from s2s_jax.recurrence import library

_log = logging.getLogger("s2s_jax")
_lock = threading.Lock()
FLAGS = ("-std=c++17", "-O3", "-t0", "-split-compile=0", "-shared", "-Xcompiler", "-fPIC")

# In the instructions of what is at hand, and in those that the driver translates for whatever comes later.
_ANY_GPU = ("-gencode=arch=compute_80,code=[sm_80,compute_80]", "-gencode=arch=compute_90,code=sm_90")


class Kernels(NamedTuple):
    """A library for any NVIDIA GPU of compute capability 8.0 or later.

    Attributes:
      name: of what is for the user, and of the folder in the cache.
      sources: files, whose folders hold their headers.
      targets: functions in it, under whose names XLA will know them.
    """

    name: str
    sources: tuple[Path, ...]
    targets: tuple[str, ...]

    def recipe(self, compiler: list[str], flags: Sequence[str], folders: Sequence[Path]) -> library.Recipe:
        """How a compiler makes it; headers are looked for in the folders too."""
        notice = f"compiling the kernels of {self.name}, once for this machine; this takes half a minute or so"
        return recipe(compiler, flags, self.sources, folders, notice)

    def build(self, folder: Path | None = None) -> Path:
        """Compiles it if that was not done before; the library's path.

        Raises:
          RuntimeError: there is no nvcc, or it refuses the sources.
          subprocess.TimeoutExpired: it takes longer than ten minutes.
          OSError: the folder cannot be written, or others than this user may write there.
        """
        how = self.recipe(nvcc(), (*FLAGS, *_ANY_GPU), [Path(jax.ffi.include_dir())])
        return library.compiled(how, folder or cache.folder() / self.name, self.name)

    def why_not(self) -> str | None:
        """Why XLA does not know its functions on a GPU; the first time it is compiled, or the log says why it cannot be."""
        found = str(getattr(jax.devices()[0], "compute_capability", "8.0"))  # who does not say will see
        if not re.match(r"[89]\.|\d\d+\.", found):
            return f"it needs an NVIDIA GPU of compute capability 8.0 or later, and the device's is {found}"
        with _lock:
            return _loaded(self)


@functools.cache
def _loaded(kernels: Kernels) -> str | None:
    def register(found: ctypes.CDLL) -> None:
        symbols = {target: getattr(found, target) for target in kernels.targets}
        for target, symbol in symbols.items():
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(symbol), platform="CUDA")

    try:
        library.opened(kernels.build, register)
    except (AttributeError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        _log.warning("the kernels of %s are not available: %s", kernels.name, error)
        return str(error).splitlines()[0]
    return None


def recipe(
    compiler: list[str], flags: Sequence[str], sources: Sequence[Path], folders: Sequence[Path], notice: str
) -> library.Recipe:
    """How a compiler makes a library of sources; headers are in their folders and in others.

    Raises:
      RuntimeError: the compiler cannot be run.
    """
    of_sources = {Path(__file__).parent, *(source.parent for source in sources)}  # the first for activations.cuh
    own = sorted(path for folder in of_sources for path in folder.iterdir() if path.suffix in (".h", ".cuh", ".cu", ".cc"))
    headers = [path for folder in folders for path in sorted(folder.rglob("*.h"))]
    arguments = [*flags, *(f"-I{folder}" for folder in folders), *map(str, sources)]
    return library.Recipe(compiler, arguments, [*own, *headers], f"{platform.machine()} {_host_compiler(compiler)}", notice)


def nvcc() -> list[str]:
    """The compiler.

    Raises:
      RuntimeError: there is none.
    """
    wanted = shlex.split(os.environ.get("NVCC", ""))
    for command in [wanted] if wanted else [["nvcc"], ["/usr/local/cuda/bin/nvcc"]]:
        if shutil.which(command[0]):
            return command
    raise RuntimeError(f"nvcc was not found ({shlex.join(wanted) or 'nvcc, /usr/local/cuda/bin/nvcc'})")


def _host_compiler(compiler: list[str]) -> str:
    """What nvcc compiles C++ with, whose version its own does not tell: what is predefined says it.

    Raises:
      RuntimeError: it cannot be run.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".cc") as source:
        source.write("__VERSION__ __cplusplus\n")
        source.flush()
        done = subprocess.run([*compiler, "-E", source.name], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(compiler)} -E failed with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout.splitlines()[-1]  # after lines with the name of the file, which is another one each time
