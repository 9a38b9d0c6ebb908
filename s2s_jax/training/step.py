"""One step of training, jitted: gradients (of a batch in parts, in a narrower dtype), update, average, and what is counted."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from s2s_jax.metrics import Mean
from s2s_jax.recurrence.scan import cast_floating
from s2s_jax.training.optimizers import is_under
from s2s_jax.training.state import Skipped, TrainState

Batch = Any  # a pytree of arrays with a leading batch axis
Metrics = dict[str, Mean]
Loss = Callable[[Any, Batch, Array], tuple[Array, Metrics]]  # (model, batch, key) -> (loss, metrics)


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    *,
    accumulate: int = 1,
    average_decay: float = 0.0,
    compute_dtype: Any = None,
    freeze: Sequence[str] = (),
) -> Callable[..., Any]:
    """Jitted `(state, totals, batch, seed) -> (state, totals)`; the old state and totals are given up to the new ones.

    `totals` holds the metrics added up since it was last emptied ({} is empty too, but compiles once more): those of
    `loss`, its value as "loss" if it is not among them, the norm of the gradient, and the share of steps that were skipped
    because loss, gradient or update was not finite; these count in no other metric.

    Args:
      accumulate, average_decay, compute_dtype: see `s2s_jax.training.loop.fit`.
      freeze: paths in the model under which statistics stay as they are, and parameters have a gradient of zero that costs no
        backward pass; that they stay as they are too is up to `optimizer`, see `with_frozen`.
    """
    optimizer = optax.with_extra_args_support(optimizer)  # those that look at the loss get it, the others go on without

    def narrowed(tree: Any) -> Any:
        return tree if compute_dtype is None else cast_floating(tree, compute_dtype)

    def gradients_of(state: TrainState, batch: Batch, key: Array) -> tuple[Array, Metrics, nnx.State, Any]:
        def run(params: nnx.State) -> tuple[Array, tuple[Metrics, nnx.State]]:
            model = nnx.merge(graphdef, narrowed(_constant_under(freeze, params)), state.rest, copy=True)
            value, metrics = _checked_loss(loss(model, narrowed(batch), key))
            return value, (metrics, _with_old_statistics(nnx.state(model, nnx.Not(nnx.Param)), state.rest, freeze))

        (value, (metrics, rest)), gradients = jax.value_and_grad(run, has_aux=True)(state.params)
        metrics = jax.tree.map(jnp.asarray, {"loss": Mean(value, jnp.ones_like(value)), **metrics})
        # Sums over many steps: in bfloat16 they would stand still from some point on.
        return value, jax.tree.map(lambda x: x.astype(wide(x)), metrics), rest, gradients

    def accumulated(state: TrainState, batch: Batch, key: Array) -> tuple[Array, Metrics, nnx.State, Any]:
        """Part after part of the batch, each weighted by what its loss counts, so that the sum is that of the whole batch."""

        def add(carry: tuple[nnx.State, Array, Array, Any], at: tuple[Array, Batch]) -> tuple[Any, Metrics]:
            rest, value, weight, gradients = carry
            k, part = at
            part_value, metrics, rest, part_gradients = gradients_of(
                state._replace(rest=rest), part, jax.random.fold_in(key, k)
            )
            count = metrics["loss"].count.astype(weight.dtype)

            def weighted(x: Array) -> Array:
                x = x.astype(wide(x))
                return jnp.where(count > 0, count.astype(x.dtype) * x, 0)  # a part in which nothing counts has a mean of NaN

            gradients = jax.tree.map(lambda total, g: total + weighted(g), gradients, part_gradients)
            return (rest, value + weighted(part_value), weight + count, gradients), metrics

        _check_parts(batch, accumulate)  # batches may be of several shapes
        # Every accumulate-th row is of one part, so that each device, which has rows that lie together, has some of each part.
        parts = jax.tree.map(
            lambda rows: jnp.swapaxes(rows.reshape(len(rows) // accumulate, accumulate, *rows.shape[1:]), 0, 1), batch
        )
        first = jax.tree.map(lambda rows: rows[0], parts)
        like, _, _, gradients_like = jax.eval_shape(gradients_of, state, first, key)
        zero = jnp.zeros((), wide(like))
        nothing = (state.rest, zero, zero, jax.tree.map(lambda g: jnp.zeros(g.shape, wide(g)), gradients_like))
        (rest, value, weight, gradients), metrics = jax.lax.scan(add, nothing, (jnp.arange(accumulate), parts))
        metrics = jax.tree.map(lambda of_parts: jnp.sum(of_parts, axis=0), metrics)
        mean = jax.tree.map(lambda g, like: (g / weight.astype(g.dtype)).astype(like.dtype), gradients, gradients_like)
        return value / weight, metrics, rest, mean

    def step(state: TrainState, totals: Metrics, batch: Batch, seed: Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        value, metrics, rest, gradients = (gradients_of if accumulate == 1 else accumulated)(state, batch, key)
        norm = optax.tree.norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, value=value)
        finite = jnp.isfinite(value) & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(updates))
        params: Any = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            # Fewer of the first steps count: the average of ten parameters should not be mostly the initial ones.
            decay = jnp.minimum(average_decay, (1.0 + state.step) / (10.0 + state.step))
            average = jax.tree.map(functools.partial(_averaged, decay), average, (params, rest))
        new = state._replace(params=params, rest=rest, opt_state=opt_state, average=average)
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
        state = state._replace(step=state.step + 1, skipped=_skipped(state.skipped, finite, state.step))

        metrics = {**metrics, "gradient_norm": Mean(norm, jnp.float32(1))}
        metrics = jax.tree.map(lambda x: jnp.where(finite, x, jnp.zeros_like(x)), metrics)
        metrics["skipped"] = Mean(1 - finite.astype(jnp.float32), jnp.float32(1))
        return state, add_metrics(totals, metrics)

    return jax.jit(step, donate_argnums=(0, 1))


def wide(x: Any) -> Any:
    """The dtype to add up numbers of this array's dtype in: float32 at least."""
    return jnp.promote_types(x.dtype, jnp.float32)


def add_metrics(totals: Metrics, metrics: Metrics) -> Metrics:
    """The sums and counts of both; a name that only one of them has is taken as it is."""
    both = {name: totals[name] + mean if name in totals else mean for name, mean in metrics.items()}
    return {**totals, **both}


def _constant_under(freeze: Sequence[str], params: nnx.State) -> nnx.State:
    """The same parameters; those under the paths in `freeze` have no gradient."""

    def constant(path: Any, leaf: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return jax.lax.stop_gradient(leaf) if any(is_under(name, prefix) for prefix in freeze) else leaf

    return jax.tree_util.tree_map_with_path(constant, params) if freeze else params


def _with_old_statistics(new: nnx.State, old: nnx.State, freeze: Sequence[str]) -> nnx.State:
    """The statistics under frozen paths from the old state, all else (counts of random keys, say) from the new one."""
    before = dict(nnx.to_flat_state(old))

    def chosen(path: tuple[Any, ...], variable: Any) -> Any:
        frozen = any(is_under(".".join(map(str, path)), prefix) for prefix in freeze)
        return before[path] if frozen and isinstance(variable, nnx.BatchStat) else variable

    return nnx.from_flat_state([(path, chosen(path, variable)) for path, variable in nnx.to_flat_state(new)])


def _checked_loss(returned: Any) -> tuple[Array, Metrics]:
    """What a loss returned, if it is a scalar and means by name."""
    right = isinstance(returned, tuple) and len(returned) == 2 and jnp.ndim(returned[0]) == 0 and isinstance(returned[1], dict)
    if isinstance(returned, Mean) or not right or not all(isinstance(mean, Mean) for mean in returned[1].values()):
        told = jax.tree.map(jnp.shape, returned)
        raise TypeError(f"loss: expected (scalar, {{name: Mean}}), see s2s_jax.metrics.mean_over; got {told}")
    return returned


def _averaged(decay: Array, old: Array, new: Array) -> Array:
    if not jnp.issubdtype(new.dtype, jnp.floating):
        return new
    return (old + (1 - decay) * (new - old)).astype(new.dtype)  # exact if both are equal


def _skipped(skipped: Skipped, finite: Array, step: Array) -> Skipped:
    """Takes down a step, if it was not finite."""

    def push(value: Array, last: Array) -> Array:
        return jnp.where(finite, last, jnp.concatenate([value[None], last[:-1]]))

    in_row = jnp.where(finite, 0, skipped.in_row + 1)
    return Skipped(skipped.count + ~finite, in_row, push(step, skipped.steps), push(in_row, skipped.rows))


def _check_parts(batch: Batch, accumulate: int) -> None:
    for rows in jax.tree.leaves(batch):
        if len(rows) % accumulate:
            raise ValueError(f"accumulate: expected a divisor of the batch's {len(rows)} rows, got {accumulate}")
