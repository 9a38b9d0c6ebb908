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
# Optimisers that take numbers alone for a learning rate: a schedule is handed in step by step.
_WITHOUT_SCHEDULES = ("rprop", "sm3")


def make_schedule(name: str, peak: float, warmup_steps: int, steps: int) -> optax.Schedule:
    """A learning rate for each step.

    Args:
      name: "constant", "cosine", "linear" or "inverse_sqrt", each after a linear warm-up from zero; or a call of any
        schedule of optax with all of its arguments named: "cosine_decay_schedule(init_value=0.1, decay_steps=500)"; those of
        optax.contrib as "contrib.name(...)".
      peak: the greatest learning rate; a call has its own.
      warmup_steps: steps until the peak, at most a tenth of all; a call has its own.
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
    schedule = _called(name, "schedule")
    if not callable(schedule):
        raise ValueError(f"schedule: expected one of optax, such as cosine_decay_schedule, got {name!r}")
    return schedule


def make_optimizer(name: str, learning_rate: float | optax.Schedule, *, clip: float = 0.0) -> optax.GradientTransformation:
    """An optimiser of optax behind clipping by the global norm.

    Args:
      name: of a function of optax, with more arguments if wanted: "adam", "sgd(momentum=0.9)", "adamw(weight_decay=0.01)";
        those of optax.contrib as "contrib.muon".
      learning_rate: or a schedule. polyak_sgd, which finds the rate by itself, is scaled by it.
      clip: greatest norm of the gradient (Pascanu et al., arXiv 1211.5063); 0 for none.

    Raises:
      ValueError: a name that is none, or arguments that optax does not take; an optimiser that needs more than the gradients,
        the parameters and the loss of each step, such as lbfgs with its line search, or gradients of single examples.
    """
    if name.removeprefix("contrib.").startswith("scale_by_"):  # these take gradients uphill
        raise ValueError(f"optimizer: expected a whole optimiser of optax, such as adam, got {name!r}, a part of one")
    rate = "scaling" if name.startswith("polyak_sgd") else "learning_rate"
    optimizer = _called(name, "optimizer", **{rate: learning_rate})
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(f"optimizer: expected one of optax, such as adam, got {name!r}")
    _check_update(optimizer, name)
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


def _check_update(optimizer: optax.GradientTransformation, name: str) -> None:
    """Tries, by shapes alone, whether what the training step has at hand is enough for an update."""

    def updated(params: dict[str, jax.Array]) -> Any:
        update = optax.with_extra_args_support(optimizer).update
        return update(params, optimizer.init(params), params, value=jnp.float32(0))

    try:
        jax.eval_shape(updated, {"bias": jnp.zeros(3), "kernel": jnp.zeros((2, 3))})
    except Exception as error:  # each says it in its own way
        raise ValueError(
            f"optimizer: expected one that gradients, parameters and loss of a step are enough for, got {name!r} ({error})"
        ) from error


def _called(text: str, what: str, **more: Any) -> Any:
    """What a function of optax gives, named with keyword arguments that are plain values."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        given = {}
        if isinstance(call, ast.Call) and not call.args:
            call, given = call.func, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        match call:
            case ast.Name(id=name):
                module = optax
            case ast.Attribute(value=ast.Name(id="contrib"), attr=name):
                module = optax.contrib
            case _:
                raise ValueError("neither a name nor a call with named arguments")
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{what}: expected a name of optax, or name(argument=value, ...), got {text!r} ({error})") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{what}: expected a name of {module.__name__}, got {name!r}")
    if name in _WITHOUT_SCHEDULES:
        function = optax.inject_hyperparams(function)
    try:
        return function(**given, **more)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: {text!r} is not what optax takes: {error}") from error
