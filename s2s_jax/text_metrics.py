"""Scores of texts against references, each with a signature that says how it was counted: BLEU, chrF, error rates."""

import importlib.metadata
import itertools
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from s2s_jax.data import moses
from s2s_jax.data.vocabulary import normalized

_FORM = "|form:NFC"  # of both sides, in signatures
# How sacrebleu cuts words of languages that put no spaces between them; others by its own rules, 13a.
_CUT = {"zh": "zh", "yue": "zh", "ja": "char", "th": "char", "lo": "char", "km": "char", "my": "char", "bo": "char"}


class TextScore(NamedTuple):
    """A score, and all that one must know to count it again.

    Attributes:
      value: 0 to 100 of BLEU and chrF; of exact match a share from 0 to 1; of error rates edits over parts, from 0 on.
      signature: sacrebleu's, and what was done to the texts before.
    """

    value: float
    signature: str


class TextCounts(NamedTuple):
    """A score of a corpus as counts of each text: added up over any texts, drawn more than once too, they give its value there.

    Attributes:
      counts: [N, K].
      value: from sums [..., K] to values [...].
      signature: as of `TextScore`.
    """

    counts: np.ndarray
    value: Callable[[np.ndarray], np.ndarray]
    signature: str


def bleu(
    hypotheses: Sequence[str], references: Sequence[str], *, lowercase: bool = False, language: str | None = None
) -> TextScore:
    """BLEU of a corpus, 0 to 100, on texts as people write them, or both sides lower-cased: sacrebleu's own (13a).

    In a language without spaces between words, where `language` names it, each character is one (of Chinese by sacrebleu's own
    rules, which keep other scripts' words whole).

    BLEU = min(1, exp(1 - r/c)) * (p_1 p_2 p_3 p_4)^(1/4): the lengths r and c of references and hypotheses, the shares p_n of
    the hypotheses' n-grams that are in their references (Papineni et al. 2002, eq. 3; Post 2018, arXiv 1804.08771).

    Raises:
      ValueError: no text, or another number of references.
    """
    ours, theirs = _checked(hypotheses, references)
    counted = _bleu_of(lowercase, language)
    value = counted.corpus_score(ours, [theirs]).score
    return TextScore(value, f"{counted.get_signature()}{_FORM}")


def bleu_counts(
    hypotheses: Sequence[str], references: Sequence[str], *, lowercase: bool = False, language: str | None = None
) -> TextCounts:
    """`bleu` as counts: right and all n-grams for n of 1 to 4, and the lengths c and r.

    Raises:
      ValueError: as of `bleu`.
    """
    return _bleu_counts(_bleu_of(lowercase, language), *_checked(hypotheses, references), _FORM)


def has_four_words(references: Sequence[str], language: str | None = None) -> bool:
    """Whether any text has four words in a row, as `bleu` cuts them; where none has, BLEU is 0 of the references themselves."""
    counted = _bleu_of(False, language)
    return any(len(counted.tokenizer(normalized(text)).split()) >= 4 for text in references)


def _bleu_of(lowercase: bool, language: str | None) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(lowercase=lowercase, tokenize=_CUT.get(moses.base_language(language) or "", "13a"))


def bleu_lowercased_tokens(hypotheses: Sequence[str], references: Sequence[str], language: str) -> TextScore:
    """BLEU of a corpus, 0 to 100, as the Multi30k tasks count it: of lower-cased words cut by Moses' rules, on both sides.

    Punctuation is made one first (`moses.normalize_punctuation`), then lower-cased, then cut; sacrebleu adds nothing
    (tokenize="none"). Such figures are not to be compared with those of `bleu`. Elliott et al. 2017 (W17-4718).

    Raises:
      ValueError: no text, or another number of references; a language that Moses has no rules for.
    """
    counted, ours, theirs, before = _lowercased(hypotheses, references, language)
    value = counted.corpus_score(ours, [theirs]).score
    return TextScore(value, f"{counted.get_signature()}{before}")


def bleu_lowercased_tokens_counts(hypotheses: Sequence[str], references: Sequence[str], language: str) -> TextCounts:
    """`bleu_lowercased_tokens` as counts: right and all n-grams for n of 1 to 4, and the lengths c and r.

    Raises:
      ValueError: as of `bleu_lowercased_tokens`.
    """
    return _bleu_counts(*_lowercased(hypotheses, references, language))


def chrf(hypotheses: Sequence[str], references: Sequence[str], *, lowercase: bool = False) -> TextScore:
    """The F-score of n-grams of characters of a corpus, 0 to 100: sacrebleu's chrF2 (Popović 2015, W15-3049).

    With `lowercase` both sides are lower-cased first, as of a model that says nothing cased.

    Raises:
      ValueError: no text, or another number of references.
    """
    ours, theirs = _checked(hypotheses, references)
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF(lowercase=lowercase)
    value = metric.corpus_score(ours, [theirs]).score
    return TextScore(value, f"{metric.get_signature()}{_FORM}")


def exact_match_of_texts(hypotheses: Sequence[str], references: Sequence[str], *, lowercase: bool = False) -> TextScore:
    """The share of texts, 0 to 1, that are their reference, both in Unicode's form NFC, or lower-cased too.

    Raises:
      ValueError: no text, or another number of references.
    """
    right, value, signature = exact_match_counts(hypotheses, references, lowercase=lowercase)
    return TextScore(float(value(right.sum(0))), signature)


def exact_match_counts(hypotheses: Sequence[str], references: Sequence[str], *, lowercase: bool = False) -> TextCounts:
    """`exact_match_of_texts` as counts: right texts, and all.

    Raises:
      ValueError: no text, or another number of references.
    """
    both = ([normalized(text, lowercase) for text in texts] for texts in _checked(hypotheses, references))
    right = [ours == theirs for ours, theirs in zip(*both, strict=True)]
    counts = np.stack([np.array(right, np.int64), np.ones(len(right), np.int64)], axis=1)
    signature = f"exact match of whole texts{', lower-cased' * lowercase}{_FORM}"
    return TextCounts(counts, lambda sums: sums[..., 0] / sums[..., 1], signature)


def character_error_rate(hypotheses: Sequence[str], references: Sequence[str], *, spaces: bool = True) -> TextScore:
    """CER: the fewest insertions, deletions and substitutions of characters, over the characters of all references.

    In Unicode's form NFD, so that a letter and the mark over it are two characters; without the spaces of both sides if
    `spaces` is False. May be above 1; nan where the references have no characters.

    Raises:
      ValueError: no text, or another number of references.
    """
    edits, value, signature = character_edits(hypotheses, references, spaces=spaces)
    return TextScore(float(value(edits.sum(0))), signature)


def word_error_rate(hypotheses: Sequence[str], references: Sequence[str]) -> TextScore:
    """WER: the fewest insertions, deletions and substitutions of words, between white space, over those of all references.

    Raises:
      ValueError: no text, or another number of references.
    """
    of_texts, signature = _edits(hypotheses, references, str.split)
    return TextScore(float(_rate(_counts(of_texts).sum(0))), f"WER|words:between white space|{signature}")


def character_edits(hypotheses: Sequence[str], references: Sequence[str], *, spaces: bool = True) -> TextCounts:
    """`character_error_rate` as counts: edits, and characters of the reference.

    Raises:
      ValueError: no text, or another number of references.
    """
    of_texts, signature = _edits(hypotheses, references, list if spaces else lambda text: list("".join(text.split())))
    return TextCounts(_counts(of_texts), _rate, f"CER|spaces:{'yes' if spaces else 'no'}|{signature}")


def confusions(hypotheses: Sequence[str], references: Sequence[str]) -> Counter[tuple[str, str]]:
    """{(character of a reference, what was read): how often}, "" for one that is missing or too many.

    Of several alignments with the fewest edits jiwer takes one.

    Raises:
      ValueError: no text, or another number of references.
    """
    of_texts, _ = _edits(hypotheses, references, list)
    return Counter(pair for edited, _ in of_texts for pair in edited)


def _edits(
    hypotheses: Sequence[str], references: Sequence[str], cut: Callable[[str], list[str]]
) -> tuple[list[tuple[list[tuple[str, str]], int]], str]:
    """Of each text its edits, (part of the reference, part of the hypothesis), and of how many parts the reference is."""
    both = _checked(hypotheses, references)
    import jiwer

    ours, theirs = ([cut(unicodedata.normalize("NFD", text)) for text in texts] for texts in both)
    as_they_are = jiwer.Compose([])
    alignments = jiwer.process_words(theirs, ours, as_they_are, as_they_are).alignments  # type: ignore[arg-type]
    found = []
    for said, wanted, chunks in zip(ours, theirs, alignments, strict=True):
        pairs = []
        for chunk in chunks:
            if chunk.type != "equal":
                parts = wanted[chunk.ref_start_idx : chunk.ref_end_idx], said[chunk.hyp_start_idx : chunk.hyp_end_idx]
                pairs += itertools.zip_longest(*parts, fillvalue="")
        found.append((pairs, len(wanted)))
    return found, f"form:NFD|Levenshtein distance by jiwer {importlib.metadata.version('jiwer')}"


def _counts(of_texts: Sequence[tuple[list[tuple[str, str]], int]]) -> np.ndarray:
    return np.array([(len(pairs), parts) for pairs, parts in of_texts], np.int64)


def _rate(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / np.where(sums[..., 1] > 0, sums[..., 1], np.nan)


def _bleu_counts(counted: Any, ours: Sequence[str], theirs: Sequence[str], before: str) -> TextCounts:
    of_texts = [counted.corpus_score([text], [[reference]]) for text, reference in zip(ours, theirs, strict=True)]
    counts = np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in of_texts], np.int64)

    def of_sums(sums: np.ndarray) -> float:
        right, every, (length, length_of_references) = sums[:4].tolist(), sums[4:8].tolist(), sums[8:].tolist()
        return counted.compute_bleu(right, every, length, length_of_references, smooth_method="exp").score

    return TextCounts(counts, lambda sums: np.apply_along_axis(of_sums, -1, sums), f"{counted.get_signature()}{before}")


def _lowercased(hypotheses: Sequence[str], references: Sequence[str], language: str) -> tuple[Any, list[str], list[str], str]:
    """BLEU of words by sacrebleu, both sides cut into them, and what was done to the texts before."""
    texts_of_both = _checked(hypotheses, references)
    moses.check_language(language)
    from sacrebleu.metrics.bleu import BLEU

    words = BLEU(tokenize="none", force=True)  # force: no warning that these are words already
    ours, theirs = ([_lowercased_tokens(text, language) for text in texts] for texts in texts_of_both)
    version = importlib.metadata.version("sacremoses")
    return words, ours, theirs, f"|before:sacremoses {version}: normalize, lowercase, tokenize {language}{_FORM}"


def _lowercased_tokens(text: str, language: str) -> str:
    return " ".join(moses.tokenize(moses.normalize_punctuation(text, language).lower(), language))


def _checked(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[list[str], list[str]]:
    """Both in Unicode's form NFC."""
    for name, texts in (("hypotheses", hypotheses), ("references", references)):
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name}: expected a list of texts, got {type(texts).__name__} {texts!r:.60}")
    if len(hypotheses) != len(references) or not references:
        expected = f"as many as references, {len(references)}, and at least one"
        raise ValueError(f"hypotheses: expected {expected}, got {len(hypotheses)}")
    return [normalized(text) for text in hypotheses], [normalized(text) for text in references]
