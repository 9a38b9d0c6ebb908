"""Texts read character by character or byte by byte: convolutions, many convolutions, and convolutions below recurrence."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from s2s_jax import cells
from s2s_jax.layers.keys import check_rngs, split_key
from s2s_jax.layers.recurrent import Recurrent, between_layers
from s2s_jax.layers.regularization import Dropout
from s2s_jax.layers.sequence_convolution import Frames, SequenceConvolution, frames_of, k_max_pool, max_pool_sequence
from s2s_jax.masks import check_tokens, reverse_sequence
from s2s_jax.models.classifier import check_classifier, pooled
from s2s_jax.models.encoder import check_positive, embed
from s2s_jax.types import Cell

# Convolutions of the character CNN: positions that each reads, and how many the pooling behind it makes one of.
_CHARACTER_CNN = ((7, 3), (7, 3), (3, 1), (3, 1), (3, 1), (3, 3))
# Blocks of two convolutions, of 64, 128, 256 and 512 features, by the number of all convolutions (table 2 of the paper).
VERY_DEEP = {9: (1, 1, 1, 1), 17: (2, 2, 2, 2), 29: (5, 5, 2, 2)}


class CharacterCNN(nnx.Module):
    """Six convolutions and three dense layers over symbols one-hot (Zhang, Zhao & LeCun, arXiv 1509.01626, tables 1 and 2).

    A text is read from its end, so that its last symbol is always the first. Where it is shorter than `max_length`, zeros stand
    for what is missing, behind every layer: it gives the same whatever it is padded to. In the published network the biases
    of what is computed of padding stand there; its convolutions lose the positions at the edges, which leaves it 34 of 1,014
    positions where this one has 38; and a symbol that is none of its 70 is all zeros, where here every symbol has a place.

    Args:
      vocabulary_size, classes: V and the number of labels.
      features, hidden_features: of convolutions and dense layers; 256 and 1,024 in the small network, 1,024 and 2,048 in the
        large one.
      max_length: symbols of the longest text.
      stddev: of the weights' normal draw; 0.05 in the small network, 0.02 in the large one.
      dropout: rate between the dense layers.
      rngs: key `params` draws the parameters.

    Raises:
      ValueError: a size that is not positive.
    """

    def __init__(
        self,
        vocabulary_size: int,
        classes: int,
        *,
        features: int = 256,
        hidden_features: int = 1024,
        max_length: int = 1014,
        stddev: float = 0.05,
        dropout: float = 0.5,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        check_positive(vocabulary_size=vocabulary_size, classes=classes, max_length=max_length)
        check_positive(features=features, hidden_features=hidden_features)
        self.vocabulary_size, self.max_length = vocabulary_size, max_length
        self.convolutions = nnx.List([])
        self.places = max_length
        for size, pool in _CHARACTER_CNN:
            width = features if self.convolutions else vocabulary_size
            self.convolutions.append(SequenceConvolution(width, features, size, stddev=stddev, rngs=rngs))
            self.places = -(-self.places // pool)
        normal = jax.nn.initializers.normal(stddev)
        sizes = (self.places * features, hidden_features, hidden_features, classes)
        self.dense = nnx.List([nnx.Linear(m, n, kernel_init=normal, rngs=rngs) for m, n in itertools.pairwise(sizes)])
        self.dropout = Dropout(dropout)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, " B"] | None = None,
        *,
        training: bool = False,
        key: Array | None = None,
    ) -> Float[Array, "B classes"]:
        """Logits of each class; a key turns dropout on. `training` changes nothing: it is there as in the other networks.

        Raises:
          ValueError: more than `max_length` positions, or concrete ids outside the vocabulary.
        """
        lengths = check_tokens(tokens, lengths, self.vocabulary_size)
        if tokens.shape[1] > self.max_length:
            raise ValueError(f"tokens: expected at most max_length = {self.max_length} positions, got {tokens.shape[1]}")
        first, *others = self.convolutions
        frames = first.of_symbols(reverse_sequence(tokens, lengths), lengths)
        for number, (_, pool) in enumerate(_CHARACTER_CNN):
            frames = max_pool_sequence(others[number - 1](frames) if number else frames, pool)
        x = frames.features
        x = jnp.pad(x, ((0, 0), (0, self.places - x.shape[1]), (0, 0)))
        return _dense(self.dense, self.dropout, x, key)


class VeryDeepCNN(nnx.Module):
    """Convolutions of 3 in 9, 17 or 29 layers, k-max pooling, dense layers (Conneau et al., arXiv 1606.01781, figure 1).

    Blocks of two convolutions with batch norm and ReLU; between those of 64, 128, 256 and 512 features max-pooling of 3 with
    stride 2, of the paper's three ways to shrink. Padding changes no output: batch norm counts valid positions alone.

    Args:
      vocabulary_size, classes: V and the number of labels.
      depth: 9, 17 or 29 convolutions.
      shortcuts: links around blocks, through a convolution of 1 where the number of features grows.
      embedding_features, k, hidden_features: of embedding, k-max pooling and dense layers.
      width: features of the first convolution; of the last blocks eight times as many.
      dropout: rate between the dense layers; the published network has none.
      rngs: key `params` draws the parameters.

    Raises:
      ValueError: another depth, or a size that is not positive.
    """

    def __init__(
        self,
        vocabulary_size: int,
        classes: int,
        *,
        depth: int = 9,
        shortcuts: bool = False,
        embedding_features: int = 16,
        width: int = 64,
        k: int = 8,
        hidden_features: int = 2048,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        if depth not in VERY_DEEP:
            raise ValueError(f"depth: expected one of {sorted(VERY_DEEP)}, got {depth}")
        check_positive(vocabulary_size=vocabulary_size, classes=classes, embedding_features=embedding_features)
        check_positive(width=width, hidden_features=hidden_features, k=k)
        self.k = k
        self.embedding = nnx.Embed(vocabulary_size, embedding_features, rngs=rngs)
        self.first = SequenceConvolution(embedding_features, width, 3, rngs=rngs)
        self.stages = nnx.List([])
        features = width
        for number, blocks in enumerate(VERY_DEEP[depth]):
            stage = []
            for _ in range(blocks):
                stage.append(_Block(features, width * 2**number, shortcuts, rngs=rngs))
                features = width * 2**number
            self.stages.append(nnx.List(stage))
        sizes = (k * features, hidden_features, hidden_features, classes)
        self.dense = nnx.List([nnx.Linear(m, n, rngs=rngs) for m, n in itertools.pairwise(sizes)])
        self.dropout = Dropout(dropout)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, " B"] | None = None,
        *,
        training: bool = False,
        key: Array | None = None,
    ) -> Float[Array, "B classes"]:
        """Logits of each class; a key turns dropout on, and `training` batch norm by the batch.

        Raises:
          ValueError: concrete ids outside the vocabulary.
        """
        lengths = check_tokens(tokens, lengths, self.embedding.num_embeddings)
        frames = self.first(frames_of(embed(self.embedding, tokens), lengths), relu=False)
        for number, stage in enumerate(self.stages):
            frames = max_pool_sequence(frames, 3, 2) if number else frames
            for block in stage:
                frames = block(frames, training)
        return _dense(self.dense, self.dropout, k_max_pool(frames, self.k), key)


class _Block(nnx.Module):
    """Two convolutions of 3, and around them the input if wanted, in as many features."""

    def __init__(self, in_features: int, features: int, shortcut: bool, *, rngs: nnx.Rngs):
        self.first = SequenceConvolution(in_features, features, 3, batch_norm=True, rngs=rngs)
        self.second = SequenceConvolution(features, features, 3, batch_norm=True, rngs=rngs)
        widens = shortcut and in_features != features
        self.shortcut = shortcut
        self.link = SequenceConvolution(in_features, features, 1, batch_norm=True, rngs=rngs) if widens else None

    def __call__(self, frames: Frames, training: bool) -> Frames:
        y = self.second(self.first(frames, training=training), training=training, relu=not self.shortcut)
        if not self.shortcut:
            return y
        around = frames if self.link is None else self.link(frames, training=training, relu=False)
        return Frames(jax.nn.relu(y.features + around.features), y.lengths)


class SequenceStage(NamedTuple):
    """A convolution along time, and the pooling behind it.

    Attributes:
      features: that come out.
      size: positions that it reads, odd.
      pool: positions of which the greatest is kept.
    """

    features: int
    size: int = 5
    pool: int = 2


class CharacterCRNN(nnx.Module):
    """Convolutions and pooling, and a recurrent stack over what is left, after Xiao & Cho (arXiv 1602.00367).

    Theirs has no batch norm, and classifies the last states of both directions (`pooling="last"`) where this takes the mean
    over time if nothing else is said.

    Args:
      vocabulary_size, classes: V and the number of labels.
      embedding_features: E.
      stages: see `SequenceStage`.
      hidden_features, cell, num_layers, bidirectional: of the stack; see `Recurrent`.
      pooling: of its outputs; see `SequenceClassifier`.
      dropout: rate on what the convolutions give, between layers, and on what is pooled. Not before them: batch norm would see
        another variance in training than later (Li et al., arXiv 1801.05134).
      rngs: key `params` draws the parameters.

    Raises:
      ValueError: an unknown pooling, no stage, or a size that is not positive.
    """

    def __init__(
        self,
        vocabulary_size: int,
        classes: int,
        *,
        embedding_features: int = 16,
        stages: Sequence[SequenceStage] = (SequenceStage(128), SequenceStage(128), SequenceStage(128, 3)),
        hidden_features: int = 128,
        cell: Cell = cells.lstm,
        num_layers: int = 1,
        bidirectional: bool = True,
        pooling: str = "mean",
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        check_classifier(classes, pooling)
        check_positive(vocabulary_size=vocabulary_size, embedding_features=embedding_features)
        if not stages:
            raise ValueError("stages: expected at least one, got none")
        for stage in stages:
            check_positive(**stage._asdict())
        self.pooling, self.pools = pooling, tuple(stage.pool for stage in stages)
        self.embedding = nnx.Embed(vocabulary_size, embedding_features, rngs=rngs)
        self.convolutions = nnx.List([])
        features = embedding_features
        for stage in stages:
            self.convolutions.append(SequenceConvolution(features, stage.features, stage.size, batch_norm=True, rngs=rngs))
            features = stage.features
        self.dropout = Dropout(dropout)
        self.recurrent = Recurrent(
            cell,
            features,
            hidden_features,
            num_layers=num_layers,
            bidirectional=bidirectional,
            dropout=between_layers(dropout, num_layers),
            rngs=rngs,
        )
        self.output = nnx.Linear(self.recurrent.out_features, classes, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, " B"] | None = None,
        *,
        training: bool = False,
        key: Array | None = None,
    ) -> Float[Array, "B classes"]:
        """Logits of each class; a key turns dropout on, and `training` batch norm by the batch.

        Raises:
          ValueError: concrete ids outside the vocabulary.
        """
        lengths = check_tokens(tokens, lengths, self.embedding.num_embeddings)
        keys = split_key(key, 3)
        frames = frames_of(embed(self.embedding, tokens), lengths)
        for convolution, pool in zip(self.convolutions, self.pools, strict=True):
            frames = max_pool_sequence(convolution(frames, training=training), pool)
        x = self.dropout(frames.features, key=keys[0])
        outputs, _ = self.recurrent(x, lengths=frames.lengths, key=keys[1])
        return self.output(self.dropout(pooled(outputs, frames.lengths, self.pooling, self.recurrent), key=keys[2]))


def _dense(layers: Sequence[nnx.Linear], dropout: Dropout, x: Float[Array, "B P F"], key: Array | None) -> Float[Array, "B C"]:
    """Dense layers over all features of all places."""
    keys = split_key(key, len(layers))
    x = x.reshape(len(x), x.shape[1] * x.shape[2])
    for number, layer in enumerate(layers):
        x = layer(dropout(jax.nn.relu(x), key=keys[number]) if number else x)
    return x
