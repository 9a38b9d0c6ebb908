"""Scores of texts, beside sacrebleu and sacremoses called by hand, and values worked out on paper."""

import logging
import math

import numpy as np
import pytest
import sacrebleu
import sacremoses

from s2s_jax.text_metrics import (
    bleu,
    bleu_counts,
    bleu_lowercased_tokens,
    bleu_lowercased_tokens_counts,
    character_edits,
    character_error_rate,
    chrf,
    confusions,
    exact_match_counts,
    exact_match_of_texts,
    has_four_words,
    word_error_rate,
)

HYPOTHESES = ["The cat sat on the mat.", "A man isn't riding a “bike”.", "Zwei"]
REFERENCES = ["The cat is on the mat.", 'A man isn\'t riding a "Bike" .', "Zwei Hunde"]
ALL = [bleu, lambda h, r: bleu_lowercased_tokens(h, r, "en"), chrf, exact_match_of_texts]


def test_bleu_is_what_one_counts_on_paper():
    # One text, cut by 13a into 7 and 7 words: 6 of 7 right, 4 of 6 pairs, 2 of 5 triples, 1 of 4.
    score = bleu(["the cat sat on the mat."], ["the cat is on the mat."])
    in_common = [6 / 7, 4 / 6, 2 / 5, 1 / 4]
    assert score.value == pytest.approx(100 * math.prod(in_common) ** 0.25)
    assert score.signature == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}|form:NFC"
    # All right but short: the brevity penalty alone.
    short = bleu(["a b c d e"], ["a b c d e f g"])
    assert short.value == pytest.approx(100 * math.exp(1 - 7 / 5))


def test_cased_bleu_and_chrf_are_those_of_sacrebleu():
    assert bleu(HYPOTHESES, REFERENCES).value == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    shouted = [text.upper() for text in HYPOTHESES]
    lower = bleu(shouted, REFERENCES, lowercase=True)
    assert lower.value == sacrebleu.corpus_bleu(shouted, [REFERENCES], lowercase=True).score
    assert "|case:lc|" in lower.signature
    assert bleu(["THE CAT SAT"], ["the cat sat"]).value == 0
    score = chrf(HYPOTHESES, REFERENCES)
    assert score.value == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    lower = chrf(shouted, REFERENCES, lowercase=True)
    of_lower = sacrebleu.corpus_chrf([text.lower() for text in shouted], [[text.lower() for text in REFERENCES]])
    assert lower.value == of_lower.score
    assert "|case:lc|" in lower.signature
    assert score.signature == f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{sacrebleu.__version__}|form:NFC"


def test_bleu_of_languages_without_spaces_is_of_characters():
    ours, theirs = ["我喜欢你的 red book。"], ["我喜欢他的 red book。"]
    assert bleu(ours, theirs, language="zh").value == sacrebleu.corpus_bleu(ours, [theirs], tokenize="zh").score
    assert bleu(ours, theirs, language="th").value == sacrebleu.corpus_bleu(ours, [theirs], tokenize="char").score
    assert bleu(ours, theirs, language="de").value == sacrebleu.corpus_bleu(ours, [theirs]).score
    assert bleu(ours, theirs, language="zh_Hant-TW").signature == bleu(ours, theirs, language="zh").signature
    assert "tok:zh" in bleu_counts(ours, theirs, language="zh").signature


def test_four_words_are_counted_as_bleu_cuts_them():
    assert has_four_words(["a", "b c d."])
    assert not has_four_words(["a b c", "dreihundertzwölf", ""])
    assert [has_four_words(["我喜欢他的书"], language) for language in ("zh", None)] == [True, False]


@pytest.mark.parametrize("language", ["en", "de", "fr"])
def test_bleu_of_tokens_is_that_of_sacrebleu_on_texts_cut_by_hand(language, caplog):
    normalize = sacremoses.MosesPunctNormalizer(lang=language).normalize
    tokenize = sacremoses.MosesTokenizer(lang=language).tokenize
    ours, theirs = (
        [tokenize(normalize(text).lower(), return_str=True) for text in texts] for texts in (HYPOTHESES, REFERENCES)
    )
    expected = sacrebleu.corpus_bleu(ours, [theirs], tokenize="none", force=True).score
    with caplog.at_level(logging.WARNING):
        many = bleu_lowercased_tokens(HYPOTHESES * 50, REFERENCES * 50, language)
    assert not caplog.records
    assert many.value == pytest.approx(expected)
    assert many.signature == (
        f"nrefs:1|case:mixed|eff:no|tok:none|smooth:exp|version:{sacrebleu.__version__}"
        f"|before:sacremoses {sacremoses.__version__}: normalize, lowercase, tokenize {language}|form:NFC"
    )


def test_bleu_of_tokens_is_blind_to_case_and_quotation_marks_only():
    def of(ours, theirs):
        return bleu_lowercased_tokens([ours], [theirs], "en").value

    assert of("A man, riding a “BIKE”.", 'a man, riding a "bike".') == pytest.approx(100)
    assert of("a b c d e.", "a b c d e .") == pytest.approx(100)
    assert of("a b c d e", "a b c d f") < 70


@pytest.mark.parametrize("score", ALL)
def test_a_letter_and_the_mark_over_it_are_the_letter_that_has_it(score):
    assert score(["un cafe\u0301 pour deux."], ["un caf\u00e9 pour deux."]).value in (1, pytest.approx(100))


def test_exact_match_is_a_share_of_texts():
    score = exact_match_of_texts(["1 2", "2 1", "", "e\u0301"], ["1 2", "1 2", "", "\u00e9"])
    assert score == (0.75, "exact match of whole texts|form:NFC")
    assert exact_match_of_texts(["A "], ["A"]).value == 0


@pytest.mark.parametrize(
    ("counted", "score"),
    [
        (exact_match_counts, exact_match_of_texts),
        (bleu_counts, bleu),
        (lambda h, r: bleu_lowercased_tokens_counts(h, r, "en"), lambda h, r: bleu_lowercased_tokens(h, r, "en")),
    ],
    ids=["exact match", "BLEU of texts", "BLEU of words"],
)
def test_counts_of_texts_give_the_score_of_any_texts_drawn_more_than_once_too(counted, score):
    hypotheses = [*HYPOTHESES, "the end", "", "a b c d e"]
    references = [*REFERENCES, "the end", "not a word", "a b x d e"]
    counts = counted(hypotheses, references)
    draws = np.array([[1] * 6, [1, 0, 0, 0, 0, 0], [0, 2, 0, 0, 0, 3], [0, 0, 0, 0, 1, 0], [0, 0, 0, 3, 2, 0]])
    values = counts.value(draws @ counts.counts)
    for times, value in zip(draws, values, strict=True):
        chosen = np.repeat(np.arange(6), times)
        want = score([hypotheses[n] for n in chosen], [references[n] for n in chosen])
        assert value == pytest.approx(want.value)
        assert counts.signature == want.signature


@pytest.mark.parametrize("metric", ALL)
def test_empty_hypotheses_and_one_sentence(metric):
    perfect = 1 if metric is exact_match_of_texts else 100
    assert metric(["", ""], ["a b c d", "e"]).value == 0
    assert metric(["a b c d e."], ["a b c d e."]).value == pytest.approx(perfect)
    assert 0 <= metric(["", "a b c d e"], ["x y", "a b c d e"]).value < perfect


@pytest.mark.parametrize("metric", ALL)
def test_bad_input_is_named(metric):
    for ours, theirs in ((["a"], ["a", "b"]), ([], [])):
        with pytest.raises(ValueError, match=r"hypotheses: expected as many as references, .* and at least one, got"):
            metric(ours, theirs)
    with pytest.raises(ValueError, match="references: expected a list of texts, got str 'a'"):
        metric(["a"], "a")
    with pytest.raises(ValueError, match=r"language: expected one of .*, got 'tlh'"):
        bleu_lowercased_tokens(["a"], ["a"], "tlh")


def distance(ours, theirs):
    """Levenshtein's, by its recursion."""
    row = list(range(len(ours) + 1))
    for place, wanted in enumerate(theirs, start=1):
        before, row[0] = row[0], place
        for other, said in enumerate(ours, start=1):
            before, row[other] = row[other], min(row[other] + 1, row[other - 1] + 1, before + (said != wanted))
    return row[-1]


READ = ["kitten", " b", "", "xyz", "e\u0301a", "a c d"]
SAID = ["sitting", "b ", "ab", "", "éa", "a  b d"]


def test_error_rates_are_edits_over_what_is_said():
    edits = character_edits(READ, SAID)
    wanted = ["sitting", "b ", "ab", "", "e\u0301a", "a  b d"]
    assert edits.counts.tolist() == [[distance(a, b), len(b)] for a, b in zip(READ, wanted, strict=True)]
    assert character_error_rate(READ, SAID).value == pytest.approx(12 / 20)
    assert character_error_rate(READ, SAID, spaces=False).value == pytest.approx(9 / 16)
    assert word_error_rate(READ, SAID).value == pytest.approx((1 + 0 + 1 + 1 + 0 + 1) / 7)
    assert math.isnan(character_error_rate(["a"], [""]).value)
    assert "NFD" in edits.signature


def test_confusions_add_up_to_the_edits():
    found = confusions(READ, SAID)
    assert sum(found.values()) == 12
    assert found["s", "k"] == found["i", "e"] == found["g", ""] == 1
    assert found["", "x"] == 1
