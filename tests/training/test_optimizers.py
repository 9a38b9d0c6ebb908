"""Optimisers and schedules by name against optax itself and closed forms, and parts of a model that stay."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from s2s_jax.training.optimizers import is_under, make_optimizer, make_schedule, with_frozen
from s2s_jax.training.state import initial_train_state, model_of
from s2s_jax.training.step import make_train_step
from tests.samples import assert_close

PEAK, WARMUP, STEPS = 0.4, 10, 200


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("constant", lambda step: PEAK),
        ("cosine", lambda step: PEAK * 0.5 * (1 + np.cos(np.pi * (step - WARMUP) / (STEPS - WARMUP)))),
        ("linear", lambda step: PEAK * (STEPS - step) / (STEPS - WARMUP)),
        ("inverse_sqrt", lambda step: PEAK * np.sqrt(WARMUP / step)),
    ],
)
def test_schedules_rise_to_the_peak_and_fall_as_their_formula(name, at):
    schedule = make_schedule(name, PEAK, WARMUP, STEPS)
    for step in range(WARMUP):
        assert float(schedule(step)) == pytest.approx(PEAK * step / WARMUP, abs=1e-6)
    for step in range(WARMUP, STEPS + 1):
        assert float(schedule(step)) == pytest.approx(at(step), abs=2e-6)


def test_a_warm_up_takes_at_most_a_tenth():
    assert float(make_schedule("constant", PEAK, 1000, 50)(5)) == pytest.approx(PEAK)


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "inverse_sqrt"])
def test_without_a_warm_up_the_first_step_has_the_peak(name):
    assert float(make_schedule(name, PEAK, 0, STEPS)(0)) == pytest.approx(PEAK)
    assert float(make_schedule(name, PEAK, 5, 9)(0)) == pytest.approx(PEAK)  # of nine steps none is a tenth


def test_any_schedule_of_optax_by_its_call():
    ours = make_schedule("exponential_decay(init_value=0.1, transition_steps=5, decay_rate=0.5)", PEAK, WARMUP, STEPS)
    assert [float(ours(step)) for step in (0, 5, 10)] == pytest.approx([0.1, 0.05, 0.025])


def trained(optimizer, steps=5):
    params = {"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}
    state = optimizer.init(params)
    for step in range(steps):
        gradients = jax.tree.map(lambda p, k=step: jnp.cos(p + k) * 3, params)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("adam", lambda: optax.adam(0.1)),
        ("sgd(momentum=0.9, nesterov=True)", lambda: optax.sgd(0.1, momentum=0.9, nesterov=True)),
        ("adamw(weight_decay=0.3)", lambda: optax.adamw(0.1, weight_decay=0.3)),
        ("rmsprop", lambda: optax.rmsprop(0.1)),
    ],
)
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_optimisers_by_name_are_those_of_optax(name, theirs, clip):
    want = optax.chain(optax.clip_by_global_norm(clip), theirs()) if clip else theirs()
    assert_close(trained(make_optimizer(name, 0.1, clip=clip)), trained(want), 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_optimizer("adamm", 0.1), "optimizer: expected a name of optax, got 'adamm'"),
        (lambda: make_optimizer("adam(0.1)", 0.1), "optimizer: expected a name of optax, or name"),
        (lambda: make_optimizer("adam(beta=1)", 0.1), r"optimizer: 'adam\(beta=1\)' is not what optax takes.*beta"),
        (lambda: make_optimizer("__import__('os')", 0.1), "optimizer: expected a name of optax, or name"),
        (lambda: make_optimizer("adam(b1=open('x'))", 0.1), "optimizer: expected a name of optax, or name"),
        (lambda: make_optimizer("global_norm", 0.1), "is not what optax takes|expected one of optax"),
        (lambda: make_optimizer("contrib.adam", 0.1), "optimizer: expected a name of optax.contrib, got 'adam'"),
        (lambda: make_optimizer("losses.adam", 0.1), "optimizer: expected a name of optax, or name"),
        (lambda: make_optimizer("contrib", 0.1), "optimizer: expected a name of optax, got 'contrib'"),
        (lambda: make_schedule("sgd(learning_rate=1.0)", 1.0, 1, 10), "schedule: expected one of optax, such as"),
        (lambda: make_schedule("cosinus", 1.0, 1, 10), "schedule: expected constant, cosine, linear, inverse_sqrt, or a call"),
        (lambda: make_schedule("no_such(a=1)", 1.0, 1, 10), "schedule: expected a name of optax, got 'no_such'"),
    ],
)
def test_what_optax_does_not_have_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Every name of optax that takes a learning rate ------------------------------------------------------------------------------


def named():
    for module, prefix in ((optax, ""), (optax.contrib, "contrib.")):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if not name.startswith("_") and "learning_rate" in inspect.signature(function).parameters:
                yield prefix + name


# What each needs that there is none of, mostly in optax's own words.
NEEDS_MORE = {
    **dict.fromkeys(["scale_by_learning_rate", "scale_by_rprop", "contrib.scale_by_madgrad"], "a part of one"),
    "optimistic_adam": "does not support learning rate schedules but `optimistic_adam_v2` does",
    "lbfgs": "missing 2 required keyword-only arguments: 'grad' and 'value_fn'",
    "contrib.sophia": "obj_fn must be provided",
    "contrib.schedule_free": "missing 1 required positional argument: 'base_optimizer'",
    "contrib.dpsgd": "missing 3 required positional arguments: 'l2_norm_clip'",
    "contrib.dpsgd(l2_norm_clip=1.0, noise_multiplier=0.1, seed=0)": "to have a batch dimension",
}


FIND_THEIR_RATE = ("contrib.dadapt_adamw", "contrib.dog", "contrib.prodigy")


class Quadratic(nnx.Module):
    def __init__(self):
        self.kernel = nnx.Param(jnp.linspace(-2.0, 3.0, 6).reshape(2, 3))
        self.bias = nnx.Param(jnp.array([0.5, -1.0, 2.0]))


def quadratic_loss(model, batch, key):
    value = jnp.sum((model.kernel[...] - 0.3) ** 2) + jnp.sum((model.bias[...] + 0.2) ** 2)
    return value, {}


def losses_of(optimizer, steps, loss=quadratic_loss, **options):
    """The loss before each step, and the model after the last."""
    graphdef, state = initial_train_state(Quadratic(), optimizer)
    state = jax.tree.map(jnp.copy, state)  # as `fit` does: some optimisers keep the first parameters, which are given up
    step = make_train_step(graphdef, optimizer, loss, **options)
    values = []
    for _ in range(steps):
        state, totals = step(state, {}, {"nothing": np.zeros((2, 1), np.float32)}, np.uint32(0))
        values.append(float(totals["loss"].total / totals["loss"].count))
    assert int(state.skipped.count) == 0
    return values, model_of(graphdef, state)


@pytest.mark.filterwarnings("ignore:Specifying a key will be required", "ignore::DeprecationWarning")  # optax's own
@pytest.mark.parametrize("name", [*named(), "polyak_sgd", "lbfgs(linesearch=None)", *list(NEEDS_MORE)[-1:]])
def test_each_optimiser_of_optax_trains_or_is_refused_by_name(name):
    # Of schedules, as the flags of an experiment give. Those that find their rate by themselves begin with steps of 1e-6.
    rate = make_schedule("constant", 1.0 if name in FIND_THEIR_RATE else 0.01, 0, 100)
    if name in NEEDS_MORE:
        with pytest.raises(ValueError, match=f"optimizer: .*{re.escape(repr(name))}.*{NEEDS_MORE[name]}"):
            make_optimizer(name, rate)
        return
    losses, _ = losses_of(make_optimizer(name, rate), 10)
    assert np.all(np.isfinite(losses))
    assert losses[-1] < losses[0]


def test_an_optimiser_that_looks_at_the_loss_gets_it():
    """Polyak's step is loss / |gradient|^2 times the gradient: of a quadratic a quarter of the loss is left after each."""
    for options in ({}, {"accumulate": 2}):
        values, _ = losses_of(make_optimizer("polyak_sgd", 1.0), 4, **options)
        assert values == pytest.approx([values[0] / 4**step for step in range(4)], rel=1e-5)
    values, _ = losses_of(make_optimizer("polyak_sgd(max_learning_rate=0.1)", 1.0, clip=100.0), 3)
    assert values == pytest.approx([values[0] * 0.8 ** (2 * step) for step in range(3)], rel=1e-5)


def test_frozen_parts_stay_under_an_optimiser_that_looks_at_the_loss():
    def loss_of_the_bias(model, batch, key):
        return jnp.sum((model.bias[...] + 0.2) ** 2), {}

    optimizer = with_frozen(make_optimizer("polyak_sgd", 1.0), Quadratic(), ("kernel",))
    values, model = losses_of(optimizer, 3, loss_of_the_bias)
    assert values == pytest.approx([values[0] / 4**step for step in range(3)], rel=1e-5)
    assert_close(model.kernel[...], Quadratic().kernel[...], 0)


def test_the_rate_falls_where_the_loss_does_not():
    """With a loss that never gets better, reduce_on_plateau halves each step after the first."""
    optimizer = optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=1))

    def loss(model, batch, key):
        at = jnp.sum(model.bias[...])
        return at - jax.lax.stop_gradient(at) + 7.0, {}

    falls = [float(losses_of(optimizer, steps, loss)[1].bias[...][0]) for steps in range(5)]
    assert np.diff(falls).tolist() == [-1.0, -0.5, -0.25, -0.125]


class Two(nnx.Module):
    def __init__(self):
        self.below = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        self.above = nnx.Linear(3, 1, rngs=nnx.Rngs(1))


@pytest.mark.parametrize(("freeze", "stay"), [(("below",), {"below"}), (("above.bias", "below.kernel"), None), ((), set())])
def test_frozen_parts_stay_and_count_in_no_norm(freeze, stay):
    model = Two()
    params = nnx.state(model, nnx.Param)
    base = make_optimizer("adamw(weight_decay=0.5)", 0.1, clip=1.0)
    optimizer = with_frozen(base, model, freeze)
    gradients = jax.tree.map(lambda p: jnp.ones_like(p) * 7, params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    named = {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(updates)}
    frozen = {name for name in named if any(is_under(name, prefix) for prefix in freeze)}
    assert {name for name, update in named.items() if not np.any(update)} == frozen
    if stay is not None:
        assert {name.split(".")[0] for name in frozen} == stay
    # What is left is trained as if nothing else were there.
    rest = {
        name: jnp.asarray(leaf[...])
        for (name, leaf) in ((".".join(map(str, path)), leaf) for path, leaf in nnx.to_flat_state(params))
    }
    rest = {name: leaf for name, leaf in rest.items() if name not in frozen}
    want, _ = base.update(jax.tree.map(lambda p: jnp.ones_like(p) * 7, rest), base.init(rest), rest)
    assert_close({name: named[name] for name in rest}, want, 1e-6)


def test_something_must_be_left_to_train():
    with pytest.raises(ValueError, match="freeze: expected a part that is left to train, got below, above"):
        with_frozen(optax.sgd(1.0), Two(), ("below", "above"))


def test_a_part_that_the_model_lacks_is_refused():
    with pytest.raises(ValueError, match="freeze: expected a part of the model such as above, got 'bel'"):
        with_frozen(optax.sgd(1.0), Two(), ("bel",))
