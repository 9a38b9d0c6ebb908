"""The pairs that flags name, the symbols that they are cut into, and their batches."""

from pathlib import Path

import numpy as np
import pytest

from s2s_jax.data.datasets.report import Report
from s2s_jax.data.pair_sets import WAYS, PairBatches, PairFlags, between_spaces, fit, load_split, load_tests
from s2s_jax.data.parallel import Pairs


@pytest.mark.parametrize("dataset", ["numbers", "reverse", "copy", "sort"])
def test_made_up_pairs_need_no_folder(dataset):
    flags = PairFlags(dataset=dataset)  # by default, which is no sub-words where there are too few
    assert flags.symbols == ("subwords" if dataset == "numbers" else "words")
    training, test = load_split(flags, "train"), load_tests(flags)[""]
    assert not set(training.sources) & set(test.sources)
    tokenizers = fit(flags, training)
    for text in test.targets[:50]:
        assert tokenizers.target.decode(tokenizers.target.encode(text)) == text
    assert flags.origin == ("generated" if dataset == "numbers" else "drawn")


@pytest.mark.parametrize(("dataset", "published"), [("reverse", 20), ("copy", 10), ("sort", 10)])
def test_toys_are_as_long_as_published_or_as_asked_for(dataset, published):
    for flags, longest in ((PairFlags(dataset=dataset), published), (PairFlags(dataset=dataset, longest=3), 3)):
        assert max(len(source.split()) for source in load_split(flags, "test").sources) == longest


def write_multi30k(folder):
    data = folder / "multi30k"
    data.mkdir()
    for number, split in enumerate(("train", "val", "test_2016_flickr", "test_2017_flickr")):
        for language in ("en", "de"):
            (data / f"{split}.{language}").write_text(f"{language} {split}\n" * (number + 1))


def test_multi30k_has_its_own_names_of_splits_and_two_tests(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_multi30k(tmp_path)
    flags = PairFlags(dataset="multi30k", source="de", target="en")
    assert load_split(flags, "validation", tmp_path).sources == ["de val"] * 2
    tests = load_tests(flags, tmp_path)
    assert {suffix: pairs.targets[0] for suffix, pairs in tests.items()} == {
        "": "en test_2016_flickr",
        "_test_2017_flickr": "en test_2017_flickr",
    }


def test_batches_hold_the_pairs_and_an_evaluation_goes_through_the_shapes_of_training():
    flags = PairFlags(dataset="copy", symbols="words", tokens=200, shapes=3)
    training, validation = load_split(flags, "train"), load_split(flags, "validation")
    tokenizers = fit(flags, training)
    batches = PairBatches(flags, tokenizers, training, 0)
    shapes = {batch["source"].shape for batch in batches.shuffled(0)}
    assert len(shapes) == 3
    seen = []
    for batch in batches.in_order(validation):
        assert batch["source"].shape in shapes
        for source, target, length, valid in zip(
            batch["source"], batch["target"], batch["target_lengths"], batch["mask"], strict=True
        ):
            if valid:
                np.testing.assert_array_equal(source, target)
                seen.append(tokenizers.target.decode(target[: length - 1]))
    assert sorted(seen) == sorted(validation.targets)
    first, other = (batches.shuffled(seed)(0)["source"] for seed in (0, 1))
    assert first.shape != other.shape or (first != other).any()


def of(*texts, split="train"):
    return Pairs("some", split, list(texts), list(texts), None, Report())


def test_a_line_longer_than_a_batch_of_training_is_in_an_evaluation():
    flags = PairFlags(dataset="copy", symbols="words", tokens=8, shapes=2)
    training, test = of("1 2 3", "4 5 6 7"), of("1 2", " ".join("1234567890123"), split="test")
    batches = PairBatches(flags, fit(flags, training), training, 0)
    lengths = [length for batch in batches.in_order(test) for length in batch["source_lengths"] if length]
    assert sorted(lengths) == [3, 14]


def test_a_training_text_longer_than_a_batch_is_quoted():
    flags = PairFlags(dataset="copy", symbols="words", tokens=8, shapes=2)
    training = of("1 2 3", "1 2 3 4 5 6 7 8")
    with pytest.raises(
        ValueError, match=r"tokens: expected enough for the longest source, 9 symbols .'1 2 3 4.*got 8; --max-ch"
    ):
        PairBatches(flags, fit(flags, training), training, 0)


@pytest.mark.parametrize("dataset", ["multi30k", "files", "copy"])
@pytest.mark.parametrize("joint", [True, False])
def test_words_of_sentences_are_cut_by_the_rules_of_a_language_that_is_known(dataset, joint):
    flags = PairFlags(dataset=dataset, symbols="words", joint=joint)
    for tokenizer in fit(flags, of("A man.")):
        assert len(tokenizer.encode("A man.")) == (3 if dataset == "multi30k" else 2)


def test_languages_are_english_and_german_but_of_files_and_toys():
    assert PairFlags().languages == PairFlags(dataset="multi30k").languages == ("en", "de")
    assert PairFlags(dataset="multi30k", target="fr").languages == ("en", "fr")
    assert PairFlags(dataset="files").languages == PairFlags(dataset="copy").languages == (None, None)
    assert PairFlags(dataset="files", target="vi").languages == (None, "vi")


def test_files_go_without_saying_where_one_is_named():
    assert PairFlags(train_source=Path("a")).dataset == "files"
    with pytest.raises(ValueError, match="test_target: expected --dataset files with it, got --dataset sort"):
        PairFlags(dataset="sort", test_target=Path("a"))


def test_training_pairs_are_cut_in_many_ways_and_others_in_one():
    flags = PairFlags(vocabulary_size=300, subword_dropout=0.2)
    training = load_split(flags, "train")
    training = training._replace(sources=training.sources[:100], targets=training.targets[:100])
    tokenizers = fit(flags, training)
    batches, again, other = (PairBatches(flags, tokenizers, training, seed) for seed in (0, 0, 1))
    assert len(batches.training) == 100 * WAYS
    ways = [
        [tuple(one.training[number + 100 * way]["target"]) for way in range(WAYS)]
        for one in (batches, again, other)
        for number in (3,)
    ]
    assert ways[0] == ways[1] != ways[2]
    assert len(set(ways[0])) > 3
    assert {tokenizers.target.decode(tokens) for tokens in ways[0]} == {training.targets[3]}
    (batch,) = batches.in_order(training._replace(sources=training.sources[3:4], targets=training.targets[3:4]))
    assert tuple(batch["target"][0][: batch["target_lengths"][0] - 1]) == tuple(tokenizers.target.encode(training.targets[3]))
    for options in ({"symbols": "bytes"}, {"method": "unigram"}):
        with pytest.raises(ValueError, match="subword_dropout: expected it with --symbols subwords --method bpe, got it with"):
            PairFlags(subword_dropout=0.1, **options)
    with pytest.raises(ValueError, match=r"subword_dropout: expected 0 to 1, got 1\.5"):
        PairFlags(subword_dropout=1.5)


def test_further_pairs_come_to_those_of_training_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_multi30k(tmp_path)
    (tmp_path / "more.en").write_text("a dog\n\n")
    (tmp_path / "more.de").write_text("ein Hund\nnichts\n")
    given = {"dataset": "multi30k", "more_source": tmp_path / "more.en", "more_target": tmp_path / "more.de"}
    alone, more = load_split(PairFlags(dataset="multi30k"), "train", tmp_path), PairFlags(**given, bad_lines="drop")
    training = load_split(more, "train", tmp_path)
    assert (training.sources, training.targets) == ([*alone.sources, "a dog"], [*alone.targets, "ein Hund"])
    assert training.fingerprint != alone.fingerprint
    assert training.report.examples == {"train": len(training.sources)}
    assert any(what.startswith("more.en, more.de: ") for what in training.report.findings)
    assert load_split(more, "validation", tmp_path).sources == ["en val"] * 2
    with pytest.raises(ValueError, match=r"more.en:2: expected a text, got an empty line"):
        load_split(PairFlags(**given), "train", tmp_path)
    gone = {"dataset": "copy", "more_source": tmp_path / "gone.en", "more_target": tmp_path / "more.de"}
    with pytest.raises(FileNotFoundError, match=r"more_source: expected a file, found none at .*gone.en"):
        load_split(PairFlags(**gone), "train")
    with pytest.raises(ValueError, match="more_source, more_target: expected both or none, got one"):
        PairFlags(more_source=tmp_path / "more.en")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"dataset": "multi30k", "source": "en-US"}, ""),
        ({"dataset": "multi30k", "target": "zh-CN"}, "Words of zh-CN are what stands between spaces: "),
        ({"dataset": "files"}, "Words of a language that is not known are what"),
        ({"dataset": "multi30k", "target": "zh", "symbols": "subwords"}, ""),
        ({"dataset": "copy"}, ""),
    ],
)
def test_words_without_rules_are_told(flags, told):
    said = between_spaces(PairFlags(**{"symbols": "words", **flags}))
    assert said.startswith(told)
    assert bool(said) == bool(told)
