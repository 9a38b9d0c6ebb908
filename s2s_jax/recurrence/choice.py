"""Which backend runs, and why; and running it."""

import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from s2s_jax.cells import MinGRUSpec, MinLSTMSpec
from s2s_jax.recurrence import associative, cudnn, diagonal, fused, native, parallel, persistent, scan
from s2s_jax.recurrence.backend import Direction, Options, TimeMajor, default_platform
from s2s_jax.types import Cell

AUTO = "auto"
BACKENDS = {
    "scan": scan.BACKEND,
    "native": native.BACKEND,
    "diagonal": diagonal.BACKEND,
    "fused": fused.BACKEND,
    "cudnn": cudnn.BACKEND,
    "persistent": persistent.BACKEND,
    "associative": associative.BACKEND,
    "parallel": parallel.BACKEND,
}
VARIABLE = "S2S_JAX_BACKEND"
_MARK = "s2s_jax_backend_"
# Weights of a layer, those of an LSTM of 256 units and features: more of them native did not arrange for a single step faster
# than others read them.
_WORTH_ARRANGING_FOR_A_STEP = 2**19
# A little less than the weights of an LSTM of 640: of more of them, rows times steps had to be so small a part or more. With
# AVX-512 a 2^18th (512 units: native at any number of both; 1,024: up to twice as long at 16, less long at 50 and 128), with
# AVX2, where others' products of few rows take longer, a 2^20th (1,024: 1.0 to 1.6 times as long at 4, 0.9 to 1.1 at 8, 0.6 to
# 0.75 at 16 and 32; 640: 1.1 at 4, 0.75 at 10).
_MANY, _WORTH_ROWS, _WORTH_ROWS_WITHOUT_AVX512 = 3 * 2**20, 2**18, 2**20
_NOT_SPLIT = "there are several devices, and the compiler cannot split its call over them"
# Of an LRU's complex states associative took up to 2.5 times as long with gradients on a CPU.
_WORTH_A_PASS_AT_ONCE = (MinGRUSpec, MinLSTMSpec)


class How(NamedTuple):
    """What is fixed when a program is compiled: the backend that is wanted, that which the environment asks for, options."""

    backend: str
    forced: str | None
    options: Options


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


def how(backend: str, options: Options) -> How:
    """Made outside of what is compiled: the environment is looked up here, and belongs to what a program is kept under.

    Raises:
      ValueError: a backend or `remat` out of its range.
    """
    check_how(backend, options.remat)
    return How(backend, forced() if backend == AUTO else None, options)


def check_how(backend: str, remat: int | None) -> None:
    """What can be said of both before there is anything to carry.

    Raises:
      ValueError: one that is out of its range.
    """
    if backend != AUTO and backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {AUTO}, {', '.join(BACKENDS)}, got {backend!r}")
    if remat is not None and (not isinstance(remat, int) or remat < 1):
        raise ValueError(f"remat: expected a positive number of steps, got {remat!r}")


def run_layer(cell: Cell, directions: Sequence[Direction], lengths: Array | None, how: How) -> list[TimeMajor]:
    """Carries one layer along time, by the backend of `choose`."""
    name = choose(cell, directions, lengths, how)
    with scope(name):
        return BACKENDS[name].run(cell, directions, lengths, how.options)


def choose(cell: Cell, directions: Sequence[Direction], lengths: Array | None, how: How) -> str:
    """The backend for one layer: the one that is wanted, else the one that the environment forces, else the first of `_order`.

    Raises:
      ValueError: the one that is wanted does not apply.
    """
    given = cell, directions, lengths, how.options
    if how.backend != AUTO:
        reason = BACKENDS[how.backend].why_not(*given)
        if reason is not None:
            raise ValueError(f"backend: {how.backend} does not apply: {reason}")
        return how.backend
    if how.forced is not None and BACKENDS[how.forced].why_not(*given) is None:
        return how.forced
    return next(name for name in _order() if _why_not_by_itself(name, *given) is None)


def explain(cell: Cell, directions: Sequence[Direction], lengths: Array | None, how: How) -> Choice:
    """What `choose` returns, and the reasons."""
    wanted, forced, options = how
    given = cell, directions, lengths, options
    chosen = choose(cell, directions, lengths, how)
    if wanted != AUTO:
        why, others = "it was asked for", "another was asked for"
    elif chosen == forced:
        why, others = f"{VARIABLE} asks for it", f"{VARIABLE} asks for another"
    else:
        why, others = (
            f"the first that applies on {default_platform()}, of {', '.join(_order())}",
            "it comes later in the order",
        )
    if wanted == AUTO and forced not in (None, chosen):
        why += f" ({VARIABLE} asks for {forced}, which does not apply)"
    order = _order()
    reasons = {}
    for name in BACKENDS:
        if name == chosen:
            continue
        at_a_glance = BACKENDS[name].at_a_glance if name != forced and name not in order else None
        reason = at_a_glance(*given) if at_a_glance is not None else _why_not_by_itself(name, *given)
        reasons[name] = reason or (others if name in order or wanted != AUTO else "it is taken by name alone")
    return Choice(chosen, why, reasons)


def scope(name: str) -> AbstractContextManager[Any]:
    """While it lasts what is traced is marked as that backend's, for `traced_backends` and for profiles."""
    return jax.named_scope(f"{_MARK}{name}")


def traced_backends(jaxpr: Any) -> list[str]:
    """The backends that carry recurrence in a traced program, `jax.jit(f).trace(...).jaxpr`; each once, in the order of names.

    What was traced before and is taken from a cache counts too, as do derivatives.
    """
    text = jaxpr.pretty_print(name_stack=True)
    return sorted(set(re.findall(rf"\b{_MARK}({'|'.join(BACKENDS)})\b", text)))


def _order() -> tuple[str, ...]:
    """Backends of the default platform, the fastest first.

    `python -m experiments.benchmark --grid full` measures them, and `--cells min_gru min_lstm lru diagonal_lstm diagonal_gru`
    those for whose units there is `diagonal`.
    """
    # On two AVX2 cores native took no longer than scan at any of the six small shapes (but 3 % at one in one of three runs);
    # for minGRU and minLSTM associative is scan forward, and with gradients took 0.34 to 0.73 times as long in ten of twelve
    # rows, and 1.06 and 1.19 times in the largest: where there is no C++ compiler, or several devices.
    # Elsewhere nothing has been measured: scan is what is known to work.
    return ("native", "diagonal", "associative", "fused", "scan") if default_platform() == "cpu" else ("scan",)


def _why_not_by_itself(
    name: str, cell: Cell, directions: Sequence[Direction], lengths: Array | None, options: Options
) -> str | None:
    """Also where a backend would run, but another is better: what is asked of it by name it does."""
    if name == "native" and native.why_not_these(cell, directions, options) is None:
        if jax.device_count() > 1:
            return _NOT_SPLIT
        if _is_read_faster_than_arranged(directions):
            return "there are few rows and steps, which do not make up for arranging so many weights"
        if native.on_a_mesh(directions, lengths):
            return "the arrays are split over a mesh"
    if name == "diagonal" and diagonal.why_not_at_a_glance(cell, directions, lengths, options) is None:
        if jax.device_count() > 1:
            return _NOT_SPLIT
        if directions[0].xs.shape[0] == 1:
            return "of a single step there is no loop to save"
    if name == "fused" and not (
        native.why_not_these(cell, directions, options) is None and _is_read_faster_than_arranged(directions)
    ):
        return BACKENDS[name].why_not(cell, directions, lengths, options) or (
            "it is taken for few rows and steps with many weights of a plain cell in float32 alone"
        )
    if name == "associative" and associative.promised(cell) and not isinstance(cell.spec, _WORTH_A_PASS_AT_ONCE):
        return "it was slower, or has not been measured, with this cell"
    return BACKENDS[name].why_not(cell, directions, lengths, options)


def _is_read_faster_than_arranged(directions: Sequence[Direction]) -> bool:
    """Whether `fused`, which reads weights as they are, is faster than `native`, which arranges them before the first step."""
    params, (steps, batch_size) = directions[0].params, directions[0].xs.shape[:2]
    weights = params.w.size + params.u.size
    if steps == 1 and not native.reads_in_place(directions) and weights > _WORTH_ARRANGING_FOR_A_STEP:
        return True
    worth = _WORTH_ROWS if native.build.has_avx512() else _WORTH_ROWS_WITHOUT_AVX512
    return weights > _MANY and steps * batch_size * worth <= weights
