"""Texts with a class each: which ones the flags of an experiment name, and as numbers in batches."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from s2s_jax.data import datasets
from s2s_jax.data.buckets import length_buckets, with_room_for
from s2s_jax.data.datasets.report import Duplicates, Report
from s2s_jax.data.datasets.text_files import read_rows
from s2s_jax.data.pipeline import Batches
from s2s_jax.data.reviews import LabelledTexts, made_up_reviews
from s2s_jax.data.tokenizers import Tokenizer

VALIDATION = 1000  # texts of the training split, a tenth of it at most, that validate where there is no split for that
_CLASSES = {"imdb": ("negative", "positive"), "reviews": ("negative", "positive")}  # of data that gives numbers only
_MADE_UP = {"train": (4000, 0), "validation": (500, 2), "test": (1000, 1)}  # how many reviews, and their seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPaths:
    """Flags that say where labelled texts of one's own are."""

    train_file: Path | None = None
    """Tab-separated, or comma-separated where it is called .csv; with a header; plain, .gz or .xz."""
    validation_file: Path | None = None
    """The same for validation; some of the training texts, which are then not trained on, if not given."""
    test_file: Path | None = None
    """The same for the test."""


PATHS = tuple(field.name for field in dataclasses.fields(TextPaths))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFlags(TextPaths):
    """Flags of an experiment whose examples are labelled texts."""

    dataset: str = "reviews"
    """reviews, made up; a folder with train.tsv and test.tsv such as imdb, or a name of TFDS's catalogue such as
    ag_news_subset; or files, which the flags of files name, and which goes without saying with those."""
    label_column: str = "label"
    """Column of the classes."""
    text_columns: tuple[str, ...] = ("text",)
    """Columns of the texts, put together with a space between them; of ag_news_subset title and description."""

    def __post_init__(self) -> None:
        given = [name for name in PATHS if getattr(self, name) is not None]
        if given and self.dataset == type(self).dataset:  # no other was named
            object.__setattr__(self, "dataset", "files")
        if given and self.dataset != "files":
            raise ValueError(f"{given[0]}: expected --dataset files with it, got --dataset {self.dataset}")
        if self.dataset == "files" and not (self.train_file and self.test_file):
            raise ValueError("train_file, test_file: expected both with --dataset files")
        if not self.text_columns:
            raise ValueError("text_columns: expected at least one, got none")
        getattr(super(), "__post_init__", lambda: None)()  # of the other flags of an experiment

    @property
    def origin(self) -> Literal["real", "generated"]:
        return "generated" if self.dataset == "reviews" else "real"


class TextSplits(NamedTuple):
    """Training, validation and test texts.

    Attributes:
      name: of the data.
      classes: names, of the labels 0 to C - 1.
      splits: by name, "train", "validation" and "test".
      fingerprint: of real data.
      report: what is worth knowing of them.
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, LabelledTexts]
    fingerprint: str | None
    report: Report


def load_texts(flags: TextFlags, data_dir: str | Path | None = None) -> TextSplits:
    """The splits that the flags name; where there is none for validation, texts of the training split that a fixed seed draws.

    Raises:
      FileNotFoundError: no such data.
      ValueError: a file that is not what it should be, by file and line; a class that no training text has.
    """
    if flags.dataset == "reviews":
        made = {split: made_up_reviews(count, seed) for split, (count, seed) in _MADE_UP.items()}
        return TextSplits("made-up-reviews", _CLASSES["reviews"], made, None, _report(made))
    if flags.dataset == "files":
        return _of_files(flags)
    return _of_data_set(flags, data_dir)


def _of_data_set(flags: TextFlags, data_dir: str | Path | None) -> TextSplits:
    name = flags.dataset
    sources = {"train": datasets.load(name, "train", data_dir=data_dir)}
    first = sources["train"]
    if not isinstance(first, datasets.Source):
        raise ValueError(f"dataset: expected texts, got the saved arrays of {name}")
    named = next((split for split in ("validation", "val", "dev", "valid") if split in first.splits), None)
    sources |= {"test": datasets.load(name, "test", data_dir=data_dir)}
    sources |= {} if named is None else {"validation": datasets.load(name, named, data_dir=data_dir)}
    columns = flags.text_columns
    if len(first) and not {flags.label_column, *columns} <= set(first[0]):
        expected = f"columns of {name}, which has {sorted(first[0])}"
        raise ValueError(f"label_column, text_columns: expected {expected}, got {flags.label_column} and {', '.join(columns)}")
    rows = {
        split: [
            (str(example[flags.label_column]), " ".join(example[column] for column in columns))
            for example in map(source.__getitem__, range(len(source)))
        ]
        for split, source in sources.items()
    }
    known = first.classes.get(flags.label_column) or _CLASSES.get(name)
    report = Report(findings=dict(first.report.findings))
    return _split(name, rows, known, first.fingerprint, report)


def _of_files(flags: TextFlags) -> TextSplits:
    paths = {split: getattr(flags, f"{split}_file") for split in ("train", "validation", "test")}
    report, rows, digest = Report(), {}, hashlib.sha256()
    twice = Duplicates(report, "the same text in two splits")
    for split, path in paths.items():
        if path is None:
            continue
        rows[split] = []
        for line, row in read_rows(path, (flags.label_column, *flags.text_columns)):
            label, text = row[flags.label_column].strip(), " ".join(row[column] for column in flags.text_columns)
            if not label:
                raise ValueError(f"{path}:{line}: expected a class in column {flags.label_column!r}, got none")
            if not text.strip():
                report.found("rows without a text", f"{path.name}:{line}")
            twice.add(text.encode(), split, f"{path.name}:{line}")
            rows[split].append((label, text))
        digest.update(path.read_bytes())
    return _split(flags.train_file.stem if flags.train_file else "files", rows, None, digest.hexdigest()[:16], report)


def _split(
    name: str,
    rows: dict[str, list[tuple[str, str]]],
    known: Sequence[str] | None,
    fingerprint: str,
    report: Report,
) -> TextSplits:
    """Classes as numbers, in the order of their numbers where all are numbers, and else of their names."""
    labels = {label for label, _ in rows["train"]}
    ordered = sorted(labels, key=int) if all(label.isdecimal() for label in labels) else sorted(labels)
    number = {label: place for place, label in enumerate(ordered)}
    for split, of_split in rows.items():
        unknown = next((label for label, _ in of_split if label not in number), None)
        if unknown is not None:
            raise ValueError(f"{name}: expected in {split} classes that training texts have, {ordered[:20]}, got {unknown!r}")
    splits = {
        split: LabelledTexts([text for _, text in of_split], np.array([number[label] for label, _ in of_split], np.int32))
        for split, of_split in rows.items()
    }
    if "validation" not in splits:
        splits["train"], splits["validation"] = held_out(splits["train"])
    classes = tuple(known) if known is not None and len(known) == len(ordered) else tuple(ordered)
    report.examples = {split: len(of_split.texts) for split, of_split in splits.items()}
    return TextSplits(name, classes, splits, fingerprint, report)


def _report(splits: dict[str, LabelledTexts]) -> Report:
    return Report({split: len(of_split.texts) for split, of_split in splits.items()})


def held_out(texts: LabelledTexts) -> tuple[LabelledTexts, LabelledTexts]:
    """Training texts without those for validation, and these, drawn by a fixed seed: `VALIDATION`, or a tenth of all."""
    count = len(texts.texts)
    order = np.random.default_rng(0).permutation(count)
    cut = min(VALIDATION, count // 10)

    def at(chosen: np.ndarray) -> LabelledTexts:
        return LabelledTexts([texts.texts[place] for place in chosen], texts.labels[chosen])

    return at(np.sort(order[cut:])), at(np.sort(order[:cut]))


class EncodedTexts:
    """Texts as numbers, of long ones the last `max_length` symbols, each with its class.

    Attributes:
      lengths: int32 [N], of what is kept.
      cut: how many are longer.
      unknown: symbols that the tokeniser does not know, of what is kept.
    """

    def __init__(self, texts: LabelledTexts, tokenizer: Tokenizer, max_length: int, unknown: int | None = None):
        encoded = [tokenizer.encode(text) for text in texts.texts]
        self._max_length = max_length
        self.cut = sum(len(tokens) > max_length for tokens in encoded)
        self._tokens = [tokens[-max_length:] for tokens in encoded]
        self._labels = texts.labels
        self.lengths = np.array([len(tokens) for tokens in self._tokens], np.int32)
        self.unknown = 0 if unknown is None else sum(int((tokens == unknown).sum()) for tokens in self._tokens)

    def describe(self) -> str:
        """How many there are, and what of them is not read, for people."""
        told = f"{len(self)} texts"
        if self.cut:
            told += f", of {self.cut} of them only the last {self._max_length} symbols are read"
        return told + (f"; {self.unknown} unknown symbols" if self.unknown else "")

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        return {"tokens": self._tokens[number], "label": self._labels[number]}


class TextBatches:
    """Batches of encoded texts, in the shapes that suit the training split.

    Args:
      training: the training split.
      batch_size: rows.
      shapes: of batches, at most.
    """

    def __init__(self, training: EncodedTexts, batch_size: int, shapes: int):
        self._training, self._batch_size = training, batch_size
        self._buckets = [{"tokens": length} for length in length_buckets(training.lengths, shapes)]

    def shuffled(self, seed: int) -> Batches:
        """Of the training split, for training."""
        return self._batches(self._training, seed)

    def in_order(self, texts: EncodedTexts) -> Batches:
        """Of any split, for an evaluation."""
        return self._batches(texts, None)

    def _batches(self, texts: EncodedTexts, seed: int | None) -> Batches:
        lengths = {"tokens": texts.lengths}
        return Batches(texts, self._batch_size, seed=seed, lengths=lengths, buckets=with_room_for(self._buckets, lengths))
