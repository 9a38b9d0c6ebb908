"""Optimisers and schedules of optax by name, gradient clipping, and parameters that stay as they are."""

import ast
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

# (peak, steps after the warm-up, steps of the warm-up) -> schedule after the warm-up. What optax has beyond these is named as
# a call, arguments and all.
_SCHEDULES = {
    "constant": lambda peak, steps, warmup: optax.constant_schedule(peak),
    "cosine": lambda peak, steps, warmup: optax.cosine_decay_schedule(peak, steps),
    "linear": lambda peak, steps, warmup: optax.linear_schedule(peak, 0.0, steps),
    # Vaswani et al., arXiv 1706.03762, section 5.3.
    "inverse_sqrt": lambda peak, steps, warmup: (
        lambda step: peak * jnp.sqrt(max(warmup, 1) / jnp.maximum(step + max(warmup, 1), 1))
    ),
}


def make_schedule(name: str, peak: float, warmup_steps: int, steps: int) -> optax.Schedule:
    """A learning rate for each step.

    Args:
      name: "constant", "cosine", "linear" or "inverse_sqrt", each after a linear warm-up from zero; or a call of any
        schedule of optax with all of its arguments named: "cosine_decay_schedule(init_value=0.1, decay_steps=500)".
      peak: the greatest learning rate; a call has its own.
      warmup_steps: steps until the peak; a call has its own.
      steps: of the whole training.

    Raises:
      ValueError: a name that is none, or arguments that optax does not take.
    """
    if name in _SCHEDULES:
        warmup = min(warmup_steps, steps // 10)
        after = _SCHEDULES[name](peak, steps - warmup, warmup)
        return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after
    if "(" not in name:
        raise ValueError(
            f"schedule: expected {', '.join(_SCHEDULES)}, or a call such as 'cosine_decay_schedule(...)', got {name!r}"
        )
    return _called(name, "schedule")


def make_optimizer(name: str, learning_rate: float | optax.Schedule, *, clip: float = 0.0) -> optax.GradientTransformation:
    """An optimiser of optax behind clipping by the global norm.

    Args:
      name: of a function of optax, with more arguments if wanted: "adam", "sgd(momentum=0.9)", "adamw(weight_decay=0.01)".
      learning_rate: or a schedule.
      clip: greatest norm of the gradient (Pascanu et al., arXiv 1211.5063); 0 for none.

    Raises:
      ValueError: a name that is none, or arguments that optax does not take.
    """
    optimizer = _called(name, "optimizer", learning_rate=learning_rate)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(f"optimizer: expected one of optax, such as adam, got {name!r}")
    return optax.chain(optax.clip_by_global_norm(clip), optimizer) if clip else optimizer


def with_frozen(
    optimizer: optax.GradientTransformation, model: nnx.Module, freeze: Sequence[str]
) -> optax.GradientTransformation:
    """The optimiser, but the parameters under the paths in `freeze` ("encoder", "decoder.output") stay as they are.

    They count in no norm, and decay by no weight decay.

    Raises:
      ValueError: a path under which `model` has no parameter.
    """
    if not freeze:
        return optimizer
    params = nnx.state(model, nnx.Param)
    paths = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(params)]
    for prefix in freeze:
        if not any(is_under(path, prefix) for path in paths):
            raise ValueError(f"freeze: expected a part of the model such as {paths[0].split('.')[0]}, got {prefix!r}")

    if all(any(is_under(path, prefix) for prefix in freeze) for path in paths):
        raise ValueError(f"freeze: expected a part that is left to train, got {', '.join(freeze)}, which is all of the model")

    def label(path: Any, _: Any) -> str:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return "frozen" if any(is_under(name, prefix) for prefix in freeze) else "trained"

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(label, params)

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def is_under(path: str, prefix: str) -> bool:
    """Whether a dotted path is that prefix or lies below it."""
    return path == prefix or path.startswith(prefix + ".")


def _called(text: str, what: str, **more: Any) -> Any:
    """What a function of optax gives, named with keyword arguments that are plain values."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Name):
            name, given = call.id, {}
        elif isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
            name, given = call.func.id, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        else:
            raise ValueError("neither a name nor a call with named arguments")
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{what}: expected a name of optax, or name(argument=value, ...), got {text!r} ({error})") from error
    function = getattr(optax, name, None)
    if not callable(function):
        raise ValueError(f"{what}: expected a name of optax, got {name!r}")
    try:
        return function(**given, **more)
    except TypeError as error:
        raise ValueError(f"{what}: {text!r} is not what optax takes: {error}") from error
