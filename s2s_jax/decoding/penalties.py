"""What a search adds to the log probability of a finished hypothesis, so that long ones do not lose for their length alone."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LENGTH_PENALTIES = ("none", "gnmt", "average")


def length_penalty(lengths: Int[Array, "..."], kind: str, alpha: float | Array) -> Float[Array, "..."]:
    """lp(L), by which a log probability is divided; L counts the end symbol.

    Args:
      lengths: L, any shape.
      kind: "none", 1; "gnmt", ((5 + L) / 6)^alpha (Wu et al., arXiv 1609.08144, eq. 14); "average", L^alpha.
      alpha: 0 is no penalty; the greater, the more long hypotheses are preferred.

    Raises:
      ValueError: another kind.
    """
    if kind not in LENGTH_PENALTIES:
        raise ValueError(f"length_penalty: expected one of {', '.join(LENGTH_PENALTIES)}, got {kind!r}")
    dtype = jnp.promote_types(jnp.asarray(alpha).dtype, jnp.float32)
    if kind == "none":
        return jnp.ones(jnp.shape(lengths), dtype)
    lengths = jnp.asarray(lengths).astype(dtype)
    return (lengths if kind == "average" else (5 + lengths) / 6) ** alpha


def coverage_penalty(
    coverage: Float[Array, "... S"], beta: float | Array, source_mask: Bool[Array, "... S"] | None = None
) -> Float[Array, "..."]:
    """The sum over valid s of beta * log min(sum over t of a_ts, 1), at most 0 (Wu et al., arXiv 1609.08144, eq. 14).

    Args:
      coverage: the sums over t of the attention weights. Where one is 0, the smallest normal number stands for it.
      beta: 0 or more; the greater, the more it costs to leave parts of the source unread.
      source_mask: True = valid; None for all.
    """
    logs = jnp.log(jnp.clip(coverage, jnp.finfo(coverage.dtype).tiny, 1))
    return beta * jnp.sum(logs if source_mask is None else jnp.where(source_mask, logs, 0), axis=-1)
