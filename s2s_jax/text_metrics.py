"""Scores of texts against references: BLEU, chrF, exact match, each with the signature that says how it was counted."""

import importlib.metadata
from collections.abc import Sequence
from typing import NamedTuple

from s2s_jax.data import moses
from s2s_jax.data.vocabulary import normalized


class TextScore(NamedTuple):
    """A score, and all that one must know to count it again.

    Attributes:
      value: 0 to 100; of exact match a share from 0 to 1.
      signature: sacrebleu's, and what was done to the texts before.
    """

    value: float
    signature: str


def bleu_cased(hypotheses: Sequence[str], references: Sequence[str]) -> TextScore:
    """BLEU of a corpus, 0 to 100, on texts as people write them: sacrebleu with its default signature.

    BLEU = min(1, exp(1 - r/c)) * (p_1 p_2 p_3 p_4)^(1/4): the lengths r and c of references and hypotheses, the shares p_n of
    the hypotheses' n-grams that are in their references (Papineni et al. 2002, eq. 3; Post 2018, arXiv 1804.08771).

    Raises:
      ValueError: no text, or another number of references.
    """
    _check(hypotheses, references)
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU()
    value = bleu.corpus_score(list(hypotheses), [list(references)]).score
    return TextScore(value, str(bleu.get_signature()))


def bleu_lowercased_tokens(hypotheses: Sequence[str], references: Sequence[str], language: str) -> TextScore:
    """BLEU of a corpus, 0 to 100, as the Multi30k tasks count it: of lower-cased words cut by Moses' rules, on both sides.

    Punctuation is made one first (`moses.normalize_punctuation`), then lower-cased, then cut; sacrebleu adds nothing
    (tokenize="none"). Such figures are not to be compared with those of `bleu_cased`. Elliott et al. 2017 (W17-4718).

    Raises:
      ValueError: no text, or another number of references; a language that Moses has no rules for.
    """
    _check(hypotheses, references)
    moses.check_language(language)
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(tokenize="none", force=True)  # force: no warning that these are words already
    ours, theirs = ([_lowercased_tokens(text, language) for text in texts] for texts in (hypotheses, references))
    value = bleu.corpus_score(ours, [theirs]).score
    before = f"sacremoses {importlib.metadata.version('sacremoses')}: normalize, lowercase, tokenize {language}"
    return TextScore(value, f"{bleu.get_signature()}|before:{before}")


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> TextScore:
    """The F-score of n-grams of characters of a corpus, 0 to 100: sacrebleu's chrF2 (Popović 2015, W15-3049).

    Raises:
      ValueError: no text, or another number of references.
    """
    _check(hypotheses, references)
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    value = metric.corpus_score(list(hypotheses), [list(references)]).score
    return TextScore(value, str(metric.get_signature()))


def exact_match_of_texts(hypotheses: Sequence[str], references: Sequence[str]) -> TextScore:
    """The share of texts, 0 to 1, that are their reference, both in Unicode's form NFC.

    Raises:
      ValueError: no text, or another number of references.
    """
    _check(hypotheses, references)
    right = sum(normalized(ours) == normalized(theirs) for ours, theirs in zip(hypotheses, references, strict=True))
    return TextScore(right / len(references), "exact match of whole texts|form:NFC")


def _lowercased_tokens(text: str, language: str) -> str:
    return " ".join(moses.tokenize(moses.normalize_punctuation(text, language).lower(), language))


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    for name, texts in (("hypotheses", hypotheses), ("references", references)):
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name}: expected a list of texts, got {type(texts).__name__} {texts!r:.60}")
    if len(hypotheses) != len(references) or not references:
        expected = f"as many as references, {len(references)}, and at least one"
        raise ValueError(f"hypotheses: expected {expected}, got {len(hypotheses)}")
