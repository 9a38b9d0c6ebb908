"""Sub-words: pieces of words, chosen by how often they occur (sentencepiece; imported when first used)."""

import base64
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from s2s_jax.data.vocabulary import END, PAD, REPLACEMENT, START, UNKNOWN, normalized, up_to_end


class Subwords:
    """A sentencepiece model; 0, 1 and 2 are padding, start and end, 3 is unknown. Texts are in Unicode's form NFC.

    `decode` undoes `encode` of any such text, spaces and all, where it holds no U+2581, which is how sentencepiece writes a
    space, and where nothing is unknown; with `byte_fallback` nothing ever is.

    Kudo & Richardson 2018 (arXiv 1808.06226); "bpe": Sennrich et al. 2016 (arXiv 1508.07909); "unigram": Kudo 2018 (arXiv
    1804.10959).

    Args:
      model: the bytes of a sentencepiece model with these numbers.
      lowercase: whether texts are lower-cased first.

    Raises:
      ValueError: bytes that are no such model.
    """

    kind = "subwords"

    def __init__(self, model: bytes, *, lowercase: bool = False):
        import sentencepiece

        self.model, self.lowercase = model, lowercase
        self._how: dict[str, Any] = {}
        self._characters: set[str] | None = None
        try:
            self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(
                f"model: expected the bytes of a sentencepiece model, got {len(model)} others ({error})"
            ) from error
        processor = self._processor
        numbers = (processor.pad_id(), processor.bos_id(), processor.eos_id(), processor.unk_id())
        if numbers != (PAD, START, END, UNKNOWN):
            raise ValueError(f"model: expected padding, start, end and unknown to be 0, 1, 2 and 3, got {numbers}")

    @classmethod
    def fit(
        cls,
        texts: Iterable[str],
        *,
        size: int = 10_000,
        method: Literal["bpe", "unigram"] = "bpe",
        byte_fallback: bool = True,
        coverage: float = 1.0,
        lowercase: bool = False,
    ) -> "Subwords":
        """The sub-words of texts, which are to be those of the training split only. The same texts give the same model.

        Args:
          texts: read once; of both languages for a joint model.
          size: of the vocabulary, special symbols and with `byte_fallback` 256 bytes among them.
          method: pieces merged pair by pair, or chosen by their likelihood.
          byte_fallback: a character without a piece is written as its bytes, instead of as unknown.
          coverage: share of all characters of the texts that get a piece of their own; below 1 the rarest have none.
          lowercase: lower-case texts first, here and in `encode`.

        Raises:
          ValueError: an argument out of its range; no text; a `size` that these texts are too few or too many for.
        """
        import sentencepiece

        if method not in ("bpe", "unigram"):
            raise ValueError(f"method: expected 'bpe' or 'unigram', got {method!r}")
        if not 0.9 <= coverage <= 1:
            raise ValueError(f"coverage: expected 0.9 to 1, got {coverage}")
        least = UNKNOWN + 2 + (256 if byte_fallback else 0)
        if size < least:
            raise ValueError(f"size: expected at least {least}, got {size}")
        lines = [line for text in texts for line in normalized(text, lowercase).splitlines() if line.strip()]
        if not lines:
            raise ValueError("texts: expected at least one that is not empty, got none")
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=written,
                vocab_size=size,
                model_type=method,
                character_coverage=coverage,
                byte_fallback=byte_fallback,
                pad_id=PAD,
                bos_id=START,
                eos_id=END,
                unk_id=UNKNOWN,
                unk_surface=REPLACEMENT,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                max_sentence_length=4 * max(map(len, lines)) + 1,  # longer ones it would skip
                num_threads=1,  # so that sums have one order
                minloglevel=2,
            )
        except RuntimeError as error:
            said = str(error).rsplit("] ", 1)[-1].strip()
            if few := re.search(r"required_chars\. \d+ vs (\d+)", said):
                expected = f"at least {few[1]}, as each character of the texts is a piece"
                raise ValueError(f"size: expected {expected}, got {size}") from error
            raise ValueError(f"size: expected one that the texts fit, got {size} ({said})") from error
        return cls(written.getvalue(), lowercase=lowercase)

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> "Subwords":
        return cls(base64.b64decode(saved["model"], validate=True), lowercase=saved["lowercase"])

    def __len__(self) -> int:
        return len(self._processor)

    def encode(self, text: str) -> np.ndarray:
        """The numbers of the pieces of `text`, int32 [pieces]; no start and no end."""
        return np.array(self._processor.encode(normalized(text, self.lowercase), **self._how), np.int32)

    def with_dropout(self, rate: float, seed: int) -> "Subwords":
        """The same pieces, but each merge of two is left out at this rate in `encode`, so that a text is cut in many ways.

        What is encoded so is decoded as ever. It is sentencepiece's form of BPE-dropout (Provilkov et al., arXiv 1910.13267): a
        merge that was left out once is not tried again for that text, as it is in the paper, whose rate of 0.1 cuts about as
        finely as 0.05 here. Calls in the same order, from this one on, give the same: sentencepiece has one generator for all
        of its models, which this seeds. Of pieces by "bpe" only: those of "unigram" are not merged.

        Args:
          rate: from 0 to 1.
          seed: of the choice.

        Raises:
          ValueError: a rate out of its range.
        """
        import sentencepiece

        if not 0 <= rate <= 1:
            raise ValueError(f"rate: expected 0 to 1, got {rate}")
        sampled = Subwords(self.model, lowercase=self.lowercase)
        sampled._how = {"enable_sampling": True, "nbest_size": -1, "alpha": rate}
        sentencepiece.set_random_generator_seed(seed)
        return sampled

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` up to the end symbol, without padding and start; unknown is U+FFFD.

        Raises:
          ValueError: a number outside of the vocabulary.
        """
        return self._processor.decode(list(up_to_end(ids, len(self))))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """A label for each number, special ones too: "▁" for a space, "<0xC3>" for a byte, "</s>" for the end."""
        return [self._processor.id_to_piece(int(number)) for number in ids]

    def lacks(self, text: str) -> list[str]:
        """The characters of `text` that are in no piece, in its order and each once: they become bytes, or unknown."""
        if self._characters is None:
            of_texts = (number for number in range(UNKNOWN + 1, len(self)) if not self._processor.is_byte(number))
            self._characters = set("".join(map(self._processor.id_to_piece, of_texts)))
        found = dict.fromkeys(normalized(text, self.lowercase))
        return [character for character in found if character not in self._characters and character != " "]

    def save(self, path: str | Path) -> None:
        """Writes one file, all that `load_tokenizer` needs."""
        saved = {"kind": self.kind, "lowercase": self.lowercase, "model": base64.b64encode(self.model).decode()}
        Path(path).write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")
