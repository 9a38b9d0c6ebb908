"""The most probable symbol of each frame, read as CTC reads it."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from s2s_jax.ctc import check_frames, frame_log_probs


class Read(NamedTuple):
    """What the frames of each row say, and where: frames `starts` to `ends`, the last not included; all 0 in the padding.

    `confidences` are the greatest probability of the symbol in its frames; `log_probs` that of the one alignment that was read;
    -inf where a frame's logits are all -inf, and nothing is read then.
    """

    tokens: Int[Array, "B T"]
    lengths: Int[Array, " B"]
    confidences: Float[Array, "B T"]
    starts: Int[Array, "B T"]
    ends: Int[Array, "B T"]
    log_probs: Float[Array, " B"]


def ctc_greedy(logits: Float[Array, "B T V"], lengths: Int[Array, " B"] | None = None, *, blank: int = 0, pad: int = 0) -> Read:
    """Takes the most probable symbol of each frame, joins equal neighbours, and leaves the blanks out.

    That is the most probable alignment, and not always the most probable text (Graves et al. 2006, section 3.2); for that see
    `ctc_beam_search`.

    Args:
      logits, lengths: frames before the softmax, and how many of each row are valid; None for all.
      blank: the symbol that says nothing.
      pad: what stands behind the last symbol.

    Raises:
      ValueError: a blank outside the vocabulary, or concrete lengths out of range. Traced ones are clipped.
    """
    logits, mask = check_frames(logits, lengths, blank)
    log_probs = frame_log_probs(logits)
    batch_size, time = mask.shape
    gain = jnp.where(mask, jnp.max(log_probs, axis=-1), 0)
    possible = jnp.all(gain != -jnp.inf, axis=1, keepdims=True)
    best = jnp.where(mask & possible, jnp.argmax(log_probs, axis=-1), blank)
    before = jnp.concatenate([jnp.full_like(best[:, :1], blank), best[:, :-1]], axis=1)
    said = best != blank
    begins = said & (best != before)
    # The symbol that each frame belongs to; those of the blanks go to a column that is cut off.
    number = jnp.where(said, jnp.cumsum(begins, axis=1) - 1, time)
    rows, t = jnp.arange(batch_size)[:, None], jnp.broadcast_to(jnp.arange(time), mask.shape)

    def gathered(fill: float, values: Array, how: str) -> Array:
        columns = jnp.full((batch_size, time + 1), fill, values.dtype)
        return getattr(columns.at[rows, number], how)(values)[:, :time]

    count = jnp.sum(begins, axis=1, dtype=jnp.int32)
    exists = jnp.arange(time) < count[:, None]
    found = gathered(0, best, "max"), gathered(-jnp.inf, gain, "max"), gathered(time, t, "min"), gathered(0, t + 1, "max")
    tokens, confidences, starts, ends = (jnp.where(exists, leaf, 0) for leaf in found)
    confidences = jnp.where(exists, jnp.exp(confidences), 0)
    return Read(
        jnp.where(exists, tokens, pad).astype(jnp.int32),
        count,
        confidences,
        starts.astype(jnp.int32),
        ends.astype(jnp.int32),
        jnp.sum(gain, axis=1),
    )
