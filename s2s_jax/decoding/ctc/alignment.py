"""Which frames say which symbol of a known label."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from s2s_jax.ctc import check_frames, check_labels, ctc_frames, frame_log_probs
from s2s_jax.sharding import varying_as


class Alignment(NamedTuple):
    """Symbol n of a label stands in the frames `starts` to `ends`, the last not included; both are 0 in the padding.

    Attributes:
      starts, ends: frames of each symbol.
      positions: which symbol of the label each frame says; -1 for the blank and in the padding.
      confidences: greatest probability of each symbol in its frames.
      log_probs: of this alignment; -inf where there is none, and nothing is aligned then.
      fits: whether the label fits its frames.
    """

    starts: Int[Array, "B N"]
    ends: Int[Array, "B N"]
    positions: Int[Array, "B T"]
    confidences: Float[Array, "B N"]
    log_probs: Float[Array, " B"]
    fits: Bool[Array, " B"]


def ctc_align(
    logits: Float[Array, "B T V"],
    lengths: Int[Array, " B"] | None,
    labels: Int[Array, "B N"],
    label_lengths: Int[Array, " B"],
    *,
    blank: int = 0,
) -> Alignment:
    """The most probable alignment that reads as the label (Viterbi over blanks and symbols in turn), in one `lax.scan`.

    Args:
      logits, lengths: frames before the softmax, and how many of each row are valid; None for all.
      labels, label_lengths: as `s2s_jax.losses.ctc_loss` takes them.
      blank: the symbol that says nothing.

    Raises:
      TypeError, ValueError: as `ctc_loss`, but that a label that does not fit is no error.
    """
    logits, mask = check_frames(logits, lengths, blank)
    log_probs = frame_log_probs(logits)
    batch_size, time = mask.shape
    labels, label_lengths = check_labels(labels, label_lengths, batch_size, log_probs.shape[-1], blank)
    most = labels.shape[1]
    fits = ctc_frames(labels, label_lengths) <= jnp.sum(mask, axis=1)

    # State 2n is the blank before symbol n, state 2n + 1 the symbol.
    states = jnp.full((batch_size, 2 * most + 1), blank, jnp.int32).at[:, 1::2].set(labels)
    numbers = jnp.arange(2 * most + 1)
    # Over the blank between two symbols one may step, unless they are equal.
    two_before = jnp.pad(states, ((0, 0), (2, 0)), constant_values=blank)[:, :-2]
    skips = (numbers % 2 == 1) & (numbers >= 3) & (states != two_before)
    emitted = jnp.take_along_axis(log_probs, states[:, None, :], axis=2)  # [B, T, 2N + 1]

    def forward(best: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        gain, valid = at
        moved = jnp.pad(best, ((0, 0), (2, 0)), constant_values=-jnp.inf)
        options = jnp.stack([best, moved[:, 1:-1], jnp.where(skips, moved[:, :-2], -jnp.inf)])
        step = jnp.where(valid[:, None], jnp.argmax(options, axis=0), 0).astype(jnp.int32)
        return jnp.where(valid[:, None], jnp.max(options, axis=0) + gain, best), step

    # A step from before the first frame into its first blank or first symbol.
    begin = jnp.where(numbers == 0, 0.0, -jnp.inf).astype(log_probs.dtype)
    begin = varying_as(jnp.broadcast_to(begin, states.shape), (log_probs, labels, mask))
    best, steps = jax.lax.scan(forward, begin, (jnp.swapaxes(emitted, 0, 1), mask.T))

    rows = jnp.arange(batch_size)
    last = 2 * label_lengths  # the blank behind the last symbol; or that symbol
    symbol = jnp.maximum(last - 1, 0)
    last = jnp.where((label_lengths > 0) & (best[rows, symbol] >= best[rows, last]), symbol, last)
    found = jnp.where(fits, best[rows, last], -jnp.inf)

    def back(state: Array, step: Array) -> tuple[Array, Array]:
        return state - step[rows, state], state

    _, path = jax.lax.scan(back, last, steps, reverse=True)
    said = mask & (found > -jnp.inf)[:, None] & (path.T % 2 == 1)
    positions = jnp.where(said, path.T // 2, -1)

    here = positions[:, :, None] == jnp.arange(most)  # [B, T, N]
    t = jnp.arange(time)[None, :, None]
    exists = jnp.any(here, axis=1)
    starts = jnp.where(exists, jnp.min(jnp.where(here, t, time), axis=1, initial=time), 0)
    ends = jnp.max(jnp.where(here, t + 1, 0), axis=1, initial=0)
    likely = jnp.max(jnp.where(here, emitted[:, :, 1::2], -jnp.inf), axis=1, initial=-jnp.inf)
    confidences = jnp.where(exists, jnp.exp(likely), 0)
    return Alignment(starts, ends, positions.astype(jnp.int32), confidences, found, fits)
