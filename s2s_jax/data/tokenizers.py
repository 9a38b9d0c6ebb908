"""From texts to numbers and back, all kinds behind one protocol: sub-words, words, characters, bytes."""

import collections
import inspect
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from s2s_jax.data import moses
from s2s_jax.data.subwords import Subwords
from s2s_jax.data.vocabulary import END, REPLACEMENT, UNKNOWN, Bytes, normalized, up_to_end

Kind = Literal["subwords", "words", "characters", "bytes"]

_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


class Tokenizer(Protocol):
    """What every kind can do; 0, 1 and 2 are padding, start and end. Texts are in Unicode's form NFC."""

    def __len__(self) -> int: ...

    def encode(self, text: str) -> np.ndarray:
        """The numbers of `text`, int32 [n], without start and end; of any text of any script."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` up to the end symbol, without padding and start; unknown is U+FFFD."""
        ...

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """A readable label for each number, special ones too; "▁" is a space."""
        ...

    def lacks(self, text: str) -> list[str]:
        """What of `text` has no symbol of its own, in its order and each once: words of a list of words, else characters."""
        ...

    def save(self, path: str | Path) -> None:
        """Writes one file, all that `load_tokenizer` needs."""
        ...


class _Listed:
    """Symbols that are counted and listed, the most frequent first; 3 is all others."""

    kind = ""

    def __init__(self, symbols: Sequence[str], *, lowercase: bool = False):
        if not symbols or len(set(symbols)) != len(symbols):
            raise ValueError(
                f"symbols: expected at least one, and each once, got {len(symbols)}, {len(set(symbols))} different"
            )
        self.symbols, self.lowercase = list(symbols), lowercase
        self._number = {symbol: number for number, symbol in enumerate(self.symbols, start=UNKNOWN + 1)}

    def __len__(self) -> int:
        return UNKNOWN + 1 + len(self.symbols)

    def encode(self, text: str) -> np.ndarray:
        """The numbers of the symbols of `text`, int32 [symbols]; no start and no end, 3 for one that is not in the list."""
        symbols = self._split(normalized(text, self.lowercase))
        return np.array([self._number.get(symbol, UNKNOWN) for symbol in symbols], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` up to the end symbol, without padding and start; unknown is U+FFFD.

        Raises:
          ValueError: a number outside of the vocabulary.
        """
        kept = up_to_end(ids, len(self))
        return self._join([REPLACEMENT if number == UNKNOWN else self.symbols[number - UNKNOWN - 1] for number in kept])

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """A readable label for each number, special ones too; "▁" is a space."""
        labels = (*_SPECIAL, *self.symbols)
        return [labels[int(number)].replace(" ", "▁") for number in ids]

    def lacks(self, text: str) -> list[str]:
        """What of `text` is not in the list, in its order and each once."""
        symbols = dict.fromkeys(self._split(normalized(text, self.lowercase)))
        return [symbol for symbol in symbols if symbol not in self._number]

    def save(self, path: str | Path) -> None:
        """Writes one file, all that `load_tokenizer` needs."""
        saved = {"kind": self.kind, "lowercase": self.lowercase, **self._options(), "symbols": self.symbols}
        Path(path).write_text(json.dumps(saved, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    def _split(self, text: str) -> Sequence[str]:
        raise NotImplementedError

    def _join(self, symbols: list[str]) -> str:
        raise NotImplementedError

    def _options(self) -> dict[str, Any]:
        return {}


class Words(_Listed):
    """Words between white space, or by Moses' rules for a language, which cut off signs; 3 is a word that is not listed.

    Args:
      words: all there are.
      language: by whose rules, "de" say; None: white space.
      lowercase: whether texts are lower-cased first.

    Raises:
      ValueError: no word, or a word twice; a language without rules.
    """

    kind = "words"

    def __init__(self, words: Sequence[str], *, language: str | None = None, lowercase: bool = False):
        super().__init__(words, lowercase=lowercase)
        self.language = None if language is None else moses.check_language(language)

    @classmethod
    def fit(
        cls,
        texts: Iterable[str],
        *,
        language: str | None = None,
        split: Literal["auto", "moses", "spaces"] = "auto",
        min_count: int = 1,
        size: int | None = None,
        lowercase: bool = False,
    ) -> "Words":
        """The words of texts, which are to be those of the training split only.

        Args:
          texts: read once.
          language: of the texts, "de" say; of a code with region or script, "de-AT", it is the language that counts.
          split: at white space, or by Moses' rules for the language; "auto": by rules where there are some that cut its texts
            into words, which is not so of Chinese and Japanese (`moses.cuts_words`).
          min_count: a word that comes less often is unknown.
          size: of the vocabulary at most, the special symbols among them: the most frequent words are kept.
          lowercase: lower-case texts first, here and in `encode`.

        Raises:
          ValueError: an argument out of its range; no word.
        """
        language = _language_of(split, language)
        counts = _counted(texts, lowercase, lambda text: _words(text, language))
        return cls(_most_frequent(counts, min_count, size), language=language, lowercase=lowercase)

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> "Words":
        return cls(saved["symbols"], language=saved["language"], lowercase=saved["lowercase"])

    def _split(self, text: str) -> Sequence[str]:
        return _words(text, self.language)

    def _join(self, symbols: list[str]) -> str:
        return " ".join(symbols) if self.language is None else moses.detokenize(symbols, self.language)

    def _options(self) -> dict[str, Any]:
        return {"language": self.language}


class OpenCharacters(_Listed):
    """Single characters (code points) of any texts, spaces among them; 3 is a character that is not listed.

    `vocabulary.Characters` is for an alphabet that is known, where any other character is an error.
    """

    kind = "characters"

    @classmethod
    def fit(
        cls, texts: Iterable[str], *, min_count: int = 1, size: int | None = None, lowercase: bool = False
    ) -> "OpenCharacters":
        """The characters of texts, which are to be those of the training split only; the arguments are those of `Words.fit`."""
        return cls(_most_frequent(_counted(texts, lowercase, str), min_count, size), lowercase=lowercase)

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> "OpenCharacters":
        return cls(saved["symbols"], lowercase=saved["lowercase"])

    def _split(self, text: str) -> Sequence[str]:
        return text

    def _join(self, symbols: list[str]) -> str:
        return "".join(symbols)


class TextBytes:
    """The bytes of UTF-8 as in `vocabulary.Bytes`, of texts in Unicode's form NFC. Nothing is unknown."""

    kind = "bytes"

    def __init__(self, *, lowercase: bool = False):
        self.lowercase = lowercase
        self._bytes = Bytes()

    @classmethod
    def fit(cls, texts: Iterable[str], *, lowercase: bool = False) -> "TextBytes":
        """All 256 bytes, whatever the texts."""
        return cls(lowercase=lowercase)

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> "TextBytes":
        return cls(lowercase=saved["lowercase"])

    def __len__(self) -> int:
        return len(self._bytes)

    def encode(self, text: str) -> np.ndarray:
        """The numbers of the bytes of `text`, int32 [bytes]; no start and no end."""
        return self._bytes.encode(normalized(text, self.lowercase))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` up to the end symbol, without padding and start; bytes that make no character are U+FFFD.

        Raises:
          ValueError: a number outside of the vocabulary.
        """
        return self._bytes.decode(up_to_end(ids, len(self)))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """A label for each number: the character of an ASCII byte, "▁" for a space, "<0xC3>" for others."""
        return [_byte_label(int(number)) for number in ids]

    def lacks(self, text: str) -> list[str]:
        """Nothing: every byte has its number, whether training has seen it or not."""
        return []

    def save(self, path: str | Path) -> None:
        """Writes one file, all that `load_tokenizer` needs."""
        Path(path).write_text(json.dumps({"kind": self.kind, "lowercase": self.lowercase}) + "\n", encoding="utf-8")


class Tokenizers(NamedTuple):
    """Those of both sides; one and the same in a joint model, but for words whose languages are cut by rules of their own."""

    source: Tokenizer
    target: Tokenizer

    def save(self, folder: str | Path) -> None:
        """Writes `source_tokenizer.json` and `target_tokenizer.json`, for `load_tokenizers`."""
        for side, tokenizer in self._asdict().items():
            tokenizer.save(Path(folder) / f"{side}_tokenizer.json")


_KINDS: dict[str, Any] = {kind.kind: kind for kind in (Subwords, Words, OpenCharacters, TextBytes)}


def fit_tokenizer(kind: Kind, texts: Iterable[str], **options: Any) -> Tokenizer:
    """A tokeniser of texts, which are to be those of the training split only; the same texts give the same one.

    Args:
      kind: "subwords", "words", "characters" or "bytes".
      texts: read once.
      options: of the kind: those of `Subwords.fit`, `Words.fit`, `OpenCharacters.fit`, `TextBytes.fit`.

    Raises:
      ValueError: no such kind or option; what the kind's own `fit` raises.
    """
    _check_options(kind, options)
    return _KINDS[kind].fit(texts, **options)


def fit_tokenizers(
    kind: Kind,
    sources: Sequence[str],
    targets: Sequence[str],
    *,
    joint: bool,
    languages: tuple[str | None, str | None] = (None, None),
    **options: Any,
) -> Tokenizers:
    """The tokenisers of both sides of the training split's pairs.

    Args:
      kind: as of `fit_tokenizer`.
      sources: texts.
      targets: texts.
      joint: one vocabulary for both, of the texts of both; else each side has its own.
      languages: of both sides, for words.
      options: as of `fit_tokenizer`.

    Raises:
      ValueError: what `fit_tokenizer` raises.
    """
    _check_options(kind, options, besides=("language",))
    if kind != "words":
        if joint:
            both = fit_tokenizer(kind, itertools.chain(sources, targets), **options)
            return Tokenizers(both, both)
        return Tokenizers(fit_tokenizer(kind, sources, **options), fit_tokenizer(kind, targets, **options))
    if not joint:
        own, other = languages
        return Tokenizers(Words.fit(sources, language=own, **options), Words.fit(targets, language=other, **options))
    split, lowercase = options.get("split", "auto"), options.get("lowercase", False)
    codes = [_language_of(split, code) for code in languages]
    counts = collections.Counter[str]()
    for texts, code in zip((sources, targets), codes, strict=True):
        counts += _counted(texts, lowercase, lambda text, code=code: _words(text, code))
    words = _most_frequent(counts, options.get("min_count", 1), options.get("size"))
    return Tokenizers(*(Words(words, language=code, lowercase=lowercase) for code in codes))


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokeniser of any kind that `save` has written.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that is not one of a tokeniser, by its name.
    """
    try:
        saved = json.loads(Path(path).read_text(encoding="utf-8"))
        return _KINDS[saved["kind"]].restored(saved)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected a tokeniser of one of the kinds {list(_KINDS)}, got another file ({error!r})"
        ) from error


def load_tokenizers(folder: str | Path) -> Tokenizers:
    """Those that `Tokenizers.save` has written to the folder of a run.

    Raises:
      FileNotFoundError, ValueError: as of `load_tokenizer`.
    """
    return Tokenizers(*(load_tokenizer(Path(folder) / f"{side}_tokenizer.json") for side in Tokenizers._fields))


def characters_of(tokenizer: Tokenizer, ids: Sequence[int]) -> list[tuple[str, int, int]]:
    """What to show of symbols: text, first symbol and the one behind its last; bytes that are one character stand together.

    Bytes that are no character, half a one at the beginning of a text that was cut say, are U+FFFD each.
    """
    if not isinstance(tokenizer, TextBytes):
        return [(tokenizer.decode([number]), place, place + 1) for place, number in enumerate(ids)]
    shown, place = [], 0
    while place < len(ids):
        for size in (1, 2, 3, 4):
            text = tokenizer.decode(ids[place : place + size])
            if len(text) == 1 and text != REPLACEMENT and place + size <= len(ids):
                break
        else:
            text, size = REPLACEMENT, 1
        shown.append((text, place, place + size))
        place += size
    return shown


def _check_options(kind: str, options: dict[str, Any], besides: Sequence[str] = ()) -> None:
    if kind not in _KINDS:
        raise ValueError(f"kind: expected one of {list(_KINDS)}, got {kind!r}")
    known = [name for name in inspect.signature(_KINDS[kind].fit).parameters if name not in ("texts", *besides)]
    if not set(options) <= set(known):
        raise ValueError(f"options: expected some of {known} for {kind}, got {sorted(set(options) - set(known))}")


def _language_of(split: str, language: str | None) -> str | None:
    """The language by whose rules words are cut; None: white space."""
    if split not in ("auto", "moses", "spaces"):
        raise ValueError(f"split: expected 'auto', 'moses' or 'spaces', got {split!r}")
    language = moses.base_language(language)
    if split == "moses":
        return moses.check_language(language)
    return language if split == "auto" and moses.cuts_words(language) else None


def _words(text: str, language: str | None) -> list[str]:
    return text.split() if language is None else moses.tokenize(text, language)


def _counted(texts: Iterable[str], lowercase: bool, split: Any) -> "collections.Counter[str]":
    counts = collections.Counter[str]()
    for text in texts:
        counts.update(split(normalized(text, lowercase)))
    return counts


def _most_frequent(counts: "collections.Counter[str]", min_count: int, size: int | None) -> list[str]:
    if min_count < 1:
        raise ValueError(f"min_count: expected at least 1, got {min_count}")
    if size is not None and size < UNKNOWN + 2:
        raise ValueError(f"size: expected at least {UNKNOWN + 2}, got {size}")
    kept = [symbol for symbol, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count >= min_count]
    if not kept:
        raise ValueError(f"texts: expected a symbol that comes at least {min_count} times, got none")
    return kept if size is None else kept[: size - UNKNOWN - 1]


def _byte_label(number: int) -> str:
    if number <= END:
        return _SPECIAL[number]
    byte = number - END - 1
    return "▁" if byte == 0x20 else chr(byte) if 0x21 <= byte < 0x7F else f"<0x{byte:02X}>"
