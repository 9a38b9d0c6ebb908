"""Attention: which source positions a decoder reads, as pure functions over one tree of parameters.

In all equations `q_t` is the query at target step t, `m_s` the memory at source position s, and

    alpha_ts = exp(score(q_t, m_s)) / sum_s' exp(score(q_t, m_s'))        c_t = sum_s alpha_ts m_s

(Luong et al., arXiv 1508.04025, equations 7 and 8). The sums run over valid positions only: weights in the padding are exactly
zero, what stands there (NaN too) reaches no context and no gradient, and a memory without a valid position gives a context of
zeros. The parts that need no query are computed once a sequence, in `prepare`.

`dot`, `scaled_dot`, `general`, `concat` and `additive` are the plain ones, `make_additive` and `make_multi_head` make variants,
and `from_score` makes one of your own:

```python
cosine = from_score(
    init=lambda key, query_features, memory_features, features: (),
    keys=lambda params, values: normalised(values),  # x / sqrt(sum(x^2) + 1e-12): 0 / 0 in the padding would be NaN
    score=lambda params, query, keys, seen: jnp.einsum("btk,bsk->bts", normalised(query), keys),
)
```
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from s2s_jax.masks import check_lengths, length_mask
from s2s_jax.metrics import Mean, mean_over
from s2s_jax.sharding import varying_as
from s2s_jax.types import Params


class Memory(NamedTuple):
    """What is read at every target step, prepared once: constant in time, each leaf with a leading batch axis."""

    keys: Any  # what the score function sees
    values: Float[Array, "B S F"]  # zero in the padding
    mask: Bool[Array, "B S"]


class Seen(NamedTuple):
    """The attention weights of the step before, and their sums over all steps before (the coverage of the source)."""

    last: Float[Array, "B S"]
    total: Float[Array, "B S"]


class Attended(NamedTuple):
    """Contexts, the weights over the source, and what the next step has to know of these: `Seen`, or () ."""

    context: Float[Array, "B T C"]
    weights: Float[Array, "B T S"]
    seen: Any


class Attention(NamedTuple):
    """An attention: three pure functions, and whether it looks at its own earlier weights.

    Attributes:
      init: `(key, query_features, memory_features, features) -> params`; `features` is the width of its inner layer.
      prepare: `(params, values [B, S, F], mask [B, S]) -> Memory`.
      attend: `(params, memory, query [B, T, Q], seen) -> Attended`, all target steps in one go.
      sees_weights: whether `seen` is a `Seen`; its target steps then follow one another. Otherwise `seen` is ().
    """

    init: Callable[[Array, int, int, int], Params]
    prepare: Callable[[Params, Array, Array], Memory]
    attend: Callable[[Params, Memory, Array, Any], Attended]
    sees_weights: bool = False


class GeneralParams(NamedTuple):
    """`w` [Q, F]."""

    w: Float[Array, "Q F"]


class AdditiveParams(NamedTuple):
    """`w_query` [Q, A], `w_memory` [F, A], `v` [A]; the others are None without the option that needs them."""

    w_query: Float[Array, "Q A"]
    w_memory: Float[Array, "F A"]
    v: Float[Array, " A"]
    b: Float[Array, " A"] | None = None
    coverage: Float[Array, " A"] | None = None
    filters: Float[Array, "W 1 N"] | None = None
    w_filters: Float[Array, "N A"] | None = None


class MultiHeadParams(NamedTuple):
    """Projections of query, keys, values and contexts; biases as in PyTorch, one each."""

    w_query: Float[Array, "Q A"]
    b_query: Float[Array, " A"]
    w_key: Float[Array, "F A"]
    b_key: Float[Array, " A"]
    w_value: Float[Array, "F A"]
    b_value: Float[Array, " A"]
    w_context: Float[Array, "A A"]
    b_context: Float[Array, " A"]


def prepare(
    attention: Attention,
    params: Params,
    values: Float[Array, "B S F"],
    lengths: Int[Array, " B"] | None = None,
    mask: Bool[Array, "B S"] | None = None,
) -> Memory:
    """The memory of an attention over `values`; valid are the first `lengths[b]` positions, or those of `mask`, or all.

    Raises:
      ValueError: another rank or size, or both lengths and a mask.
    """
    if values.ndim != 3:
        raise ValueError(f"values: expected [B, S, F], got {values.shape}")
    batch_size, source_length, _ = values.shape
    if lengths is not None and mask is not None:
        raise ValueError("mask: expected none with lengths, got both")
    if mask is None:
        lengths = jnp.full(batch_size, source_length) if lengths is None else lengths
        mask = length_mask(check_lengths(lengths, batch_size, source_length), source_length)
    elif mask.shape != (batch_size, source_length) or mask.dtype != bool:
        raise ValueError(f"mask: expected bool [{batch_size}, {source_length}], got {mask.dtype} {list(mask.shape)}")
    # Zeroed before anything is computed of it: a select alone would let the gradient of a NaN through.
    return attention.prepare(_cast(params, values), jnp.where(mask[..., None], values, 0), mask)


def attend(attention: Attention, params: Params, memory: Memory, query: Float[Array, "B T Q"], seen: Any = None) -> Attended:
    """Contexts and weights for every query, [B, T, ...].

    Args:
      attention, params: of the kind that `memory` was prepared by; parameters are cast to the dtype of `query`.
      memory: from `prepare`.
      query: [B, T, Q].
      seen: as returned for the steps before; None at the first.

    Raises:
      ValueError: another rank, or a batch of another size.
    """
    if query.ndim != 3 or query.shape[0] != memory.mask.shape[0]:
        raise ValueError(f"query: expected [{memory.mask.shape[0]}, T, Q], got {query.shape}")
    seen = nothing_seen(attention, memory) if seen is None else seen
    return attention.attend(_cast(params, query), memory, query, seen)


def nothing_seen(attention: Attention, memory: Memory) -> Any:
    """What `attend` starts from: weights of zero, or ()."""
    if not attention.sees_weights:
        return ()
    dtype = jnp.promote_types(memory.values.dtype, jnp.float32)
    zeros = varying_as(jnp.zeros(memory.mask.shape, dtype), memory)
    return Seen(zeros, zeros)


def attention_weights(scores: Float[Array, "B T S"], mask: Bool[Array, "B S"]) -> Float[Array, "B T S"]:
    """Softmax over the valid source positions, exactly zero at the others; all zero where no position is valid.

    Valid scores are expected to be finite: of nothing but -inf, too, the weights are all zero, and +inf and NaN give NaN.
    """
    valid = mask[:, None]
    scores = jnp.where(valid, scores, jnp.finfo(scores.dtype).min)
    greatest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=jnp.finfo(scores.dtype).min))
    exponentials = jnp.where(valid, jnp.exp(scores - greatest), 0)
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    return exponentials / jnp.where(total == 0, 1, total)


def coverage_loss(weights: Float[Array, "B T S"], mask: Bool[Array, "B T"] | None = None) -> Mean:
    """`sum_s min(alpha_ts, sum_t'<t alpha_t's)` over valid target steps (See et al., arXiv 1704.04368, equation 12)."""
    before = jnp.cumsum(weights, axis=1) - weights
    return mean_over(jnp.minimum(weights, before).sum(-1), mask)


def from_score(
    init: Callable[[Array, int, int, int], Params],
    keys: Callable[[Params, Array], Any],
    score: Callable[[Params, Array, Any, Any], Array],
    *,
    sees_weights: bool = False,
) -> Attention:
    """The attention of a score function. Made once, not anew for each call.

    Args:
      init: `(key, query_features, memory_features, features) -> params`.
      keys: `(params, values [B, S, F]) -> keys`, once a sequence; leaves have a leading batch axis. Values in the padding are
        0; the keys and their derivative have to be finite there.
      score: `(params, query [B, T, Q], keys, seen) -> scores [B, T, S]`, finite.
      sees_weights: hands the score function a `Seen`, with T = 1; otherwise ().
    """

    def prepare(params: Params, values: Array, mask: Array) -> Memory:
        return Memory(keys(params, values), values, mask)

    def at_once(params: Params, memory: Memory, query: Array, seen: Any) -> Attended:
        scores = score(params, query, memory.keys, seen)
        weights = attention_weights(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)), memory.mask)
        return Attended(_read(weights, memory.values), weights.astype(query.dtype), seen)

    def one_by_one(params: Params, memory: Memory, query: Array, seen: Seen) -> Attended:
        def advance(seen: Seen, query: Array) -> tuple[Seen, tuple[Array, Array]]:
            context, weights, _ = at_once(params, memory, query[:, None], seen)
            new = weights[:, 0].astype(seen.last.dtype)
            return Seen(new, seen.total + new), (context[:, 0], weights[:, 0])

        seen = varying_as(seen, (params, memory, query))
        seen, (context, weights) = jax.lax.scan(advance, seen, jnp.swapaxes(query, 0, 1))
        return Attended(jnp.swapaxes(context, 0, 1), jnp.swapaxes(weights, 0, 1), seen)

    return Attention(init, prepare, one_by_one if sees_weights else at_once, sees_weights)


def make_additive(
    *, bias: bool = False, coverage: bool = False, location_filters: int = 0, location_width: int = 31
) -> Attention:
    """`score = v . tanh(W_q q_t + W_m m_s + ...)` (Bahdanau et al., arXiv 1409.0473, appendix A.1.2).

    Luong's `concat`, `v . tanh(W [q_t; m_s])`, is the same with W written as one matrix.

    Args:
      bias: adds a bias inside the tanh.
      coverage: adds `w_c sum_t'<t alpha_t's` inside the tanh (See et al., arXiv 1704.04368, equation 11).
      location_filters: adds `U f_ts`, where f is the weights of the step before, convolved with so many learned filters
        over the source (Chorowski et al., arXiv 1506.07503, equations 8 and 9); 0 for none.
      location_width: of the filters, an odd number of source positions.

    Raises:
      ValueError: a negative number of filters, or a width that is not odd.
    """
    if location_filters < 0:
        raise ValueError(f"location_filters: expected 0 or more, got {location_filters}")
    if location_width < 1 or location_width % 2 == 0:
        raise ValueError(f"location_width: expected an odd number of positions, got {location_width}")
    return _make_additive(bool(bias), bool(coverage), int(location_filters), int(location_width))


@functools.cache
def _make_additive(bias: bool, coverage: bool, filters: int, width: int) -> Attention:
    def init(key: Array, query_features: int, memory_features: int, features: int) -> AdditiveParams:
        k_query, k_memory, k_v, k_coverage, k_filters, k_w_filters = jax.random.split(key, 6)
        return AdditiveParams(
            _glorot(k_query, (query_features, features)),
            _glorot(k_memory, (memory_features, features)),
            _glorot(k_v, (features, 1))[:, 0],
            jnp.zeros(features) if bias else None,
            _glorot(k_coverage, (1, features))[0] if coverage else None,
            _glorot(k_filters, (width, 1, filters)) if filters else None,
            _glorot(k_w_filters, (filters, features)) if filters else None,
        )

    def keys(params: AdditiveParams, values: Array) -> Array:
        projected = _dot(values, params.w_memory)
        return projected if params.b is None else projected + params.b[None, None]

    def score(params: AdditiveParams, query: Array, keys: Array, seen: Any) -> Array:
        inner = _dot(query, params.w_query)[:, :, None] + keys[:, None]
        if params.coverage is not None:
            inner = inner + (seen.total[:, None, :, None] * params.coverage[None, None, None]).astype(inner.dtype)
        if params.filters is not None and params.w_filters is not None:
            located = jax.lax.conv_general_dilated(
                seen.last[..., None].astype(query.dtype), params.filters, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
            )
            inner = inner + _dot(located, params.w_filters)[:, None]
        accumulator = jnp.promote_types(inner.dtype, jnp.float32)
        return jnp.matmul(jnp.tanh(inner), params.v, preferred_element_type=accumulator)

    return from_score(init, keys, score, sees_weights=coverage or filters > 0)


@functools.cache
def make_multi_head(heads: int) -> Attention:
    """Scaled dot products in several projections at once, side by side (Vaswani et al., arXiv 1706.03762, section 3.2.2).

    Contexts are `features` wide; the weights that come back are the mean of the heads'.

    Raises:
      ValueError: no head, or (in `init`) features that `heads` does not divide.
    """
    if heads < 1:
        raise ValueError(f"heads: expected at least one, got {heads}")

    def init(key: Array, query_features: int, memory_features: int, features: int) -> MultiHeadParams:
        if features % heads:
            raise ValueError(f"features: expected a multiple of {heads} heads, got {features}")
        sizes = (query_features, memory_features, memory_features, features)
        drawn = [_glorot(k, (size, features)) for k, size in zip(jax.random.split(key, 4), sizes, strict=True)]
        zeros = jnp.zeros(features)
        return MultiHeadParams(drawn[0], zeros, drawn[1], zeros, drawn[2], zeros, drawn[3], zeros)

    def split(x: Array) -> Array:
        return x.reshape(*x.shape[:2], heads, x.shape[2] // heads)

    def prepare(params: MultiHeadParams, values: Array, mask: Array) -> Memory:
        key = split(_dot(values, params.w_key) + params.b_key[None, None])
        read = split(_dot(values, params.w_value) + params.b_value[None, None])
        return Memory((key, read), values, mask)

    def attend(params: MultiHeadParams, memory: Memory, query: Array, seen: Any) -> Attended:
        key, read = memory.keys
        query = split(_dot(query, params.w_query) + params.b_query[None, None])
        accumulator = jnp.promote_types(query.dtype, jnp.float32)
        scores = jnp.einsum("bthk,bshk->bhts", query, key, preferred_element_type=accumulator) / key.shape[-1] ** 0.5
        weights = jax.vmap(attention_weights, (1, None), 1)(scores, memory.mask)
        contexts = jnp.einsum("bhts,bshk->bthk", weights.astype(read.dtype), read)
        context = (
            _dot(contexts.reshape(*contexts.shape[:2], heads * contexts.shape[3]), params.w_context)
            + params.b_context[None, None]
        )
        # Without a valid position there is nothing to read, biases neither.
        context = jnp.where(memory.mask.any(-1)[:, None, None], context, 0)
        return Attended(context, weights.mean(1).astype(query.dtype), seen)

    return Attention(init, prepare, attend)


def _no_params(key: Array, query_features: int, memory_features: int, features: int) -> tuple[()]:
    if query_features != memory_features:
        raise ValueError(
            "query_features: expected as many as memory_features in a dot product without parameters, "
            f"got {query_features} and {memory_features}; general takes both"
        )
    return ()


def _init_general(key: Array, query_features: int, memory_features: int, features: int) -> GeneralParams:
    return GeneralParams(_glorot(key, (query_features, memory_features)))


def _dot_score(params: Params, query: Array, keys: Array, seen: Any) -> Array:
    if query.shape[-1] != keys.shape[-1]:
        raise ValueError(f"query: expected {keys.shape[-1]} features, got {query.shape[-1]}")
    accumulator = jnp.promote_types(query.dtype, jnp.float32)
    return jnp.einsum("btk,bsk->bts", query, keys, preferred_element_type=accumulator)


def _read(weights: Float[Array, "B T S"], values: Float[Array, "B S F"]) -> Float[Array, "B T F"]:
    accumulator = jnp.promote_types(values.dtype, jnp.float32)
    return jnp.einsum("bts,bsf->btf", weights, values, preferred_element_type=accumulator).astype(values.dtype)


def _dot(x: Array, w: Array) -> Array:
    accumulator = jnp.promote_types(w.dtype, jnp.float32)
    return jnp.matmul(x, w, preferred_element_type=accumulator).astype(x.dtype)


def _glorot(key: Array, shape: tuple[int, ...]) -> Array:
    return jax.nn.initializers.glorot_uniform()(key, shape, jnp.float32)


def _cast(params: Params, like: Array) -> Params:
    return jax.tree.map(lambda leaf: leaf.astype(like.dtype), params)


dot = from_score(_no_params, lambda params, values: values, _dot_score)  # q_t . m_s
scaled_dot = from_score(  # q_t . m_s / sqrt(Q), scaled behind the product, where bfloat16 has become float32
    _no_params, lambda params, values: values, lambda *given: _dot_score(*given) / given[1].shape[-1] ** 0.5
)
general = from_score(  # q_t . (W m_s)
    _init_general, lambda params, values: jnp.einsum("bsf,qf->bsq", values, params.w).astype(values.dtype), _dot_score
)
additive = make_additive()  # v . tanh(W_q q_t + W_m m_s)
concat = additive  # v . tanh(W [q_t; m_s])
ATTENTIONS = {"dot": dot, "scaled_dot": scaled_dot, "general": general, "concat": concat, "additive": additive}
