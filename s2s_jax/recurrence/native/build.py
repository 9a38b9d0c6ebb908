"""Builds the C++ of this folder with the machine's own compiler, once, and loads it.

Kept in the cache folder under a name made of the sources, the compiler, the processor and jaxlib, so that a change of any of
them builds anew. Two processes may build at once: each writes a file of its own and then renames it.

The environment variable S2S_JAX_NATIVE may say "portable" (without the machine's own instructions) or "off".
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

import jax
import jaxlib

from s2s_jax import cache

_log = logging.getLogger("s2s_jax")
_lock = threading.Lock()
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread")
_SYMBOLS = ("s2s_forward", "s2s_backward")


class Native(NamedTuple):
    """Whether the native backend can be used here: the library, or why there is none."""

    library: ctypes.CDLL | None
    why_not: str | None


def load() -> Native:
    """Builds and loads the library at the first call, or says once in the log why it cannot be; later calls return the same."""
    with _lock:
        return _load(os.environ.get("S2S_JAX_NATIVE", "own"))


@functools.cache
def _load(mode: str) -> Native:
    if mode not in ("own", "portable", "off"):
        raise ValueError(f"S2S_JAX_NATIVE: expected own, portable or off, got {mode!r}")
    if mode == "off":
        return Native(None, "S2S_JAX_NATIVE is off")
    try:
        library = _open(build(portable=mode == "portable"))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        _log.warning("backend native is not available, scan runs instead: %s", error)
        return Native(None, str(error).splitlines()[0])
    return Native(library, None)


def _open(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for symbol in _SYMBOLS:
        jax.ffi.register_ffi_target(symbol, jax.ffi.pycapsule(getattr(library, symbol)), platform="cpu")
    return library


def build(*, portable: bool = False, folder: Path | None = None, flags: tuple[str, ...] = ()) -> Path:
    """Compiles the sources if that was not done before, and returns the library's path.

    Args:
      portable: for any processor of this architecture, not for this one alone.
      folder: where libraries are kept; by default in the cache folder.
      flags: more flags for the compiler (sanitizers).

    Raises:
      RuntimeError: there is no C++ compiler, or it refuses the sources.
    """
    compiler = _compiler()
    own = () if portable else ("-march=native",) if platform.machine() in ("x86_64", "AMD64", "aarch64", "arm64") else ()
    command = [*compiler, *_FLAGS, *own, *flags, f"-I{jax.ffi.include_dir()}"]
    sources = sorted(Path(__file__).parent.glob("*.[hc]*"))
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.read_bytes())
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    for part in (version, jaxlib.__version__, "" if portable else _processor(), *command):
        digest.update(b"\0" + part.encode())
    folder = folder or cache.folder() / "native"
    target = folder / f"recurrence-{digest.hexdigest()[:20]}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    _log.info("building the native backend, once for this machine")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / target.name
        done = subprocess.run(
            [*command, str(Path(__file__).parent / "ffi.cc"), "-o", str(made)], capture_output=True, text=True, timeout=600
        )
        if done.returncode != 0:
            raise RuntimeError(f"{shlex.join(compiler)} failed with {done.returncode}: {done.stderr.strip()[-2000:]}")
        os.replace(made, target)
    return target


def _compiler() -> list[str]:
    wanted = shlex.split(os.environ.get("CXX", ""))
    for command in [wanted] if wanted else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    raise RuntimeError(f"no C++ compiler was found ({shlex.join(wanted) or 'c++, g++, clang++'})")


def _processor() -> str:
    """What tells one kind of processor from another, where a cache folder is shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))
