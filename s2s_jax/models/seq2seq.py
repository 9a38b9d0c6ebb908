"""Encoder and decoder trained together, and the decoder as one pure step for search."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from s2s_jax import attention as attentions
from s2s_jax import cells
from s2s_jax.layers.keys import check_rngs, split_key
from s2s_jax.models.attention_decoder import AttentionDecoder
from s2s_jax.models.bridge import Bridge
from s2s_jax.models.decoders import AutoregressiveDecoder, RepeatVectorDecoder
from s2s_jax.models.encoder import Encoder
from s2s_jax.sharding import varying_as
from s2s_jax.types import Cell, Context, DecoderOutput, DecoderStep, Params, State

DECODERS = ("autoregressive", "repeat_vector", "attention")


class Seq2Seq(nnx.Module):
    """Encoder and decoder, trained together.

    ```python
    model = Seq2Seq(14, 14, embedding_features=32, hidden_features=128, rngs=nnx.Rngs(0))
    logits = model(source, source_lengths, target_inputs)
    ```

    Args:
      source_vocabulary_size, target_vocabulary_size: numbers of symbols, special ones included.
      embedding_features, hidden_features: E and H of both sides.
      decoder: "autoregressive", "repeat_vector" or "attention".
      cell, num_layers, residual, dropout, input_dropout, recurrent_dropout: of both sides; see `Encoder`.
      bidirectional, reverse_source, double_source: of the encoder.
      merge: of both directions' outputs, see `Encoder`; None: "concat" for an attention, else "sum". A dot product without
        parameters needs "sum".
      bridge: what the decoder starts from; see `Bridge`. The repeat-vector decoder reads the last state instead.
      attention, input_feeding, query_layer: of the decoder with attention; see `AttentionDecoder`.
      shared_embeddings: one table for source and target, which must have one vocabulary.
      tied_embeddings: the target's table is the output matrix too.
      rngs: key `params` draws the parameters.

    Raises:
      ValueError: an unknown decoder, an option that it does not have, or shared embeddings of two vocabularies.
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
        residual: bool = False,
        bidirectional: bool = False,
        reverse_source: bool = False,
        double_source: bool = False,
        merge: str | None = None,
        bridge: str = "last",
        attention: attentions.Attention | None = None,
        input_feeding: bool = False,
        query_layer: str = "last",
        shared_embeddings: bool = False,
        tied_embeddings: bool = False,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        if decoder not in DECODERS:
            raise ValueError(f"decoder: expected one of {', '.join(DECODERS)}, got {decoder!r}")
        self.attends = attends = decoder == "attention"
        for name, asked, known in (
            ("attention", attention is not None, attends),
            ("input_feeding", input_feeding, attends),
            ("query_layer", query_layer != "last", attends),
            ("bridge", bridge != "last", decoder != "repeat_vector"),
            ("shared_embeddings", shared_embeddings, decoder != "repeat_vector"),
            ("tied_embeddings", tied_embeddings, decoder != "repeat_vector"),
        ):
            if asked and not known:
                raise ValueError(f"{name}: expected none with the decoder {decoder!r}, which does not have it")
        if shared_embeddings and source_vocabulary_size != target_vocabulary_size:
            sizes = f"{source_vocabulary_size} and {target_vocabulary_size}"
            raise ValueError(f"shared_embeddings: expected one vocabulary, got two of {sizes} symbols")
        stack: dict[str, Any] = {
            "cell": cell,
            "num_layers": num_layers,
            "residual": residual,
            "dropout": dropout,
            "input_dropout": input_dropout,
            "recurrent_dropout": recurrent_dropout,
            "rngs": rngs,
        }
        self.encoder = Encoder(
            source_vocabulary_size,
            embedding_features,
            hidden_features,
            bidirectional=bidirectional,
            merge=("concat" if attends else "sum") if merge is None else merge,
            reverse_source=reverse_source,
            double_source=double_source,
            output_dropout=dropout if attends else 0.0,
            **stack,
        )
        sizes = target_vocabulary_size, embedding_features, hidden_features
        if decoder == "repeat_vector":
            features = self.encoder.recurrent.out_features
            self.decoder = RepeatVectorDecoder(target_vocabulary_size, features, hidden_features, **stack)
            self.bridge = None
            return
        tables: dict[str, Any] = {
            "embedding": self.encoder.embedding if shared_embeddings else None,
            "tied_embeddings": tied_embeddings,
        }
        if attends:
            self.decoder = AttentionDecoder(
                *sizes,
                memory_features=self.encoder.recurrent.out_features,
                attention=attentions.general if attention is None else attention,
                input_feeding=input_feeding,
                query_layer=query_layer,
                **tables,
                **stack,
            )
        else:
            self.decoder = AutoregressiveDecoder(*sizes, **tables, **stack)
        self.bridge = Bridge(bridge, self.encoder.recurrent, self.decoder, rngs=rngs)

    def start(
        self, source: Int[Array, "B S"], lengths: Int[Array, " B"] | None = None, *, key: Array | None = None
    ) -> tuple[Context, State]:
        """Reads the source and returns the decoder's context and its state before the first symbol."""
        encoded = self.encoder(source, lengths, key=key)
        return self.decoder.start(encoded if self.bridge is None else self.bridge(encoded, self.decoder))

    def __call__(
        self,
        source: Int[Array, "B S"],
        source_lengths: Int[Array, " B"] | None,
        target_inputs: Int[Array, "B T"],
        *,
        key: Array | None = None,
        teacher_forcing: float | Array = 1.0,
    ) -> Float[Array, "B T V"]:
        """Logits for the symbol after each of `target_inputs` (start symbol first); see `decode`."""
        return self.decode(source, source_lengths, target_inputs, key=key, teacher_forcing=teacher_forcing).logits

    def decode(
        self,
        source: Int[Array, "B S"],
        source_lengths: Int[Array, " B"] | None,
        target_inputs: Int[Array, "B T"],
        *,
        key: Array | None = None,
        teacher_forcing: float | Array = 1.0,
    ) -> DecoderOutput:
        """What the decoder gives for `target_inputs`: state, logits [B, T, V], and as `aux` any attention weights [B, T, S].

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
        if not isinstance(teacher_forcing, jax.core.Tracer):
            teacher_forcing = float(teacher_forcing)
        fixed = isinstance(teacher_forcing, float)
        if fixed and not 0 <= teacher_forcing <= 1:
            raise ValueError(f"teacher_forcing: expected a probability, got {teacher_forcing}")
        key_encoder, key_decoder, key_choice = split_key(key, 3)
        context, state = self.start(source, source_lengths, key=key_encoder)
        if (fixed and teacher_forcing == 1) or target_inputs.shape[1] == 0:
            return self.decoder(context, state, target_inputs, key=key_decoder)
        if key_decoder is None or key_choice is None:
            raise ValueError("key: expected one with teacher_forcing below 1, got None")
        truth = jax.random.bernoulli(key_choice, teacher_forcing, target_inputs.shape).at[:, :1].set(True)

        def advance(carry: tuple[State, Array], at: tuple[Array, Array]) -> tuple[tuple[State, Array], tuple[Array, Any]]:
            state, own = carry
            true_token, choose = at
            # The same key at each step, as the recurrent masks have to be constant in time.
            state, *said = self.decoder(context, state, jnp.where(choose, true_token, own)[:, None], key=key_decoder)
            logits, aux = jax.tree.map(lambda leaf: leaf[:, 0], tuple(said))
            return (state, jnp.argmax(logits, axis=-1).astype(own.dtype)), (logits, aux)

        start = varying_as((state, target_inputs[:, 0]), (context, target_inputs))
        (state, _), said = jax.lax.scan(advance, start, (target_inputs.T, truth.T))
        return DecoderOutput(state, *jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), said))


def decoder_step(model: Seq2Seq | nnx.Module) -> tuple[DecoderStep, Params]:
    """A model's decoder as a `DecoderStep` and the parameters that go with it, for `s2s_jax.decoding`.

    A step is the decoder's own call on a sequence of length one, so that search and training cannot differ. What has no
    part named `decoder` is taken for one itself, as a `LanguageModel` is.
    """
    graphdef, params = nnx.split(getattr(model, "decoder", model))
    return _step_of(graphdef), params


def attention_of(aux: Any) -> Any:
    """The attention weights in what the step of a decoder with attention tells beside its logits: all of it.

    A function of its own, as a search is compiled for the very function that it is given.
    """
    return aux


@functools.lru_cache(maxsize=64)  # one function for one structure, so that search compiles once for it
def _step_of(graphdef: nnx.GraphDef) -> DecoderStep:
    def step(params: Params, context: Context, state: State, tokens: Int[Array, " B"]) -> DecoderOutput:
        decoder = nnx.merge(graphdef, params, copy=True)
        state, logits, aux = decoder(context, state, tokens[:, None])
        return DecoderOutput(state, logits[:, 0], jax.tree.map(lambda leaf: leaf[:, 0], aux))

    return step
