"""The backend `persistent` on a GPU: equal to `scan` first, then timed beside PyTorch, JAX's cuDNN, Flax, and the floor.

Everybody is a process of its own that is ended when it does not answer; a case that goes wrong costs only itself. Three
divisions of each layer among the multiprocessors are measured, the one first that the plan takes for the best.
"""

import concurrent.futures
import math
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from experiments.benchmark import exchange, machine
from experiments.benchmark.case import CELLS, KINDS, Case
from experiments.benchmark.peers import peers as all_peers
from experiments.benchmark.pool import Failed, Patience, Pool
from experiments.benchmark.program import Peer, ours
from experiments.benchmark.recurrence import Refused, measure
from experiments.benchmark.report import Report, legend
from experiments.benchmark.timing import Plan, geometric_mean
from s2s_jax.recurrence.persistent import build, plan

T = 1024
CASES = (
    Case("lstm", (16, T, 768, 768), "float16"),  # cuDNN's best
    Case("lstm", (16, T, 512, 512), "bfloat16"),
    Case("gru", (16, T, 512, 512), "bfloat16"),
    Case("lstm", (16, T, 768, 768), "float32"),
    Case("lstm", (16, T, 512, 512), "bfloat16", "deep"),
    Case("lstm", (16, T, 256, 256), "bfloat16"),
    Case("lstm", (16, T, 256, 256), "bfloat16", "both"),
    Case("lstm", (20, T, 512, 512), "bfloat16"),
    Case("lstm", (16, T, 320, 320), "bfloat16"),
    Case("lstm", (16, T, 512, 512), "bfloat16", "ragged"),
    Case("lstm", (16, T, 1024, 1024), "bfloat16", "deep"),
)
BESIDE = ("torch", "jax cudnn", "flax linen", "flax nnx", "scan", "fused")
DIVISIONS = (1, 2)  # by their place in `plan.splits`, beside the first
_BEST, _GAINS_BY_STACKING = plan.best, plan.gains_by_stacking  # which other divisions put something else in the place of
PATIENCE = 60.0  # seconds for one answer
IN_ALL = 400.0  # seconds after which nothing is waited for
EXCHANGES = Patience(20.0, 60.0)  # seconds for some exchanges, and for all of them


def peers(platform: str, backend: str) -> dict[str, Peer]:
    """Ours on `persistent`, and all that it is compared with."""
    every = all_peers(platform, "persistent")
    chosen = {name: every[name] for name in ("ours", *BESIDE) if name in every}
    return chosen | {f"division {k + 1}": _divided(k) for k in DIVISIONS}


def _divided(k: int) -> Peer:
    def build_divided(case: Case, platform: str) -> Any:
        # The process is this peer's alone, and for one case after the other.
        plan.best, plan.gains_by_stacking = _BEST, _GAINS_BY_STACKING
        divided = _divided_of(case)

        def best(layer: plan.Layer, way: str, device: plan.Device) -> plan.Split | None:
            return next(iter(plan.splits(layer, way, device)[k:]), None) if layer == divided else _BEST(layer, way, device)

        def gains_by_stacking(layer: plan.Layer, layers: int, steps: int, device: plan.Device) -> bool:
            return divided.steps > 0

        plan.best, plan.gains_by_stacking = best, gains_by_stacking
        return ours("persistent", case)

    setting = f'unroll(backend="persistent"), divided as the plan has it in place {k + 1}'
    return Peer(build_divided, setting, "s2s_jax", lambda case, platform: divisions(case, _device(case)) > k)


def _device(case: Case) -> plan.Device | None:
    return build.load(case.cell.upper(), case.dtype).device


def _divided_of(case: Case) -> plan.Layer:
    device = _device(case)
    assert device is not None  # `divisions` has looked
    return layer_of(case, device)


def divisions(case: Case, device: plan.Device | None) -> int:
    """Among how many the plan chooses for a case in both passes; none without a device whose kernels have been built."""
    return 0 if device is None else min(len(plan.splits(layer_of(case, device), way, device)) for way in build.PASSES)


def layer_of(case: Case, device: plan.Device) -> plan.Layer:
    """What goes in one launch, as `plan` sees it: one layer of a case, or all of them."""
    batch, time, _, hidden = case.shape
    gates = CELLS[case.cell].spec.gates
    one = plan.Layer(gates, hidden, batch, len(case.directions), jnp.dtype(case.dtype).itemsize)
    together = plan.stack(one, case.layers, time)
    if case.layers == 1 or len(case.directions) > 1 or not plan.fits(together, device):
        return one
    return together if plan.gains_by_stacking(one, case.layers, time, device) else one


def products(case: Case, part: str, stacked: bool) -> float:
    """Operations of the products that need no order in time: of inputs, and of the gradients of weights and inputs.

    In a stack that goes in one launch only the lowest layer has its inputs before.
    """
    batch, time, features, hidden = case.shape
    steps = batch * time if case.lengths is None else int(case.lengths.sum())
    of_row = 2.0 * steps * CELLS[case.cell].spec.gates * hidden
    inputs = case.operations("forward") - of_row * hidden * len(case.directions) * case.layers
    if stacked:
        inputs = of_row * features
    return inputs if part == "forward" else 2 * inputs + case.operations("forward")


def floor_seconds(case: Case, part: str, microseconds: Mapping[str, float], rate: float, stacked: bool) -> float:
    """All steps each way at what an exchange takes, and the products at the machine's rate.

    Layers follow each other at a distance of a sequence, or of a step in one launch; what a layer of a stack reads of another
    one beside its own state is left out.
    """
    _, time, _, _ = case.shape
    steps = time + case.layers - 1 if stacked else time * case.layers
    passes = build.PASSES[:1] if part == "forward" else build.PASSES
    return steps * sum(microseconds[way] for way in passes) * 1e-6 + products(case, part, stacked) / rate


def run(config: Any, platform: str, path: Path) -> None:
    """Builds, checks and times what it can in less than seven minutes; see the module."""
    if platform != "gpu":
        raise ValueError(f"persistent: expected an NVIDIA GPU to measure on, and JAX finds the platform {platform} only")
    patience = Patience(PATIENCE, time.monotonic() + IN_ALL)
    report = Report(path, machine.describe(platform))
    present = {name: peer for name, peer in peers(platform, "persistent").items() if not peer.missing}
    print(legend(present))
    library, kinds = _built({kind for case in CASES for kind in _kinds(case)}, patience, report)
    device = build.load(*kinds[0]).device if kinds else None
    if device is None:
        raise ValueError("persistent: nothing to measure without its kernels, for the reasons above")
    floors = _floors(library, device, patience, report)
    row_plan = Plan(1.0 if config.seconds is None else config.seconds, 3, 15)
    pool, rates = None, {}
    try:
        for case in CASES:
            if not set(_kinds(case)) <= set(kinds):
                report.refused(case, "ours", "its kernels are not built")
                continue
            if patience.seconds() == 0:
                report.refused(case, "ours", f"left out: {IN_ALL:.0f} s are over")
                continue
            for k in DIVISIONS:
                if (found := divisions(case, device)) <= k:
                    report.refused(case, f"division {k + 1}", f"the plan has {found} only")
            pool = pool or Pool(present, platform, "persistent", "persistent", patience)
            try:
                rates[case.dtype] = rates.get(case.dtype) or pool.workers["ours"].ask("rate", case.dtype)
                floor = _floor_of(floors[case], rates[case.dtype], layer_of(case, device).steps > 0)
                whole = True
                for outcome in measure([case], pool.workers, present, platform, row_plan, floor):
                    if isinstance(outcome, Refused):
                        report.refused(outcome.case, outcome.peer, outcome.why)
                        whole = whole and not outcome.failed
                    else:
                        report.row(outcome)
            except Failed as failed:
                report.refused(case, "ours", str(failed))
                whole = False
            if not whole:  # whoever failed may have left the device unusable for its process
                pool.__exit__()
                pool = None
    finally:
        if pool is not None:
            pool.__exit__()
    report.keep("gflops", {dtype: round(rate / 1e9, 1) for dtype, rate in rates.items()})
    print(_conclusion([*report.found["rows"], *report.found["further_rows"]]))
    print(f"All figures are in {path}.")


def _kinds(case: Case) -> list[tuple[str, str]]:
    """What kernels are built for: a cell and a dtype."""
    plain = case.cell.upper()
    both = [plain, f"Stacked{plain}"] if case.layers > 1 and len(case.directions) == 1 else [plain]
    return [(name, case.dtype) for name in both]


def _built(kinds: set[tuple[str, str]], patience: Patience, report: Report) -> tuple[Path | None, list[tuple[str, str]]]:
    """All libraries at the same time; the path of that of the exchange, and for which kinds there are kernels."""
    start = time.perf_counter()
    compiling = patience._replace(each=math.inf)

    def one(make: Any, *arguments: str) -> Path | None:
        try:
            return make(*arguments, seconds=compiling.seconds())
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            print(f"{' '.join(arguments) or 'exchange'} is not built: {error}", flush=True)
            return None

    with concurrent.futures.ThreadPoolExecutor() as threads:
        library = threads.submit(one, exchange.build_library)
        kernels = {kind: threads.submit(one, build.build, *kind) for kind in sorted(kinds)}
    report.keep("compiling_s", round(time.perf_counter() - start, 1))
    print(f"\nThe kernels took {report.found['compiling_s']:.0f} s to compile.", flush=True)
    return library.result(), [kind for kind, built in kernels.items() if built.result() is not None]


def _floors(library: Path | None, device: plan.Device, patience: Patience, report: Report) -> dict[Case, dict[str, float]]:
    """Microseconds of an exchange for each case and pass; infinite where it could not be measured."""
    layers = {case: layer_of(case, device) for case in CASES}
    wanted = {(case, way): exchange.of_layer(layers[case], way, device) for case in CASES for way in build.PASSES}
    every = list(dict.fromkeys([*wanted.values(), *exchange.of_each_kind()]))
    waiting = Patience(EXCHANGES.each, min(patience.until, time.monotonic() + EXCHANGES.until))
    told = exchange.microseconds(library, every, waiting) if library is not None else {}
    report.keep("exchange_us", [{**one._asdict(), "us": value} for one, value in told.items()])
    print("\nAn exchange and nothing else, microseconds a step:")
    for one, value in told.items():
        what = f"{one.through} of {one.blocks} blocks, {one.teams} at once, {64 * one.chunks * one.rows} bytes"
        print(f"  {what:<60}{value:8.3f}" if isinstance(value, float) else f"  {what:<60}{value}")

    def number(one: exchange.Exchange) -> float:
        value = told.get(one)
        return value if isinstance(value, float) else math.inf

    return {case: {way: number(wanted[case, way]) for way in build.PASSES} for case in CASES}


def _floor_of(microseconds: Mapping[str, float], rate: float, stacked: bool) -> Any:
    return lambda case, part: floor_seconds(case, part, microseconds, rate, stacked)


def _conclusion(rows: list[dict[str, Any]]) -> str:
    """The peers' times over ours, and ours of stacks and of both directions over that of one layer, timed by itself before."""
    lines = ["\nGeometric mean and least of times over ours:"]
    for part in ("forward", "forward+grad"):
        for peer in dict.fromkeys(row["peer"] for row in rows):
            ratios = [row["ratio"] for row in rows if (row["peer"], row["part"]) == (peer, part)]
            if ratios:
                lines.append(f"  {part:<14}{peer:<24}{geometric_mean(ratios):7.2f}{min(ratios):7.2f}   of {len(ratios)}")
    alone = {}
    for row in rows:
        place = row["cell"], tuple(row["shape"]), row["dtype"], row["part"]
        if row["kind"] == "layer":
            alone[place] = row["ours_ms"]
    for place, kind, ms in dict.fromkeys(
        ((row["cell"], tuple(row["shape"]), row["dtype"], row["part"]), row["kind"], row["ours_ms"]) for row in rows
    ):
        if kind in ("deep", "both") and place in alone:
            cell, shape, dtype, part = place
            at = ", ".join(map(str, shape))
            lines.append(f"{cell.upper()} {at}{KINDS[kind].words}, {dtype}, {part}: {ms / alone[place]:.2f} times one layer")
    return "\n".join(lines)
