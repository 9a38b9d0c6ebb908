"""Which symbols of a text a classifier goes by: what its answer loses where they are hidden."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Logits = Callable[[Int[Array, "B T"], Int[Array, " B"]], Float[Array, "B classes"]]


def occlusion(
    logits: Logits, tokens: Int[np.ndarray, " T"], *, blank: int, window: int = 8, stride: int = 2, batch_size: int = 32
) -> Float[np.ndarray, "T classes"]:
    """How much of each class's log probability each symbol is worth (Zeiler & Fergus, arXiv 1311.2901, section 4.2).

    Some symbols side by side are replaced by `blank`, and what the log probability falls by is shared among them; the worth of
    a symbol is its mean share over all windows that hold it. Above 0 speaks for the class. Any model will do: it is only asked.

    Args:
      logits: `(tokens [B, T], lengths [B]) -> [B, classes]`; compiled once for each T, and so best a jitted function.
      tokens: of one text, all valid.
      blank: what hides a symbol, the number of a space say.
      window: symbols that are hidden together.
      stride: from one window to the next, at most `window`.
      batch_size: windows at a time.

    Raises:
      ValueError: no symbols, or a window, stride or batch size out of its range.
    """
    length = len(tokens)
    if length < 1:
        raise ValueError("tokens: expected at least one, got none")
    if not 1 <= stride <= window or batch_size < 1:
        raise ValueError(
            f"window, stride, batch_size: expected 1 <= stride <= window and at least one row, got {window}, {stride}, "
            f"{batch_size}"
        )
    window = min(window, length)
    starts = np.unique(np.minimum(np.arange(0, length, stride), length - window))
    places = np.arange(length)
    hidden = (places >= starts[:, None]) & (places < starts[:, None] + window)
    rows = np.concatenate([tokens[None], np.where(hidden, blank, tokens)]).astype(np.int32)
    missing = -len(rows) % batch_size  # so that all batches are of one shape
    batches = np.pad(rows, ((0, missing), (0, 0)), mode="edge").reshape(-1, batch_size, length)
    lengths = np.full(batch_size, length, np.int32)
    said = [np.asarray(jax.nn.log_softmax(logits(jnp.asarray(batch), jnp.asarray(lengths)))) for batch in batches]
    whole, *others = np.concatenate(said).astype(np.float64)[: len(rows)]
    lost = (whole - np.array(others)) / window  # [windows, classes]
    return hidden.T @ lost / hidden.sum(0)[:, None]
