"""Makes the two calls known to XLA: on a CPU by the library of the backend `native`, on a GPU by one that nvcc compiles."""

from pathlib import Path

from s2s_jax.recurrence import cuda
from s2s_jax.recurrence.native import build as native_build


def target(way: str) -> str:
    """The name under which XLA knows a pass, "forward" or "backward"."""
    return f"s2s_diagonal_{way}"


PASSES = ("forward", "backward")
_HERE = Path(__file__).parent
KERNELS = cuda.Kernels("diagonal", (_HERE / "gpu.cu", _HERE / "gpu.cc"), tuple(map(target, PASSES)))


def why_not(platform: str) -> str | None:
    """Why the calls cannot be made on a platform; the first time it compiles what they need, or the log says why it cannot."""
    if platform == "cpu":
        return native_build.load().why_not
    if platform not in ("gpu", "cuda"):
        return f"it runs on a CPU or an NVIDIA GPU, and the default device is of platform {platform!r}"
    return KERNELS.why_not()
