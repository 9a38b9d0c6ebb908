"""What readers of frames demand of them."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from s2s_jax.masks import check_lengths, length_mask


def check_frames(
    logits: Float[Array, "B T V"], lengths: Int[Array, " B"] | None, blank: int
) -> tuple[Float[Array, "B T V"], Bool[Array, "B T"]]:
    """The logits in float32 at least, zeros in the padding whatever stood there, and which frames are valid.

    Raises:
      ValueError: another shape, a blank outside the vocabulary, or concrete lengths out of range. Traced ones are clipped.
    """
    if jnp.ndim(logits) != 3:
        raise ValueError(f"logits: expected [B, T, V], got shape {jnp.shape(logits)}")
    batch_size, time, vocabulary_size = logits.shape
    if not 0 <= blank < vocabulary_size:
        raise ValueError(f"blank: expected a symbol from 0 to {vocabulary_size - 1}, got {blank}")
    lengths = jnp.full(batch_size, time, jnp.int32) if lengths is None else check_lengths(lengths, batch_size, time)
    mask = length_mask(lengths, time)
    return jnp.where(mask[..., None], logits, 0).astype(jnp.promote_types(logits.dtype, jnp.float32)), mask
