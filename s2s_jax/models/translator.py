"""From texts to texts by a trained encoder and decoder: batches of few shapes, beam search, labels of what was read."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from s2s_jax.data.tokenizers import Tokenizers
from s2s_jax.data.vocabulary import END, PAD, START
from s2s_jax.decoding.beam import beam_search
from s2s_jax.decoding.hypotheses import Hypotheses
from s2s_jax.models.seq2seq import Seq2Seq, decoder_step


class Translation(NamedTuple):
    """A hypothesis for one source text.

    Attributes:
      text: what it says.
      score: log probability over length penalty.
      source_pieces, pieces: labels of the symbols of source and hypothesis, end symbols included.
      log_probs: of each of the hypothesis' symbols, float32 [T].
      weights: attention of each of them over the source's, float32 [T, S]; None from a decoder without attention.
      finished: False where it was cut off before its end.
    """

    text: str
    score: float
    source_pieces: list[str]
    pieces: list[str]
    log_probs: np.ndarray
    weights: np.ndarray | None
    finished: bool


class Search(NamedTuple):
    """How to search; see `s2s_jax.decoding.beam_search`."""

    beam_size: int = 5
    n_best: int = 1
    length_penalty: str = "average"
    alpha: float = 1.0
    no_repeat_ngram_size: int = 0


_BEAM_OF_FIVE = Search()


class Translator:
    """A model and the tokenizers of both of its sides.

    Args:
      model: whose sources end with the end symbol, as they did in its training.
      tokenizers: of sources and targets.
    """

    def __init__(self, model: Seq2Seq, tokenizers: Tokenizers):
        self._graphdef, self._params = nnx.split(model)
        self._tokenizers = tokenizers
        self._doubled = model.encoder.double_source

    def __call__(
        self, texts: Sequence[str], search: Search = _BEAM_OF_FIVE, *, batch_size: int = 64
    ) -> list[list[Translation]]:
        """The `n_best` translations of each text, best first; fewer where the search has found fewer.

        A translation has at most twice as many symbols as its source, and 10.

        Texts of like lengths go together, at most `batch_size` at once, padded to lengths of 8, 16, 24, ... and to few
        numbers of rows, so that few programs are compiled.
        """
        encoded = [np.append(self._tokenizers.source.encode(text), END).astype(np.int32) for text in texts]
        order = sorted(range(len(texts)), key=lambda number: len(encoded[number]))
        found: list[list[Translation]] = [[] for _ in texts]
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            rows = min(batch_size, 1 << (len(numbers) - 1).bit_length())
            longest = max(len(encoded[number]) for number in numbers)
            source = np.full((rows, -(-longest // 8) * 8), PAD, np.int32)
            lengths = np.zeros(rows, np.int32)
            for row, number in enumerate(numbers):
                lengths[row] = len(encoded[number])
                source[row, : lengths[row]] = encoded[number]
            done: Any = jax.device_get(_searched(self._graphdef, self._params, source, lengths, search))
            for row, number in enumerate(numbers):
                found[number] = self._of_row(jax.tree.map(lambda leaf, row=row: leaf[row], done), encoded[number])
        return found

    def _of_row(self, found: Any, source: np.ndarray) -> list[Translation]:
        source_pieces = self._tokenizers.source.pieces(source)
        translations = []
        for k in np.flatnonzero(found.lengths):
            length = int(found.lengths[k])
            weights = None if found.attention is None else found.attention[k, :length]
            if weights is not None:
                # A source that was read twice has its weights added up.
                weights = weights[:, : len(source)] + (weights[:, len(source) : 2 * len(source)] if self._doubled else 0.0)
            translations.append(
                Translation(
                    self._tokenizers.target.decode(found.tokens[k, :length]),
                    float(found.scores[k]),
                    source_pieces,
                    self._tokenizers.target.pieces(found.tokens[k, :length]),
                    found.token_log_probs[k, :length],
                    weights,
                    bool(found.finished[k]),
                )
            )
        return translations


@functools.partial(jax.jit, static_argnums=(0, 4))
def _searched(graphdef: Any, params: Any, source: jax.Array, lengths: jax.Array, search: Search) -> Hypotheses:
    model = nnx.merge(graphdef, params, copy=True)
    context, state = model.start(source, lengths)
    step, of_decoder = decoder_step(model)
    limits = jnp.where(lengths > 0, 2 * lengths + 10, 0)  # rows that fill up the batch are left out
    return beam_search(
        step,
        of_decoder,
        context,
        state,
        start=START,
        end=END,
        pad=PAD,
        max_length=limits,
        time=2 * source.shape[1] + 10,
        attention=_weights if model.attends else None,
        banned=(PAD, START),
        **search._asdict(),
    )


def _weights(aux: Any) -> Any:
    return aux
