"""Pictures of single lines of text: read from a data set, drawn, or put together of MNIST's digits; and as numbers."""

import hashlib
import io
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from s2s_jax.data import datasets
from s2s_jax.data.buckets import field_buckets, with_room_for
from s2s_jax.data.datasets.text_files import read_rows
from s2s_jax.data.images import load_mnist
from s2s_jax.data.number_words import in_english
from s2s_jax.data.pipeline import Batches
from s2s_jax.data.vocabulary import Characters

Split = Literal["train", "validation", "test"]
MNIST_VALIDATION = 5_000  # the last pictures of the training split
_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}


class TextLines(NamedTuple):
    """Lines of one split.

    Attributes:
      name, split: of the data.
      pictures: uint8 [W, H, C] each, W its own; 0 is paper and 255 ink, so that padding looks like paper.
      texts: in Unicode's form NFD, so that a letter and the mark over it are two symbols.
      ids: what each is called: its file, or its number.
      fingerprint: of real data.
    """

    name: str
    split: str
    pictures: list[np.ndarray]
    texts: list[str]
    ids: list[str]
    fingerprint: str | None = None


def splits_of(name: str, data_dir: str | Path | None = None) -> dict[Split, str]:
    """What a data set calls those of train, validation (`val` or `validation`) and test that it has.

    Raises:
      FileNotFoundError: no such data.
      ValueError: it has no training or no validation split.
    """
    try:
        source = datasets.load(name, "train", data_dir=data_dir)
    except ValueError as error:
        if not str(error).startswith("split: "):
            raise
        raise ValueError(f"{name}, {error}") from error  # nobody has typed a split
    if isinstance(source, datasets.SavedArrays):
        raise ValueError(f"{name}: expected a folder with manifest.tsv, got saved arrays")
    found = {split: own for split, names in _NAMES.items() for own in names if own in source.splits}
    if "validation" not in found:
        raise ValueError(f"{name}: expected a split val or validation, got the splits {', '.join(source.splits)}")
    return found


def load_lines(
    name: str, split: Split, height: int, channels: int = 1, data_dir: str | Path | None = None, text_column: str = "text"
) -> TextLines:
    """A split of a data set with a `manifest.tsv`, whose pictures are dark on light; see `s2s_jax.data.datasets`.

    Raises:
      FileNotFoundError: no such data.
      ValueError: no such split; a picture that cannot be read, by its name; a file with two texts, by its line; no such column
        of texts.
    """
    own = splits_of(name, data_dir)
    if split not in own:
        raise ValueError(f"{name}: expected a split {split}, got the splits {', '.join(own.values())}")
    source = datasets.load(name, own[split], data_dir=data_dir)
    pictures, texts, ids = [], [], []
    for number in range(len(source)):
        example = source[number]
        if "image" not in example:
            raise ValueError(f"{name}: expected pictures of lines, got examples of {', '.join(sorted(example))}")
        if text_column not in example:
            columns = sorted(set(example) - {"image", "file"})
            raise ValueError(f"text_column: expected one of {', '.join(columns)} of {name}, got {text_column!r}")
        ids.append(str(example.get("file", number)))
        text = example[text_column]
        if np.ndim(text):  # an array for each file, as soon as one file of any split has several texts
            if len(text) > 1:
                raise ValueError(_named_twice(name, own[split], ids[-1], data_dir))
            text = text[0]
        if not isinstance(text, str):
            raise ValueError(f"text_column: expected a column of texts of {name}, got {text_column!r}, one of numbers")
        try:
            pictures.append(read_picture(example["image"], height, channels))
        except ValueError as error:
            raise ValueError(f"{name}, split {split}, {ids[-1]}: {error}") from error
        texts.append(unicodedata.normalize("NFD", text))
    return TextLines(name, split, pictures, texts, ids, source.fingerprint)


def _named_twice(name: str, split: str, file: str, data_dir: str | Path | None) -> str:
    """Where a manifest names a file for the second time."""
    given = Path(data_dir or os.environ["S2S_DATA_DIR"])
    manifest = next(path for path in (given / name / "manifest.tsv", given / "manifest.tsv") if path.exists())
    lines = [line for line, row in read_rows(manifest, ("split", "file")) if (row["split"], row["file"]) == (split, file)]
    return f"{manifest}:{lines[1]}: expected one text for each file, got {len(lines)} of {file}, the first in line {lines[0]}"


def picture_bytes(path: str | Path) -> bytes:
    """What `read_picture` takes, of a file.

    Raises:
      ValueError: a folder, no such file, or one that cannot be read.
    """
    if Path(path).is_dir():
        raise ValueError("expected a picture, got a folder")
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ValueError("expected a picture, found no such file") from error
    except OSError as error:
        raise ValueError(f"expected a picture, got {error.strerror}") from error


def read_picture(encoded: bytes, height: int, channels: int = 1) -> np.ndarray:
    """A picture of a file's bytes, scaled to `height`, its proportions kept: uint8 [W, H, channels], 0 where it is white.

    It is turned as its EXIF orientation says; 16 bits become 8, and so do 32 as far as its values make use of them.

    Raises:
      ValueError: not a picture, a damaged one, one too large to be meant or one of floating shades, whose white nobody knows;
        another number of channels than 1 (grey) and 3 (colour).
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if channels not in (1, 3):
        raise ValueError(f"channels: expected 1 or 3, got {channels}")
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            upright = ImageOps.exif_transpose(opened)  # as cameras mean it
    except UnidentifiedImageError as error:  # which names our buffer
        raise ValueError("expected a picture, got a file of no known kind") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"expected a picture, got {error}") from error
    if upright.mode == "F":
        raise ValueError("expected a picture of shades that are whole numbers, got one of floating ones")
    if upright.mode.startswith("I"):  # of which a conversion would keep no more than the darkest 256 shades
        shades = np.asarray(upright, np.float64)
        upright = Image.fromarray((shades * 255 / _white(upright.mode, shades)).round().clip(0, 255).astype(np.uint8))
    # What is see-through is paper.
    flat = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
    picture = flat.convert("L" if channels == 1 else "RGB")
    if picture.height != height:
        picture = picture.resize((max(1, round(picture.width * height / picture.height)), height), Image.Resampling.LANCZOS)
    values = 255 - np.asarray(picture, np.uint8).reshape(height, picture.width, channels)
    return np.ascontiguousarray(np.swapaxes(values, 0, 1))


def _white(mode: str, shades: np.ndarray) -> float:
    """What stands for white: by the mode 16 bits, or, where that has 32, the fewest whole bytes that hold all values."""
    if mode != "I":
        return 2.0**16 - 1
    return next((2.0**bits - 1 for bits in (8, 16) if shades.max() < 2**bits), 2.0**31 - 1)


def digit_lines(split: Split, data_dir: str | Path, *, height: int = 32, count: int | None = None, seed: int = 0) -> TextLines:
    """Lines of 3 to 10 digits of MNIST on `height` rows, each moved by up to 2 rows, with -6 to 8 columns between two.

    Training lines have digits of the first 55,000 training pictures, validation lines of the last 5,000, test lines of the test
    pictures; 20,000, 1,000 and 1,000 lines without a `count`, drawn evenly.

    Raises:
      FileNotFoundError, ValueError: see `load_mnist`; a height below 32.
    """
    if height < 32:
        raise ValueError(f"height: expected at least 32 for digits of 28 rows, got {height}")
    read = {own: load_mnist(data_dir, own) for own in ("train", "test")}
    labelled = read["test" if split == "test" else "train"]
    part = {"train": slice(None, -MNIST_VALIDATION), "validation": slice(-MNIST_VALIDATION, None), "test": slice(None)}[split]
    digits, labels = labelled.images[part], labelled.labels[part]
    rng = np.random.default_rng([seed, ("train", "validation", "test").index(split)])
    pictures, texts = [], []
    for _ in range(count or (20_000 if split == "train" else 1_000)):
        chosen = rng.integers(len(digits), size=rng.integers(3, 11))
        line = np.zeros((height, 36 * len(chosen) + 8), np.uint8)
        at = end = 0
        for digit in digits[chosen]:
            down = (height - 28) // 2 + int(rng.integers(-2, 3))
            place = line[down : down + 28, at : at + 28]
            np.maximum(place, digit, out=place)
            end = at + 28
            at = end + int(rng.integers(-6, 9))
        pictures.append(np.ascontiguousarray(line[:, : end + int(rng.integers(0, 8))].T[..., None]))
        texts.append("".join(map(str, labels[chosen])))
    ids = [f"{split} {number}" for number in range(len(texts))]
    content = hashlib.sha256(b"".join(array.tobytes() for one in read.values() for array in one))
    return TextLines("mnist_lines", split, pictures, texts, ids, content.hexdigest()[:16])


def drawn_lines(split: Split, *, height: int = 32, count: int | None = None, seed: int = 0) -> TextLines:
    """A stand-in for writing: number words in the font that Pillow brings, of different sizes, paleness and noise.

    2,000 training lines and 200 of each other split without a `count`; no text stands in two splits.
    """
    from PIL import Image, ImageDraw, ImageFont

    place = ("train", "validation", "test").index(split)
    # A tenth of the numbers below 10,000 is for each other split, in no order.
    of_split = np.minimum(np.random.default_rng(0).permutation(10_000) % 10, 2)
    numbers = np.flatnonzero(of_split == (2, 0, 1)[place])
    rng = np.random.default_rng([seed, place])
    pictures, texts = [], []
    for _ in range(count or (2_000 if split == "train" else 200)):
        number = int(rng.choice(numbers))
        text = in_english(number)
        font = ImageFont.load_default(size=float(rng.uniform(0.45, 0.6) * height))
        left, top, right, bottom = font.getbbox(text)
        width = int(right - left) + int(rng.integers(4, 12))
        canvas = Image.new("L", (width, height))
        down = (height - (bottom - top)) / 2 - top + rng.uniform(-2, 2)
        ImageDraw.Draw(canvas).text((rng.uniform(1, 4) - left, down), text, fill=int(rng.integers(170, 256)), font=font)
        noisy = np.asarray(canvas, float) + rng.normal(0, 12, (height, width))
        pictures.append(np.ascontiguousarray(np.clip(noisy, 0, 255).astype(np.uint8).T[..., None]))
        texts.append(text)
    return TextLines("drawn_lines", split, pictures, texts, [f"{split} {number}" for number in range(len(texts))])


def in_colour(lines: TextLines, channels: int) -> TextLines:
    """The same grey on as many channels."""
    return lines._replace(pictures=[np.repeat(picture, channels, axis=-1) for picture in lines.pictures])


def fit_characters(lines: TextLines) -> Characters:
    """The characters of a split's texts, in their order."""
    return Characters("".join(sorted(set("".join(lines.texts)))))


class EncodedLines:
    """Lines as a source of `Batches`: {"picture": uint8 [W, H, C], "label": int32 [N]}, and the lengths of both.

    Args:
      lines: what is read.
      characters: the alphabet.
      unknown_symbols: what is done with characters that the alphabet lacks: an error, or they are left out of the label and
        counted.
      label_end: symbols behind each label, an end symbol say.
      keep: `(widths [N], labels [N, L], label lengths [N]) -> bool [N]`, which lines stay; `dropped` has the ids of the others.
        None for all.

    Attributes:
      unknown: how often each character stands in the texts that the alphabet lacks.
      dropped: ids of the lines that are left out.

    Raises:
      ValueError: characters that the alphabet lacks, with their numbers and a line that holds one.
    """

    def __init__(
        self,
        lines: TextLines,
        characters: Characters,
        *,
        unknown_symbols: Literal["error", "count"] = "error",
        label_end: Sequence[int] = (),
        keep: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] | None = None,
    ):
        known = set(characters.alphabet)
        self.name, self.split = lines.name, lines.split
        self.unknown: Counter[str] = Counter()
        self.dropped: list[str] = []
        self._examples: list[dict[str, np.ndarray]] = []
        for picture, text in zip(lines.pictures, lines.texts, strict=True):
            self.unknown.update(character for character in text if character not in known)
            label = np.array([*characters.encode("".join(c for c in text if c in known)), *label_end], np.int32)
            self._examples.append({"picture": picture, "label": label})
        if self.unknown and unknown_symbols == "error":
            raise ValueError(
                f"unknown_symbols: expected 'count', or characters of the alphabet alone, got {self._lacks(lines)}"
            )
        self.lengths = self._measured()
        if keep is not None:
            kept = keep(self.lengths["picture"], self.labels(), self.lengths["label"])
            self.dropped = [name for name, stays in zip(lines.ids, kept, strict=True) if not stays]
            self._examples = [example for example, stays in zip(self._examples, kept, strict=True) if stays]
            self.lengths = self._measured()

    def _measured(self) -> dict[str, np.ndarray]:
        return {
            field: np.array([len(example[field]) for example in self._examples], np.int32) for field in ("picture", "label")
        }

    def _lacks(self, lines: TextLines) -> str:
        most, count = self.unknown.most_common(10), len(self.unknown)
        counts = ", ".join(f"{character!r} (U+{ord(character):04X}) {times} times" for character, times in most)
        rest = f" and {count - len(most)} more" if count > len(most) else ""
        name, text = next((name, text) for name, text in zip(lines.ids, lines.texts, strict=True) if most[0][0] in text)
        return f"in {lines.name}, split {lines.split}, Unicode's form NFD, {counts}{rest}; such as in {name}: {text!r}"

    def labels(self) -> np.ndarray:
        """All labels, int32 [N, L], zero behind their lengths."""
        labels = np.zeros((len(self), int(self.lengths["label"].max(initial=0))), np.int32)
        for row, example in zip(labels, self._examples, strict=True):
            row[: len(example["label"])] = example["label"]
        return labels

    def findings(self) -> str:
        """For people, what is unknown and what was left out; "" where nothing is."""
        told = []
        if self.unknown:
            counts = ", ".join(f"{character!r} {count}" for character, count in self.unknown.most_common())
            told.append(f"{self.split}: characters that the alphabet lacks, which will count as errors: {counts}")
        if self.dropped:
            told.append(f"{self.split}: left out, as their texts do not fit their frames: {', '.join(self.dropped)}")
        return "\n".join(told)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        return self._examples[number]


class LineBatches:
    """Lines in batches of the shapes of the training split, of which the last is larger where another split needs it.

    Args:
      training: the training split.
      columns: rows of a batch times the columns of its widest picture, at most.
      shapes: of batches, at most.
    """

    def __init__(self, training: EncodedLines, *, columns: int, shapes: int):
        self._training, self._columns = training, columns
        self._buckets = field_buckets(training.lengths, shapes)

    def shuffled(self, seed: int) -> Batches:
        """Of the training split, for training."""
        return self._batches(self._training, seed)

    def in_order(self, lines: EncodedLines) -> Batches:
        """Of another split, for an evaluation."""
        return self._batches(lines, None)

    def _batches(self, lines: EncodedLines, seed: int | None) -> Batches:
        # A larger last bucket stands in the place of training's, so that no split is compiled for more shapes than that.
        buckets = [*self._buckets[:-1], with_room_for(self._buckets, lines.lengths)[-1]]
        columns = max(self._columns, max(buckets[-1].values()))
        return Batches(lines, tokens=columns, seed=seed, lengths=lines.lengths, buckets=buckets)


def describe(lines: TextLines) -> str:
    """One line for people: how many, how wide, how long."""
    widths, lengths = ([len(item) for item in items] for items in (lines.pictures, lines.texts))
    told: list[Any] = [min(widths), max(widths), min(lengths), max(lengths)]
    return f"{lines.split}: {len(lines.texts)} lines, {told[0]} to {told[1]} columns, {told[2]} to {told[3]} characters"
