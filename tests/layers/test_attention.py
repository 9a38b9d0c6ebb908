"""The attention layer against the functions it wraps, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from s2s_jax import attention as attentions
from s2s_jax.layers import Attention
from s2s_jax.training.checkpoint import named_variables
from tests.samples import assert_close

QUERY = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
VALUES = np.random.default_rng(1).normal(size=(2, 5, 6)).astype(np.float32)
LENGTHS = np.array([5, 2], np.int32)


def test_equals_the_functions():
    layer = Attention(attentions.make_additive(bias=True, coverage=True), 4, 6, 8, rngs=nnx.Rngs(0))
    got = layer(layer.prepare(VALUES, LENGTHS), QUERY)
    params = layer.parameters()
    want = attentions.attend(layer.attention, params, attentions.prepare(layer.attention, params, VALUES, LENGTHS), QUERY)
    assert_close(jax.tree.leaves(got), jax.tree.leaves(want), 0)
    mask = np.arange(5)[None] < LENGTHS[:, None]
    assert_close(np.asarray(layer(layer.prepare(VALUES, mask=mask), QUERY).context), np.asarray(want.context), 0)


@pytest.mark.parametrize(
    ("attention", "names", "out_features"),
    [
        (attentions.general, {"parameters.w"}, 6),
        (attentions.additive, {"parameters.w_query", "parameters.w_memory", "parameters.v"}, 6),
        (
            attentions.make_multi_head(4),
            {f"parameters.{k}_{part}" for k in "wb" for part in ("query", "key", "value", "context")},
            8,
        ),
    ],
)
def test_parameters_have_the_fields_names_and_contexts_their_width(attention, names, out_features):
    layer = Attention(attention, 4, 6, 8, rngs=nnx.Rngs(0))
    assert set(named_variables(layer)) == names
    assert layer.out_features == out_features
    assert layer(layer.prepare(VALUES), QUERY).context.shape == (2, 3, out_features)


def test_gradients_reach_every_parameter():
    layer = Attention(attentions.make_additive(bias=True, coverage=True, location_filters=2), 4, 6, 8, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(layer)

    @jax.jit
    @jax.grad
    def gradients(params):
        layer = nnx.merge(graphdef, params, copy=True)
        return jnp.sum(jnp.sin(layer(layer.prepare(VALUES, LENGTHS), QUERY).context))

    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients(params)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("general", 4, 6, 8), TypeError, "attention: expected one of s2s_jax.attention such as general, got 'general'"),
        ((attentions.general, 0, 6, 8), ValueError, "query_features: expected a positive number, got 0"),
        ((attentions.general, 4, 6, 0), ValueError, "features: expected a positive number, got 0"),
        ((attentions.dot, 4, 6, 8), ValueError, "query_features: expected as many as memory_features .* got 4 and 6"),
    ],
)
def test_errors_name_what_was_expected(arguments, error, message):
    with pytest.raises(error, match=message):
        Attention(*arguments, rngs=nnx.Rngs(0))
