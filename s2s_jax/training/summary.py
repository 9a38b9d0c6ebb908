"""A table of a model's arrays, for people."""

import math
from collections.abc import Sequence
from typing import Any

from s2s_jax.training.checkpoint import named_variables
from s2s_jax.training.optimizers import is_under
from s2s_jax.training.state import count_parameters


def summary(model: Any, freeze: Sequence[str] = ()) -> str:
    """A table of a model's arrays (name, shape, how many numbers), and how many of the numbers are trained.

    Those under the paths in `freeze` are not.
    """
    rows = [(name, variable[...].shape) for name, variable in named_variables(model).items()]
    frozen = sum(math.prod(shape) for name, shape in rows if any(is_under(name, part) for part in freeze))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {shape!s:<14} {math.prod(shape):>10,}" for name, shape in rows]
    heading = f"{'array':<{width}}  {'shape':<14} {'numbers':>10}"
    sums = {"trained": count_parameters(model) - frozen, **({"frozen": frozen} if frozen else {})}
    return "\n".join([heading, *lines, *(f"{name:<{width}}  {'':<14} {number:>10,}" for name, number in sums.items())])
