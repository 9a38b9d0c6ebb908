"""Attention against loops in NumPy, PyTorch and Keras: values, gradients, padding, sources of length 0, steps one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s2s_jax import attention as attentions
from s2s_jax.attention import attend, attention_weights, coverage_loss, nothing_seen, prepare
from tests import oracles
from tests.samples import assert_close, cast, random_like

B, T, S, Q, F, A = 4, 3, 5, 6, 6, 8
LENGTHS = np.array([3, 0, 5, 1], np.int32)
MASK = np.arange(S)[None] < LENGTHS[:, None]
RNG = np.random.default_rng(0)
QUERY = RNG.normal(size=(B, T, Q)).astype(np.float32)
VALUES = RNG.normal(size=(B, S, F)).astype(np.float32)
VARIANTS = {
    **attentions.ATTENTIONS,
    "additive_bias": attentions.make_additive(bias=True),
    "coverage": attentions.make_additive(coverage=True),
    "location": attentions.make_additive(location_filters=2, location_width=3),
    "both": attentions.make_additive(bias=True, coverage=True, location_filters=2, location_width=3),
    "multi_head": attentions.make_multi_head(2),
}
variants = pytest.mark.parametrize("name", VARIANTS)


@functools.cache
def params_of(name):
    """All drawn, none of them zero."""
    return random_like(VARIANTS[name].init(jax.random.key(0), Q, F, A), 1)


@functools.partial(jax.jit, static_argnums=0)
def _run(name, params, query, values, lengths, seen):
    attention = VARIANTS[name]
    return attend(attention, params, prepare(attention, params, values, lengths), query, seen)


def run(name, query=QUERY, values=VALUES, lengths=LENGTHS, seen=None, params=None):
    return jax.tree.map(np.asarray, _run(name, params_of(name) if params is None else params, query, values, lengths, seen))


def slow_score(name, p, q, m, last, total):
    """One query against the memory of one row, straight from the equations."""
    if name == "dot":
        return np.array([q @ h for h in m])
    if name == "scaled_dot":
        return np.array([q @ h for h in m]) / np.sqrt(len(q))
    if name == "general":
        return np.array([q @ p.w @ h for h in m])
    scores = []
    for s, h in enumerate(m):
        inner = np.concatenate([q, h]) @ np.concatenate([p.w_query, p.w_memory])
        if p.b is not None:
            inner = inner + p.b
        if p.coverage is not None:
            inner = inner + total[s] * p.coverage
        if p.filters is not None:
            width = len(p.filters)
            around = [last[s + k - width // 2] if 0 <= s + k - width // 2 < len(m) else 0 for k in range(width)]
            inner = inner + np.array(around) @ p.filters[:, 0] @ p.w_filters
        scores.append(p.v @ np.tanh(inner))
    return np.array(scores)


def slow(name, query=QUERY, values=VALUES):
    """Contexts and weights of all rows and steps, by loops in float64; rows without a source stay zero."""
    p = cast(params_of(name), np.float64)
    context, weights = np.zeros((B, T, F)), np.zeros((B, T, S))
    for b, length in enumerate(LENGTHS):
        memory = values[b, :length].astype(np.float64)
        last, total = np.zeros(length), np.zeros(length)
        for t in range(T if length else 0):
            scores = slow_score(name, p, query[b, t].astype(np.float64), memory, last, total)
            last = np.exp(scores) / np.exp(scores).sum()
            total = total + last
            weights[b, t, :length] = last
            context[b, t] = last @ memory
    return context, weights


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "multi_head"])
def test_equals_loops_over_the_equations(name):
    context, weights = slow(name)
    got = run(name)
    assert_close(got.context, context, 1e-5)
    assert_close(got.weights, weights, 1e-5)
    if VARIANTS[name].sees_weights:
        assert_close(got.seen.last, weights[:, -1], 1e-5)
        assert_close(got.seen.total, weights.sum(1), 1e-5)


def test_multi_head_equals_pytorch():
    torch = oracles.oracle("torch")
    p = cast(params_of("multi_head"), np.float64)
    module = torch.nn.MultiheadAttention(A, 2, kdim=F, vdim=F, batch_first=True, dtype=torch.float64)
    # PyTorch's queries are as wide as its contexts: ours are padded with zeros.
    tensor = torch.tensor
    with torch.no_grad():
        module.q_proj_weight.copy_(tensor(np.pad(p.w_query, ((0, A - Q), (0, 0))).T))
        module.k_proj_weight.copy_(tensor(p.w_key.T))
        module.v_proj_weight.copy_(tensor(p.w_value.T))
        module.in_proj_bias.copy_(tensor(np.concatenate([p.b_query, p.b_key, p.b_value])))
        module.out_proj.weight.copy_(tensor(p.w_context.T))
        module.out_proj.bias.copy_(tensor(p.b_context))
        rows = LENGTHS > 0  # a row without a source is NaN there
        query = tensor(np.pad(QUERY, ((0, 0), (0, 0), (0, A - Q))).astype(np.float64)[rows])
        values = tensor(VALUES.astype(np.float64)[rows])
        context, weights = module(query, values, values, key_padding_mask=tensor(~MASK[rows]))
    got = run("multi_head")
    assert_close(got.context[rows], context.numpy(), 1e-5)
    assert_close(got.weights[rows], weights.numpy(), 1e-5)
    assert not got.context[~rows].any()


def test_dot_and_additive_equal_keras():
    keras = oracles.oracle("keras")
    rows = LENGTHS > 0
    mask = [None, jnp.asarray(MASK[rows])]
    layer = keras.layers.Attention()
    context, weights = layer([QUERY[rows], VALUES[rows]], mask=mask, return_attention_scores=True)
    assert_close(run("dot").context[rows], np.asarray(context), 1e-5)
    assert_close(run("dot").weights[rows], np.asarray(weights), 1e-5)
    params = params_of("additive")
    query, key = QUERY @ params.w_query, VALUES @ params.w_memory
    layer = keras.layers.AdditiveAttention()
    layer.build([(B, T, A), (B, S, F), (B, S, A)])
    layer.scale.assign(params.v)
    context, weights = layer([query[rows], VALUES[rows], key[rows]], mask=[None, mask[1], None], return_attention_scores=True)
    assert_close(run("additive").context[rows], np.asarray(context), 1e-5)
    assert_close(run("additive").weights[rows], np.asarray(weights), 1e-5)


@variants
def test_padding_reaches_nothing(name):
    dirty = np.where(MASK[..., None], VALUES, np.nan).astype(np.float32)
    clean, got = run(name, values=np.where(MASK[..., None], VALUES, 0)), run(name, values=dirty)
    np.testing.assert_array_equal(got.context, clean.context)
    assert not got.weights[:, :, ~MASK.all(0)][~MASK[:, ~MASK.all(0)][:, None].repeat(T, 1)].any()
    assert not got.context[LENGTHS == 0].any()
    assert_close(got.weights.sum(-1), np.broadcast_to((LENGTHS > 0)[:, None], (B, T)).astype(np.float32), 1e-6)

    @jax.jit
    def gradients(params, query, values):
        return jax.grad(lambda *a: jnp.sum(jnp.sin(_run(name, *a, LENGTHS, None).context)), (0, 1, 2))(params, query, values)

    found = gradients(params_of(name), QUERY, dirty)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert not np.asarray(found[2])[~MASK].any()
    assert np.asarray(found[2])[MASK].all()
    shorter = run(name, values=VALUES[2:3, :2], query=QUERY[2:3], lengths=np.array([2]))
    longer = run(name, values=VALUES[2:3], query=QUERY[2:3], lengths=np.array([2]))
    assert_close(longer.context, shorter.context, 1e-6)


@variants
def test_gradients_equal_finite_differences(name):
    with jax.enable_x64(True):
        arguments = cast((params_of(name), QUERY, VALUES), np.float64)

        def total(arguments):
            params, query, values = arguments
            done = _run(name, params, query, values, LENGTHS, None)
            return jnp.sum(jnp.sin(done.context)) + jnp.sum(jnp.cos(3 * done.weights))

        direction = random_like(arguments, 5)
        got = jax.jvp(jax.jit(total), (arguments,), (cast(direction, np.float64),))[1]
        step = 1e-6
        ends = [total(jax.tree.map(lambda a, d, by=by: a + by * d, arguments, direction)) for by in (step, -step)]
        assert abs(got - (ends[0] - ends[1]) / (2 * step)) < 1e-6 * max(1, abs(got))
        backward = jax.jit(jax.grad(total))(arguments)
        assert (
            abs(sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(backward), jax.tree.leaves(direction), strict=True)) - got)
            < 1e-9
        )


@variants
def test_steps_one_by_one_equal_all_at_once(name):
    whole, seen = run(name), None
    for t in range(T):
        step = run(name, query=QUERY[:, t : t + 1], seen=seen)
        assert_close(step.context[:, 0], whole.context[:, t], 1e-6)
        seen = step.seen
    assert_close(jax.tree.leaves(seen), jax.tree.leaves(whole.seen), 1e-6)
    assert (seen == ()) == (not VARIANTS[name].sees_weights)


@variants
def test_bfloat16_keeps_its_dtype_and_comes_near(name):
    got = _run(name, params_of(name), jnp.asarray(QUERY, jnp.bfloat16), jnp.asarray(VALUES, jnp.bfloat16), LENGTHS, None)
    assert got.context.dtype == got.weights.dtype == jnp.bfloat16
    # Of what bfloat16 leaves of the inputs; multi_head has no loops.
    rounded = [np.asarray(jnp.asarray(leaf, jnp.bfloat16), np.float32) for leaf in (QUERY, VALUES)]
    context, weights = slow(name, *rounded) if name != "multi_head" else run(name, *rounded)[:2]
    # multi_head rounds what it projects, twice.
    assert np.abs(np.asarray(got.context, np.float32) - context).max() < (0.05 if name == "multi_head" else 0.01)
    assert np.abs(np.asarray(got.weights, np.float32) - weights).max() < 0.005


@pytest.mark.parametrize("name", ["dot", "scaled_dot"])
def test_scores_of_bfloat16_are_kept_in_float32(name):
    """So that the weights are right but for their own rounding."""
    query, values = (jnp.asarray(leaf, jnp.bfloat16) for leaf in (2 * QUERY, VALUES))
    attention, params = VARIANTS[name], params_of(name)
    got = attend(attention, params, prepare(attention, params, values, LENGTHS), query)  # under `jit` XLA may keep more digits
    _, weights = slow(name, np.asarray(query, np.float32), np.asarray(values, np.float32))
    assert np.abs(np.asarray(got.weights, np.float32) - weights).max() <= 2**-9


@variants
def test_no_row_no_step_no_source(name):
    for query, values, lengths in (
        (QUERY[:0], VALUES[:0], LENGTHS[:0]),
        (QUERY[:, :0], VALUES, LENGTHS),
        (QUERY, VALUES[:, :0], np.zeros(B, np.int32)),
    ):
        got = run(name, query, values, lengths)
        assert got.weights.shape == (*query.shape[:2], values.shape[1])
        assert not got.context.any() or values.shape[1]


@variants
def test_vmap_equals_a_loop(name):
    queries = np.stack([QUERY, QUERY[::-1]])
    got = jax.vmap(lambda query: _run(name, params_of(name), query, VALUES, LENGTHS, None).context)(queries)
    assert_close(np.asarray(got), np.stack([run(name, query).context for query in queries]), 1e-6)


def test_scores_of_any_size_make_weights():
    scores = np.array([[[1e30, -1e30, 1e30]], [[-1e30, -1e30, 3.0]], [[700.0, 0.0, -700.0]]], np.float32)
    mask = np.array([[True, True, True], [True, True, False], [True, True, True]])
    weights = np.asarray(attention_weights(scores, mask))
    assert_close(weights[:2, 0], np.array([[0.5, 0, 0.5], [0.5, 0.5, 0]]), 1e-7)
    assert_close(weights[2, 0], np.array([1.0, 0, 0]), 1e-7)


def test_coverage_loss_by_hand():
    weights = np.array([[[1.0, 0.0], [0.75, 0.25], [0.25, 0.75]], [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]])
    mask = np.array([[True, True, True], [True, True, False]])
    # 0 + (min(.75, 1) + 0) + (min(.25, 1.75) + min(.75, .25)), and 0 + 1.
    assert_close(np.array(coverage_loss(jnp.asarray(weights), mask)), np.array([0.75 + 0.5 + 1.0, 5]), 1e-6)


def test_an_attention_of_a_users_own():
    distance = attentions.from_score(
        init=lambda key, query_features, memory_features, features: {"scale": jnp.ones(())},
        keys=lambda params, values: values,
        score=lambda params, query, keys, seen: -params["scale"] * jnp.sum((query[:, :, None] - keys[:, None]) ** 2, -1),
    )
    params = distance.init(jax.random.key(0), Q, F, A)
    got = attend(distance, params, prepare(distance, params, VALUES, LENGTHS), QUERY)
    scores = np.exp(-((QUERY[2, 0] - VALUES[2]) ** 2).sum(-1))
    assert_close(np.asarray(got.weights[2, 0]), scores / scores.sum(), 1e-5)


def test_the_attention_that_the_documentation_makes():
    def normalised(x):
        return x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-12)

    cosine = attentions.from_score(
        init=lambda key, query_features, memory_features, features: (),
        keys=lambda params, values: normalised(values),
        score=lambda params, query, keys, seen: jnp.einsum("btk,bsk->bts", normalised(query), keys),
    )
    got = attend(cosine, (), prepare(cosine, (), VALUES, LENGTHS), QUERY)
    scores = np.exp(QUERY[2, 0] @ VALUES[2].T / np.linalg.norm(QUERY[2, 0]) / np.linalg.norm(VALUES[2], axis=-1))
    assert_close(np.asarray(got.weights[2, 0]), scores / scores.sum(), 1e-5)

    def total(query, values):
        return jnp.sum(jnp.sin(attend(cosine, (), prepare(cosine, (), values, LENGTHS), query).context))

    for slopes in jax.grad(total, (0, 1))(QUERY, VALUES):
        assert np.isfinite(slopes).all()


def test_the_same_options_are_the_same_object():
    assert attentions.make_additive(coverage=True) is attentions.make_additive(coverage=True)
    assert attentions.make_multi_head(2) is attentions.make_multi_head(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attentions.dot.init(jax.random.key(0), 3, 4, 5), "query_features: expected as many as memory_features"),
        (lambda: attentions.make_multi_head(0), "heads: expected at least one, got 0"),
        (lambda: attentions.make_multi_head(3).init(jax.random.key(0), 3, 4, 8), "features: expected a multiple of 3"),
        (lambda: attentions.make_additive(location_width=4), "location_width: expected an odd number"),
        (lambda: attentions.make_additive(location_filters=-1), "location_filters: expected 0 or more, got -1"),
        (lambda: prepare(attentions.dot, (), VALUES[0]), r"values: expected \[B, S, F\], got \(5, 6\)"),
        (lambda: prepare(attentions.dot, (), VALUES, LENGTHS, MASK), "mask: expected none with lengths"),
        (lambda: prepare(attentions.dot, (), VALUES, mask=MASK[:2]), r"mask: expected bool \[4, 5\], got bool \[2, 5\]"),
        (
            lambda: prepare(attentions.dot, (), VALUES, np.array([6, 0, 0, 0])),
            "lengths: expected values from 0 to T = 5, got 6",
        ),
        (lambda: attend(attentions.dot, (), prepare(attentions.dot, (), VALUES), QUERY[:2]), r"query: expected \[4, T, Q\]"),
    ],
)
def test_errors_name_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_nothing_seen_is_zero():
    memory = prepare(VARIANTS["coverage"], params_of("coverage"), VALUES, LENGTHS)
    assert not np.asarray(nothing_seen(VARIANTS["coverage"], memory).total).any()
    assert nothing_seen(attentions.dot, memory) == ()
