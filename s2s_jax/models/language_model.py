"""The probability of each symbol of a text, given those before it."""

from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from s2s_jax.layers.keys import split_key
from s2s_jax.layers.regularization import Dropout
from s2s_jax.models.encoder import Encoder, StackOptions
from s2s_jax.types import Context, DecoderOutput, State


class LanguageModel(nnx.Module):
    """Embedding, recurrent stack and output layer over one sequence of symbols (Mikolov et al. 2010).

    It is called as a decoder is, without a context, so that `s2s_jax.models.decoder_step` and `s2s_jax.decoding` take it. Its
    `encoder` can go on in another model, `--init-from RUN --init-parts encoder`.

    ```python
    model = LanguageModel(259, embedding_features=32, hidden_features=256, rngs=nnx.Rngs(0))
    state, logits, _ = model(None, model.initial_states(batch_size), tokens)  # logits of the symbol after each token
    ```

    Args:
      vocabulary_size, embedding_features, hidden_features: V, E, H.
      rngs: key `params` draws the parameters.
      options: cell, num_layers, residual, dropout, input_dropout, recurrent_dropout: see `Encoder`; `dropout` also acts
        before the output layer.
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        embedding_features: int,
        hidden_features: int,
        rngs: nnx.Rngs,
        **options: Unpack[StackOptions],
    ):
        self.encoder = Encoder(vocabulary_size, embedding_features, hidden_features, rngs=rngs, **options)
        self.dropout = Dropout(options.get("dropout", 0.0))
        self.output = nnx.Linear(self.encoder.recurrent.out_features, vocabulary_size, rngs=rngs)

    def initial_states(self, batch_size: int, dtype: Any = jnp.float32) -> State:
        """The state before the first symbol."""
        return self.encoder.recurrent.initial_states(batch_size, dtype)

    def __call__(self, context: Context, state: State, tokens: Int[Array, "B T"], *, key: Array | None = None) -> DecoderOutput:
        """The state after `tokens`, and logits [B, T, V] for the symbol after each of them; a key turns dropout on.

        Padding stands on the right, where no logits before it can see it; the state has seen it, though.

        Args:
          context: None; a language model has none.
          state: from `initial_states`, or of the call on the symbols before.
          tokens: symbols [B, T].
          key: of the dropout masks.

        Raises:
          ValueError: concrete ids outside the vocabulary, or a context.
        """
        if context is not None:
            raise ValueError(f"context: expected None in a language model, got {jax.tree.map(jnp.shape, context)}")
        key_encoder, key_output = split_key(key)
        outputs, states, _ = self.encoder(tokens, None, state, key=key_encoder)
        return DecoderOutput(states, self.output(self.dropout(outputs, key=key_output)), ())
