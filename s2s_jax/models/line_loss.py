"""Loss of the models that read pictures of lines, on batches of `LineBatches`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from s2s_jax.data.augmentation import augmented_lines
from s2s_jax.data.vocabulary import PAD, START
from s2s_jax.losses import cross_entropy, ctc_loss
from s2s_jax.masks import length_mask, shift_right
from s2s_jax.metrics import Mean, mean_over
from s2s_jax.models.crnn import CRNN, Frames, PictureToText

Metrics = dict[str, Mean]


def line_loss(
    model: CRNN | PictureToText, batch: Mapping[str, Any], key: jax.Array, *, augment: float = 0.0, label_smoothing: float = 0.0
) -> tuple[jax.Array, Metrics]:
    """The loss of training: nats per symbol of the labels, end symbols included where there are any.

    Args:
      augment: how strongly pictures are changed; see `augmented_lines`.
      label_smoothing: see `cross_entropy`; of a `PictureToText`.

    Raises:
      ValueError: label smoothing of a `CRNN`.
    """
    key_augment, key_model = jax.random.split(key)
    ink, widths = as_ink(batch["picture"]), batch["picture_lengths"]
    if augment:
        ink, widths = augmented_lines(ink, widths, key_augment, strength=augment)
    ink = ink.astype(jax.tree.leaves(nnx.state(model, nnx.Param))[0].dtype)  # --precision narrows the parameters
    how: dict[str, Any] = {"training": True, "key": key_model}
    if isinstance(model, CRNN):
        if label_smoothing:
            raise ValueError(f"label_smoothing: expected none with CTC, got {label_smoothing}")
        metrics = nats_of_frames(model(ink, widths, **how), batch)
    else:
        logits = model(ink, widths, shift_right(batch["label"], START), **how)
        metrics = nats_of_symbols(logits, batch, label_smoothing=label_smoothing)
    nats = metrics["loss"]
    return nats.loss(), metrics


def nats_of_frames(frames: Frames, batch: Mapping[str, Any]) -> Metrics:
    """CTC: the loss of the labels that fit, and the share of lines whose label does not."""
    nats, fits = ctc_loss(*frames, batch["label"], batch["label_lengths"], blank=PAD, unfit="drop")
    symbols = jnp.sum(jnp.where(fits, batch["label_lengths"], 0))
    return {"loss": Mean(jnp.sum(nats), symbols.astype(nats.dtype)), "unfit": mean_over(~fits, batch["mask"])}


def nats_of_symbols(logits: Float[Array, "B N V"], batch: Mapping[str, Any], *, label_smoothing: float = 0.0) -> Metrics:
    """A decoder's loss, given the true symbols before each."""
    mask = length_mask(batch["label_lengths"], batch["label"].shape[1])
    return {"loss": cross_entropy(logits, batch["label"], mask, label_smoothing=label_smoothing)}


def as_ink(pictures: Any) -> Float[Array, "B H W C"]:
    """Pictures uint8 [B, W, H, C], as `EncodedLines` has them, as numbers from 0, paper, to 1."""
    return jnp.swapaxes(pictures, 1, 2).astype(jnp.float32) / 255
