"""Which backend runs, and why."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jaxtyping import Array

from s2s_jax.recurrence import native, scan
from s2s_jax.recurrence.backend import Direction, Options
from s2s_jax.types import Cell

AUTO = "auto"
BACKENDS = {"scan": scan.BACKEND, "native": native.BACKEND}
VARIABLE = "S2S_JAX_BACKEND"


class Choice(NamedTuple):
    """`backend` runs, because of `why`; `others` says of each other backend why it does not."""

    backend: str
    why: str
    others: dict[str, str]

    def __str__(self) -> str:
        rest = "".join(f"\n  not {name}: {reason}" for name, reason in self.others.items())
        return f"{self.backend}: {self.why}{rest}"


def forced() -> str | None:
    """The backend that the environment variable S2S_JAX_BACKEND names, for calls that leave the choice open.

    Raises:
      ValueError: it names none.
    """
    name = os.environ.get(VARIABLE) or AUTO
    if name == AUTO:
        return None
    if name not in BACKENDS:
        raise ValueError(f"{VARIABLE}: expected one of {AUTO}, {', '.join(BACKENDS)}, got {name!r}")
    return name


def choose(
    cell: Cell,
    directions: Sequence[Direction],
    lengths: Array | None,
    options: Options,
    wanted: str = AUTO,
    forced: str | None = None,
) -> Choice:
    """The backend for one layer: the one that is wanted, else the one that the environment forces, else the fastest known.

    Raises:
      ValueError: the one that is wanted does not apply.
    """
    reasons = {name: backend.why_not(cell, directions, lengths, options) for name, backend in BACKENDS.items()}
    if wanted != AUTO:
        if reasons[wanted] is not None:
            raise ValueError(f"backend: {wanted} does not apply: {reasons[wanted]}")
        return _chosen(wanted, "it was asked for", reasons)
    if forced is not None and reasons[forced] is None:
        return _chosen(forced, f"{VARIABLE} asks for it", reasons)
    if reasons["native"] is None and jax.device_count() > 1:
        reasons["native"] = "there are several devices, and the compiler cannot split its call over them"
    best = "native" if reasons["native"] is None else "scan"
    return _chosen(best, "", reasons)


def _chosen(name: str, why: str, reasons: dict[str, str | None]) -> Choice:
    return Choice(name, why, {other: reason or "slower" for other, reason in reasons.items() if other != name})
