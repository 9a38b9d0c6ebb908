"""From pictures of writing to symbols: convolutions, the columns as a sequence, and a recurrent stack along them."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from s2s_jax import attention as attentions
from s2s_jax import cells
from s2s_jax.layers.convolution import Backbone, Maps
from s2s_jax.layers.keys import check_rngs, split_key
from s2s_jax.layers.recurrent import Recurrent, between_layers
from s2s_jax.layers.regularization import Dropout
from s2s_jax.models.attention_decoder import AttentionDecoder
from s2s_jax.models.bridge import Bridge
from s2s_jax.models.encoder import Encoded
from s2s_jax.types import Cell, Context, State


class Frames(NamedTuple):
    """Logits of each frame, and how many frames of each row are valid."""

    logits: Float[Array, "B T V"]
    lengths: Int[Array, " B"]


class ColumnEncoder(nnx.Module):
    """A backbone, each column of its maps as one frame, and a recurrent stack along the frames, in both directions.

    Args:
      height, in_features: rows and channels of the pictures.
      backbone: see `s2s_jax.layers.Backbone`.
      hidden_features, cell, num_layers: of the stack.
      dropout: rate on the columns, between layers and on the outputs.
      rngs: key `params` draws the parameters.

    Raises:
      ValueError: pictures so low that nothing is left of them.
    """

    def __init__(
        self,
        backbone: Backbone,
        height: int,
        hidden_features: int,
        *,
        cell: Cell = cells.lstm,
        num_layers: int = 2,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        rows, _ = backbone.reduced(height, 0)
        if rows < 1:
            raise ValueError(f"height: expected one of which rows are left behind the backbone, got {height}")
        self.height = height
        self.backbone = backbone
        self.dropout = Dropout(dropout)
        self.recurrent = Recurrent(
            cell,
            rows * backbone.out_features,
            hidden_features,
            num_layers=num_layers,
            bidirectional=True,
            dropout=between_layers(dropout, num_layers),
            rngs=rngs,
        )

    def __call__(
        self,
        pictures: Float[Array, "B H W C"],
        widths: Int[Array, " B"] | None = None,
        *,
        training: bool = False,
        key: Array | None = None,
    ) -> Encoded:
        """Outputs [B, T, 2H] of T frames, the final states, and how many frames of each row are valid."""
        if pictures.ndim != 4 or pictures.shape[1] != self.height:
            raise ValueError(f"pictures: expected [B, {self.height}, W, {self.backbone.in_features}], got {pictures.shape}")
        keys = split_key(key, 4)
        maps = self.backbone(pictures, widths, training=training, key=keys[0])
        frames = self.dropout(columns(maps), key=keys[1])
        lengths = jnp.full(len(frames), frames.shape[1], jnp.int32) if maps.widths is None else maps.widths
        outputs, states = self.recurrent(frames, lengths=lengths, key=keys[2])
        return Encoded(self.dropout(outputs, key=keys[3]), states, lengths)


class CRNN(nnx.Module):
    """Frames of columns and, for each, logits of the symbols and the blank, for CTC (Shi et al., arXiv 1507.05717).

    ```python
    backbone = Backbone(1, rngs=nnx.Rngs(0))
    model = CRNN(backbone, height=48, hidden_features=128, vocabulary_size=80, rngs=nnx.Rngs(1))
    logits, lengths = model(pictures, widths)
    nats, fits = ctc_loss(logits, lengths, labels, label_lengths)
    ```

    Args:
      vocabulary_size: V, the blank included.
      backbone, height, hidden_features, cell, num_layers, dropout: see `ColumnEncoder`.
      rngs: key `params` draws the parameters.
    """

    def __init__(
        self,
        backbone: Backbone,
        height: int,
        hidden_features: int,
        vocabulary_size: int,
        *,
        cell: Cell = cells.lstm,
        num_layers: int = 2,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        options = {"cell": cell, "num_layers": num_layers, "dropout": dropout, "rngs": rngs}
        self.encoder = ColumnEncoder(backbone, height, hidden_features, **options)
        self.output = nnx.Linear(self.encoder.recurrent.out_features, vocabulary_size, rngs=rngs)

    def __call__(
        self,
        pictures: Float[Array, "B H W C"],
        widths: Int[Array, " B"] | None = None,
        *,
        training: bool = False,
        key: Array | None = None,
    ) -> Frames:
        """Logits of pictures, what stands behind their widths unread; see `Backbone` for the arguments."""
        outputs, _, lengths = self.encoder(pictures, widths, training=training, key=key)
        assert lengths is not None
        return Frames(self.output(outputs), lengths)


def columns(maps: Maps) -> Float[Array, "B W F"]:
    """Each column of the maps, all of its rows, as one frame."""
    x = jnp.swapaxes(maps.features, 1, 2)
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])


class PictureToText(nnx.Module):
    """An encoder of columns, and a decoder with attention that says one symbol after the other.

    `decoder_step(model)` makes a step for search of it, and `start` gives what that starts from, as of `Seq2Seq`.

    Args:
      encoder: see `ColumnEncoder`; any module that gives an `Encoded` and has a `recurrent` stack.
      vocabulary_size, embedding_features: of the decoder.
      attention, input_feeding, dropout: see `AttentionDecoder`.
      bridge: see `Bridge`.
      rngs: key `params` draws the parameters.
    """

    def __init__(
        self,
        encoder: ColumnEncoder,
        vocabulary_size: int,
        embedding_features: int,
        *,
        attention: attentions.Attention = attentions.general,
        input_feeding: bool = False,
        bridge: str = "last",
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        stack = encoder.recurrent
        self.encoder = encoder
        self.decoder = AttentionDecoder(
            vocabulary_size,
            embedding_features,
            stack.hidden_features,
            memory_features=stack.out_features,
            attention=attention,
            input_feeding=input_feeding,
            cell=stack.cell,
            num_layers=len(stack.layers),
            dropout=dropout,
            rngs=rngs,
        )
        self.bridge = Bridge(bridge, stack, self.decoder, rngs=rngs)

    def start(
        self,
        pictures: Float[Array, "B H W C"],
        widths: Int[Array, " B"] | None = None,
        *,
        training: bool = False,
        key: Array | None = None,
    ) -> tuple[Context, State]:
        """Reads the pictures; the decoder's context and its state before the first symbol."""
        encoded = self.encoder(pictures, widths, training=training, key=key)
        return self.decoder.start(self.bridge(encoded, self.decoder))

    def __call__(
        self,
        pictures: Float[Array, "B H W C"],
        widths: Int[Array, " B"] | None,
        target_inputs: Int[Array, "B T"],
        *,
        training: bool = False,
        key: Array | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits for the symbol after each of `target_inputs` (start symbol first)."""
        key_encoder, key_decoder = split_key(key)
        context, state = self.start(pictures, widths, training=training, key=key_encoder)
        return self.decoder(context, state, target_inputs, key=key_decoder).logits
