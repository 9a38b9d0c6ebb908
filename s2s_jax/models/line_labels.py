"""The texts of lines as labels: which of them CTC can say in the frames that a model makes of their pictures."""

from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from s2s_jax.ctc import ctc_frames
from s2s_jax.data.text_lines import EncodedLines, TextLines
from s2s_jax.data.vocabulary import END, Characters
from s2s_jax.models.crnn import CRNN, PictureToText


def encode_lines(
    model: CRNN | PictureToText,
    lines: TextLines,
    characters: Characters,
    *,
    unknown_symbols: Literal["error", "count"] = "error",
    unfit_labels: Literal["error", "drop"] = "error",
) -> EncodedLines:
    """Lines as numbers. Training lines may be left out where CTC cannot say them; lines to be scored never are.

    Args:
      model: whose labels they are: those of a `PictureToText` have an end symbol, and need no frames.
      lines: of which the split named train is trained on.
      characters: the alphabet.
      unknown_symbols: see `EncodedLines`.
      unfit_labels: training texts that need more frames than their picture has are an error, or are left out.

    Raises:
      ValueError: characters that the alphabet lacks, or such training texts; both tell which.
    """
    ctc, training = isinstance(model, CRNN), lines.split == "train"
    told: list[str] = []

    def fits(widths: np.ndarray, labels: np.ndarray, label_lengths: np.ndarray) -> np.ndarray:
        needed, there = _frames(model, widths, labels, label_lengths)
        for number in np.flatnonzero(needed > there)[:5]:
            told.append(f"{lines.ids[number]}, {lines.texts[number]!r}, needs {needed[number]} and has {there[number]}")
        return needed <= there

    encoded = EncodedLines(
        lines,
        characters,
        unknown_symbols=unknown_symbols,
        label_end=() if ctc else (END,),
        keep=fits if ctc and training else None,
    )
    if encoded.dropped and unfit_labels == "error":
        expected = "'drop', or texts that fit the frames of their pictures"
        raise ValueError(f"unfit_labels: expected {expected}, got {len(encoded.dropped)} that do not: {'; '.join(told)}")
    return encoded


def unfit(model: CRNN | PictureToText, encoded: EncodedLines, ids: Sequence[str]) -> dict[str, Any]:
    """Lines of a scored split that the loss leaves out, as CTC cannot say them: how many, and the first of their `ids`."""
    if not isinstance(model, CRNN):
        return {"count": 0, "ids": []}
    needed, there = _frames(model, encoded.lengths["picture"], encoded.labels(), encoded.lengths["label"])
    wrong = np.flatnonzero(needed > there)
    return {"count": len(wrong), "ids": [ids[number] for number in wrong[:20]]}


def _frames(
    model: CRNN | PictureToText, widths: np.ndarray, labels: np.ndarray, label_lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How many frames CTC needs for each label [N, L], and how many a picture of its width has, both [N]."""
    _, there = model.encoder.backbone.reduced(0, jnp.asarray(widths))
    return np.asarray(ctc_frames(jnp.asarray(labels), jnp.asarray(label_lengths))), np.asarray(there)
