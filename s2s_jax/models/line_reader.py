"""From batches of pictures of lines to texts, by CTC or with a decoder, where each symbol stands, and the loss beside it."""

import dataclasses
import functools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from s2s_jax.data.pipeline import Batches
from s2s_jax.data.vocabulary import END, PAD, START, Characters
from s2s_jax.decoding import beam_search
from s2s_jax.decoding.ctc import Language, Read, ctc_align, ctc_beam_search, ctc_greedy
from s2s_jax.decoding.lexicon import Lexicon, make_lexicon
from s2s_jax.decoding.ngrams import NGrams, fit_ngrams, ngram_step
from s2s_jax.masks import shift_right
from s2s_jax.metrics import Mean
from s2s_jax.models.crnn import CRNN, Frames, PictureToText
from s2s_jax.models.line_loss import Metrics, as_ink, nats_of_frames, nats_of_symbols
from s2s_jax.models.seq2seq import attention_of, decoder_step


class LineRead(NamedTuple):
    """What was read of a line.

    Attributes:
      text: characters.
      confidences: of each, 0 to 1.
      spans: first column of the picture that each was read from, and the one behind the last; of a decoder those of the frame
        that it attended to most.
      log_prob: of the alignment that was read, of the text by beam search, or of the decoder's symbols.
      finished: whether a decoder has said its end symbol; of a lexicon, whether there was a text of whole words.
    """

    text: str
    confidences: list[float]
    spans: list[tuple[int, int]]
    log_prob: float
    finished: bool = True

    def described(self) -> str:
        """For people: a text and how sure it is, and where it was cut off; or why there is none."""
        if not self.text:
            reason = "" if self.finished else ": the search found no text of whole words, which a larger --beam-size may"
            return f"(nothing read{reason})"
        text = f"{self.text}  (mean confidence {np.mean(self.confidences):.1%}, least {min(self.confidences):.1%})"
        limit = f"cut off after {len(self.text)} characters, as many as its width allows, before the decoder said the end"
        return text if self.finished else f"{text}; {limit}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How a trained model reads.

    Raises:
      ValueError: a flag without the one that it needs beside it.
    """

    beam_size: int = 1
    """Texts that are followed besides the greedy reading; 1 for that alone."""
    language_weight: float = 0.0
    """What a character n-gram model of the training texts counts in the search; 0 for none."""
    language_bonus: float = 0.0
    """What each character adds to a text's score; below 0 it favours short texts."""
    language_order: int = 6
    """The longest n-gram."""
    lexicon: bool = False
    """Whether only words of the training texts are read."""

    def __post_init__(self) -> None:
        getattr(super(), "__post_init__", lambda: None)()  # of the other flags of an experiment
        changed = {field.name for field in dataclasses.fields(Reading) if getattr(self, field.name) != field.default}
        for name in ("language_bonus", "language_order"):
            if not self.language_weight and name in changed:
                raise ValueError(f"{name}: expected it with a --language-weight above 0, got it without")
        for name in ("language_weight", "lexicon"):
            if self.beam_size == 1 and name in changed:
                raise ValueError(f"{name}: expected a --beam-size above 1 with it, got 1")


class LineReader:
    """Reads the pictures of `LineBatches` with a `CRNN`, whose blank is the padding symbol, or a `PictureToText`.

    Args:
      model: what reads, each time with the weights that it has then.
      characters: its alphabet.
      ngrams, weight, bonus: a language model over the same symbols, ended by the padding symbol, and what it counts; of a
        `CRNN` read by beam search.
      lexicon: the words that beam search may read; of a `CRNN` too.

    Raises:
      ValueError: a language model or a lexicon for a `PictureToText`.
    """

    def __init__(
        self,
        model: CRNN | PictureToText,
        characters: Characters,
        *,
        ngrams: NGrams | None = None,
        weight: float = 1.0,
        bonus: float = 0.0,
        lexicon: Lexicon | None = None,
    ):
        self._ctc = isinstance(model, CRNN)
        if not self._ctc and (ngrams is not None or lexicon is not None):
            raise ValueError("ngrams, lexicon: expected none with a decoder, whose symbols do not stand for frames")
        self._model, self._characters = model, characters
        self._ngrams, self._weight, self._bonus, self._lexicon = ngrams, weight, bonus, lexicon
        self._parts = nnx.split(model)

    def __call__(self, batches: Batches, beam_size: int | None = None) -> list[LineRead]:
        """What the lines of a plan say, in the order of its source.

        Args:
          batches: in order, with the fields of `EncodedLines`.
          beam_size: None reads a `CRNN` greedily, and follows one text of a `PictureToText`.
        """
        return self._read(batches, beam_size, measure=False)[0]

    def measured(self, batches: Batches, beam_size: int | None = None) -> tuple[list[LineRead], dict[str, float]]:
        """The same, and the loss of the labels, nats per symbol, from one pass through the network."""
        read, totals = self._read(batches, beam_size, measure=True)
        return read, {name: mean.value() for name, mean in totals.items()}

    def _read(self, batches: Batches, beam_size: int | None, measure: bool) -> tuple[list[LineRead], Metrics]:
        of_batch = self._by_frames if self._ctc else self._by_decoder
        found: dict[int, LineRead] = {}
        totals: Metrics = {}
        for step in range(batches.steps_per_epoch):
            batch = batches(step)
            read, metrics = of_batch(batch, beam_size, measure)
            found |= {int(number): one for number, one in zip(batches.ids(step), read, strict=True) if number >= 0}
            for name, mean in metrics.items():  # added up on the host, in double precision
                totals[name] = totals.get(name, Mean(0.0, 0.0)) + Mean(float(mean.total), float(mean.count))
        return [found[number] for number in sorted(found)], totals

    def _by_frames(self, batch: Mapping[str, Any], beam_size: int | None, measure: bool) -> tuple[list[LineRead], Metrics]:
        pictures = batch["picture"]
        if beam_size is None:
            read, metrics = _greedy(*self._parts, batch, measure)
            leaves = read.tokens, read.lengths, read.confidences, read.starts, read.ends, read.log_probs
            return self._lines(pictures, *leaves), metrics
        (logits, frames), metrics = _frames(*self._parts, batch, measure)
        language = None
        if self._ngrams is not None:
            first = jnp.zeros(len(logits), jnp.int32)
            language = Language(ngram_step, self._ngrams, first, weight=self._weight, bonus=self._bonus)
        options: dict[str, Any] = {"blank": PAD, "pad": PAD, "language": language, "lexicon": self._lexicon}
        best = ctc_beam_search(logits, frames, beam_size=beam_size, **options)
        tokens, lengths = best.tokens[:, 0], best.lengths[:, 0]
        where = _aligned(logits, frames, tokens, lengths)
        lines = self._lines(pictures, tokens, lengths, where.confidences, where.starts, where.ends, best.log_probs[:, 0])
        there = np.asarray(best.scores[:, 0]) > -np.inf
        return [one._replace(finished=bool(found)) for one, found in zip(lines, there, strict=True)], metrics

    def _by_decoder(self, batch: Mapping[str, Any], beam_size: int | None, measure: bool) -> tuple[list[LineRead], Metrics]:
        pictures = batch["picture"]
        (context, state), frames, metrics = _started(*self._parts, batch, measure)
        step, params = decoder_step(self._model)
        # Not more symbols than frames, as of CTC, and the end; and no more steps for all rows than for the longest.
        found = beam_search(
            *(step, params, context, state),
            start=START,
            end=END,
            pad=PAD,
            max_length=frames + 1,
            time=self._frames_of(pictures.shape[1]) + 1,
            beam_size=beam_size or 1,
            banned=(PAD, START),
            attention=attention_of,
        )
        best = jax.tree.map(lambda leaf: np.asarray(leaf[:, 0]), found)
        places = best.attention.argmax(-1)
        behind = places + (best.attention.max(-1) > 0)  # a picture without a frame is looked at nowhere
        lines = self._lines(
            *(pictures, best.tokens, best.lengths - best.finished, np.exp(best.token_log_probs)),
            *(places, behind, best.log_probs),
        )
        return [one._replace(finished=bool(finished)) for one, finished in zip(lines, best.finished, strict=True)], metrics

    def _frames_of(self, columns: int) -> int:
        return int(self._model.encoder.backbone.reduced(0, columns)[1])

    def _lines(
        self,
        pictures: np.ndarray,
        tokens: Int[Array, "B N"],
        lengths: Int[Array, " B"],
        confidences: Float[Array, "B N"],
        starts: Int[Array, "B N"],
        ends: Int[Array, "B N"],
        log_probs: Float[Array, " B"],
    ) -> list[LineRead]:
        per_frame = math.prod(across for _, across in self._model.encoder.backbone.pools)
        arrays = map(np.asarray, (tokens, lengths, confidences, starts, ends, log_probs))
        found = []
        for said, length, sure, first, last, log_prob in zip(*arrays, strict=True):
            spans = [(int(first[n]) * per_frame, int(last[n]) * per_frame) for n in range(length)]
            found.append(LineRead(self._characters.decode(said[:length]), sure[:length].tolist(), spans, float(log_prob)))
        return found


def reader_of(reading: Reading, model: CRNN | PictureToText, characters: Characters, texts: Sequence[str]) -> LineReader:
    """A reader with the language model and the lexicon that are asked for, of these texts."""
    options: dict[str, Any] = {}
    if reading.language_weight:
        numbers = map(characters.encode, texts)
        options["ngrams"] = fit_ngrams(numbers, len(characters), order=reading.language_order, end=PAD)
        options |= {"weight": reading.language_weight, "bonus": reading.language_bonus}
    if reading.lexicon:
        words = sorted({word for text in texts for word in text.split(" ") if word})
        space = characters.encode(" ") if " " in characters.alphabet else []
        options["lexicon"] = make_lexicon(map(characters.encode, words), len(characters), separators=space)
    return LineReader(model, characters, **options)


def lines_per_second(reader: LineReader, batches: Batches, beams: Sequence[int | None], lines: int) -> list[list[float]]:
    """Of each beam size, None for greedy: those of each of five rounds in turns, all shapes compiled before."""
    seconds: list[list[float]] = [[] for _ in beams]
    for number in range(6):
        for taken, beam_size in zip(seconds, beams, strict=True):
            start = time.perf_counter()
            reader(batches, beam_size)
            if number:
                taken.append(time.perf_counter() - start)
    return [[lines / one for one in taken] for taken in seconds]


@functools.partial(jax.jit, static_argnums=(0, 3))
def _frames(graphdef: nnx.GraphDef, state: nnx.State, batch: Mapping[str, Any], measure: bool) -> tuple[Frames, Metrics]:
    frames = nnx.merge(graphdef, state)(as_ink(batch["picture"]), batch["picture_lengths"])
    # Start and end are symbols to the network like others, but stand in no label.
    read = frames._replace(logits=frames.logits.at[..., np.array([START, END])].set(-jnp.inf))
    return read, nats_of_frames(frames, batch) if measure else {}


@functools.partial(jax.jit, static_argnums=(0, 3))
def _greedy(graphdef: nnx.GraphDef, state: nnx.State, batch: Mapping[str, Any], measure: bool) -> tuple[Read, Metrics]:
    frames, metrics = _frames(graphdef, state, batch, measure)
    return ctc_greedy(*frames, blank=PAD, pad=PAD), metrics


@functools.partial(jax.jit, static_argnums=(0, 3))
def _started(graphdef: nnx.GraphDef, state: nnx.State, batch: Mapping[str, Any], measure: bool) -> Any:
    model, metrics = nnx.merge(graphdef, state), {}
    _, frames = model.encoder.backbone.reduced(0, jnp.asarray(batch["picture_lengths"]))
    started = model.start(as_ink(batch["picture"]), batch["picture_lengths"])
    if measure:
        logits = model.decoder(*started, shift_right(batch["label"], START)).logits
        metrics = nats_of_symbols(logits, batch)
    return started, frames, metrics


_aligned = jax.jit(functools.partial(ctc_align, blank=PAD))
