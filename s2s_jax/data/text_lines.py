"""Pictures of single lines of text: read from a data set, drawn, or put together of MNIST's digits; and as numbers."""

import io
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from s2s_jax.data import datasets
from s2s_jax.data.buckets import field_buckets, with_room_for
from s2s_jax.data.images import load_mnist
from s2s_jax.data.number_words import in_english
from s2s_jax.data.pipeline import Batches
from s2s_jax.data.vocabulary import Characters

Split = Literal["train", "validation", "test"]
MNIST_VALIDATION = 5_000  # the last pictures of the training split


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


def load_lines(
    name: str, split: Split, height: int, channels: int = 1, data_dir: str | Path | None = None, text: str = "text"
) -> TextLines:
    """A split of a data set with a `manifest.tsv`, whose pictures are dark on light; see `s2s_jax.data.datasets`.

    Raises:
      FileNotFoundError: no such data.
      ValueError: a picture that cannot be read, by its name, or no column `text`.
    """
    source = datasets.load(name, {"validation": "val"}.get(split, split), data_dir=data_dir)
    pictures, texts, ids = [], [], []
    for number in range(len(source)):
        example = source[number]
        if text not in example:
            raise ValueError(f"text: expected a column of {name}, which has {sorted(example)}, got {text!r}")
        ids.append(str(example.get("file", number)))
        try:
            pictures.append(read_picture(example["image"], height, channels))
        except OSError as error:
            raise ValueError(f"{name}, split {split}: expected a picture, got {ids[-1]!r} ({error})") from error
        texts.append(unicodedata.normalize("NFD", example[text]))
    return TextLines(name, split, pictures, texts, ids, source.fingerprint)


def read_picture(encoded: bytes, height: int, channels: int = 1) -> np.ndarray:
    """A picture of a file's bytes, scaled to `height`, its proportions kept: uint8 [W, H, channels], 0 where it is white.

    It is turned as its EXIF orientation says; 16 bits become 8.

    Raises:
      OSError: not a picture, or a damaged one.
      ValueError: another number of channels than 1 (grey) and 3 (colour).
    """
    from PIL import Image, ImageOps

    if channels not in (1, 3):
        raise ValueError(f"channels: expected 1 or 3, got {channels}")
    with Image.open(io.BytesIO(encoded)) as opened:
        upright = ImageOps.exif_transpose(opened)  # as cameras mean it
        if upright.mode.startswith("I"):  # 16 bits, of which a conversion would keep no more than the darkest 256 shades
            upright = Image.fromarray((np.asarray(upright, np.float64) / 257).round().astype(np.uint8))
        # What is see-through is paper.
        flat = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
    picture = flat.convert("L" if channels == 1 else "RGB")
    if picture.height != height:
        picture = picture.resize((max(1, round(picture.width * height / picture.height)), height), Image.Resampling.LANCZOS)
    values = 255 - np.asarray(picture, np.uint8).reshape(height, picture.width, channels)
    return np.ascontiguousarray(np.swapaxes(values, 0, 1))


def digit_lines(split: Split, data_dir: str | Path, *, height: int = 32, count: int | None = None, seed: int = 0) -> TextLines:
    """Lines of 3 to 10 digits of MNIST on `height` rows, each moved by up to 2 rows, with -6 to 8 columns between two.

    Training lines have digits of the first 55,000 training pictures, validation lines of the last 5,000, test lines of the test
    pictures; 20,000, 1,000 and 1,000 lines without a `count`, drawn evenly.

    Raises:
      FileNotFoundError, ValueError: see `load_mnist`; a height below 32.
    """
    if height < 32:
        raise ValueError(f"height: expected at least 32 for digits of 28 rows, got {height}")
    labelled = load_mnist(data_dir, "test" if split == "test" else "train")
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
    return TextLines("mnist_lines", split, pictures, texts, [f"{split} {number}" for number in range(len(texts))])


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
      unknown: what is done with a character that the alphabet lacks: an error, or it is left out of the label and counted.
      label_end: symbols behind each label, an end symbol say.
      keep: `(widths [N], labels [N, L], label lengths [N]) -> bool [N]`, which lines stay; `dropped` has the ids of the others.
        None for all.

    Attributes:
      unknown: how often each character stands in the texts that the alphabet lacks.
      dropped: ids of the lines that are left out.

    Raises:
      ValueError: a character that the alphabet lacks, by the line's id.
    """

    def __init__(
        self,
        lines: TextLines,
        characters: Characters,
        *,
        unknown: Literal["error", "count"] = "error",
        label_end: Sequence[int] = (),
        keep: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] | None = None,
    ):
        known = set(characters.alphabet)
        self.name, self.split = lines.name, lines.split
        self.unknown: Counter[str] = Counter()
        self.dropped: list[str] = []
        self._examples: list[dict[str, np.ndarray]] = []
        for picture, text, name in zip(lines.pictures, lines.texts, lines.ids, strict=True):
            lacks = [character for character in text if character not in known]
            if lacks and unknown == "error":
                codes = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in sorted(set(lacks)))
                raise ValueError(f"{lines.name}, {name}: expected characters of the alphabet, got {codes} in {text!r}")
            self.unknown.update(lacks)
            label = np.array([*characters.encode("".join(c for c in text if c in known)), *label_end], np.int32)
            self._examples.append({"picture": picture, "label": label})
        self.lengths = self._measured()
        if keep is not None:
            labels = np.zeros((len(self), int(self.lengths["label"].max(initial=0))), np.int32)
            for row, example in zip(labels, self._examples, strict=True):
                row[: len(example["label"])] = example["label"]
            kept = keep(self.lengths["picture"], labels, self.lengths["label"])
            self.dropped = [name for name, stays in zip(lines.ids, kept, strict=True) if not stays]
            self._examples = [example for example, stays in zip(self._examples, kept, strict=True) if stays]
            self.lengths = self._measured()

    def _measured(self) -> dict[str, np.ndarray]:
        return {
            field: np.array([len(example[field]) for example in self._examples], np.int32) for field in ("picture", "label")
        }

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
    """Lines in batches of the shapes of the training split.

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
        buckets = with_room_for(self._buckets, lines.lengths)
        columns = max(self._columns, max(buckets[-1].values()))
        return Batches(lines, tokens=columns, seed=seed, lengths=lines.lengths, buckets=buckets)


def describe(lines: TextLines) -> str:
    """One line for people: how many, how wide, how long."""
    widths, lengths = ([len(item) for item in items] for items in (lines.pictures, lines.texts))
    told: list[Any] = [min(widths), max(widths), min(lengths), max(lengths)]
    return f"{lines.split}: {len(lines.texts)} lines, {told[0]} to {told[1]} columns, {told[2]} to {told[3]} characters"
