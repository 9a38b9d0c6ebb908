"""What the figures were measured on."""

import importlib.metadata
import platform
from typing import Any

from experiments.benchmark.program import cores
from s2s_jax.training.provenance import command, cpu_model, describe_device, versions

PEERS = ("jaxlib", "torch", "keras")


def describe(device: str) -> dict[str, Any]:
    """Device, CPU, cores, versions and command; the rate of its matrix products is measured by the peers themselves."""
    found = {**versions(), **{name: _version(name) for name in PEERS}}
    return {
        "platform": device,
        "device": describe_device(),
        "cpu": cpu_model(),
        "cores": cores(),
        "system": platform.platform(),
        "versions": found,
        "command": command(),
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
