"""Losses as sums and counts; see `s2s_jax.metrics.Mean`."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from s2s_jax.masks import check_ids
from s2s_jax.metrics import Mean, mean_over


def cross_entropy(logits: Float[Array, "*N V"], targets: Int[Array, "*N"], mask: Bool[Array, "*N"] | None = None) -> Mean:
    """`-log softmax(logits)[target]` in nats, summed over the positions where `mask` is True, in at least float32.

    Raises:
      ValueError: shapes that do not match, or concrete targets outside the vocabulary (where `mask` is True).
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f"targets: expected shape {logits.shape[:-1]}, got {targets.shape}")
    if mask is not None and mask.shape != targets.shape:
        raise ValueError(f"mask: expected shape {targets.shape}, got {mask.shape}")
    check_ids(targets, logits.shape[-1], "targets", mask)
    if mask is not None:
        # Zeroed before the logarithm: what stands in the padding must not reach the gradient, NaN neither.
        logits, targets = jnp.where(mask[..., None], logits, 0), jnp.where(mask, targets, 0)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), targets)
    return mean_over(loss, mask)
