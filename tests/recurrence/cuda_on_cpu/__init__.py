"""The kernels of the backends `persistent` and `diagonal` on a CPU: their source, compiled with the headers here for CUDA's."""

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path

import jax

from s2s_jax.recurrence import library
from s2s_jax.recurrence.diagonal import build as diagonal_build
from s2s_jax.recurrence.native.build import _compiler
from s2s_jax.recurrence.persistent import build, plan

HOPPER = plan.Device(132, 232448)
_FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-Wno-unknown-pragmas", "-Wno-return-type", "-x", "c++")


def _library(recipe: Callable[..., library.Recipe], name: str, *of: str) -> ctypes.CDLL:
    folders = [Path(__file__).parent, Path(jax.ffi.include_dir())]
    # Which all workers share.
    folder = Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / "cuda_on_cpu"
    return ctypes.CDLL(str(library.compiled(recipe(_compiler(), _FLAGS, *of, folders), folder, name)))


@functools.cache
def compiled(cell: str, dtype: str) -> ctypes.CDLL:
    """The library of `persistent` for a cell, whose passes XLA knows on the CPU."""
    found = _library(build.recipe, cell, cell, dtype)
    build.register(found, cell, dtype, "cpu")
    return found


@functools.cache
def diagonal_targets() -> dict[str, str]:
    """By the name of a pass of `diagonal` that by which XLA knows its kernels on the CPU."""
    found, targets = (
        _library(diagonal_build.recipe, "diagonal"),
        {way: f"diagonal_on_cpu_{way}" for way in diagonal_build.PASSES},
    )
    for way, target in targets.items():
        symbol = getattr(found, diagonal_build.target(way))
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(symbol), platform="cpu")
    return targets


def load(cell: str, dtype: str, device: plan.Device = HOPPER, exact: bool = True, of_each: int = 1) -> build.Loaded:
    """In the place of `build.load`: on a device of that size; `exact` products of float32, or in TF32.

    `of_each`: blocks that a multiprocessor has room for at the same time.
    """
    found = compiled(cell, dtype)
    found.cuda_on_cpu_device(device.multiprocessors, device.shared_bytes, int(exact), of_each)
    return build.Loaded(build.device(found), None)
