"""Which scores pairs get, by their flags."""

import pytest

from s2s_jax.data.pair_sets import PairFlags
from s2s_jax.pair_scores import counts_of, name_of_bleu, scores_of, target_of_rules


def test_rules_are_of_the_language_of_the_targets():
    assert target_of_rules(PairFlags(dataset="files", target="fr")) == ("fr", "")
    assert target_of_rules(PairFlags(dataset="files", target="vi")) == (None, "Moses has no rules for words of vi")
    said = "the language of the targets is not known; --target would say it"
    assert target_of_rules(PairFlags(dataset="files", source="en")) == (None, said)
    assert target_of_rules(PairFlags()) == target_of_rules(PairFlags(dataset="copy")) == (None, "")


def test_a_metric_without_rules_is_left_out():
    texts = ["a b c d"] * 2

    def named(texts, **flags):
        return set(scores_of(PairFlags(dataset="files", **flags), texts, texts))

    assert {target: named(texts, target=target) for target in ("de", "vi", "zh", "ja", None)} == {
        "de": {"chrf", "bleu_cased", "exact_match", "bleu_lowercased_tokens"},
        "vi": {"chrf", "bleu_cased", "exact_match"},
        "zh": {"chrf", "bleu_cased", "exact_match"},
        "ja": {"chrf", "bleu_cased", "exact_match"},
        None: {"chrf", "bleu_cased", "exact_match"},
    }
    assert named(texts, target="de", lowercase=True) == {"chrf", "bleu_lowercased", "bleu_lowercased_tokens", "exact_match"}
    of_lower = scores_of(PairFlags(lowercase=True), ["ein haus"], ["Ein Haus"])
    assert (of_lower["exact_match"].value, of_lower["chrf"].value) == (1, 100)
    assert named(["a b c", "x"], target="de") == {"chrf", "exact_match"}  # whose BLEU would be 0
    assert named(["我喜欢他的书"], target="zh-CN") == {"chrf", "bleu_cased", "exact_match"}


@pytest.mark.parametrize(
    ("dataset", "scores"),
    [("copy", [1, 0]), ("numbers", [1, 0]), ("files", [100, 100 * (6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25])],
)
def test_made_up_pairs_are_scored_by_exact_match_and_others_by_bleu(dataset, scores):
    counts = counts_of(PairFlags(dataset=dataset, target="de"), ["1 2 3 4 5", "a b c d e F g"], ["1 2 3 4 5", "A B C D E f"])
    assert counts.value(counts.counts) == pytest.approx(scores)


def test_bleu_is_of_texts_as_they_are_where_there_are_no_rules():
    flags = PairFlags(dataset="files", target="vi")
    assert counts_of(flags, ["A b c d"], ["a b c d"]).signature.startswith("nrefs:1|case:mixed")


@pytest.mark.parametrize(
    ("options", "name", "counted"),
    [
        ({"target": "de"}, "bleu_lowercased_tokens", "case:mixed|eff:no|tok:none"),  # lower-cased and cut before
        ({"target": "vi"}, "bleu_cased", "case:mixed|eff:no|tok:13a"),
        ({"target": "vi", "lowercase": True}, "bleu_lowercased", "case:lc|eff:no|tok:13a"),
        ({"target": "zh"}, "bleu_cased", "case:mixed|eff:no|tok:zh"),
    ],
)
def test_the_bleu_to_compare_models_by_is_counted_as_its_name_says(options, name, counted):
    flags, texts = PairFlags(dataset="files", **options), ["A b c d e", "我喜欢他的书"]
    assert name_of_bleu(flags) == name
    for score in (counts_of(flags, texts, texts), scores_of(flags, texts, texts)[name]):
        assert counted in score.signature
