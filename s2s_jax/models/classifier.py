"""One label for a whole sequence."""

from typing import Unpack

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from s2s_jax import cells
from s2s_jax.layers.keys import split_key
from s2s_jax.layers.recurrent import Recurrent, between_layers
from s2s_jax.layers.regularization import Dropout
from s2s_jax.masks import check_lengths, length_mask
from s2s_jax.models.encoder import Encoder, StackOptions
from s2s_jax.types import Cell


class SequenceClassifier(nnx.Module):
    """Recurrent stack over [B, T, D], pooled over time, and one linear layer: logits [B, classes].

    Args:
      in_features, hidden_features, classes: D, H and the number of labels.
      cell, num_layers, bidirectional, dropout, input_dropout, recurrent_dropout: see `Recurrent`; `dropout` also acts on
        what is pooled.
      pooling: "last", the output at the last valid step (of the backward direction: at the first), or "mean" or "max" over
        the valid steps.
      rngs: key `params` draws the parameters.

    Raises:
      ValueError: an unknown pooling, or a size that is not positive.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        classes: int,
        *,
        cell: Cell = cells.lstm,
        num_layers: int = 1,
        bidirectional: bool = False,
        pooling: str = "last",
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        check_classifier(classes, pooling)
        self.pooling = pooling
        self.recurrent = Recurrent(
            cell,
            in_features,
            hidden_features,
            num_layers=num_layers,
            bidirectional=bidirectional,
            dropout=between_layers(dropout, num_layers),
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            rngs=rngs,
        )
        self.dropout = Dropout(dropout)
        self.output = nnx.Linear(self.recurrent.out_features, classes, rngs=rngs)

    def __call__(
        self, xs: Float[Array, "B T D"], lengths: Int[Array, " B"] | None = None, *, key: Array | None = None
    ) -> Float[Array, "B classes"]:
        """Logits of each class; a key turns dropout on. A sequence of length 0 gives the bias of the last layer."""
        if xs.ndim != 3:
            raise ValueError(f"xs: expected [B, T, {self.recurrent.in_features[0]}], got {xs.shape}")
        if lengths is not None:
            lengths = check_lengths(lengths, xs.shape[0], xs.shape[1])
        key_recurrent, key_pooled = split_key(key)
        outputs, _ = self.recurrent(xs, lengths=lengths, key=key_recurrent)
        x = pooled(outputs, lengths, self.pooling, self.recurrent)
        return self.output(self.dropout(x, key=key_pooled))


class TextClassifier(nnx.Module):
    """`Encoder` over symbols [B, T], pooled over time, and one linear layer: logits [B, classes].

    The encoder is that of a `LanguageModel` of the same sizes, so that its weights can come from there (Dai & Le,
    arXiv 1511.01432).

    Args:
      vocabulary_size, embedding_features, hidden_features, classes: V, E, H and the number of labels.
      bidirectional: both directions, their outputs side by side; no language model has an encoder of that kind.
      pooling: "last", "mean" or "max"; see `SequenceClassifier`.
      rngs: key `params` draws the parameters.
      options: cell, num_layers, residual, dropout, input_dropout, recurrent_dropout: see `Encoder`; `dropout` also acts on
        what is pooled.

    Raises:
      ValueError: an unknown pooling, or a size that is not positive.
    """

    def __init__(
        self,
        vocabulary_size: int,
        classes: int,
        *,
        embedding_features: int,
        hidden_features: int,
        bidirectional: bool = False,
        pooling: str = "last",
        rngs: nnx.Rngs,
        **options: Unpack[StackOptions],
    ):
        check_classifier(classes, pooling)
        self.pooling = pooling
        sizes = (vocabulary_size, embedding_features, hidden_features)
        self.encoder = Encoder(*sizes, bidirectional=bidirectional, merge="concat", rngs=rngs, **options)
        self.dropout = Dropout(options.get("dropout", 0.0))
        self.output = nnx.Linear(self.encoder.recurrent.out_features, classes, rngs=rngs)

    def __call__(
        self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"] | None = None, *, key: Array | None = None
    ) -> Float[Array, "B classes"]:
        """Logits of each class; a key turns dropout on. A text of length 0 gives the bias of the last layer."""
        key_encoder, key_pooled = split_key(key)
        encoded = self.encoder(tokens, lengths, key=key_encoder)
        x = pooled(encoded.outputs, encoded.lengths, self.pooling, self.encoder.recurrent)
        return self.output(self.dropout(x, key=key_pooled))


def check_classifier(classes: int, pooling: str) -> None:
    if classes < 1:
        raise ValueError(f"classes: expected a positive number, got {classes}")
    if pooling not in ("last", "mean", "max"):
        raise ValueError(f'pooling: expected "last", "mean" or "max", got {pooling!r}')


def pooled(outputs: Array, lengths: Array | None, pooling: str, recurrent: Recurrent) -> Array:
    """One vector for each row of what `recurrent` gave; a row without any valid position gives zeros."""
    batch_size, time = outputs.shape[:2]
    if pooling == "mean":
        total = jnp.sum(outputs, axis=1, dtype=jnp.promote_types(outputs.dtype, jnp.float32))
        counts = time if lengths is None else lengths[:, None]
        return (total / jnp.maximum(counts, 1)).astype(outputs.dtype)
    valid = length_mask(jnp.full(batch_size, time) if lengths is None else lengths, time)
    if pooling == "max":
        # By its place: the gradient of `jnp.max` divides by how many equal the greatest, which may be none where XLA computes
        # the outputs once more. A last position that is never valid lets T be 0.
        ranked = jnp.pad(jnp.where(valid[..., None], outputs, -jnp.inf), ((0, 0), (0, 1), (0, 0)), constant_values=-jnp.inf)
        most = jnp.take_along_axis(ranked, jnp.argmax(ranked, axis=1, keepdims=True), axis=1)[:, 0]
        return jnp.where(jnp.any(valid, axis=1, keepdims=True), most, 0)
    features = recurrent.step_features
    last = valid & ~jnp.pad(valid[:, 1:], ((0, 0), (0, 1)))
    forward = jnp.sum(outputs[..., :features] * last[..., None], axis=1)
    if len(recurrent.directions) == 1:
        return forward
    first = valid & (jnp.arange(time) == 0)
    return jnp.concatenate([forward, jnp.sum(outputs[..., features:] * first[..., None], axis=1)], axis=-1)
