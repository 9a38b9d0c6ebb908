"""From texts to texts by a trained encoder and decoder: batches of few shapes, beam search, labels of what was read."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from flax import nnx

from s2s_jax.data.buckets import power_of_two
from s2s_jax.data.tokenizers import Tokenizers
from s2s_jax.data.vocabulary import END, PAD, START
from s2s_jax.decoding.beam import beam_search
from s2s_jax.decoding.hypotheses import Hypotheses
from s2s_jax.decoding.scoring import ensemble
from s2s_jax.models.seq2seq import Seq2Seq, attention_of, decoder_step

BANNED = (PAD, START)  # what no translation says
PADDED_TO = 8  # lengths of sources are rounded up to a multiple, so that few programs are compiled


class Translation(NamedTuple):
    """A hypothesis for one source text.

    Attributes:
      text: what it says.
      score: log probability over length penalty, and the coverage penalty if there is one.
      source_pieces, pieces: labels of the symbols of source and hypothesis, end symbols included.
      log_probs: of each of the hypothesis' symbols, float32 [T].
      weights: attention of each of them over the source's, float32 [T, S]; None from a decoder without attention, or where they
        were not asked for.
      finished: False where it was cut off before its end.
    """

    text: str
    score: float
    source_pieces: list[str]
    pieces: list[str]
    log_probs: np.ndarray
    weights: np.ndarray | None
    finished: bool

    def as_json(self, text: str) -> dict[str, Any]:
        """What it says of the source text, symbol by symbol, for a file; the score is null where nothing was found."""
        return {
            "text": text,
            "score": round(self.score, 5) if math.isfinite(self.score) else None,
            "source": self.source_pieces,
            "translation": self.pieces,
            "log_probabilities": [round(float(value), 5) for value in self.log_probs],
            "weights": None if self.weights is None else np.round(self.weights.astype(float), 5).tolist(),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """How to search; see `s2s_jax.decoding.beam_search`.

    Raises:
      ValueError: a number that is negative or not finite, no hypotheses to follow, more to tell than are followed, or a limit
        that leaves no room for a symbol.
    """

    beam_size: int = 5
    """Hypotheses that are followed."""
    n_best: int | None = None
    """Best translations that are told, no more than are followed; if not given one, by `predict` 3 or all that are followed."""
    length_penalty: Literal["average", "gnmt"] = "average"
    """What log probabilities are divided by: their number, or GNMT's penalty, to the power ALPHA."""
    alpha: float = 1.0
    """Power of the length penalty; 0 for none."""
    coverage_penalty: float = 0.0
    """Weight of GNMT's penalty for parts of the source that the attention left unread; 0 for none."""
    early_stopping: Literal["enough", "exact"] = "enough"
    """A text is done when as many hypotheses as are followed have ended and one of them, when it did, was the most probable of
    all; or, exact, only when none that runs can win, which takes longer."""
    no_repeat_ngram_size: int = 0
    """No sequence of so many symbols comes twice in a translation; 0 for no such rule."""
    max_ratio: float = 2.0
    """A translation has at most MAX_RATIO times as many symbols as its source, and MAX_EXTRA; bytes of scripts of many bytes
    may need more."""
    max_extra: int = 10
    """See MAX_RATIO."""

    def __post_init__(self) -> None:
        for name in ("alpha", "coverage_penalty", "max_ratio"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number from 0, got {getattr(self, name)}")
        for name in ("no_repeat_ngram_size", "max_extra"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected a number from 0, got {getattr(self, name)}")
        if self.beam_size < 1:
            raise ValueError(f"beam_size: expected a positive number, got {self.beam_size}")
        if self.n_best is not None and not 1 <= self.n_best <= self.beam_size:
            expected = f"from 1 to as many to tell as are followed, {self.beam_size}"
            raise ValueError(f"n_best, beam_size: expected {expected}, got {self.n_best}")
        if self.limit(1) < 1:
            raise ValueError(
                f"max_ratio, max_extra: expected room for a symbol at least, got {self.max_ratio} and {self.max_extra}"
            )
        getattr(super(), "__post_init__", lambda: None)()  # of the other flags of an experiment

    def limit(self, length: int) -> int:
        """The most symbols of a translation of a source of `length` symbols, end symbols counted."""
        return math.floor(self.max_ratio * length) + self.max_extra


_BEAM_OF_FIVE = Search()


class Translator:
    """A model and the tokenizers of both of its sides; or several models, by the mean of their probabilities.

    Args:
      models: whose sources end with the end symbol, as they did in their training; one, or an ensemble over one vocabulary.
      tokenizers: of sources and targets.

    Raises:
      ValueError: no model, one with as many symbols as neither tokenizer has, or an ensemble of which some read their sources
        twice.
    """

    def __init__(self, models: Seq2Seq | Sequence[Seq2Seq], tokenizers: Tokenizers):
        models = [models] if isinstance(models, Seq2Seq) else list(models)
        if not models:
            raise ValueError("models: expected at least one, got none")
        for model in models:
            sizes = model.encoder.embedding.num_embeddings, model.decoder.vocabulary_size
            if sizes != (wanted := tuple(map(len, tokenizers))):
                expected = f"one that reads {wanted[0]} symbols and says {wanted[1]}, as the tokenizers do"
                raise ValueError(f"models: expected {expected}, got {sizes[0]} and {sizes[1]}")
        doubled = {model.encoder.double_source for model in models}
        if len(doubled) > 1:
            raise ValueError("models: expected all of an ensemble to read their sources twice or none of them, got both")
        self._graphdefs, self._params = zip(*map(nnx.split, models), strict=True)
        self._tokenizers = tokenizers
        self._attends = all(model.attends for model in models)
        (self._doubled,) = doubled

    def __call__(
        self,
        texts: Sequence[str],
        search: Search = _BEAM_OF_FIVE,
        *,
        batch_size: int = 64,
        attention: bool = True,
    ) -> list[list[Translation]]:
        """The `n_best` translations of each text, best first; fewer where the search has found fewer.

        Texts of like lengths go together, at most `batch_size` at once, padded to lengths of 8, 16, 24, ... and to few
        numbers of rows, so that few programs are compiled.

        Args:
          texts: of any script.
          search: how to search.
          batch_size: of texts.
          attention: whether the weights come back, which takes memory for those of each hypothesis that is followed.

        Raises:
          ValueError: a text instead of a list of them, a batch size below 1, a coverage penalty without attention; what
            `beam_search` raises.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts: expected a list of texts, got one, {texts!r:.60}")
        if batch_size < 1:
            raise ValueError(f"batch_size: expected a positive number, got {batch_size}")
        if search.coverage_penalty and not self._attends:
            raise ValueError(f"coverage_penalty: expected 0 without attention, got {search.coverage_penalty}")
        fixed = {"beam_size": search.beam_size, "n_best": search.n_best or 1, "length_penalty": search.length_penalty}
        fixed |= {"early_stopping": search.early_stopping, "no_repeat_ngram_size": search.no_repeat_ngram_size}
        numbers_of_search = {"alpha": np.float32(search.alpha)}  # of them nothing is compiled anew
        if search.coverage_penalty:
            numbers_of_search["coverage_beta"] = np.float32(search.coverage_penalty)
        encoded = [np.append(self._tokenizers.source.encode(text), END).astype(np.int32) for text in texts]
        order = sorted(range(len(texts)), key=lambda number: len(encoded[number]))
        found: list[list[Translation]] = [[] for _ in texts]
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            rows = min(batch_size, power_of_two(len(numbers), 1))
            longest = max(len(encoded[number]) for number in numbers)
            source = np.full((rows, -(-longest // PADDED_TO) * PADDED_TO), PAD, np.int32)
            lengths, limits = np.zeros((2, rows), np.int32)  # rows that fill up the batch are left out
            for row, number in enumerate(numbers):
                lengths[row] = len(encoded[number])
                limits[row] = search.limit(lengths[row])
                source[row, : lengths[row]] = encoded[number]
            options = {**fixed, "time": search.limit(source.shape[1]), "weights": attention and self._attends}
            searched = _searched(
                self._graphdefs, self._params, source, lengths, limits, numbers_of_search, tuple(options.items())
            )
            done: Any = jax.device_get(searched)
            for row, number in enumerate(numbers):
                found[number] = self._of_row(jax.tree.map(lambda leaf, row=row: leaf[row], done), encoded[number])
        return found

    def of_lines(
        self, texts: Sequence[str], search: Search = _BEAM_OF_FIVE, *, batch_size: int = 64, attention: bool = True
    ) -> list[list[Translation]]:
        """As a call, but for lines of a file, say: none of an empty one, whatever the model would say of nothing."""
        found = iter(self([text for text in texts if text], search, batch_size=batch_size, attention=attention))
        return [next(found) if text else [] for text in texts]

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


@functools.partial(jax.jit, static_argnums=(0, 6))
def _searched(
    graphdefs: tuple[Any, ...],
    params: tuple[Any, ...],
    source: jax.Array,
    lengths: jax.Array,
    limits: jax.Array,
    numbers: dict[str, jax.Array],
    fixed: tuple[tuple[str, Any], ...],
) -> Hypotheses:
    models = [nnx.merge(graphdef, of_model, copy=True) for graphdef, of_model in zip(graphdefs, params, strict=True)]
    contexts, states = zip(*(model.start(source, lengths) for model in models), strict=True)
    steps, of_decoders = zip(*map(decoder_step, models), strict=True)
    options: dict[str, Any] = {**dict(fixed), **numbers}
    asked, covers = options.pop("weights"), "coverage_beta" in options
    attention = attention_of if asked or covers else None
    if covers:
        options["source_mask"] = contexts[0].mask
    if len(models) == 1:
        parts = steps[0], of_decoders[0], contexts[0], states[0]
    else:
        parts = ensemble(steps, attention), of_decoders, contexts, states
    found = beam_search(
        *parts,
        start=START,
        end=END,
        pad=PAD,
        max_length=limits,
        attention=attention,
        banned=BANNED,
        **options,
    )
    return found if asked else found._replace(attention=None)
