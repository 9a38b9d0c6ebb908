"""Tokenisers of all kinds, beside plain Python, sentencepiece and sacremoses called directly."""

import json
import unicodedata

import numpy as np
import pytest
import sacremoses
from hypothesis import given
from hypothesis import strategies as st

from s2s_jax.data.tokenizers import (
    OpenCharacters,
    TextBytes,
    Words,
    characters_of,
    fit_tokenizer,
    fit_tokenizers,
    load_tokenizer,
    load_tokenizers,
)
from s2s_jax.data.vocabulary import END, PAD, START, UNKNOWN, normalized

TEXTS = ["Ein Mann läuft.", "Ein Hund läuft über die Straße.", "Zwei Männer, ein Hund!", "Ein Mann, ein Wort."] * 3
OPTIONS = {"subwords": {"size": 300}, "words": {}, "characters": {}, "bytes": {}}
FITTED = {kind: fit_tokenizer(kind, TEXTS, **options) for kind, options in OPTIONS.items()}
ANY_SCRIPT = ["", " ", "Ελλάδα", "日本語 😀", "e\u0301 ä", "\ud800 half", "\udc80", "<unk> </s>", "\x00\n\t", "नमस्ते"]


@pytest.mark.parametrize("kind", FITTED)
def test_no_text_of_any_script_crashes(kind):
    tokenizer = FITTED[kind]
    for text in ANY_SCRIPT:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert ids.ndim == 1
        assert all(END < number < len(tokenizer) for number in ids)  # no special symbol but unknown
        decoded = tokenizer.decode(ids)
        if kind in ("subwords", "bytes"):
            assert kind == "bytes" or UNKNOWN not in ids  # of bytes 3 is the byte 0
            assert decoded == normalized(text)
        assert len(tokenizer.pieces(ids)) == len(ids)


@pytest.mark.parametrize("kind", FITTED)
@given(text=st.text(alphabet=" EMianluftäßerWo.,!", max_size=30))
def test_decode_undoes_encode_of_what_is_known(kind, text):
    ids, expected = FITTED[kind].encode(text), text
    if kind == "words":
        expected = " ".join(word if word in FITTED[kind].symbols else "\ufffd" for word in text.split())
    assert FITTED[kind].decode([START, *ids, PAD, END, *ids]) == expected


@pytest.mark.parametrize("kind", FITTED)
def test_composed_and_decomposed_texts_are_one(kind):
    decomposed = unicodedata.normalize("NFD", TEXTS[1])
    assert decomposed != TEXTS[1]
    assert FITTED[kind].encode(decomposed).tolist() == FITTED[kind].encode(TEXTS[1]).tolist()
    again = fit_tokenizer(kind, [unicodedata.normalize("NFD", text) for text in TEXTS], **OPTIONS[kind])
    assert again.encode(TEXTS[1]).tolist() == FITTED[kind].encode(TEXTS[1]).tolist()


def test_what_no_training_text_held_is_named():
    texts = ["ab cab", "é b"]
    text = "ab xe\u0301 Cab x"
    lacks = {kind: fit_tokenizer(kind, texts).lacks(text) for kind in ("words", "characters", "bytes")}
    assert lacks == {"words": ["x\u00e9", "Cab", "x"], "characters": ["x", "C"], "bytes": []}
    for fallback, size in ((True, 270), (False, 10)):
        assert fit_tokenizer("subwords", texts, size=size, byte_fallback=fallback).lacks(text) == lacks["characters"]
    assert fit_tokenizer("words", texts, lowercase=True).lacks("CAB") == []
    assert fit_tokenizer("words", ["a b", "a"], size=UNKNOWN + 2).lacks("a b") == ["b"]  # it was there, but too seldom


@pytest.mark.parametrize("kind", FITTED)
def test_lower_case_is_an_option(kind):
    lower = fit_tokenizer(kind, TEXTS, lowercase=True, **OPTIONS[kind])
    assert lower.decode(lower.encode("EIN Mann")) == "ein mann"
    assert FITTED[kind].decode(FITTED[kind].encode("Ein Mann")) == "Ein Mann"


@pytest.mark.parametrize("kind", FITTED)
@pytest.mark.parametrize("lowercase", [False, True])
def test_one_file_restores_any_kind(kind, lowercase, tmp_path):
    options = OPTIONS[kind] | ({"language": "de"} if kind == "words" else {})
    fitted = fit_tokenizer(kind, TEXTS, lowercase=lowercase, **options)
    fitted.save(tmp_path / "tokenizer.json")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert type(loaded) is type(fitted)
    assert len(loaded) == len(fitted)
    for text in TEXTS + ANY_SCRIPT:
        ids = fitted.encode(text)
        assert loaded.encode(text).tolist() == ids.tolist()
        assert loaded.decode(ids) == fitted.decode(ids)
        assert loaded.pieces(ids) == fitted.pieces(ids)
    fit_tokenizer(kind, TEXTS, lowercase=lowercase, **options).save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_words_are_numbered_by_how_often_they_come():
    words = fit_tokenizer("words", ["b a b", "c a b", "d\u00a0e  f"], min_count=2)
    assert words.symbols == ["b", "a"]
    assert words.encode("a b c").tolist() == [5, 4, UNKNOWN]
    assert words.decode([5, UNKNOWN, PAD, 4, END, 4]) == "a \ufffd b"
    assert words.pieces([0, 1, 2, 3, 4]) == ["<pad>", "<s>", "</s>", "<unk>", "b"]
    assert (len(words), len(fit_tokenizer("words", ["b a b c"], size=6))) == (6, 6)
    assert fit_tokenizer("words", ["c b a"]).symbols == ["a", "b", "c"]  # as often: by their characters


def test_words_by_rules_are_those_of_sacremoses():
    text = "Herr Dr. Müller sagt: „Isn't it 3,5 & so?“"
    words = fit_tokenizer("words", [text], language="de")
    expected = sacremoses.MosesTokenizer(lang="de").tokenize(text, escape=False)
    assert "Dr." in expected
    assert sorted(words.symbols) == sorted(set(expected))
    ids = words.encode(text)
    assert words.pieces(ids) == expected
    assert words.decode(ids) == sacremoses.MosesDetokenizer(lang="de").detokenize(expected, unescape=False)
    assert Words(["&amp;"], language="de").decode([4]) == "&amp;"  # as it stands, and not as the "&" that it means in HTML
    english = fit_tokenizer("words", ["isn't it?"], language="en")
    assert english.pieces(english.encode("isn't it?")) == ["isn", "'t", "it", "?"]
    for code in ("de-DE", "DE_at"):
        assert fit_tokenizer("words", [text], language=code).pieces(ids) == expected
    joint = fit_tokenizers("words", ["A dog."], ["Ein Hund."], joint=True, languages=("en-US", "de-DE"))
    assert joint.source.pieces(joint.source.encode("A dog.")) == ["A", "dog", "."]
    # White space where it is asked for, where no language is said, and where there are no rules that cut words.
    for options in ({"language": "de", "split": "spaces"}, {}, {"language": "tlh"}, {"language": "zh-CN"}, {"language": "ja"}):
        assert sorted(fit_tokenizer("words", [text], **options).symbols) == sorted(set(text.split()))


def test_characters_and_bytes_are_those_of_python():
    characters = OpenCharacters.fit(["ab a", "ä😀"])
    assert characters.symbols == ["a", " ", "b", "ä", "😀"]
    assert characters.pieces(characters.encode("a b?")) == ["a", "▁", "b", "<unk>"]
    assert characters.decode(characters.encode("a?b")) == "a\ufffdb"
    in_bytes = TextBytes()
    assert [number - 3 for number in in_bytes.encode("ä 😀")] == list("ä 😀".encode())
    assert in_bytes.pieces([1, *in_bytes.encode("ä b"), 2]) == ["<s>", "<0xC3>", "<0xA4>", "▁", "b", "</s>"]
    assert in_bytes.decode([3 + 0xC3, 3 + ord("a")]) == "\ufffda"


@pytest.mark.parametrize("kind", FITTED)
def test_joint_and_separate(kind, tmp_path):
    sources, targets = ["one two two", "isn't it"] * 20, ["eins zwei", "l'eau."] * 20
    options = {"subwords": {"size": 285}}.get(kind, {})
    joint = fit_tokenizers(kind, sources, targets, joint=True, languages=("en", "fr"), **options)
    assert len(joint.source) == len(joint.target)
    if kind == "words":
        assert joint.source.symbols == joint.target.symbols
        assert joint.source.pieces(joint.source.encode("isn't")) == ["isn", "'t"]
        assert joint.target.pieces(joint.target.encode("l'eau")) == ["l'", "eau"]
    else:
        assert joint.source is joint.target
    for text in (sources[0], targets[0]):
        assert joint.source.decode(joint.source.encode(text)) == text
    separate = fit_tokenizers(kind, sources, targets, joint=False, languages=("en", "fr"), **options)
    alone = fit_tokenizer(kind, targets, **options, **({"language": "fr"} if kind == "words" else {}))
    assert separate.target.encode("eins zwei l'eau.").tolist() == alone.encode("eins zwei l'eau.").tolist()
    if kind in ("words", "characters"):
        assert UNKNOWN in separate.target.encode("two w")
        assert UNKNOWN not in joint.target.encode("two")
    separate.save(tmp_path)
    loaded = load_tokenizers(tmp_path)
    for side in ("source", "target"):
        assert (
            getattr(loaded, side).encode("two zwei l'eau").tolist() == getattr(separate, side).encode("two zwei l'eau").tolist()
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_tokenizer("letters", TEXTS), r"kind: expected one of \['subwords', .*\], got 'letters'"),
        (lambda: fit_tokenizer("bytes", TEXTS, size=3), r"options: expected some of \['lowercase'\] for bytes, got \['size'\]"),
        (lambda: fit_tokenizers("words", TEXTS, TEXTS, joint=True, lang="de"), r"options: .* for words, got \['lang'\]"),
        (lambda: fit_tokenizer("words", TEXTS, min_count=0), "min_count: expected at least 1, got 0"),
        (lambda: fit_tokenizer("words", TEXTS, size=4), "size: expected at least 5, got 4"),
        (
            lambda: fit_tokenizer("words", ["a b"], min_count=2),
            "texts: expected a symbol that comes at least 2 times, got none",
        ),
        (lambda: fit_tokenizer("characters", []), "texts: expected a symbol that comes at least 1 times, got none"),
        (lambda: fit_tokenizer("words", TEXTS, split="commas"), "split: expected 'auto', 'moses' or 'spaces', got 'commas'"),
        (lambda: fit_tokenizer("words", TEXTS, split="moses", language="tlh"), "language: expected one of as, .*, got 'tlh'"),
        (lambda: Words(["a", "a"]), "symbols: expected at least one, and each once, got 2, 1 different"),
        (lambda: FITTED["words"].decode([4, 99]), "ids: expected 0 to .*, got 99"),
        (lambda: FITTED["subwords"].decode([300]), "ids: expected 0 to 299, got 300"),
        (lambda: FITTED["bytes"].decode([-1]), "ids: expected 0 to 258, got -1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"kind": "letters"}', json.dumps({"kind": "words", "lowercase": False})])
def test_a_file_that_is_no_tokeniser_is_named(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json: expected a tokeniser of one of the kinds"):
        load_tokenizer(path)
    with pytest.raises(FileNotFoundError):
        load_tokenizer(tmp_path / "none.json")


def test_bytes_that_are_one_character_are_shown_together():
    texts = fit_tokenizer("bytes", ["x"])
    text = "aé\u20ac😀 b"
    tokens = texts.encode(text)
    shown = characters_of(texts, tokens)
    assert [symbol for symbol, _, _ in shown] == list(text)
    assert [(start, end) for _, start, end in shown] == [(0, 1), (1, 3), (3, 6), (6, 10), (10, 11), (11, 12)]
    # Cut in the middle of é, and at the end in the middle of the smiling face.
    assert [symbol for symbol, _, _ in characters_of(texts, tokens[2:8])] == ["\ufffd", "\u20ac", "\ufffd", "\ufffd"]
    open_ones = fit_tokenizer("characters", ["ab"])
    assert characters_of(open_ones, open_ones.encode("b?a")) == [("b", 0, 1), ("\ufffd", 1, 2), ("a", 2, 3)]
