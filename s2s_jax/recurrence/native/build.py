"""Builds the C++ of this folder, and that of `diagonal`, with the machine's own compiler; see `s2s_jax.recurrence.library`.

The environment variable S2S_JAX_NATIVE, read once, may say "portable" (without the machine's own instructions) or "off".
"""

import ctypes
import functools
import logging
import os
import platform
import shlex
import shutil
import subprocess
import threading
from pathlib import Path
from typing import NamedTuple

import jax

from s2s_jax import cache
from s2s_jax.recurrence import library

_log = logging.getLogger("s2s_jax")
_lock = threading.Lock()
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread")
_SYMBOLS = ("s2s_forward", "s2s_backward", "s2s_diagonal_forward", "s2s_diagonal_backward")


class Native(NamedTuple):
    """Whether the native backend can be used here: the library, or why there is none."""

    library: ctypes.CDLL | None
    why_not: str | None


def load() -> Native:
    """Builds and loads the library at the first call, or says once in the log why it cannot be; later calls return the same."""
    with _lock:
        return _load()


@functools.cache
def _load() -> Native:
    mode = os.environ.get("S2S_JAX_NATIVE") or "own"
    if mode not in ("own", "portable", "off"):
        raise ValueError(f"S2S_JAX_NATIVE: expected own, portable or off, got {mode!r}")
    if mode == "off":
        return Native(None, "S2S_JAX_NATIVE is off")
    try:
        return Native(library.opened(lambda folder: build(portable=mode == "portable", folder=folder), _register), None)
    except (AttributeError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        _log.warning("backend native is not available, scan runs instead: %s", error)
        return Native(None, str(error).splitlines()[0])


def _register(found: ctypes.CDLL) -> None:
    symbols = {symbol: getattr(found, symbol) for symbol in _SYMBOLS}
    for symbol, function in symbols.items():
        jax.ffi.register_ffi_target(symbol, jax.ffi.pycapsule(function), platform="cpu")


def build(*, portable: bool = False, folder: Path | None = None, flags: tuple[str, ...] = ()) -> Path:
    """Compiles the sources if that was not done before, and returns the library's path.

    Args:
      portable: for any processor of this architecture, not for this one alone.
      folder: where libraries are kept; by default in the cache folder.
      flags: more flags for the compiler (sanitizers).

    Raises:
      RuntimeError: there is no C++ compiler, or it refuses the sources.
      OSError: the folder cannot be written, or others than this user may write there.
    """
    if not portable and platform.machine() in ("x86_64", "AMD64", "aarch64", "arm64"):
        flags = ("-march=native", *flags)
    here, include = Path(__file__).parent, Path(jax.ffi.include_dir())
    diagonal = here.parent / "diagonal"
    sources = sorted(path for folder in (here, diagonal) for path in folder.iterdir() if path.suffix in (".h", ".cc"))
    recipe = library.Recipe(
        _compiler(),
        [*_FLAGS, *flags, f"-I{include}", str(here / "ffi.cc"), str(diagonal / "cpu.cc")],
        [*sources, *sorted(include.rglob("*.h"))],
        "" if portable else _processor(),
        "compiling the native backend, once for this machine; this takes ten seconds or so",
    )
    return library.compiled(recipe, folder or cache.folder() / "native", "recurrence")


def _compiler() -> list[str]:
    try:
        wanted = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise RuntimeError(f"CXX: {error} in {os.environ['CXX']!r}") from error
    for command in [wanted] if wanted else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    raise RuntimeError(f"no C++ compiler was found ({shlex.join(wanted) or 'c++, g++, clang++'})")


@functools.cache
def has_avx512() -> bool:
    """Whether the processor is known to have vectors of 16 floats."""
    return "avx512f" in _processor()


def _processor() -> str:
    """What tells one kind of processor from another, where a cache folder is shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))
