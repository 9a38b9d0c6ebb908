"""The command line of the benchmark; see the package."""

import dataclasses
import os
import re
import sys
import time
from pathlib import Path
from typing import Literal

import experiments.benchmark
from experiments.benchmark import chart, decoding, diagonal, machine, persistent, training_step
from experiments.benchmark.case import SMALL, Case, grid
from experiments.benchmark.peers import peers
from experiments.benchmark.pool import Failed, Pool
from experiments.benchmark.program import Peer
from experiments.benchmark.recurrence import Refused, measure, peaks
from experiments.benchmark.report import Report, conclusion, legend, peak_line
from experiments.benchmark.timing import Plan, summary
from s2s_jax.cells import Name
from s2s_jax.recurrence.choice import BACKENDS

# Seconds after which a row gets no new round, and least and most rounds.
PLANS = {"small": Plan(0.3, 2, 15), "full": Plan(6.0, 5, 40)}
# Each peer on JAX compiles for as long as it is measured; in the small grid these two are measured at one shape only.
BRIEFLY, BRIEF = ("flax nnx", "keras"), (32, 64, 32, 64)

# Flags that a part of the benchmark has no use for. Decoding is in float32 alone: with less, other symbols come out.
_OF_LAYERS = ("cells", "shapes", "kinds", "peers", "dtype", "steady", "memory")
_NOT_OF: dict[str, tuple[str, ...]] = {
    "recurrence": (),
    "training-step": (*_OF_LAYERS, "seconds"),
    "decoding": (*_OF_LAYERS, "backend"),
    "persistent": (*_OF_LAYERS, "backend", "grid"),
    "diagonal": (*(flag for flag in _OF_LAYERS if flag != "dtype"), "backend"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    grid: Literal["small", "full"] = "small"
    """Six shapes, or 60, with stacks, streaming and peak memory; of the other parts, how many rounds."""
    cells: tuple[Name, ...] = ("lstm", "gru", "rnn")
    """Cells; RNN is measured at one shape, beside the two others. Those that only s2s_jax has, on its backends alone."""
    shapes: tuple[str, ...] = ()
    """B,T,D,H: these shapes instead of the grid's."""
    kinds: tuple[Literal["layer", "stack", "streaming"], ...] = ()
    """Whole sequences, two layers in two directions over ragged ones, one step a call; full grid: all, else: layer."""
    peers: tuple[str, ...] = ()
    """Only these, by the beginnings of their names: torch, flax, keras, scan, native, diagonal, fused,
    cudnn, persistent, associative, parallel."""
    platform: Literal["cpu", "gpu"] | None = None
    """What to measure on; what JAX finds if not given."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and inputs."""
    backend: Literal["auto", "scan", "native", "diagonal", "fused", "cudnn", "persistent", "associative", "parallel"] = "auto"
    """Which of our backends is ours."""
    seconds: float | None = None
    """A row has two to forty rounds, and no third or later one begins after so many
    seconds, but up to five where samples disagree; by the grid if not given."""
    steady: bool = False
    """Also the 99th percentile of 200 calls of ours in a row over their median; not for streaming, timed many steps at once."""
    memory: bool = False
    """Also peak memory, each in a process of its own; always with the full grid."""
    json: Path | None = None
    """File of all figures, with a chart beside it; runs/benchmark/<part>.json if not given."""


def recurrence(config: Config, platform: str, path: Path) -> None:
    every = peers(platform, config.backend)
    chosen = {name: peer for name, peer in every.items() if _is_chosen(name, config)}
    print(legend(chosen))
    if config.grid == "small" and not (config.peers or config.shapes or config.kinds):
        print(f"{' and '.join(BRIEFLY)} only at {', '.join(map(str, BRIEF))}; --grid full and --peers measure them everywhere.")
        chosen |= {name: _briefly(chosen[name]) for name in BRIEFLY}
    present = {name: peer for name, peer in chosen.items() if not peer.missing}
    cases = grid(config.grid, config.dtype, config.cells, tuple(_shape(text) for text in config.shapes), config.kinds)
    if not cases or not any(name != "ours" for name in present):
        raise ValueError("nothing to measure: expected cells that the kinds have, and peers that are installed; see --help")
    picture = path.with_suffix(".png")
    report = Report(path, machine.describe(platform))
    report.keep("missing", [name for name, peer in chosen.items() if peer.missing])
    with Pool(present, platform, config.backend) as pool:
        rate = _rate(pool, config.dtype)
        report.keep("machine", report.found["machine"] | {"gflops": {config.dtype: round(rate / 1e9, 1)}})
        print(f"\nFloor: the matrix products at {rate / 1e9:.0f} GFLOP/s, the best that a library here makes of a large one.")

        def floor(case: Case, part: str) -> float:
            return case.operations(part) / rate

        plan = PLANS[config.grid] if config.seconds is None else Plan(config.seconds, 2, 40)
        plan = plan._replace(in_a_row=200 if config.steady else 0)
        for outcome in measure(cases, pool.workers, present, platform, plan, floor):
            if isinstance(outcome, Refused):
                report.refused(outcome.case, outcome.peer, outcome.why)
            else:
                report.row(outcome)
    if config.memory or config.grid == "full":
        _memory(config, platform, present, cases, report)
    rows = report.found["rows"]
    if not rows and not report.found["further_rows"]:
        raise ValueError(f"nothing was measured, for the reasons above; the whole of them is in {path}")
    if rows:
        print(conclusion(rows))
        report.keep("summary", summary(rows))
        title = f"{report.found['machine']['device']}, {config.dtype}"
        chart.ratios(rows, title).savefig(picture, dpi=150)
    else:
        picture.unlink(missing_ok=True)  # of other figures
    print(f"\nAll figures are in {path}{f', and a chart in {picture}' if rows else ''}.")


def _rate(pool: Pool, dtype: str) -> float:
    rates = []
    for name in ("ours", "torch"):
        try:
            rates += [pool.workers[name].ask("rate", dtype)] if name in pool.workers else []
        except Failed as failed:
            print(f"{name} cannot tell the machine's rate: {str(failed).strip().splitlines()[-1]}")
    return max(rates)


def _memory(config: Config, platform: str, present: dict[str, Peer], cases: list[Case], report: Report) -> None:
    print("\nPeak memory of a call in MiB, beyond the process's own and what it is given; each in a new process:")
    told = []
    for case in cases:
        if case.kind == "streaming" or (not config.shapes and case.kind == "layer" and case.shape not in SMALL):  # hours else
            continue
        part = case.parts[-1]
        found = peaks(case, part, present, platform, config.backend)
        print(peak_line(case, part, found), flush=True)
        told.append({"cell": case.cell, "shape": list(case.shape), "kind": case.kind, "part": part, "bytes": found})
        report.keep("peak_memory", told)


def _briefly(peer: Peer) -> Peer:
    return peer._replace(takes=lambda case, platform: case.shape == BRIEF and peer.takes(case, platform))


def _is_chosen(name: str, config: Config) -> bool:
    if config.peers:
        return name == "ours" or name.startswith(config.peers)
    return config.grid == "full" or name == "scan" or name not in BACKENDS


def _shape(text: str) -> tuple[int, int, int, int]:
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*){3}", text):
        raise ValueError(f"shapes: expected four positive numbers B,T,D,H, got {text!r}")
    batch, length, features, hidden = map(int, text.split(","))
    return batch, length, features, hidden


_PARTS = {
    "recurrence": recurrence,
    "training-step": training_step.run,
    "decoding": decoding.run,
    "persistent": persistent.run,
    "diagonal": diagonal.run,
}


def main(arguments: list[str] | None = None) -> None:
    """`[recurrence|training-step|decoding|persistent|diagonal] [--flags]`; recurrence if nothing is said."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    import tyro

    part = "recurrence" if not arguments or arguments[0].startswith("-") else arguments.pop(0)
    program = "python -m experiments.benchmark"
    about = f"{program} [{'|'.join(_PARTS)}] [--flags]: {experiments.benchmark.__doc__}"
    config = tyro.cli(Config, args=arguments, prog=f"{program} {part}", description=about)
    if part not in _PARTS:
        raise ValueError(f"expected {', '.join(_PARTS)} first, or flags only, got {part!r}")
    for name in _NOT_OF[part]:
        if getattr(config, name) != getattr(Config(), name):
            others = " and ".join(other for other in _PARTS if name not in _NOT_OF[other])
            raise ValueError(f"{name}: expected it with {others} only, got it with {part}")
    if config.seconds is not None and not config.seconds > 0:
        raise ValueError(f"seconds: expected a positive number, got {config.seconds}")
    import jax

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # on a GPU all peers share one memory
    if config.platform is not None:
        jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda"}[config.platform])
    try:
        platform = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # the latter where jaxlib has not even been built for it
        raise ValueError(f"JAX finds no {config.platform or os.environ.get('JAX_PLATFORMS')} here: {error}") from error
    path = config.json or Path("runs/benchmark") / f"{part}.json"
    start = time.perf_counter()
    _PARTS[part](config, platform, path)
    print(f"{time.perf_counter() - start:.0f} s in all.")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"python -m experiments.benchmark: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
