"""Encoder-decoder without attention, in its two classic forms.

`AutoregressiveDecoder` starts from the encoder's final state and reads the symbol before (Sutskever et al., arXiv 1409.3215);
`RepeatVectorDecoder` reads the encoder's final state at every step and no symbol at all (Keras' addition example).
"""

import functools
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from s2s_jax import cells
from s2s_jax.layers.keys import check_rngs, split_key
from s2s_jax.layers.recurrent import Recurrent
from s2s_jax.layers.regularization import Dropout
from s2s_jax.masks import check_ids, check_lengths, double_sequence, length_mask
from s2s_jax.sharding import varying_as
from s2s_jax.types import Cell, Context, DecoderOutput, DecoderStep, Params, State


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
      num_layers, dropout, recurrent_dropout: see `Recurrent`; `dropout` is also that of the embeddings.
      bidirectional: both directions; the final states of both are then summed up in the decoder's initial state.
      reverse_source: reads from the last valid symbol to the first (Sutskever et al., section 3.3).
      double_source: reads the source twice in a row (Zaremba & Sutskever, arXiv 1410.4615, section 3.3).
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
        reverse_source: bool = False,
        double_source: bool = False,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        if reverse_source and bidirectional:
            raise ValueError("reverse_source: expected False with bidirectional=True, which reads from both ends")
        _check_positive(vocabulary_size=vocabulary_size, embedding_features=embedding_features)
        check_rngs(rngs)
        self.double_source = double_source
        self.embedding = nnx.Embed(vocabulary_size, embedding_features, rngs=rngs)
        self.dropout = Dropout(dropout)
        self.recurrent = Recurrent(
            cell,
            embedding_features,
            hidden_features,
            num_layers=num_layers,
            bidirectional=bidirectional,
            reverse=reverse_source,
            merge="sum",
            dropout=dropout if num_layers > 1 else 0.0,
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
        if source.ndim != 2:
            raise ValueError(f"source: expected [B, S], got {source.shape}")
        if lengths is not None:
            lengths = check_lengths(lengths, *source.shape, name="source_lengths")
        mask = None if lengths is None else length_mask(lengths, source.shape[1])
        check_ids(source, self.embedding.num_embeddings, "source", mask)
        if self.double_source:
            source, lengths = double_sequence(source, lengths)
        key_embedding, key_recurrent = split_key(key)
        embedded = self.dropout(_embedded(self.embedding, source), key=key_embedding)
        outputs, states = self.recurrent(embedded, states, lengths=lengths, key=key_recurrent)
        return Encoded(outputs, states, lengths)


class StackOptions(TypedDict, total=False):
    """The options of a model over symbols that its recurrent stack takes; see `Recurrent`."""

    cell: Cell
    num_layers: int
    dropout: float
    recurrent_dropout: float


class _Decoder(nnx.Module):
    """What both forms end in: dropout, a recurrent stack and an output layer."""

    def __init__(
        self,
        vocabulary_size: int,
        in_features: int,
        hidden_features: int,
        *,
        rngs: nnx.Rngs,
        **options: Unpack[StackOptions],
    ):
        _check_positive(vocabulary_size=vocabulary_size)
        self.vocabulary_size = vocabulary_size
        recurrent: dict[str, Any] = {"cell": cells.lstm, **options}
        if options.get("num_layers", 1) == 1:
            recurrent.pop("dropout", None)  # there is nothing between layers
        self.dropout = Dropout(options.get("dropout", 0.0))
        self.recurrent = Recurrent(in_features=in_features, hidden_features=hidden_features, rngs=rngs, **recurrent)
        self.output = nnx.Linear(self.recurrent.out_features, vocabulary_size, rngs=rngs)

    def _check_tokens(self, state: State, tokens: Array) -> None:
        batch_size = jax.tree.leaves(state)[0].shape[0]
        if tokens.ndim != 2 or tokens.shape[0] != batch_size:
            raise ValueError(f"tokens: expected [{batch_size}, T], got {tokens.shape}")
        check_ids(tokens, self.vocabulary_size, "tokens")

    def _unfold(self, inputs: Float[Array, "B T F"], state: State, key: Array | None) -> DecoderOutput:
        keys = split_key(key, 3)
        hidden, state = self.recurrent(self.dropout(inputs, key=keys[0]), state, key=keys[1])
        return DecoderOutput(state, self.output(self.dropout(hidden, key=keys[2])), ())


class AutoregressiveDecoder(_Decoder):
    """Reads the symbol before, starting from the encoder's final states with the start symbol; no context.

    Arguments as those of `Encoder`; as many layers, hidden features and the same cell as the encoder whose states it takes.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_features: int,
        hidden_features: int,
        *,
        rngs: nnx.Rngs,
        **options: Unpack[StackOptions],
    ):
        _check_positive(vocabulary_size=vocabulary_size, embedding_features=embedding_features)
        check_rngs(rngs)
        self.embedding = nnx.Embed(vocabulary_size, embedding_features, rngs=rngs)
        super().__init__(vocabulary_size, embedding_features, hidden_features, rngs=rngs, **options)

    def start(self, encoded: Encoded) -> tuple[Context, State]:
        """Context and state before the first symbol: no context, and the encoder's final states, directions added up."""
        return None, tuple((jax.tree.map(lambda *h: sum(h), *directions),) for directions in encoded.states)

    def __call__(self, context: Context, state: State, tokens: Int[Array, "B T"], *, key: Array | None = None) -> DecoderOutput:
        """Logits [B, T, V] for the symbols after each of `tokens`; a key turns dropout on."""
        self._check_tokens(state, tokens)
        return self._unfold(_embedded(self.embedding, tokens), state, key)


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
        summary = functools.reduce(jnp.add, [_hidden(state) for state in encoded.states[-1]])
        summary = summary.astype(encoded.outputs.dtype)  # a state is kept in float32 where the computation is narrower
        return summary, self.recurrent.initial_states(summary.shape[0], summary.dtype)

    def __call__(self, context: Context, state: State, tokens: Int[Array, "B T"], *, key: Array | None = None) -> DecoderOutput:
        """Logits [B, T, V]; a key turns dropout on."""
        self._check_tokens(state, tokens)
        repeated = jnp.broadcast_to(context[:, None], (*tokens.shape, context.shape[-1]))
        return self._unfold(repeated, state, key)


class Seq2Seq(nnx.Module):
    """Encoder and decoder, trained together.

    ```python
    model = Seq2Seq(14, 14, embedding_features=32, hidden_features=128, rngs=nnx.Rngs(0))
    logits = model(source, source_lengths, target_inputs)
    ```

    Args:
      source_vocabulary_size, target_vocabulary_size: numbers of symbols, special ones included.
      embedding_features, hidden_features: E and H of both sides.
      decoder: "autoregressive" or "repeat_vector".
      cell, num_layers, dropout, recurrent_dropout: of both sides.
      bidirectional, reverse_source, double_source: of the encoder.
      rngs: key `params` draws the parameters.

    Raises:
      ValueError: an unknown decoder.
    """

    def __init__(
        self,
        source_vocabulary_size: int,
        target_vocabulary_size: int,
        *,
        embedding_features: int,
        hidden_features: int,
        decoder: str = "autoregressive",
        cell: Cell = cells.lstm,
        num_layers: int = 1,
        bidirectional: bool = False,
        reverse_source: bool = False,
        double_source: bool = False,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        shared: dict[str, Any] = {
            "cell": cell,
            "num_layers": num_layers,
            "dropout": dropout,
            "recurrent_dropout": recurrent_dropout,
            "rngs": rngs,
        }
        self.encoder = Encoder(
            source_vocabulary_size,
            embedding_features,
            hidden_features,
            bidirectional=bidirectional,
            reverse_source=reverse_source,
            double_source=double_source,
            **shared,
        )
        if decoder == "autoregressive":
            self.decoder = AutoregressiveDecoder(target_vocabulary_size, embedding_features, hidden_features, **shared)
        elif decoder == "repeat_vector":
            features = self.encoder.recurrent.out_features
            self.decoder = RepeatVectorDecoder(target_vocabulary_size, features, hidden_features, **shared)
        else:
            raise ValueError(f'decoder: expected "autoregressive" or "repeat_vector", got {decoder!r}')

    def start(
        self, source: Int[Array, "B S"], lengths: Int[Array, " B"] | None = None, *, key: Array | None = None
    ) -> tuple[Context, State]:
        """Reads the source and returns the decoder's context and its state before the first symbol."""
        return self.decoder.start(self.encoder(source, lengths, key=key))

    def __call__(
        self,
        source: Int[Array, "B S"],
        source_lengths: Int[Array, " B"] | None,
        target_inputs: Int[Array, "B T"],
        *,
        key: Array | None = None,
        teacher_forcing: float | Array = 1.0,
    ) -> Float[Array, "B T V"]:
        """Logits for the symbol after each of `target_inputs` (start symbol first).

        Args:
          source, source_lengths: symbols [B, S] and how many of each row are valid; None for all.
          target_inputs: the target shifted right by one.
          key: turns dropout on, and draws which inputs are the model's own when `teacher_forcing` is below 1.
          teacher_forcing: probability, for each row and step by itself, of reading the true symbol before; otherwise the
            model's most probable one is read (scheduled sampling, Bengio et al., arXiv 1506.03099). The decoder then goes
            step by step, and all its dropout masks are constant in time. A traced probability may change from step to step
            of the training without compiling anew.

        Raises:
          ValueError: `teacher_forcing` outside 0..1, or below 1 without a key.
        """
        if not isinstance(teacher_forcing, jax.Array):
            teacher_forcing = float(teacher_forcing)
        fixed = isinstance(teacher_forcing, float)
        if fixed and not 0 <= teacher_forcing <= 1:
            raise ValueError(f"teacher_forcing: expected a probability, got {teacher_forcing}")
        key_encoder, key_decoder, key_choice = split_key(key, 3)
        context, state = self.start(source, source_lengths, key=key_encoder)
        if (fixed and teacher_forcing == 1) or target_inputs.shape[1] == 0:
            return self.decoder(context, state, target_inputs, key=key_decoder).logits
        if key_decoder is None or key_choice is None:
            raise ValueError("key: expected one with teacher_forcing below 1, got None")
        truth = jax.random.bernoulli(key_choice, teacher_forcing, target_inputs.shape).at[:, :1].set(True)

        def advance(carry: tuple[State, Array], at: tuple[Array, Array]) -> tuple[tuple[State, Array], Array]:
            state, own = carry
            true_token, choose = at
            # The same key at each step, as the recurrent masks have to be constant in time.
            state, logits, _ = self.decoder(context, state, jnp.where(choose, true_token, own)[:, None], key=key_decoder)
            return (state, jnp.argmax(logits[:, 0], axis=-1).astype(own.dtype)), logits[:, 0]

        start = varying_as((state, target_inputs[:, 0]), (context, target_inputs))
        _, logits = jax.lax.scan(advance, start, (target_inputs.T, truth.T))
        return jnp.swapaxes(logits, 0, 1)


def decoder_step(model: Seq2Seq | nnx.Module) -> tuple[DecoderStep, Params]:
    """A model's decoder as a `DecoderStep` and the parameters that go with it, for `s2s_jax.decoding`.

    A step is the decoder's own call on a sequence of length one, so that search and training cannot differ. What has no
    part named `decoder` is taken for one itself, as a `LanguageModel` is.
    """
    graphdef, params = nnx.split(getattr(model, "decoder", model))
    return _step_of(graphdef), params


@functools.lru_cache(maxsize=64)  # one function for one structure, so that search compiles once for it
def _step_of(graphdef: nnx.GraphDef) -> DecoderStep:
    def step(params: Params, context: Context, state: State, tokens: Int[Array, " B"]) -> DecoderOutput:
        decoder = nnx.merge(graphdef, params, copy=True)
        state, logits, aux = decoder(context, state, tokens[:, None])
        return DecoderOutput(state, logits[:, 0], aux)

    return step


def _embedded(embedding: nnx.Embed, ids: Int[Array, "B T"]) -> Float[Array, "B T E"]:
    """In the dtype of the table: `nnx.Embed` itself would keep to the one that it was made with."""
    return jnp.take(embedding.embedding[...], ids, axis=0)


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: expected a positive number, got {size}")


def _hidden(state: State) -> Array:
    """What a state shows to the outside: `h` of an LSTM; the state itself where it is one array."""
    hidden = getattr(state, "h", state)
    if not isinstance(hidden, jax.Array):
        raise ValueError(f"cell: expected a state that is one array or has a field h, got {type(state).__name__}")
    return hidden
