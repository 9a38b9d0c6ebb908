"""The kernels on a CPU: their source, compiled with the headers here for CUDA's."""

import ctypes
import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax

from s2s_jax.recurrence import cuda, library
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
def targets(kernels: cuda.Kernels) -> dict[str, str]:
    """By the name of each function of kernels that under which XLA knows it on the CPU."""
    found = _library(kernels.recipe, kernels.name)
    names = {target: f"{target}_on_cpu" for target in kernels.targets}
    for target, name in names.items():
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(found, target)), platform="cpu")
    return names


def load(cell: str, dtype: str, device: plan.Device = HOPPER, exact: bool = True, of_each: int = 1) -> build.Loaded:
    """In the place of `build.load`: on a device of that size; `exact` products of float32, or in TF32.

    `of_each`: blocks that a multiprocessor has room for at the same time.
    """
    found = compiled(cell, dtype)
    found.cuda_on_cpu_device(device.multiprocessors, device.shared_bytes, int(exact), of_each)
    return build.Loaded(build.device(found), None)


def nvcc() -> str | None:
    """The path of nvcc, None where there is none."""
    try:
        return shutil.which(cuda.nvcc()[0])
    except RuntimeError:
        return None
