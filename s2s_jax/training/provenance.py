"""Where a result comes from: device, versions, command."""

import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax


def describe_device() -> str:
    """What the run ran on: platform, kind, number of devices or cores."""
    devices = jax.devices()
    if devices[0].platform != "cpu":
        return f"{len(devices)} x {devices[0].device_kind}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"cpu, {cores} core{'' if cores == 1 else 's'}, {cpu_model()}"


def cpu_model() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return model


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("s2s-jax", "jax", "flax", "optax", "numpy", "sentencepiece"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from the source, not installed
            found[name] = "not installed"
    return found


def program() -> str:
    """How the running program was started, as one would type it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return f"python -m {spec.name.removesuffix('.__main__')}"
    return f"python {Path(sys.argv[0]).name}"


def command() -> str:
    """The command that is running, as one would type it into a shell elsewhere."""
    return f"{program()} {shlex.join(_elsewhere(sys.argv[1:]))}".rstrip()


def flag(name: str) -> str:
    """The flag of a field of a config, as one types it."""
    return f"--{name.replace('_', '-')}"


def typed(name: str, value: Any) -> str:
    """The flag and its value, as one types them."""
    if isinstance(value, bool):
        return flag(name if value else f"no_{name}")
    return f"{flag(name)} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def _elsewhere(arguments: Sequence[str]) -> list[str]:
    """Without where runs and data are, which is another place for whoever types the command again.

    What lies among the runs, a run to start from say, is told as below the folder that runs are in by default.
    """
    kept, left_out, value_of = [], {}, None
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        flag = flag.replace("_", "-")
        if flag in ("--runs-dir", "--data-dir"):
            left_out[flag], value_of = value, None if equals else flag
        elif value_of is not None:
            left_out[value_of], value_of = argument, None
        else:
            kept.append(argument)
    runs_dir = left_out.get("--runs-dir")
    return kept if runs_dir is None else [_told(argument, Path(runs_dir)) for argument in kept]


def _told(argument: str, runs_dir: Path) -> str:
    if not argument.startswith("-"):
        return in_runs(argument, runs_dir)
    name, equals, value = argument.partition("=")
    return f"{name}{equals}{in_runs(value, runs_dir)}" if equals else argument


def in_runs(path: str, runs_dir: Path) -> str:
    """A path below `runs_dir` as one below "runs"; anything else as it is."""
    if runs_dir == Path():  # anything relative is below it
        return path
    return str("runs" / Path(path).relative_to(runs_dir)) if Path(path).is_relative_to(runs_dir) else path
