"""Which scores texts get beside the targets of pairs, by the flags that name the pairs."""

from collections.abc import Sequence
from typing import Any

from s2s_jax.data import moses
from s2s_jax.data.pair_sets import TOYS, PairFlags
from s2s_jax.text_metrics import (
    TextCounts,
    TextScore,
    bleu,
    bleu_counts,
    bleu_lowercased_tokens,
    bleu_lowercased_tokens_counts,
    chrf,
    exact_match_counts,
    exact_match_of_texts,
    has_four_words,
)


def is_made_up(flags: PairFlags) -> bool:
    """Whether there is one right answer to each source."""
    return flags.dataset in (*TOYS, "numbers")


def target_of_rules(flags: PairFlags) -> tuple[str | None, str]:
    """The language of the targets, if they are sentences in one that Moses has rules for; else None, and of sentences why."""
    language = moses.base_language(flags.languages[1])
    if is_made_up(flags):
        return None, ""
    if language is None:
        return None, "the language of the targets is not known; --target would say it"
    return (language, "") if moses.cuts_words(language) else (None, f"Moses has no rules for words of {language}")


def name_of_bleu(flags: PairFlags) -> str:
    """What the BLEU of `counts_of` is called."""
    if target_of_rules(flags)[0]:
        return "bleu_lowercased_tokens"
    return _cased_or_not(flags)[0]


def scores_of(flags: PairFlags, texts: Sequence[str], references: Sequence[str]) -> dict[str, TextScore]:
    """All scores by name; no BLEU where no reference has four words, and none of Moses' words without rules for them.

    Raises:
      ValueError: no text, or another number of references.
    """
    scores = {"chrf": chrf(texts, references, lowercase=flags.lowercase)}
    language, _ = target_of_rules(flags)
    if has_four_words(references, flags.languages[1]):
        name, how = _cased_or_not(flags)
        scores[name] = bleu(texts, references, **how)
        if language is not None:
            scores["bleu_lowercased_tokens"] = bleu_lowercased_tokens(texts, references, language)
    return {**scores, "exact_match": exact_match_of_texts(texts, references, lowercase=flags.lowercase)}


def counts_of(flags: PairFlags, texts: Sequence[str], references: Sequence[str]) -> TextCounts:
    """The one score to compare models by: exact match of made-up pairs, BLEU of others, of Moses' words where it has rules.

    Raises:
      ValueError: no text, or another number of references.
    """
    if is_made_up(flags):
        return exact_match_counts(texts, references)
    language, _ = target_of_rules(flags)
    if language is None:
        return bleu_counts(texts, references, **_cased_or_not(flags)[1])
    return bleu_lowercased_tokens_counts(texts, references, language)


def _cased_or_not(flags: PairFlags) -> tuple[str, dict[str, Any]]:
    """What BLEU of texts as people write them is called, and how it is counted: nothing cased is said with `lowercase`."""
    name = "bleu_lowercased" if flags.lowercase else "bleu_cased"
    return name, {"lowercase": flags.lowercase, "language": flags.languages[1]}
