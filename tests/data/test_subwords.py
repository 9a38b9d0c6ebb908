"""Sub-words, beside sentencepiece called directly."""

import base64
import collections
import io
import json

import numpy as np
import pytest
import sentencepiece

from s2s_jax.data.subwords import Subwords
from s2s_jax.data.tokenizers import load_tokenizer
from s2s_jax.data.vocabulary import UNKNOWN

WORDS = ["lower", "lowest", "newer", "newest", "wider", "widest"]
TEXTS = [f"{a} {b}  {a.upper()} ﬁne" for a in WORDS for b in WORDS]
CHARACTERS = set("".join(TEXTS))


@pytest.mark.parametrize("method", ["bpe", "unigram"])
def test_numbers_are_those_of_sentencepiece(method, tmp_path):
    subwords = Subwords.fit(TEXTS, size=285, method=method)
    assert len(subwords) == 285
    model = sentencepiece.SentencePieceProcessor(model_proto=subwords.model)
    for text in ("lowest  newest", "wide", "WIDER ﬁ"):
        assert subwords.encode(text).tolist() == model.encode(text)
        assert subwords.pieces(subwords.encode(text)) == model.encode(text, out_type=str)
    assert [model.id_to_piece(number) for number in range(4)] == ["<pad>", "<s>", "</s>", "<unk>"]
    assert subwords.pieces([0, 1, 2, 3]) == ["<pad>", "<s>", "</s>", "<unk>"]
    subwords.save(tmp_path / "s.json")
    assert load_tokenizer(tmp_path / "s.json").model == subwords.model


def test_the_first_merge_is_that_of_the_most_frequent_pair():
    pairs = collections.Counter(
        a + b for text in TEXTS for word in text.split() for a, b in zip("▁" + word, word, strict=False)
    )
    first = Subwords.fit(TEXTS, size=60, byte_fallback=False)
    merged = [piece for piece in first.pieces(range(4, 60)) if len(piece) == 2]
    assert pairs[merged[0]] == max(pairs.values())


def test_texts_are_neither_normalised_nor_lower_cased_unless_asked():
    subwords = Subwords.fit(TEXTS, size=310)
    for text in ("  two  spaces ", "ﬁ Ａ ² LOWER", "\u00a0no\tbreak\u200b"):  # NFKC, sentencepiece's own, would change them all
        assert subwords.decode(subwords.encode(text)) == text
    lower = Subwords.fit(TEXTS, size=300, lowercase=True)
    assert lower.encode("LOWEST").tolist() == lower.encode("lowest").tolist()
    assert not any(piece[-1:].isupper() and len(piece) == 1 for piece in lower.pieces(range(260, 300)))


def test_without_bytes_there_are_unknowns_and_with_them_none():
    plain, whole = Subwords.fit(TEXTS, size=60, byte_fallback=False), Subwords.fit(TEXTS, size=310)
    assert UNKNOWN in plain.encode("low 日本")
    assert plain.decode(plain.encode("low 日")) == "low \ufffd"
    assert UNKNOWN not in whole.encode("low 日本")
    assert whole.decode(whole.encode("low 日本")) == "low 日本"
    rare = Subwords.fit([*TEXTS, "ж"], size=50, byte_fallback=False, coverage=0.99)
    assert UNKNOWN in rare.encode("ж")
    assert UNKNOWN not in plain.fit([*TEXTS, "ж"], size=60, byte_fallback=False).encode("ж")


def test_long_texts_are_not_skipped():
    long = "abcdefgh" * 2000  # sentencepiece leaves out lines of more than 4,192 bytes unless told otherwise
    assert UNKNOWN not in Subwords.fit([long, "z y x"], size=20, byte_fallback=False).encode("abc")


def test_fitting_is_quiet_and_leaves_no_file(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for method in ("bpe", "unigram"):
        Subwords.fit(TEXTS, size=285, method=method)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (TEXTS, {"size": 20_000}, r"size: expected one that the texts fit, got 20000 \(Vocabulary size too high"),
        (
            TEXTS,
            {"size": 265},
            rf"size: expected at least {260 + len(set(''.join(TEXTS)) | {' '})}, as each character .*, got 265$",
        ),
        (TEXTS, {"size": 200}, "size: expected at least 261, got 200"),
        (TEXTS, {"size": 4, "byte_fallback": False}, "size: expected at least 5, got 4"),
        (TEXTS, {"method": "word"}, "method: expected 'bpe' or 'unigram', got 'word'"),
        (TEXTS, {"coverage": 2}, "coverage: expected 0.9 to 1, got 2"),
        (["", " "], {}, "texts: expected at least one that is not empty, got none"),
    ],
)
def test_bad_input_is_named(texts, options, message, capfd):
    with pytest.raises(ValueError, match=message):
        Subwords.fit(texts, **options)


def test_a_model_of_other_bytes_or_numbers_is_named(tmp_path):
    with pytest.raises(ValueError, match="model: expected the bytes of a sentencepiece model, got 4 others"):
        Subwords(b"junk")
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS), model_writer=written, vocab_size=30, minloglevel=2)
    with pytest.raises(ValueError, match="model: expected padding, start, end and unknown to be 0, 1, 2 and 3, got"):
        Subwords(written.getvalue())
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"kind": "subwords", "lowercase": False, "model": base64.b64encode(b"junk").decode()}))
    with pytest.raises(ValueError, match=r"s\.json: expected a tokeniser"):
        load_tokenizer(path)


def test_with_dropout_texts_are_cut_in_many_ways_that_mean_the_same():
    subwords = Subwords.fit(TEXTS, size=320)
    whole = [subwords.encode(text).tolist() for text in TEXTS]

    def cut(rate, seed):
        sampled = subwords.with_dropout(rate, seed)
        return [sampled.encode(text).tolist() for text in TEXTS * 3]

    some = cut(0.3, 1)
    assert some == cut(0.3, 1) != cut(0.3, 2)
    assert all(subwords.decode(tokens) == text for tokens, text in zip(some, TEXTS * 3, strict=True))
    assert sum(map(len, whole)) * 3 < sum(map(len, some)) < sum(map(len, cut(0.9, 1)))
    assert cut(0.0, 1) == whole * 3
    assert [subwords.encode(text).tolist() for text in TEXTS] == whole  # the one it was made of stays as it is
    every = [subwords.with_dropout(1.0, 1).encode(text) for text in TEXTS]
    assert all(len(piece) == 1 for tokens in every for piece in subwords.pieces(tokens) if not piece.startswith("<0x"))
    with pytest.raises(ValueError, match=r"rate: expected 0 to 1, got 1\.5"):
        subwords.with_dropout(1.5, 0)


def test_a_merge_is_left_out_at_the_rate():
    """The one merge of "ab": that it happens is a coin, thrown 4,000 times; within four deviations."""
    subwords = Subwords.fit(["ab ab ab"], size=264)
    assert "ab" in subwords.pieces(range(4, 264)) or "▁ab" in subwords.pieces(range(4, 264))
    sampled = subwords.with_dropout(0.3, 0)
    whole = np.mean([len(sampled.encode("ab")) == len(subwords.encode("ab")) for _ in range(4000)])
    merges = 3 - len(subwords.encode("ab"))  # of ▁, a and b
    assert abs(whole - 0.7**merges) < 4 * 0.5 / 4000**0.5
