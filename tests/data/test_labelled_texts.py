"""Labelled texts: of files, folders and the catalogue, whole and wrong; what validates; and as numbers."""

import gzip
import lzma

import numpy as np
import pytest

from s2s_jax.data import labelled_texts
from s2s_jax.data.datasets.report import Report
from s2s_jax.data.labelled_texts import EncodedTexts, TextBatches, TextFlags, held_out, load_texts
from s2s_jax.data.reviews import LabelledTexts
from s2s_jax.data.tokenizers import fit_tokenizer

ROWS = [("sports", "a goal"), ("art", "ein schönes Bild"), ("sports", "the match, lost"), ("art", 'a "frame"')]


def tsv(path, rows=ROWS, header=("label", "text")):
    text = "".join("\t".join(row) + "\n" for row in (header, *rows))
    path.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(text.encode()))
    return path


def quoted(path, rows=ROWS, header=("label", "text")):
    cells = ['"' + '","'.join(cell.replace('"', '""') for cell in row) + '"' for row in (header, *rows)]
    path.write_text("\n".join(cells) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(("write", "name"), [(tsv, "a.tsv"), (tsv, "a.tsv.gz"), (tsv, "a.txt.xz"), (quoted, "a.csv")])
def test_files_of_ones_own(tmp_path, write, name):
    flags = TextFlags(train_file=write(tmp_path / name), test_file=tsv(tmp_path / "test.tsv", ROWS[:2]))
    flags = TextFlags(**{**vars(flags), "validation_file": quoted(tmp_path / "b.csv", [("art", "two\nlines")])})
    found = load_texts(flags)
    assert (flags.dataset, flags.origin, found.classes) == ("files", "real", ("art", "sports"))
    assert found.splits["train"].texts == [text for _, text in ROWS]
    assert found.splits["train"].labels.tolist() == [1, 0, 1, 0]
    assert found.splits["validation"].texts == ["two\nlines"]
    assert found.report.examples == {"train": 4, "validation": 1, "test": 2}
    twice = found.report.findings["the same text in two splits"]
    assert twice["count"] == 2
    assert twice["first"][0] == f"{name}:2 and test.tsv:2"
    assert found.fingerprint == labelled_texts.fingerprint(ROWS)  # of the training texts, whatever else there is
    assert labelled_texts.fingerprint(ROWS[:3]) != found.fingerprint


def test_several_columns_and_classes_that_are_numbers(tmp_path):
    rows = [(str(number), "title", f"more {number}") for number in (10, 9, 2)]
    path = tsv(tmp_path / "a.tsv", rows, ("kind", "title", "body"))
    flags = {"train_file": path, "validation_file": path, "test_file": path, "label_column": "kind"}
    found = load_texts(TextFlags(**flags, text_columns=("title", "body")))
    assert found.classes == ("2", "9", "10")
    assert found.splits["test"].texts[0] == "title more 10"
    expected = r"label_column, text_columns: expected columns that .*a.tsv names in its first line, kind, title, body, got "
    with pytest.raises(ValueError, match=expected + "kind, text; a file that does not begin with names needs --header"):
        load_texts(TextFlags(**flags))
    bare = tmp_path / "bare.csv"  # as Zhang et al. hand out theirs
    bare.write_text("".join(f'"{label}","{title}","{body}"\n' for label, title, body in rows))
    of_bare = {"train_file": bare, "validation_file": bare, "test_file": bare, "header": ("label", "title", "body")}
    again = load_texts(TextFlags(**of_bare, text_columns=("title", "body")))
    with pytest.raises(ValueError, match=r"expected columns that header names, label, title, body, got label, text$"):
        load_texts(TextFlags(**of_bare))
    assert again.splits["train"].texts == found.splits["train"].texts
    assert again.fingerprint == found.fingerprint


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS, ("art",)], r"test.tsv:6: expected 2 columns, got 1"),
        ([*ROWS, ("", "no class")], r"test.tsv:6: expected a class in column 'label', got none"),
        (
            [*ROWS, ("music", "a song")],
            r"test.tsv:6: expected a class that training texts have, \['art', 'sports'\], got 'music'",
        ),
        ([], r"test.tsv: expected lines after the header, found none"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(tmp_path, rows, message):
    train = tsv(tmp_path / "train.tsv", ROWS * 5)
    flags = TextFlags(train_file=train, test_file=tsv(tmp_path / "test.tsv", rows))
    with pytest.raises(ValueError, match=message):
        load_texts(flags)


def test_a_quote_that_does_not_end_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('label,text\nart,"a picture\nsports,a goal\n')
    with pytest.raises(ValueError, match=r"a.csv:2: expected an end of the quote that begins in this row, got none"):
        load_texts(TextFlags(train_file=path, test_file=path))
    path.write_text('label,text\nsports,a goal\nart,"a picture\nsports,a "goal"\n')
    with pytest.raises(ValueError, match=r"a.csv:4: ',' expected after '\"', in the row that begins in line 3"):
        load_texts(TextFlags(train_file=path, test_file=path))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "label;text\nart;a\n", "it seems to be separated by semicolons, where commas are expected"),
        ("a.csv", "label\ttext\nart\ta\n", "it seems to be separated by tabs, where commas are expected"),
        ("a.tsv", "label,text\nart,a\n", "it seems to be separated by commas, where tabs are expected"),
        ("a.csv", ",label,text\n0,art,a\n", r"a.csv:1: expected a name of each column, got none of the first, .* pandas"),
        ("a.csv", "", "a.csv: expected a header and rows, got an empty file"),
    ],
)
def test_a_table_of_another_kind_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    for header in ((), ("label", "text")):
        if not header or "separated" in message:
            with pytest.raises(ValueError, match=message):
                load_texts(TextFlags(train_file=tmp_path / name, test_file=tmp_path / name, header=header))


def test_the_texts_of_a_table_that_is_asked_about(tmp_path):
    rows = [("art", "a", "1"), ("sports", "b", "2")]
    flags = TextFlags(text_columns=("title", "body"))
    table = quoted(tmp_path / "a.csv", rows, ("kind", "title", "body"))
    assert labelled_texts.texts_of_table(table, flags) == ["a 1", "b 2"]
    assert labelled_texts.texts_of_table(tsv(tmp_path / "b.tsv", [row[1:] for row in rows], ("title", "body")), flags) == [
        "a 1",
        "b 2",
    ]
    assert labelled_texts.texts_of_table(tsv(tmp_path / "lines.txt", [("a title",)], ("the title",)), flags) is None
    bare = TextFlags(train_file=table, test_file=table, header=("label", "text"))
    assert labelled_texts.texts_of_table(tsv(tmp_path / "bare.tsv", rows[1:], rows[0]), bare) is None
    assert labelled_texts.texts_of_table(tsv(tmp_path / "bare.tsv", [("art", "b")], ("art", "a")), bare) == ["a", "b"]
    (tmp_path / "nothing").write_text("")
    assert labelled_texts.texts_of_table(tmp_path / "nothing", flags) is None
    (tmp_path / "lines.txt").write_text("text\na second line\n")  # whose first is a word that columns are called, too
    assert labelled_texts.texts_of_table(tmp_path / "lines.txt", TextFlags()) is None
    assert labelled_texts.texts_of_table((tmp_path / "lines.txt").rename(tmp_path / "one.tsv"), TextFlags()) == [
        "a second line"
    ]
    misnamed = tsv(tmp_path / "misnamed.csv", [("a", "b")], ("label", "txt"))
    with pytest.raises(ValueError, match=r"misnamed\.csv: expected the columns title, body, got label"):
        labelled_texts.texts_of_table(misnamed, flags)


def test_one_class_alone_is_nothing_to_learn(tmp_path):
    path = tsv(tmp_path / "a.tsv", [("art", "a"), ("art", "b")])
    with pytest.raises(
        ValueError, match=r"label_column: expected at least two classes in the training texts of a, got \['art'\]"
    ):
        load_texts(TextFlags(train_file=path, validation_file=path, test_file=path))


def test_test_texts_that_training_or_validation_holds(tmp_path):
    train, validation = tsv(tmp_path / "a.tsv"), tsv(tmp_path / "b.tsv", [("art", "new"), ("art", "a goal")])
    test = tsv(tmp_path / "c.tsv", [("art", "other"), ("art", "new"), ("art", "a goal"), ("sports", "a goal")])
    found = load_texts(TextFlags(train_file=train, validation_file=validation, test_file=test)).known_of_test()
    assert (found.texts, found.labels.tolist()) == (["new", "a goal", "a goal"], [0, 0, 1])


def test_texts_of_nothing_are_counted(tmp_path):
    path = tsv(tmp_path / "a.tsv", [*ROWS, ("art", " ")])
    assert load_texts(TextFlags(train_file=path, validation_file=tsv(tmp_path / "b.tsv"), test_file=path)).report.findings[
        "rows without a text"
    ] == {
        "count": 2,
        "first": ["a.tsv:6", "a.tsv:6"],
    }


def test_flags_that_do_not_fit(tmp_path):
    for flags, message in (
        (
            {"train_file": tmp_path / "a.tsv", "dataset": "imdb"},
            "train_file: expected --dataset files with it, got --dataset imdb",
        ),
        ({"train_file": tmp_path / "a.tsv"}, "train_file, test_file: expected both with --dataset files"),
        ({"text_columns": ()}, "text_columns: expected different columns, without the label column label, got none"),
        ({"text_columns": ("a", "label")}, "without the label column label, got a, label"),  # it would read the answer
        ({"text_columns": ("a", "a")}, "text_columns: expected different columns, .*, got a, a"),
        ({"header": ("a",)}, "header: expected it with files, got it with --dataset reviews"),
    ):
        with pytest.raises(ValueError, match=message):
            TextFlags(**flags)


def test_a_folder_and_who_validates(tmp_path, monkeypatch):
    monkeypatch.setattr(labelled_texts, "VALIDATION", 3)
    folder = tmp_path / "imdb"
    folder.mkdir()
    rows = [(str(number % 2), f"text {number}") for number in range(50)]
    tsv(folder / "train.tsv", rows)
    tsv(folder / "test.tsv", rows[:4])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = load_texts(TextFlags(dataset="imdb"), tmp_path)
    assert found.classes == ("negative", "positive")
    train, validation = found.splits["train"], found.splits["validation"]
    assert (len(train.texts), len(validation.texts)) == (47, 3)
    assert sorted(train.texts + validation.texts) == sorted(text for _, text in rows)
    for texts in (train, validation):
        assert [str(label) for label in texts.labels] == [dict(map(reversed, rows))[text] for text in texts.texts]
    assert load_texts(TextFlags(dataset="imdb"), tmp_path).splits["validation"].texts == validation.texts
    assert found.report.findings["the same text in two splits"]["count"] == 4
    assert found.known_of_test().texts == [text for _, text in rows[:4]]
    tsv(folder / "val.tsv", [("1", "of its own")])
    assert load_texts(TextFlags(dataset="imdb"), tmp_path).splits["validation"].texts == ["of its own"]
    with pytest.raises(ValueError, match=r"expected columns of imdb, which has label, text, got kind, text"):
        load_texts(TextFlags(dataset="imdb", label_column="kind"), tmp_path)
    with pytest.raises(ValueError, match="text_columns: expected columns of texts, got label"):
        load_texts(TextFlags(dataset="imdb", label_column="text", text_columns=("label",)), tmp_path)
    tsv(folder / "test.tsv", [*rows[:4], ("7", "of no class")])
    with pytest.raises(ValueError, match=r"imdb, test 4: expected a class that training texts have, \['0', '1'\], got '7'"):
        load_texts(TextFlags(dataset="imdb"), tmp_path)
    with pytest.raises(FileNotFoundError, match="test_file: expected a file, found none at"):
        load_texts(TextFlags(train_file=folder / "train.tsv", test_file=folder))


def test_a_tenth_of_a_small_set_validates_and_no_text_of_it_is_trained_on():
    report = Report()
    train, validation = held_out(LabelledTexts([str(n) for n in range(45)], np.arange(45, dtype=np.int32)), report)
    assert (len(train.texts), len(validation.texts), report.findings) == (41, 4, {})
    assert sorted(train.labels.tolist() + validation.labels.tolist()) == list(range(45))
    twice = [str(n % 20) for n in range(40)]
    train, validation = held_out(LabelledTexts(twice, np.arange(40, dtype=np.int32)), report)
    assert len(validation.texts) == 4
    assert not set(train.texts) & set(validation.texts)
    left_out = report.findings["training texts left out, as they validate"]["count"]
    assert len(train.texts) == 36 - left_out
    assert left_out == sum(twice.count(text) for text in set(validation.texts)) - 4
    with pytest.raises(ValueError, match="train_file: expected texts that differ, got 20 of which none is left beside 2 for"):
        held_out(LabelledTexts(["the same"] * 20, np.zeros(20, np.int32)), report)
    with pytest.raises(ValueError, match="validation_file: expected one with fewer than 10 training texts, got 9 and none"):
        held_out(LabelledTexts(twice[:9], np.zeros(9, np.int32)), report)


def test_a_set_of_the_catalogue(monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.delenv("S2S_DATA_DIR", raising=False)
    with tfds.testing.mock_data(num_examples=20):
        found = load_texts(TextFlags(dataset="ag_news_subset", text_columns=("title", "description")))
    assert found.report.examples == {"train": 18, "validation": 2, "test": 20}
    assert all(" " in text for text in found.splits["train"].texts)


def test_of_a_long_text_the_end_is_read_and_the_shapes_are_those_of_training():
    texts = LabelledTexts(["abcdefgh", "", "é", "zz"], np.array([1, 0, 1, 0], np.int32))
    characters = fit_tokenizer("characters", ["abcdefgh"])
    encoded = EncodedTexts(texts, characters, 3, unknown=3)
    assert (encoded.cut, encoded.unknown, encoded.lengths.tolist()) == (1, 3, [3, 0, 1, 2])
    assert encoded.describe() == "4 texts, of 1 of them only the last 3 symbols are read; 3 unknown symbols"
    assert characters.decode(encoded[0]["tokens"]) == "fgh"
    batches = TextBatches(encoded, 2, 2)
    (usage,) = {len(batches.shuffled(0).usage().shapes)}
    assert usage == 2
    longer = EncodedTexts(LabelledTexts(["abcdefg"], texts.labels[:1]), characters, 9)
    (batch,) = batches.in_order(longer)
    assert batch["tokens"].shape == (2, 7)
    assert batch["mask"].tolist() == [True, False]
