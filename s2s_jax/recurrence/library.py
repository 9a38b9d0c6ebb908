"""Libraries of C++ and CUDA that are compiled where they are used, once, and kept in the cache folder.

Kept under a name made of sources, headers, compiler and machine, so that a change of any of them builds anew. Two processes
may build at once: each writes a file of its own and then renames it.
"""

import ctypes
import hashlib
import logging
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

_log = logging.getLogger("s2s_jax")


class Recipe(NamedTuple):
    """How a library is made.

    Attributes:
      compiler: the command without arguments; `--version` is added to learn its version.
      arguments: what follows it, sources included; `-o` and the file to write come last.
      reads: every file that it is made of.
      machine: what tells machines apart that share a cache folder and need libraries of their own.
      notice: what the log says before it is compiled, which takes a while.
    """

    compiler: Sequence[str]
    arguments: Sequence[str]
    reads: Iterable[Path]
    machine: str
    notice: str


def compiled(recipe: Recipe, folder: Path, name: str, seconds: float = 600.0) -> Path:
    """The path of the library, `name-....so` in that folder, compiled if that was not done before, in so many seconds at most.

    Raises:
      RuntimeError: the compiler refuses.
      subprocess.TimeoutExpired: it takes longer.
      OSError: the folder cannot be written, or others than this user may write there.
    """
    digest = hashlib.sha256()
    for path in recipe.reads:
        content = path.read_bytes()
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    version = subprocess.run([*recipe.compiler, "--version"], capture_output=True, text=True, timeout=60)
    if version.returncode != 0:
        raise RuntimeError(f"{shlex.join(recipe.compiler)} --version failed with {version.returncode}")
    for part in (version.stdout, recipe.machine, *recipe.compiler, *recipe.arguments):
        digest.update(b"\0" + part.encode())
    target = folder / f"{name}-{digest.hexdigest()[:20]}.so"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in (folder, target):
        _check_owner(path)
    if target.exists():
        return target
    _log.warning(recipe.notice)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / target.name
        command = [*recipe.compiler, *recipe.arguments, "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        if done.returncode != 0:
            raise RuntimeError(f"{shlex.join(recipe.compiler)} failed with {done.returncode}: {done.stderr.strip()[-2000:]}")
        made.chmod(0o700)  # whatever the umask: others must not write there
        os.replace(made, target)
    return target


def opened(build: Callable[[Path | None], Path], register: Callable[[ctypes.CDLL], None]) -> ctypes.CDLL:
    """The library of `build(folder)`, None for the cache folder, or for one of this process alone where that is not to be had.

    `register` looks its functions up and hands them to JAX; where it cannot, the library is damaged and built anew.
    """

    def anywhere() -> Path:
        try:
            return build(None)
        except OSError as error:
            _log.warning("what is compiled cannot be kept: %s", error)
            return build(Path(tempfile.mkdtemp(prefix="s2s_jax-")))

    path = anywhere()
    try:
        return _registered(path, register)
    except (AttributeError, OSError):
        path.unlink(missing_ok=True)  # another process may have found it damaged as well
        return _registered(anywhere(), register)


def _registered(path: Path, register: Callable[[ctypes.CDLL], None]) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    register(library)
    return library


def _check_owner(path: Path) -> None:
    """Code is loaded only from where nobody else may write."""
    if not hasattr(os, "getuid") or not path.exists():
        return
    found = path.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{path}: others than this user may write there, and code is not loaded from such a place")
