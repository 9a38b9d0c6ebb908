"""Words and punctuation by the rules of Moses (Koehn et al. 2007), as sacremoses has them; imported when first used."""

import functools
from collections.abc import Sequence
from typing import Any

_WITHOUT_SPACES = {"ja", "zh", "yue"}  # Moses has rules for their sentences and leaves all between two signs in one piece
_WITHOUT_ABBREVIATIONS = {"ja", "ko"}  # which have rules, but no list of prefixes


@functools.cache
def languages() -> tuple[str, ...]:
    """The codes of the languages that there are rules for, "de" say."""
    from sacremoses.corpus import NonbreakingPrefixes

    return tuple(sorted(set(NonbreakingPrefixes().available_langs.values()) | _WITHOUT_ABBREVIATIONS))


def check_language(language: str | None) -> str:
    """The language, if there are rules for it.

    Raises:
      ValueError: there are none.
    """
    if language not in languages():
        raise ValueError(f"language: expected one of {', '.join(languages())}, got {language!r}")
    return language


def base_language(code: str | None) -> str | None:
    """The language of a code, without region and script: "pt" of "pt-BR" and "pt_br"."""
    return None if code is None else code.lower().replace("_", "-").split("-")[0]


def cuts_words(language: str | None) -> bool:
    """Whether there are rules that cut texts of the language into words."""
    return language in languages() and language not in _WITHOUT_SPACES


def tokenize(text: str, language: str) -> list[str]:
    """The words and signs of a text. Nothing is escaped: "&" stays "&"."""
    return _tokenizer(check_language(language)).tokenize(text, escape=False)


def detokenize(words: Sequence[str], language: str) -> str:
    """The text that words and signs make, with spaces where the language has them."""
    return _detokenizer(check_language(language)).detokenize(list(words), unescape=False)


def normalize_punctuation(text: str, language: str) -> str:
    """Quotation marks, dashes, dots and spaces of one form each."""
    return _normalizer(check_language(language)).normalize(text)


@functools.cache
def _tokenizer(language: str) -> Any:
    from sacremoses import MosesTokenizer

    return MosesTokenizer(lang=language)


@functools.cache
def _detokenizer(language: str) -> Any:
    from sacremoses import MosesDetokenizer

    return MosesDetokenizer(lang=language)


@functools.cache
def _normalizer(language: str) -> Any:
    from sacremoses import MosesPunctNormalizer

    return MosesPunctNormalizer(lang=language)
