"""Loss and accuracy of an encoder-decoder on batches of pairs, given the true symbols before each."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from s2s_jax.attention import coverage_loss
from s2s_jax.data.vocabulary import PAD, START
from s2s_jax.losses import cross_entropy
from s2s_jax.masks import length_mask, shift_right
from s2s_jax.metrics import Mean, token_accuracy
from s2s_jax.models.seq2seq import Seq2Seq
from s2s_jax.types import DecoderOutput

SIDES = ("source", "target")


def pair_loss(
    model: Seq2Seq,
    batch: Mapping[str, Any],
    key: jax.Array,
    *,
    teacher_forcing: float = 1.0,
    label_smoothing: float = 0.0,
    word_dropout: float = 0.0,
    r_drop: float = 0.0,
    coverage: float = 0.0,
) -> tuple[jax.Array, dict[str, Mean]]:
    """The loss of training on a batch of `PairBatches`: nats per symbol of the targets.

    Args:
      teacher_forcing: see `Seq2Seq`.
      label_smoothing: share of the probability that is spread over all symbols.
      word_dropout: probability that a symbol of the source, or of those before in the target, is hidden from the network
        (Bowman et al., arXiv 1511.06349, section 3.1; Sennrich & Zhang, arXiv 1905.11901). What is to be predicted stays.
      r_drop: the alpha of Liang et al., arXiv 2106.14448, equations 2 to 4, which weighs how far two passes with other dropout
        masks are apart, in nats per symbol: the mean of both Kullback-Leibler divergences. The paper adds the cross entropies
        of both passes, here is their mean: so all is half of equation 4, and half of alpha stands before the divergence. Above
        0 each batch is read twice; `loss` in what is logged is without it.
      coverage: weight of `coverage_loss` of the attention (See et al., arXiv 1704.04368, equation 13); logged by itself.

    Raises:
      ValueError: `word_dropout` outside [0, 1), a negative weight, or `coverage` of a model without attention.
    """
    for name, weight in (("r_drop", r_drop), ("coverage", coverage)):
        if weight < 0:
            raise ValueError(f"{name}: expected a weight from 0, got {weight}")
    if coverage and not model.attends:
        raise ValueError(f"coverage: expected 0 without attention, got {coverage}")
    if not 0 <= word_dropout < 1:
        raise ValueError(f"word_dropout: expected a rate in [0, 1), got {word_dropout}")
    if r_drop:
        batch = {name: jnp.concatenate([leaf, leaf]) for name, leaf in batch.items()}
    read = dict(batch)
    if word_dropout:
        key, *of_sides = jax.random.split(key, 1 + len(SIDES))
        read |= {side: _hidden(batch[side], word_dropout, of_side) for side, of_side in zip(SIDES, of_sides, strict=True)}
    _, logits, weights = _decoded(model, read, key=key, teacher_forcing=teacher_forcing)
    nats = cross_entropy(logits, batch["target"], _mask(batch), label_smoothing=label_smoothing)
    loss = nats.loss()
    if r_drop:
        loss += 0.5 * r_drop * _apart(logits, _mask(batch))
    metrics = {"loss": nats}
    if coverage:
        metrics["coverage_loss"] = again = coverage_loss(weights, _mask(batch))
        loss += coverage * again.loss()
    return loss, metrics


def _apart(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """(KL(p, q) + KL(q, p)) / 2 of both halves of a batch, over its symbols."""
    log_p, log_q = jnp.split(jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32))), 2)
    mask = mask[: len(log_p)]
    # Both divergences together are sum (p - q) (log p - log q).
    each = 0.5 * jnp.sum((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q), axis=-1)
    return jnp.sum(jnp.where(mask, each, 0)) / jnp.maximum(jnp.sum(mask), 1)


def measure_pairs(model: Seq2Seq, batch: Mapping[str, Any]) -> dict[str, Mean]:
    """Loss and accuracy per symbol of the targets, end symbols included."""
    logits, mask = _decoded(model, batch).logits, _mask(batch)
    return {
        "loss": cross_entropy(logits, batch["target"], mask),
        "token_accuracy": token_accuracy(logits.argmax(-1), batch["target"], mask),
    }


def nats_of_targets(model: Seq2Seq, batch: Mapping[str, Any]) -> Mean:
    """The loss of each target by itself: nats [B], and symbols [B]."""
    return jax.vmap(cross_entropy)(_decoded(model, batch).logits, batch["target"], _mask(batch))


def _decoded(model: Seq2Seq, batch: Mapping[str, Any], **options: Any) -> DecoderOutput:
    return model.decode(batch["source"], batch["source_lengths"], shift_right(batch["target"], START), **options)


def _hidden(ids: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Padding in the place of some: the one symbol that every kind has and no text holds, so that it has an embedding free."""
    return jnp.where(jax.random.bernoulli(key, rate, ids.shape), PAD, ids)


def _mask(batch: Mapping[str, Any]) -> jax.Array:
    return length_mask(batch["target_lengths"], batch["target"].shape[1])
