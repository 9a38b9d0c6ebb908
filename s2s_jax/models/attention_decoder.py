"""Decoder with attention (Luong et al., arXiv 1508.04025; the arrangement in layers of Wu et al., arXiv 1609.08144)."""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from s2s_jax import attention as attentions
from s2s_jax import cells
from s2s_jax.attention import Memory
from s2s_jax.layers.attention import Attention
from s2s_jax.layers.keys import check_rngs, split_key
from s2s_jax.layers.recurrent import Recurrent, between_layers
from s2s_jax.layers.regularization import Dropout
from s2s_jax.models.decoders import added_up, check_step_tokens
from s2s_jax.models.encoder import Encoded, StackOptions, check_positive, embed
from s2s_jax.models.output import output_layer
from s2s_jax.sharding import varying_as
from s2s_jax.types import DecoderOutput

QUERY_LAYERS = ("last", "first")


class AttentionState(NamedTuple):
    """What a step hands to the next.

    `below` and `above` are the states of the layers that make the query and of those that read the context; `attentional` is
    a_t, and () where it is not fed back; `seen` is what the attention itself remembers.
    """

    below: Any
    above: Any
    attentional: Any
    seen: Any


class AttentionDecoder(nnx.Module):
    """Reads the symbol before, and at each step the source positions that fit its state:

        h_t = recurrent(embedding(y_t-1), h_t-1)          with input feeding: recurrent([embedding(y_t-1); a_t-1], h_t-1)
        c_t = sum_s alpha_ts m_s                          the attention's context for the query h_t
        a_t = tanh(W_c [h_t; c_t])
        logits_t = W_s a_t + b

    It gives the weights alpha [B, T, S] as `aux`. Without input feeding nothing but the recurrence goes step by step: the
    attention and the output layer take all target steps at once. With it, `dropout` draws one mask for all steps where it acts
    between layers; on embeddings and before the output layer, which stay outside of the loop, it still draws one for each
    position.

    Args:
      vocabulary_size, embedding_features, hidden_features: V, E, H.
      memory_features: F, how wide the encoder's outputs are.
      attention: from `s2s_jax.attention`, or your own.
      input_feeding: whether a_t is read with the next symbol (section 3.3).
      query_layer: "last", the top layer's output is the query; or "first", the bottom layer's, and the layers above read the
        context too (Wu et al., section 3), which lets the context into the recurrence without input feeding.
      embedding: that of the encoder, to share its table; None for its own.
      tied_embeddings: the table of the embedding is the output matrix too (Press & Wolf, arXiv 1608.05859). a_t is as wide
        as the embedding then, else H.
      options: cell, num_layers, residual, dropout, input_dropout, recurrent_dropout: see `Recurrent`. `dropout` also acts on
        embeddings, on what goes from the layers below to those above, and before the output layer.
      rngs: key `params` draws the parameters.

    Raises:
      ValueError: a size or an option out of its range; query_layer "first" with fewer than two layers.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_features: int,
        hidden_features: int,
        *,
        memory_features: int,
        attention: attentions.Attention = attentions.general,
        input_feeding: bool = False,
        query_layer: str = "last",
        embedding: nnx.Embed | None = None,
        tied_embeddings: bool = False,
        rngs: nnx.Rngs,
        **options: Unpack[StackOptions],
    ):
        check_positive(vocabulary_size=vocabulary_size, embedding_features=embedding_features)
        check_rngs(rngs)
        if query_layer not in QUERY_LAYERS:
            raise ValueError(f"query_layer: expected one of {', '.join(QUERY_LAYERS)}, got {query_layer!r}")
        recurrent: dict[str, Any] = {"cell": cells.lstm, "hidden_features": hidden_features, "rngs": rngs, **options}
        num_layers = recurrent.pop("num_layers", 1)
        if query_layer == "first" and num_layers < 2:
            raise ValueError(f'num_layers: expected at least 2 with query_layer="first", got {num_layers}')
        below, above = (1, num_layers - 1) if query_layer == "first" else (num_layers, 0)
        attentional_features = embedding_features if tied_embeddings else hidden_features
        self.vocabulary_size = vocabulary_size
        self.input_feeding = input_feeding
        self.embedding = nnx.Embed(vocabulary_size, embedding_features, rngs=rngs) if embedding is None else embedding
        self.dropout = Dropout(options.get("dropout", 0.0))
        in_features = embedding_features + (attentional_features if input_feeding else 0)
        self.below = _stack(in_features, below, recurrent)
        self.attention = Attention(attention, self.below.out_features, memory_features, hidden_features, rngs=rngs)
        features = self.below.out_features + self.attention.out_features
        self.above = _stack(features, above, recurrent) if above else None
        if self.above is not None:
            features = self.above.out_features + self.attention.out_features
        self.combine = nnx.Linear(features, attentional_features, use_bias=False, rngs=rngs)
        tied = self.embedding if tied_embeddings else None
        self.output = output_layer(attentional_features, vocabulary_size, tied, rngs)

    def initial_states(self, batch_size: int, dtype: Any) -> Any:
        """The states of all layers that no encoder has filled in; see `Recurrent`."""
        above = () if self.above is None else self.above.initial_states(batch_size, dtype)
        return self.below.initial_states(batch_size, dtype) + above

    def start(self, encoded: Encoded) -> tuple[Memory, AttentionState]:
        """Context, the attention's memory of the encoder's outputs, and the state before the first symbol.

        The layers start from the encoder's final states, directions added up; see `s2s_jax.models.Bridge` for others.
        """
        memory = self.attention.prepare(encoded.outputs, encoded.lengths)
        states = added_up(encoded.states)
        layers = len(self.below.layers)
        attentional: Any = ()
        if self.input_feeding:
            dtype = jnp.promote_types(encoded.outputs.dtype, jnp.float32)
            attentional = varying_as(jnp.zeros((len(encoded.outputs), self.combine.out_features), dtype), encoded.outputs)
        above = () if self.above is None else states[layers:]
        return memory, AttentionState(
            states[:layers], above, attentional, attentions.nothing_seen(self.attention.attention, memory)
        )

    def __call__(
        self, context: Memory, state: AttentionState, tokens: Int[Array, "B T"], *, key: Array | None = None
    ) -> DecoderOutput:
        """Logits [B, T, V] for the symbols after each of `tokens`, and the weights [B, T, S]; a key turns dropout on."""
        check_step_tokens(state, tokens, self.vocabulary_size)
        keys = split_key(key, 5)
        embedded = self.dropout(embed(self.embedding, tokens), key=keys[0])
        if not self.input_feeding or tokens.shape[1] == 0:
            state, (attentional, weights) = self._advance(context, state, embedded, keys)
        elif tokens.shape[1] == 1:  # a step of the search: no loop to set up
            state, (attentional, weights) = self._fed(context, state, embedded, keys)
        else:

            def advance(state: AttentionState, x: Array) -> tuple[AttentionState, tuple[Array, Array]]:
                state, done = self._fed(context, state, x[:, None], keys)
                return state, jax.tree.map(lambda y: y[:, 0], done)

            state = varying_as(state, (context, embedded))
            state, done = jax.lax.scan(advance, state, jnp.swapaxes(embedded, 0, 1))
            attentional, weights = jax.tree.map(lambda y: jnp.swapaxes(y, 0, 1), done)
        return DecoderOutput(state, self.output(self.dropout(attentional, key=keys[4])), weights)

    def _fed(
        self, memory: Memory, state: AttentionState, embedded: Float[Array, "B 1 E"], keys: Any
    ) -> tuple[AttentionState, tuple[Array, Array]]:
        fed = jnp.concatenate([embedded, state.attentional[:, None].astype(embedded.dtype)], axis=-1)
        new, (attentional, weights) = self._advance(memory, state, fed, keys)
        return new._replace(attentional=attentional[:, 0].astype(state.attentional.dtype)), (attentional, weights)

    def _advance(
        self, memory: Memory, state: AttentionState, inputs: Float[Array, "B T F"], keys: Any
    ) -> tuple[AttentionState, tuple[Array, Array]]:
        """The new state, and a_t and alpha_t for all of `inputs`."""
        hidden, below = self.below(inputs, state.below, key=keys[1])
        read, weights, seen = self.attention(memory, hidden, state.seen)
        above = state.above
        if self.above is not None:
            joined = jnp.concatenate([self.dropout(hidden, key=keys[2]), read], axis=-1)
            hidden, above = self.above(joined, above, key=keys[3])
        attentional = jnp.tanh(self.combine(jnp.concatenate([hidden, read], axis=-1)))
        return state._replace(below=below, above=above, seen=seen), (attentional, weights)


def _stack(in_features: int, num_layers: int, options: dict[str, Any]) -> Recurrent:
    options = {**options, "dropout": between_layers(options.get("dropout", 0.0), num_layers)}
    return Recurrent(in_features=in_features, num_layers=num_layers, **options)
