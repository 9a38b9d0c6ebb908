"""What is decoded: a translator of given weights, sentences of its source, and how it is searched."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from s2s_jax import cells
from s2s_jax.data.vocabulary import END, PAD
from s2s_jax.models.seq2seq import Seq2Seq
from s2s_jax.models.translator import PADDED_TO


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """`sentences` sources, `batch_size` at a time, decoded greedily (a beam of 1) or by a beam.

    The model is that of `experiments.translation` at the size of Multi30k: an encoder of GRUs in two directions, general
    attention, one table for both embeddings and the output. Scores of a beam are log probabilities over lengths.
    """

    batch_size: int
    beam_size: int
    input_feeding: bool = False
    sentences: int
    vocabulary_size: int = 10_000
    features: int = 256  # of embeddings and states
    shortest: int = 6
    longest: int = 24  # sources, drawn evenly between both
    max_length: int = 40

    parts = ("decode",)
    prepared = 1  # what is decoded is what has been compared; sources are too small to matter in a cache

    def model(self) -> Seq2Seq:
        return Seq2Seq(
            self.vocabulary_size,
            self.vocabulary_size,
            embedding_features=self.features,
            hidden_features=self.features,
            decoder="attention",
            cell=cells.gru,
            bidirectional=True,
            input_feeding=self.input_feeding,
            shared_embeddings=True,
            tied_embeddings=True,
            rngs=nnx.Rngs(0),
        )

    def params(self, inner_bias: bool = True) -> dict[tuple[Any, ...], np.ndarray]:
        """Weights by their paths, drawn as for training but for the scale of the table, no bias zero; and a clock.

        Drawn weights alone would end at once or never. A trained translator ends when as much is said as the source holds, all
        hypotheses of a sentence at about the same time: so does this one. Unit 0 of each GRU forgets its state at a fixed rate
        and reads nothing. In the encoder it falls from 0 with each symbol of the source, in the decoder, which starts where
        both directions ended, it rises towards 1; once above 0 it makes the end symbol probable. All the rest is left to the
        drawn weights, whose next symbols are about as uncertain as a weak translator's.
        """
        rng = np.random.default_rng(0)
        drawn = {}
        for path, variable in nnx.to_flat_state(nnx.state(self.model())):
            value = np.array(variable[...])
            drawn[path] = rng.uniform(-0.1, 0.1, value.shape).astype(value.dtype) if value.ndim == 1 else value
        H = self.features
        for path, value in drawn.items():
            if "layers" in path:
                gates = [0, H, 2 * H]
                if path[-1] in ("w", "u"):
                    value[:, gates] = 0
                elif path[-1] == "b":
                    # r, which does nothing here; z, by which 0.95 of the state is kept; n, 1 or -1
                    value[gates] = 0, np.log(0.95 / 0.05), 3 if path[0] == "decoder" else -3
                elif path[-1] == "b_n":
                    value[0] = 0
        table, combine = drawn["decoder", "embedding", "embedding"], drawn["decoder", "combine", "kernel"]
        table *= 8  # at 1 all symbols would be about as probable
        table[:, 0] = 0
        table[END, 0] = 20
        combine[:, 0] = 0
        combine[0, 0] = 4
        return drawn

    def inputs(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Sources [N, S], padded, and their lengths [N]; the last symbol is the end symbol."""
        rng = np.random.default_rng(k + 1)
        lengths = rng.integers(self.shortest, self.longest + 1, self.sentences).astype(np.int32)
        source = rng.integers(END + 2, self.vocabulary_size, (self.sentences, self.longest)).astype(np.int32)
        places = np.arange(self.longest)
        source[places >= lengths[:, None]] = PAD
        source[places == lengths[:, None] - 1] = END
        return source, lengths

    def batches(self, source: np.ndarray, lengths: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """In order, each as wide as its longest source, rounded up."""
        made = []
        for at in range(0, len(source), self.batch_size):
            rows = slice(at, at + self.batch_size)
            width = -(-int(lengths[rows].max()) // PADDED_TO) * PADDED_TO
            padded = np.full((len(source[rows]), width), PAD, np.int32)
            padded[:, : min(width, source.shape[1])] = source[rows, :width]
            made.append((padded, lengths[rows]))
        return made


def with_params(state: Any, params: dict[tuple[Any, ...], np.ndarray]) -> Any:
    """The state of a model with these weights, on the device."""
    flat = [(path, variable.replace(jnp.asarray(params[path]))) for path, variable in nnx.to_flat_state(state)]
    return jax.block_until_ready(nnx.from_flat_state(flat))
