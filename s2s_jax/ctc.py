"""Connectionist temporal classification: what is demanded of frames and labels, and which label fits its frames."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from s2s_jax.masks import check_ids, check_lengths, length_mask


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


def frame_log_probs(logits: Float[Array, "B T V"]) -> Float[Array, "B T V"]:
    """The log softmax; -inf for all symbols of a frame whose logits are all -inf, which no alignment can pass."""
    says_nothing = jnp.all(logits == -jnp.inf, axis=-1, keepdims=True)
    return jnp.where(says_nothing, -jnp.inf, jax.nn.log_softmax(logits))


def ctc_frames(labels: Int[Array, "B N"], label_lengths: Int[Array, " B"]) -> Int[Array, " B"]:
    """The fewest frames that each label fits: its symbols, and a blank between each two that are equal."""
    labels, label_lengths = jnp.asarray(labels), jnp.asarray(label_lengths).astype(jnp.int32)
    repeats = (labels[:, 1:] == labels[:, :-1]) & length_mask(label_lengths - 1, max(labels.shape[1] - 1, 0))
    return label_lengths + jnp.sum(repeats, axis=1, dtype=label_lengths.dtype)


def check_labels(
    labels: Int[Array, "B N"], label_lengths: Int[Array, " B"], batch_size: int, vocabulary_size: int, blank: int
) -> tuple[Int[Array, "B N"], Int[Array, " B"]]:
    """Labels of CTC with another symbol than the blank in their padding, and their lengths as int32.

    Raises:
      TypeError: they are not integers.
      ValueError: other shapes; concrete symbols outside the vocabulary or equal to the blank.
    """
    if np.ndim(labels) != 2 or np.shape(labels)[0] != batch_size:
        raise ValueError(f"labels: expected [{batch_size}, N], got shape {np.shape(labels)}")
    label_lengths = check_lengths(label_lengths, batch_size, np.shape(labels)[1], "label_lengths")
    mask = length_mask(label_lengths, np.shape(labels)[1])
    check_ids(labels, vocabulary_size, "labels", mask)
    labels = jnp.asarray(labels)
    said = mask & (labels == blank)
    if not isinstance(said, jax.core.Tracer) and np.any(said):
        row = int(np.flatnonzero(np.any(said, axis=1))[0])
        raise ValueError(f"labels: expected symbols other than the blank, {blank}, got it in row {row}")
    return jnp.where(mask, labels, 0 if blank else vocabulary_size - 1).astype(jnp.int32), label_lengths
