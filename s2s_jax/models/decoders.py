"""Decoders without attention, in their two classic forms.

`AutoregressiveDecoder` starts from the encoder's final state and reads the symbol before (Sutskever et al., arXiv 1409.3215);
`RepeatVectorDecoder` reads the encoder's final state at every step and no symbol at all (Keras' addition example).
"""

import functools
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from s2s_jax import cells
from s2s_jax.layers.keys import check_rngs, split_key
from s2s_jax.layers.recurrent import Recurrent, between_layers
from s2s_jax.layers.regularization import Dropout
from s2s_jax.masks import check_ids
from s2s_jax.models.encoder import Encoded, StackOptions, check_positive, embed
from s2s_jax.models.output import output_layer
from s2s_jax.types import Context, DecoderOutput, State


class _Decoder(nnx.Module):
    """What both forms end in: dropout, a recurrent stack and an output layer."""

    def __init__(
        self,
        vocabulary_size: int,
        in_features: int,
        hidden_features: int,
        *,
        tied_to: nnx.Embed | None = None,
        rngs: nnx.Rngs,
        **options: Unpack[StackOptions],
    ):
        check_positive(vocabulary_size=vocabulary_size)
        self.vocabulary_size = vocabulary_size
        dropout = options.get("dropout", 0.0)
        recurrent: dict[str, Any] = {"cell": cells.lstm, **options}
        recurrent["dropout"] = between_layers(dropout, options.get("num_layers", 1))
        self.dropout = Dropout(dropout)
        self.recurrent = Recurrent(in_features=in_features, hidden_features=hidden_features, rngs=rngs, **recurrent)
        self.output = output_layer(self.recurrent.out_features, vocabulary_size, tied_to, rngs)

    def initial_states(self, batch_size: int, dtype: Any) -> State:
        """The state that no encoder has filled in; see `Recurrent`."""
        return self.recurrent.initial_states(batch_size, dtype)

    def _unfold(self, inputs: Float[Array, "B T F"], state: State, key: Array | None) -> DecoderOutput:
        keys = split_key(key, 3)
        hidden, state = self.recurrent(self.dropout(inputs, key=keys[0]), state, key=keys[1])
        return DecoderOutput(state, self.output(self.dropout(hidden, key=keys[2])), ())


class AutoregressiveDecoder(_Decoder):
    """Reads the symbol before, starting from the encoder's final states with the start symbol; no context.

    Arguments as those of `Encoder`; as many layers, hidden features and the same cell as the encoder whose states it takes.
    `embedding` is that of the encoder, to share its table; with `tied_embeddings` the table is the output matrix too.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_features: int,
        hidden_features: int,
        *,
        embedding: nnx.Embed | None = None,
        tied_embeddings: bool = False,
        rngs: nnx.Rngs,
        **options: Unpack[StackOptions],
    ):
        check_positive(vocabulary_size=vocabulary_size, embedding_features=embedding_features)
        check_rngs(rngs)
        self.embedding = nnx.Embed(vocabulary_size, embedding_features, rngs=rngs) if embedding is None else embedding
        tied = self.embedding if tied_embeddings else None
        super().__init__(vocabulary_size, embedding_features, hidden_features, tied_to=tied, rngs=rngs, **options)

    def start(self, encoded: Encoded) -> tuple[Context, State]:
        """Context and state before the first symbol: no context, and the encoder's final states, directions added up."""
        return None, added_up(encoded.states)

    def __call__(self, context: Context, state: State, tokens: Int[Array, "B T"], *, key: Array | None = None) -> DecoderOutput:
        """Logits [B, T, V] for the symbols after each of `tokens`; a key turns dropout on."""
        check_step_tokens(state, tokens, self.vocabulary_size)
        return self._unfold(embed(self.embedding, tokens), state, key)


class RepeatVectorDecoder(_Decoder):
    """Reads the encoder's final hidden state anew at each step, from a state of zeros. The tokens only say how many steps.

    Arguments as those of `AutoregressiveDecoder`; `in_features` is the width of that state: the encoder's cell must have one
    array as its state, or a field `h`.
    """

    def start(self, encoded: Encoded) -> tuple[Context, State]:
        """Context, the hidden state of the encoder's last layer [B, H] (directions added up), and a state of zeros.

        Raises:
          ValueError: the encoder's cell has neither one array as its state nor a field `h`.
        """
        summary = functools.reduce(jnp.add, [hidden_of(state) for state in encoded.states[-1]])
        summary = summary.astype(encoded.outputs.dtype)  # a state is kept in float32 where the computation is narrower
        return summary, self.recurrent.initial_states(summary.shape[0], summary.dtype)

    def __call__(self, context: Context, state: State, tokens: Int[Array, "B T"], *, key: Array | None = None) -> DecoderOutput:
        """Logits [B, T, V]; a key turns dropout on."""
        check_step_tokens(state, tokens, self.vocabulary_size)
        repeated = jnp.broadcast_to(context[:, None], (*tokens.shape, context.shape[-1]))
        return self._unfold(repeated, state, key)


def added_up(states: Any) -> State:
    """States of layers and directions, the directions added up: one a layer."""
    return tuple((jax.tree.map(lambda *h: sum(h), *directions),) for directions in states)


def check_step_tokens(state: State, tokens: Array, vocabulary_size: int) -> None:
    """Raises where symbols do not go with a state."""
    batch_size = jax.tree.leaves(state)[0].shape[0]
    if tokens.ndim != 2 or tokens.shape[0] != batch_size:
        raise ValueError(f"tokens: expected [{batch_size}, T], got {tokens.shape}")
    check_ids(tokens, vocabulary_size, "tokens")


def hidden_of(state: State) -> Any:
    """What a state shows to the outside: `h` of an LSTM; the state itself where it is one array."""
    hidden = getattr(state, "h", state)
    if not isinstance(hidden, jax.Array | jax.ShapeDtypeStruct):
        raise ValueError(f"cell: expected a state that is one array or has a field h, got {type(state).__name__}")
    return hidden
