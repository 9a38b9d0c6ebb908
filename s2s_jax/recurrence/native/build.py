"""Builds the C++ of this folder with the machine's own compiler, once, and loads it.

Kept in the cache folder under a name made of sources, headers, compiler and processor, so that a change of any of
them builds anew. Two processes may build at once: each writes a file of its own and then renames it.

The environment variable S2S_JAX_NATIVE, read once, may say "portable" (without the machine's own instructions) or "off".
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
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

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
        return _load()


@functools.cache
def _load() -> Native:
    mode = os.environ.get("S2S_JAX_NATIVE") or "own"
    if mode not in ("own", "portable", "off"):
        raise ValueError(f"S2S_JAX_NATIVE: expected own, portable or off, got {mode!r}")
    if mode == "off":
        return Native(None, "S2S_JAX_NATIVE is off")
    try:
        return Native(_open(functools.partial(_build_anywhere, mode == "portable")), None)
    except (AttributeError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        _log.warning("backend native is not available, scan runs instead: %s", error)
        return Native(None, str(error).splitlines()[0])


def _build_anywhere(portable: bool) -> Path:
    """In the cache folder, or where that is not to be had, in one of this process alone."""
    try:
        return build(portable=portable)
    except OSError as error:
        _log.warning("the native backend cannot be kept: %s", error)
        return build(portable=portable, folder=Path(tempfile.mkdtemp(prefix="s2s_jax-")))


def _open(build: Callable[[], Path]) -> ctypes.CDLL:
    path = build()
    try:
        return _registered(ctypes.CDLL(str(path)))
    except (AttributeError, OSError):  # damaged: another try, with a new one
        path.unlink()
        return _registered(ctypes.CDLL(str(build())))


def _registered(library: ctypes.CDLL) -> ctypes.CDLL:
    symbols = {symbol: getattr(library, symbol) for symbol in _SYMBOLS}
    for symbol, function in symbols.items():
        jax.ffi.register_ffi_target(symbol, jax.ffi.pycapsule(function), platform="cpu")
    return library


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
    compiler = _compiler()
    if not portable and platform.machine() in ("x86_64", "AMD64", "aarch64", "arm64"):
        flags = ("-march=native", *flags)
    command = [*compiler, *_FLAGS, *flags, f"-I{jax.ffi.include_dir()}"]
    sources = sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in (".h", ".cc"))
    digest = hashlib.sha256()
    for path in (*sources, *sorted(Path(jax.ffi.include_dir()).rglob("*.h"))):
        digest.update(path.read_bytes())
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=60)
    if version.returncode != 0:
        raise RuntimeError(f"{shlex.join(compiler)} --version failed with {version.returncode}")
    for part in (version.stdout, "" if portable else _processor(), *command):
        digest.update(b"\0" + part.encode())
    folder = folder or cache.folder() / "native"
    target = folder / f"recurrence-{digest.hexdigest()[:20]}.so"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in (folder, target):
        _check_owner(path)
    if target.exists():
        return target
    _log.warning("compiling the native backend, once for this machine; this takes ten seconds or so")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / target.name
        done = subprocess.run(
            [*command, str(Path(__file__).parent / "ffi.cc"), "-o", str(made)], capture_output=True, text=True, timeout=600
        )
        if done.returncode != 0:
            raise RuntimeError(f"{shlex.join(compiler)} failed with {done.returncode}: {done.stderr.strip()[-2000:]}")
        made.chmod(0o700)  # whatever the umask: others must not write there
        os.replace(made, target)
    return target


def _check_owner(path: Path) -> None:
    """Code is loaded only from where nobody else may write."""
    if not hasattr(os, "getuid") or not path.exists():
        return
    found = path.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{path}: others than this user may write there, and code is not loaded from such a place")


def _compiler() -> list[str]:
    try:
        wanted = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise RuntimeError(f"CXX: {error} in {os.environ['CXX']!r}") from error
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
