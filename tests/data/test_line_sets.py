"""The lines that flags name."""

import numpy as np
import pytest
from PIL import Image

from s2s_jax.data import line_sets
from s2s_jax.data.line_sets import LineFlags, load_split, load_splits
from s2s_jax.data.text_lines import drawn_lines


@pytest.fixture(autouse=True)
def few(tmp_path, monkeypatch):
    """Few drawn lines, and no data folder of the machine."""
    monkeypatch.delenv("S2S_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(line_sets, "drawn_lines", lambda split, height: drawn_lines(split, height=height, count=3))


@pytest.mark.parametrize(("options", "shape"), [({}, (32, 1)), ({"height": 40, "colour": True}, (40, 3))])
def test_drawn_lines_are_as_high_as_asked_for_and_colour_has_three_channels(options, shape):
    flags = LineFlags(**options)
    lines = load_split(flags, "test")
    assert {picture.shape[1:] for picture in lines.pictures} == {shape}
    assert flags.origin == "generated"


def test_a_folder_has_a_text_column_and_perhaps_no_test_and_what_is_not_scored_is_not_read(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = ["split\tfile\twords"]
    for number, split in enumerate(("train", "val", "test")):
        Image.new("L", (16, 8), 200 + number).save(folder / f"{split}.png")
        rows.append(f"{split}\t{split}.png\ttext of {split}")
    (folder / "test.png").write_bytes(b"no picture")
    (folder / "manifest.tsv").write_text("\n".join(rows) + "\n")
    flags = LineFlags(dataset="mine", text_column="words", height=8)
    assert flags.origin == "real"
    splits = load_splits(flags, "validation", tmp_path)
    assert {split: lines.texts for split, lines in splits.items()} == {
        "train": ["text of train"],
        "validation": ["text of val"],
    }
    np.testing.assert_array_equal(splits["validation"].pictures[0], np.full((16, 8, 1), 255 - 201))
    with pytest.raises(ValueError, match=r"mine, split test, test\.png: expected a picture"):
        load_splits(flags, "test", tmp_path)
    (folder / "manifest.tsv").write_text("\n".join(rows[:-1]) + "\n")
    assert load_splits(flags, "test", tmp_path).keys() == {"train", "validation"}


def test_digits_are_of_a_folder_or_of_mnist_in_it(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(
        line_sets, "digit_lines", lambda split, data_dir, height: read.append(data_dir) or drawn_lines(split, count=1)
    )
    flags = LineFlags(dataset="mnist_lines")
    with pytest.raises(ValueError, match="data_dir: expected a folder that holds mnist, got none"):
        load_splits(flags, "test")
    assert load_splits(flags, "test", tmp_path).keys() == {"train", "validation", "test"}
    (tmp_path / "mnist").mkdir()
    monkeypatch.setenv("S2S_DATA_DIR", str(tmp_path))
    load_split(flags, "test")
    assert read == [*[tmp_path] * 3, tmp_path / "mnist"]
