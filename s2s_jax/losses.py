"""Losses as sums and counts; see `s2s_jax.metrics.Mean`."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from s2s_jax.masks import check_ids
from s2s_jax.metrics import Mean, mean_over


def cross_entropy(
    logits: Float[Array, "*N V"],
    targets: Int[Array, "*N"],
    mask: Bool[Array, "*N"] | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Mean:
    """`-log softmax(logits)[target]` in nats, summed over the positions where `mask` is True, in at least float32.

    With label smoothing e it is `-sum_v q_v log softmax(logits)[v]`, `q = (1 - e) onehot(target) + e / V` (Szegedy et al.,
    arXiv 1512.00567, section 7).

    Raises:
      ValueError: shapes that do not match, concrete targets outside the vocabulary (where `mask` is True), or a smoothing
        outside [0, 1).
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1), got {label_smoothing}")
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f"targets: expected shape {logits.shape[:-1]}, got {targets.shape}")
    if mask is not None and mask.shape != targets.shape:
        raise ValueError(f"mask: expected shape {targets.shape}, got {mask.shape}")
    check_ids(targets, logits.shape[-1], "targets", mask)
    if mask is not None:
        # Zeroed before the logarithm: what stands in the padding must not reach the gradient, NaN neither.
        logits, targets = jnp.where(mask[..., None], logits, 0), jnp.where(mask, targets, 0)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    if label_smoothing:
        of_all = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)  # -log softmax, its mean over the vocabulary
        loss = (1 - label_smoothing) * loss + label_smoothing * of_all
    return mean_over(loss, mask)
