"""Loss and accuracy of an encoder-decoder on batches of pairs, given the true symbols before each."""

from collections.abc import Mapping
from typing import Any

import jax

from s2s_jax.data.vocabulary import START
from s2s_jax.losses import cross_entropy
from s2s_jax.masks import length_mask, shift_right
from s2s_jax.metrics import Mean, token_accuracy
from s2s_jax.models.seq2seq import Seq2Seq


def pair_loss(
    model: Seq2Seq, batch: Mapping[str, Any], key: jax.Array, *, teacher_forcing: float = 1.0, label_smoothing: float = 0.0
) -> tuple[jax.Array, dict[str, Mean]]:
    """The loss of training on a batch of `PairBatches`: nats per symbol of the targets; see `Seq2Seq` for `teacher_forcing`."""
    logits = _logits(model, batch, key=key, teacher_forcing=teacher_forcing)
    nats = cross_entropy(logits, batch["target"], _mask(batch), label_smoothing=label_smoothing)
    return nats.total / nats.count, {"loss": nats}


def measure_pairs(model: Seq2Seq, batch: Mapping[str, Any]) -> dict[str, Mean]:
    """Loss and accuracy per symbol of the targets, end symbols included."""
    logits, mask = _logits(model, batch), _mask(batch)
    return {
        "loss": cross_entropy(logits, batch["target"], mask),
        "token_accuracy": token_accuracy(logits.argmax(-1), batch["target"], mask),
    }


def nats_of_targets(model: Seq2Seq, batch: Mapping[str, Any]) -> Mean:
    """The loss of each target by itself: nats [B], and symbols [B]."""
    return jax.vmap(cross_entropy)(_logits(model, batch), batch["target"], _mask(batch))


def _logits(model: Seq2Seq, batch: Mapping[str, Any], **options: Any) -> jax.Array:
    return model(batch["source"], batch["source_lengths"], shift_right(batch["target"], START), **options)


def _mask(batch: Mapping[str, Any]) -> jax.Array:
    return length_mask(batch["target_lengths"], batch["target"].shape[1])
