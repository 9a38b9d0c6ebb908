"""Which symbols of a text a classifier goes by: what its answer loses where they are hidden."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from s2s_jax.data.buckets import power_of_two

Logits = Callable[[Int[Array, "B T"], Int[Array, " B"]], Float[Array, "B classes"]]


class Occlusion(NamedTuple):
    """What a classifier says of a text.

    Attributes:
      log_probabilities: of the classes.
      worth: of each symbol to each class, in nats of its log odds.
    """

    log_probabilities: Float[np.ndarray, " classes"]
    worth: Float[np.ndarray, "T classes"]


def occlusion(
    logits: Logits, tokens: Int[np.ndarray, " T"], *, blank: int, window: int = 8, stride: int = 2, batch_size: int = 32
) -> Occlusion:
    """How much of each class's log odds, log p / (1 - p), each symbol is worth (Zeiler & Fergus, arXiv 1311.2901, section 4.2).

    Some symbols side by side are replaced by `blank`, and what the log odds fall by is shared among them; the worth of a symbol
    is its mean share over all windows that hold it. Above 0 speaks for the class. Any model will do: it is only asked. (Of a
    probability near 1 hardly anything is lost, whatever is hidden; of its odds much is.)

    Args:
      logits: `(tokens [B, T], lengths [B]) -> [B, classes]`, whom padding must not matter to: texts are padded to a power of
        two, at least 16, so that a jitted function is compiled a few times.
      tokens: of one text, all valid; of one without symbols nothing is worth anything.
      blank: what hides a symbol, the number of a space say.
      window: symbols that are hidden together.
      stride: from one window to the next, at most `window`.
      batch_size: windows at a time.

    Raises:
      ValueError: a window, stride or batch size out of its range.
    """
    if not 1 <= stride <= window or batch_size < 1:
        raise ValueError(
            f"window, stride, batch_size: expected 1 <= stride <= window and at least one row, got {window}, {stride}, "
            f"{batch_size}"
        )
    length = len(tokens)
    window = min(window, length)
    starts = np.unique(np.minimum(np.arange(0, length, stride), length - window))
    places = np.arange(length)
    hidden = (places >= starts[:, None]) & (places < starts[:, None] + window)
    rows = np.concatenate([np.asarray(tokens)[None], np.where(hidden, blank, tokens)]).astype(np.int32)
    missing, behind = -len(rows) % batch_size, power_of_two(length) - length
    batches = np.pad(np.pad(rows, ((0, missing), (0, 0)), mode="edge"), ((0, 0), (0, behind)))
    lengths = jnp.full(batch_size, length, jnp.int32)
    said = [np.asarray(logits(jnp.asarray(batch), lengths)) for batch in batches.reshape(-1, batch_size, length + behind)]
    scores = np.concatenate(said).astype(np.float64)[: len(rows)]
    others = [np.logaddexp.reduce(np.delete(scores, number, axis=1), axis=1) for number in range(scores.shape[1])]
    whole, *less = scores - np.stack(others, axis=1)  # log odds
    lost = (whole - np.array(less).reshape(-1, len(whole))) / max(window, 1)  # [windows, classes]
    return Occlusion(scores[0] - np.logaddexp.reduce(scores[0]), hidden.T @ lost / hidden.sum(0)[:, None])
