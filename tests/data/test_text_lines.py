"""Lines of text as pictures: read, put together, drawn; as numbers and in batches."""

import io
import unicodedata
import zipfile

import numpy as np
import pytest
from PIL import Image

from s2s_jax.data import text_lines
from s2s_jax.data.images import LabelledImages
from s2s_jax.data.text_lines import (
    EncodedLines,
    LineBatches,
    TextLines,
    describe,
    digit_lines,
    drawn_lines,
    fit_characters,
    load_lines,
    read_picture,
)
from s2s_jax.data.vocabulary import Characters


def encoded(values, mode="L", kind="png"):
    file = io.BytesIO()
    Image.fromarray(np.asarray(values, np.uint8), mode).save(file, kind)
    return file.getvalue()


def test_a_picture_is_read_column_by_column_and_ink_is_high():
    values = np.random.default_rng(0).integers(256, size=(4, 7))
    picture = read_picture(encoded(values), 4)
    assert picture.shape == (7, 4, 1)
    np.testing.assert_array_equal(picture[..., 0].T, 255 - values)


@pytest.mark.parametrize(("size", "height", "width"), [((8, 20), 4, 10), ((3, 20), 6, 40), ((50, 2), 5, 1)])
def test_height_is_as_asked_and_proportions_stay(size, height, width):
    picture = read_picture(encoded(np.full(size, 55)), height)
    assert picture.shape == (width, height, 1)
    assert (picture == 200).all()


def test_colours_and_what_is_see_through():
    colours = np.zeros((2, 3, 4))
    colours[..., 0], colours[..., 3] = 255, 255
    colours[0, 0, 3] = 0
    picture = read_picture(encoded(colours, "RGBA"), 2, channels=3)
    assert picture.shape == (3, 2, 3)
    assert picture[1, 0].tolist() == [0, 255, 255]
    assert picture[0, 0].tolist() == [0, 0, 0]  # paper
    grey = read_picture(encoded(colours, "RGBA"), 2)
    assert grey[1, 0, 0] == 255 - round(0.299 * 255)
    with pytest.raises(ValueError, match="channels: expected 1 or 3, got 2"):
        read_picture(encoded(colours, "RGBA"), 2, channels=2)


def test_sixteen_bits_become_eight():
    values = np.array([[0, 257, 40_000, 65_535]], np.uint16)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "png")
    np.testing.assert_array_equal(read_picture(file.getvalue(), 1)[:, 0, 0], 255 - np.array([0, 1, 156, 255]))


@pytest.mark.parametrize(("greatest", "white"), [(255, 255), (40_000, 65_535), (2**31 - 1, 2**31 - 1)])
def test_thirty_two_bits_are_scaled_by_what_their_values_need(greatest, white):
    values = np.array([[0, greatest // 3, greatest]], np.int32)
    file = io.BytesIO()
    Image.fromarray(values, "I").save(file, "tiff")
    want = 255 - np.round(values[0] / white * 255)
    np.testing.assert_array_equal(read_picture(file.getvalue(), 1)[:, 0, 0], want)


@pytest.mark.parametrize("white", [1, 255])
def test_floating_shades_are_refused_as_they_may_be_of_any_range(white):
    file = io.BytesIO()
    Image.fromarray(np.full((2, 3), 0.78 * white, np.float32)).save(file, "tiff")
    with pytest.raises(ValueError, match="expected a picture of shades that are whole numbers, got one of floating ones"):
        read_picture(file.getvalue(), 2)


def test_what_is_no_picture_is_told_without_our_buffer(folder, monkeypatch):
    whole = encoded(np.full((6, 9), 3))
    for wrong, told in (
        (b"text", "expected a picture, got a file of no known kind"),
        (whole[:45], "expected a picture, got "),
    ):
        with pytest.raises(ValueError, match=told) as error:
            read_picture(wrong, 6)
        assert "BytesIO" not in str(error.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    with pytest.raises(ValueError, match=r"written, split train, train0.png: expected a picture, got Image size \(54 pixels\)"):
        load_lines("written", "train", 6, data_dir=folder)


@pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_a_picture_is_turned_as_its_camera_says(orientation, turned):
    """Quarters of a turn to the left, by the values of EXIF's tag 274: 6 is to be turned to the right for viewing."""
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    exif = Image.Exif()
    exif[274] = orientation
    file = io.BytesIO()
    Image.fromarray(values).save(file, "png", exif=exif)
    upright = np.rot90(values, turned)
    np.testing.assert_array_equal(read_picture(file.getvalue(), len(upright))[..., 0].T, 255 - upright)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "written"
    place.mkdir()
    rows = ["split\tfile\ttext"]
    for split, texts in {"train": ["é a", "ba"], "val": ["b"], "test": ["aé"]}.items():
        with zipfile.ZipFile(place / f"{split}.zip", "w") as archive:
            for number, text in enumerate(texts):
                archive.writestr(f"{split}{number}.png", encoded(np.full((6, 9 + number), 10 * number + len(split))))
                rows.append(f"{split}\t{split}{number}.png\t{text}")
    (place / "manifest.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return tmp_path


def test_a_folder_with_a_manifest(folder):
    lines = load_lines("written", "train", 6, data_dir=folder)
    assert lines.texts == [unicodedata.normalize("NFD", "é a"), "ba"]
    assert lines.ids == ["train0.png", "train1.png"]
    assert [picture.shape for picture in lines.pictures] == [(9, 6, 1), (10, 6, 1)]
    assert lines.fingerprint
    assert load_lines("written", "validation", 6, data_dir=folder).texts == ["b"]
    with pytest.raises(ValueError, match=r"text_column: expected one of text of written, got 'words'"):
        load_lines("written", "test", 6, data_dir=folder, text_column="words")
    assert describe(lines) == "train: 2 lines, 9 to 10 columns, 2 to 4 characters"


def numbered(folder, split):
    """Digit n has value 10 n + 1 in all its pixels, and of the last 5,000 of training 10 n + 3, of test 10 n + 5."""
    count = {"train": 6000, "test": 50}[split]
    labels = np.arange(count) % 10
    values = 10 * labels + (5 if split == "test" else 1)
    values[-5000:] += 2 if split == "train" else 0
    return LabelledImages(np.broadcast_to(values[:, None, None], (count, 28, 28)).astype(np.uint8), labels.astype(np.int32))


@pytest.mark.parametrize(("split", "last"), [("train", 1), ("validation", 3), ("test", 5)])
def test_lines_of_digits_are_of_their_own_pictures(monkeypatch, split, last):
    monkeypatch.setattr(text_lines, "load_mnist", numbered)
    lines = digit_lines(split, "anywhere", count=20)
    again = digit_lines(split, "anywhere", count=20)
    assert lines.texts == again.texts
    assert lines.fingerprint == again.fingerprint
    monkeypatch.setattr(text_lines, "load_mnist", lambda *one: numbered(*one)._replace(labels=np.zeros(6000, np.int32)))
    assert lines.fingerprint != digit_lines("train", "anywhere", count=1).fingerprint
    for picture, text in zip(lines.pictures, lines.texts, strict=True):
        assert 3 <= len(text) <= 10
        assert picture.shape[1:] == (32, 1)
        assert {int(value) for value in np.unique(picture)} <= {0, *(10 * int(digit) + last for digit in text)}
        # The first and the last digit stand whole: 28 columns of their own value, but where a greater one stands over them.
        for columns, digit in ((picture[:22], text[0]), (picture[-35:], text[-1])):
            assert np.count_nonzero(columns.max((1, 2)) >= 10 * int(digit) + last) >= 22
    assert len({len(text) for text in lines.texts}) > 3


def test_drawn_lines_say_what_they_show():
    splits = {split: drawn_lines(split, count=30) for split in ("train", "validation", "test")}
    texts = [set(lines.texts) for lines in splits.values()]
    assert not (texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2])
    for lines in splits.values():
        assert all(picture.shape[1:] == (32, 1) and picture.dtype == np.uint8 for picture in lines.pictures)
        # Longer texts are wider.
        assert np.corrcoef([len(t) for t in lines.texts], [len(p) for p in lines.pictures])[0, 1] > 0.8
    np.testing.assert_array_equal(drawn_lines("test", count=3).pictures[2], drawn_lines("test", count=3).pictures[2])


LINES = TextLines("made", "test", [np.full((w, 4, 1), w, np.uint8) for w in (9, 5, 7)], ["ab", "ba?", ""], ["x", "y", "z"])


def test_symbols_that_the_alphabet_lacks():
    counts = r"'\?' \(U\+003F\) 1 times; such as in y: 'ba\?'"
    with pytest.raises(ValueError, match=rf"unknown_symbols: .* in made, split test, Unicode's form NFD, {counts}"):
        EncodedLines(LINES, Characters("ab"))
    many = LINES._replace(texts=["abbc", "cc", "defghijklm"])
    with pytest.raises(ValueError, match=r"'c' \(U\+0063\) 3 times, 'b' .* 2 times, .* and 3 more; such as in x: 'abbc'"):
        EncodedLines(many, Characters("z"))
    lines = EncodedLines(LINES, Characters("ab"), unknown_symbols="count", label_end=[2])
    assert dict(lines.unknown) == {"?": 1}
    assert lines.findings() == "test: characters that the alphabet lacks, which will count as errors: '?' 1"
    assert [lines[n]["label"].tolist() for n in range(3)] == [[3, 4, 2], [4, 3, 2], [2]]
    assert lines.lengths["picture"].tolist() == [9, 5, 7]


def test_lines_that_are_not_kept_are_named():
    lines = EncodedLines(LINES, Characters("ab?"), keep=lambda widths, labels, lengths: widths - lengths > 3)
    assert lines.dropped == ["y"]
    assert lines.findings() == "test: left out, as their texts do not fit their frames: y"
    assert [len(lines[n]["picture"]) for n in range(len(lines))] == [9, 7]


def test_batches_hold_pictures_and_labels_with_their_lengths():
    training = EncodedLines(drawn_lines("train", count=60), fit_characters(drawn_lines("train")))
    batches = LineBatches(training, columns=2000, shapes=4)
    plan = batches.shuffled(0)
    assert len(plan.usage().shapes) <= 4
    seen = []
    for step in range(plan.steps_per_epoch):
        batch = plan(step)
        assert batch["picture"].shape[0] * max(batch["picture"].shape[1], batch["label"].shape[1]) <= 2000
        for row, number in enumerate(plan.ids(step)):
            if number < 0:
                assert not batch["picture_lengths"][row]
                continue
            seen.append(number)
            width, length = batch["picture_lengths"][row], batch["label_lengths"][row]
            np.testing.assert_array_equal(batch["picture"][row, :width], training[number]["picture"])
            assert not batch["picture"][row, width:].any()
            np.testing.assert_array_equal(batch["label"][row, :length], training[number]["label"])
    assert sorted(seen) == list(range(60))
    # One wider than any of training has a batch of its own shape.
    wide = TextLines("wide", "test", [np.ones((2500, 32, 1), np.uint8)], ["one"], ["w"])
    (batch,) = batches.in_order(EncodedLines(wide, fit_characters(drawn_lines("train"))))
    assert batch["picture"].shape[:2] == (1, 2500)


def test_a_split_with_a_longer_line_has_no_more_shapes_than_training():
    lines = drawn_lines("train", count=200)
    characters = fit_characters(lines)
    batches = LineBatches(EncodedLines(lines, characters), columns=2000, shapes=4)
    shapes = {(shape.rows, *shape.lengths.values()) for shape in batches.shuffled(0).usage().shapes}
    widest = max(map(len, lines.pictures))
    longer = lines._replace(pictures=[*lines.pictures[1:], np.ones((widest + 50, 32, 1), np.uint8)])
    usage = batches.in_order(EncodedLines(longer, characters)).usage()
    others = {(shape.rows, *shape.lengths.values()) for shape in usage.shapes} - shapes
    assert len(shapes) == len(usage.shapes) == 4
    assert [shape[1] for shape in others] == [widest + 50]
    assert usage.examples == 200
