"""How nvcc makes a library of CUDA C++; see `s2s_jax.recurrence.library`.

The compiler is `$NVCC`, or nvcc on the path or in /usr/local/cuda.
"""

import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from s2s_jax.recurrence import library

FLAGS = ("-std=c++17", "-O3", "-split-compile=0", "-shared", "-Xcompiler", "-fPIC")


def recipe(
    compiler: list[str], flags: Sequence[str], sources: Sequence[Path], folders: Sequence[Path], notice: str
) -> library.Recipe:
    """How a compiler makes a library of sources; headers are in their folders and in others.

    Raises:
      RuntimeError: the compiler cannot be run.
    """
    of_sources = {source.parent for source in sources}
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
