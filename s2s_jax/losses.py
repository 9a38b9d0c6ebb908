"""Losses: cross entropy as sum and count, see `s2s_jax.metrics.Mean`; CTC row by row."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from s2s_jax.ctc import check_frames, check_labels, ctc_frames
from s2s_jax.masks import check_ids, length_mask
from s2s_jax.metrics import Mean, mean_over
from s2s_jax.sharding import varying_as


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


def classification(
    logits: Float[Array, "*N V"], labels: Int[Array, "*N"], mask: Bool[Array, "*N"] | None = None
) -> dict[str, Mean]:
    """What tells of a classifier: "loss", see `cross_entropy`, and "accuracy", the share whose greatest logit is the label's.

    Raises:
      ValueError: as of `cross_entropy`.
    """
    return {
        "loss": cross_entropy(logits, labels, mask),
        "accuracy": mean_over(jnp.argmax(logits, axis=-1) == labels, mask),
    }


_LOG_ZERO = -1e30


class CTCNats(NamedTuple):
    """-log p(label | frames) of each row [B], and whether its label fits its frames; `mean_over(*nats)` takes those that do."""

    nats: Float[Array, " B"]
    fits: Bool[Array, " B"]


def ctc_loss(
    logits: Float[Array, "B T V"],
    lengths: Int[Array, " B"],
    labels: Int[Array, "B N"],
    label_lengths: Int[Array, " B"],
    *,
    blank: int = 0,
    unfit: Literal["raise", "drop", "infinite"] = "raise",
) -> CTCNats:
    """The negative log of the probability of all alignments that read as the label, by `optax.ctc_loss`, in float32 at least.

    An alignment says a symbol or the blank at each frame; it is read by joining equal neighbours, then leaving the blanks out
    (Graves et al. 2006, section 3). So a label of N symbols of which R repeat the one before needs N + R frames, and an empty
    one fits any number, none included.

    Args:
      logits, lengths: frames [B, T, V] before the softmax, and how many of each row are valid. What stands in the padding
        reaches nothing.
      labels, label_lengths: symbols [B, N] without blanks, and how many of each row are valid.
      blank: the symbol that says nothing.
      unfit: what is done where a label does not fit its frames. "raise" (lengths that are traced cannot be looked at: their
        loss is then infinite); "drop", the row's loss is 0 and it is not counted; "infinite". No such row has a gradient.
        `ctc_frames` tells beforehand which rows these are. A label that fits but needs a symbol whose logit is -inf has an
        infinite loss and no gradient whatever this says, and so has a row with a frame whose logits are all -inf.

    Raises:
      TypeError: lengths or labels that are not integers.
      ValueError: shapes that do not match, concrete lengths out of range, concrete labels outside the vocabulary or equal to
        the blank, an unknown `unfit`, or a label that does not fit.
    """
    if unfit not in ("raise", "drop", "infinite"):
        raise ValueError(f"unfit: expected raise, drop or infinite, got {unfit!r}")
    logits, mask = check_frames(logits, lengths, blank)
    batch_size, time, vocabulary_size = logits.shape
    labels, label_lengths = check_labels(labels, label_lengths, batch_size, vocabulary_size, blank)
    fits = ctc_frames(labels, label_lengths) <= jnp.sum(mask, axis=1)
    if unfit == "raise" and not isinstance(fits, jax.core.Tracer) and not np.all(fits):
        rows = np.flatnonzero(~np.asarray(fits)).tolist()
        raise ValueError(f"labels: expected that each fits its frames, got rows that do not: {rows}; see `unfit`")
    if not time:  # only empty labels fit
        nats = jnp.zeros(batch_size, logits.dtype)
    else:
        paddings = ~length_mask(label_lengths, labels.shape[1])
        invalid, paddings = (~mask).astype(logits.dtype), paddings.astype(logits.dtype)
        # What stands for log 0 is far below any true value (optax's own, -1e5, is not), and not -inf, which times 0 is NaN.
        zero = varying_as(jnp.asarray(_LOG_ZERO, logits.dtype), (logits, labels, mask))
        never = logits == -jnp.inf
        logits = jnp.where(never, zero, logits)
        nats = optax.ctc_loss(logits, invalid, labels, paddings, blank_id=blank, log_epsilon=zero).astype(logits.dtype)
        impossible = nats > -_LOG_ZERO / 10  # a label through a symbol of probability 0
        # A frame that says nothing at all, which would be an even one with what stands for log 0; NaN elsewhere stays NaN.
        impossible |= jnp.any(jnp.all(never, axis=2), axis=1) & ~jnp.isnan(nats)
        nats = jnp.where(impossible, jnp.inf, nats)
    return CTCNats(jnp.where(fits, nats, 0.0 if unfit == "drop" else jnp.inf), fits)
