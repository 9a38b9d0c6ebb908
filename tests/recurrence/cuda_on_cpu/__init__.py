"""The kernels of the backend `persistent` on a CPU: their source, compiled with the headers here in the place of CUDA's."""

import ctypes
import functools
import os
from pathlib import Path

import jax

from s2s_jax.recurrence import library
from s2s_jax.recurrence.native.build import _compiler
from s2s_jax.recurrence.persistent import build, plan

HOPPER = plan.Device(132, 232448)
_FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-Wno-unknown-pragmas", "-Wno-return-type", "-x", "c++")


@functools.cache
def compiled(cell: str, dtype: str) -> ctypes.CDLL:
    """The library, whose passes XLA knows on the CPU."""
    folders = [Path(__file__).parent, Path(jax.ffi.include_dir())]
    # Which all workers share.
    folder = Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / "cuda_on_cpu"
    path = library.compiled(build.recipe(_compiler(), _FLAGS, cell, dtype, folders), folder, cell)
    found = ctypes.CDLL(str(path))
    build.register(found, cell, dtype, "cpu")
    return found


def load(cell: str, dtype: str, device: plan.Device = HOPPER, exact: bool = True, of_each: int = 1) -> build.Loaded:
    """In the place of `build.load`: on a device of that size; `exact` products of float32, or in TF32.

    `of_each`: blocks that a multiprocessor has room for at the same time.
    """
    found = compiled(cell, dtype)
    found.cuda_on_cpu_device(device.multiprocessors, device.shared_bytes, int(exact), of_each)
    return build.Loaded(build.device(found), None)
