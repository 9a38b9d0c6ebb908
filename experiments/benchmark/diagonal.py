"""Recurrences of units that do not read each other, beside a copy of as many bytes and `jax.lax.associative_scan`.

Measured are both passes of the backend `diagonal`, and the affine recurrence that `associative` and `parallel` solve. Of
`diagonal` the passes alone: the products before and after them are XLA's, and are in `python -m experiments.benchmark --cells
min_gru --backend diagonal`. The copy reads and writes together what the pass does. `associative_scan` gets the factors and
terms of each step of as many affine recurrences, all computed before, and is set beside the cells that are affine in their
state; of a backward pass both ways together over both ways together.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import machine
from experiments.benchmark.report import Report
from experiments.benchmark.timing import Plan, interleaved, ratio
from s2s_jax import cells, unroll
from s2s_jax.recurrence import affine, diagonal
from s2s_jax.recurrence.diagonal.calls import Call

CELLS: tuple[cells.Name, ...] = ("min_gru", "min_lstm", "lru", "diagonal_lstm", "diagonal_gru")
# B, T, H: 2^14, 2^16 and 2^17 units on a GPU.
SHAPES = {"gpu": ((32, 1024, 512), (64, 1024, 1024), (128, 512, 1024)), "cpu": ((1, 4096, 256), (32, 512, 256))}
PLANS = {"small": Plan(0.5, 3, 30), "full": Plan(3.0, 5, 100)}


class Passes(NamedTuple):
    """Of one cell and shape: what is timed by name, and the bytes that each pass reads and writes.

    `difference`: of what comes out from what should; `affine`: whether `associative_scan` does as much as the first.
    """

    calls: dict[str, Callable[[], Any]]
    bytes: dict[str, int]
    difference: float
    affine: bool


def passes(name: cells.Name, shape: tuple[int, int, int], dtype: str) -> Passes:
    """Both passes on drawn numbers, compiled."""
    kind = diagonal.kind_of(cells.BY_NAME[name])
    assert kind is not None
    batch, steps, hidden = shape
    rng = np.random.default_rng(0)

    def draw(*sizes: int, dtype: str = "float32") -> jax.Array:
        return jnp.asarray(rng.random(sizes, np.float32) * 2 - 1, dtype)

    rows = {"lru": 2, "diagonal_lstm": 8, "diagonal_gru": 7}.get(name, kind.gates)  # with biases, but for an LRU
    call, everything = Call(kind, reverse=False), jnp.zeros((0,), jnp.int32)
    z, w = draw(steps, batch, kind.gates * hidden), 0.6 * draw(rows, hidden)
    first, dy = draw(kind.states, batch, hidden), draw(steps, batch, kind.outputs * hidden, dtype=dtype)
    forward = jax.jit(lambda z, w, first: call.forward(everything, z, w, first, jnp.dtype(dtype), keep=True))
    backward = jax.jit(lambda *given: call.backward(everything, *given))
    y, last, c = jax.block_until_ready(forward(z, w, first))
    given = z, w, first, y, c, dy, last
    dz, _, _ = jax.block_until_ready(backward(*given))
    read = (z, y, c, dy) if kind.pull_reads_z else (y, c, dy)
    return Passes(
        {"forward": lambda: forward(z, w, first), "backward": lambda: backward(*given)},
        {"forward": sum(x.nbytes for x in (z, y, c)), "backward": sum(x.nbytes for x in (*read, dz))},
        difference(name, shape, dtype),
        getattr(cells.BY_NAME[name].spec, "linear_by_unit", False),
    )


def copy(moved: int) -> Callable[[], Any]:
    """An array negated, which reads and writes so many bytes together; compiled."""
    array = jnp.ones(moved // 8, jnp.float32)
    negated = jax.jit(jnp.negative)
    jax.block_until_ready(negated(array))
    return lambda: negated(array)


def factors_and_terms(shape: tuple[int, int, int]) -> tuple[jax.Array, jax.Array]:
    """[T, B, H] each, between 0 and 1."""
    batch, steps, hidden = shape
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.random((steps, batch, hidden), np.float32)) for _ in range(2))
    return a, b


def associative(shape: tuple[int, int, int]) -> dict[str, Callable[[], Any]]:
    """`s_t = a_t s_{t-1} + b_t` of float32 by `jax.lax.associative_scan`, and that with its gradients, compiled."""

    def both(before: Any, after: Any) -> Any:
        return after[0] * before[0], after[0] * before[1] + after[1]

    def scanned(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.associative_scan(both, (a, b))[1]

    a, b = factors_and_terms(shape)
    gradients = jax.grad(lambda a, b, weights: jnp.vdot(scanned(a, b), weights), argnums=(0, 1))
    with_gradients = jax.jit(lambda a, b, weights: (scanned(a, b), gradients(a, b, weights)))
    alone = jax.jit(scanned)
    jax.block_until_ready((alone(a, b), with_gradients(a, b, a)))
    return {"forward": lambda: alone(a, b), "both ways": lambda: with_gradients(a, b, a)}


def affine_passes(shape: tuple[int, int, int]) -> Passes:
    """`s_t = a_t s_{t-1} + b_t`, as `associative` and `parallel` solve it here."""
    a, b = factors_and_terms(shape)
    solve = jax.jit(lambda a, b: affine.solve(a[..., None, None], b[..., None], jnp.zeros((*b.shape[1:], 1)), reverse=False))
    apart = float(jnp.max(jnp.abs(solve(a, b)[..., 0] - associative(shape)["forward"]())) / jnp.max(jnp.abs(solve(a, b))))
    return Passes({"solve": lambda: solve(a, b)}, {"solve": 3 * b.nbytes}, apart, True)


def difference(name: cells.Name, shape: tuple[int, int, int], dtype: str) -> float:
    """The greatest of outputs and gradients of `unroll` from those of the backend `scan`, over the greatest of each."""
    batch, steps, hidden = shape
    cell = cells.BY_NAME[name]
    params, xs = cell.init(jax.random.key(0), 8, hidden), jax.random.normal(jax.random.key(1), (batch, steps, 8))
    params, xs = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, xs))

    def of(backend: str) -> Any:
        def loss(params: Any, xs: jax.Array) -> Any:
            outputs = unroll(cell, params, xs, backend=backend).outputs
            return jnp.sum(jnp.sin(outputs.astype(jnp.float32))), outputs

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, xs)

    pairs = zip(*(jax.tree.leaves(jax.tree.map(np.float64, of(backend))) for backend in ("diagonal", "scan")), strict=True)
    return max(float(np.max(np.abs(got - want)) / max(float(np.max(np.abs(want))), 1e-30)) for got, want in pairs)


def run(config: Any, platform: str, path: Path) -> None:
    """Checks and times all of `CELLS` at `SHAPES`; see the module."""
    why = diagonal.build.why_not(platform)
    if why is not None:
        raise ValueError(f"diagonal: nothing to measure: {why}")
    report = Report(path, machine.describe(platform))
    plan = PLANS[config.grid] if config.seconds is None else Plan(config.seconds, 3, 100)
    rows: list[dict[str, Any]] = []
    print(
        "\nShare of a copy: of as many bytes, over the time of the pass. Times of large results are those of fresh memory too."
    )
    heads = f"{'B, T, H':<18}{'cell':<15}{'pass':<10}{'ms':>9}{'GB/s':>7}"
    print(f"\n{heads}{'share of a copy':>17}{'associative_scan over it':>27}{'differs by':>13}")
    for shape in SHAPES[platform]:
        scanned = associative(shape)
        for name in (*CELLS, "affine"):
            of = affine_passes(shape) if name == "affine" else passes(name, shape, config.dtype)
            calls = of.calls | {f"copy {way}": copy(moved) for way, moved in of.bytes.items()}
            calls |= {f"scan {way}": call for way, call in scanned.items()}
            samples = interleaved({each: _timer(call) for each, call in calls.items()}, plan)
            for way, moved in of.bytes.items():
                ms = statistics.median(samples[way]) * 1e3
                row = {"cell": name, "shape": list(shape), "dtype": config.dtype, "pass": way, "ms": ms, "bytes": moved}
                row |= {"share_of_copy": ratio(samples[f"copy {way}"], samples[way]).value, "difference": of.difference}
                if of.affine and way == "backward":  # both ways over both ways
                    both = [there + back for there, back in zip(samples["forward"], samples[way], strict=True)]
                    row["associative_scan_over_it"] = ratio(samples["scan both ways"], both).value
                elif of.affine:
                    row["associative_scan_over_it"] = ratio(samples["scan forward"], samples[way]).value
                rows.append(row)
                report.keep("passes", rows)
                at, over = ", ".join(map(str, shape)), row.get("associative_scan_over_it")
                print(
                    f"{at:<18}{name:<15}{way:<10}{ms:9.3f}{moved / ms / 1e6:7.0f}{row['share_of_copy']:17.2f}"
                    f"{'' if over is None else f'{over:.2f}':>27}{of.difference:13.0e}",
                    flush=True,
                )
    print(f"\nAll figures are in {path}.")


def _timer(call: Callable[[], Any]) -> Callable[[int, bool], list[float]]:
    """Calls follow each other without waiting, as on a GPU they do: what it takes to ask for one is not what it takes."""

    def times(calls: int, warm: bool) -> list[float]:
        if warm:
            jax.block_until_ready(call())
        start = time.perf_counter()
        result = None
        for _ in range(calls):
            result = call()  # the one before it is let go
        jax.block_until_ready(result)
        return [(time.perf_counter() - start) / calls]

    return times
