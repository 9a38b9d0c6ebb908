"""Embedding and recurrent stack over source symbols, and what decoders take of it."""

from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from s2s_jax import cells
from s2s_jax.layers.keys import check_rngs, split_key
from s2s_jax.layers.recurrent import Recurrent, between_layers
from s2s_jax.layers.regularization import Dropout
from s2s_jax.masks import check_tokens, double_sequence
from s2s_jax.types import Cell, State


class Encoded(NamedTuple):
    """What a decoder starts from: `outputs` [B, S, F] and the final states, indexed by layer, then by direction."""

    outputs: Float[Array, "B S F"]
    states: Any
    lengths: Int[Array, " B"] | None


class Encoder(nnx.Module):
    """Embedding and recurrent stack over source symbols.

    Args:
      vocabulary_size, embedding_features, hidden_features: V, E, H.
      cell: of every layer.
      num_layers, dropout, input_dropout, recurrent_dropout: see `Recurrent`; `dropout` is also that of the embeddings.
      bidirectional: both directions; the final states of both are then summed up in the decoder's initial state.
      merge: of both directions' outputs, "sum" or another of `Recurrent`; an attention reads more in "concat".
      residual: see `Recurrent`.
      reverse_source: reads from the last valid symbol to the first (Sutskever et al., section 3.3).
      double_source: reads the source twice in a row (Zaremba & Sutskever, arXiv 1410.4615, section 3.3).
      output_dropout: rate on the outputs, for what reads them, an attention say.
      rngs: key `params` draws the parameters.

    Raises:
      ValueError: both `reverse_source` and `bidirectional`.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_features: int,
        hidden_features: int,
        *,
        cell: Cell = cells.lstm,
        num_layers: int = 1,
        bidirectional: bool = False,
        merge: str = "sum",
        residual: bool = False,
        reverse_source: bool = False,
        double_source: bool = False,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        output_dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        if reverse_source and bidirectional:
            raise ValueError("reverse_source: expected False with bidirectional=True, which reads from both ends")
        check_positive(vocabulary_size=vocabulary_size, embedding_features=embedding_features)
        check_rngs(rngs)
        self.double_source = double_source
        self.embedding = nnx.Embed(vocabulary_size, embedding_features, rngs=rngs)
        self.dropout = Dropout(dropout)
        self.output_dropout = Dropout(output_dropout)
        self.recurrent = Recurrent(
            cell,
            embedding_features,
            hidden_features,
            num_layers=num_layers,
            bidirectional=bidirectional,
            reverse=reverse_source,
            merge=merge,
            residual=residual,
            dropout=between_layers(dropout, num_layers),
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            rngs=rngs,
        )

    def __call__(
        self,
        source: Int[Array, "B S"],
        lengths: Int[Array, " B"] | None = None,
        states: State = None,
        *,
        key: Array | None = None,
    ) -> Encoded:
        """Encodes symbols [B, S], from `states` (as they are in `Encoded`) or from the cell's own; a key turns dropout on.

        Raises:
          ValueError: concrete ids outside the vocabulary; shapes that do not match.
        """
        lengths = check_tokens(source, lengths, self.embedding.num_embeddings, "source", "source_lengths")
        if self.double_source:
            source, lengths = double_sequence(source, lengths)
        key_embedding, key_recurrent = split_key(key)
        key_outputs = None if key is None else jax.random.fold_in(key, 2)  # beyond the two it is split into
        embedded = self.dropout(embed(self.embedding, source), key=key_embedding)
        outputs, states = self.recurrent(embedded, states, lengths=lengths, key=key_recurrent)
        return Encoded(self.output_dropout(outputs, key=key_outputs), states, lengths)


class StackOptions(TypedDict, total=False):
    """The options of a model over symbols that its recurrent stack takes; see `Recurrent`."""

    cell: Cell
    num_layers: int
    residual: bool
    dropout: float
    input_dropout: float
    recurrent_dropout: float


def embed(embedding: nnx.Embed, ids: Int[Array, "B T"]) -> Float[Array, "B T E"]:
    """In the dtype of the table: `nnx.Embed` itself would keep to the one that it was made with."""
    return jnp.take(embedding.embedding[...], ids, axis=0)


def check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: expected a positive number, got {size}")
