"""Where what was prepared once is kept on this machine."""

import os
from pathlib import Path


def folder() -> Path:
    """`s2s_jax` in $XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "s2s_jax"
