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
from s2s_jax.data.datasets.text_files import first_row, other_separator, read_rows, unpacked_suffix
from s2s_jax.data.own_files import name_own_files
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
    header: tuple[str, ...] = ()
    """Names of all columns, for files that do not begin with them."""

    def __post_init__(self) -> None:
        name_own_files(self, PATHS)
        if self.dataset == "files" and not (self.train_file and self.test_file):
            raise ValueError("train_file, test_file: expected both with --dataset files")
        if self.header and self.dataset != "files":
            raise ValueError(f"header: expected it with files, got it with --dataset {self.dataset}")
        if not self.text_columns or len({*self.text_columns, self.label_column}) <= len(self.text_columns):
            wanted = f"different columns, without the label column {self.label_column}"
            raise ValueError(f"text_columns: expected {wanted}, got {', '.join(self.text_columns) or 'none'}")
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
      fingerprint: of the training texts, if they are real.
      report: what is worth knowing of them.
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, LabelledTexts]
    fingerprint: str | None
    report: Report

    def fingerprint_of(self, split: str) -> str:
        """Hexadecimal, of the texts of a split and their classes."""
        texts, labels = self.splits[split]
        return fingerprint([(self.classes[label], text) for text, label in zip(texts, labels, strict=True)])

    def known_of_test(self) -> LabelledTexts:
        """The test texts that training or validation holds too, whatever their class there."""
        known = {text for split in ("train", "validation") for text in self.splits[split].texts}
        texts, labels = self.splits["test"]
        places = [place for place, text in enumerate(texts) if text in known]
        return LabelledTexts([texts[place] for place in places], labels[places])


def load_texts(flags: TextFlags, data_dir: str | Path | None = None) -> TextSplits:
    """The splits that the flags name; where there is none for validation, texts of the training split that a fixed seed draws.

    Raises:
      FileNotFoundError: no such data.
      ValueError: a file that is not what it should be, by file and line; a class that no training text has, or only one.
    """
    if flags.dataset == "reviews":
        made = {split: made_up_reviews(count, seed) for split, (count, seed) in _MADE_UP.items()}
        return TextSplits("made-up-reviews", _CLASSES["reviews"], made, None, Report(_counts(made)))
    if flags.dataset == "files":
        return _of_files(flags)
    return _of_data_set(flags, data_dir)


def _of_data_set(flags: TextFlags, data_dir: str | Path | None) -> TextSplits:
    name, columns = flags.dataset, flags.text_columns
    first = datasets.load(name, "train", data_dir=data_dir)
    if not isinstance(first, datasets.Source):
        raise ValueError(f"dataset: expected texts, got the saved arrays of {name}")
    named = {"train": "train", "test": "test"}
    validation = [split for split in ("validation", "val", "valid", "dev") if split in first.splits]
    named |= dict(zip(["validation"], validation, strict=False))
    rows: dict[str, list[tuple[str, str]]] = {}
    report = Report(findings=dict(first.report.findings))
    for split, theirs in named.items():
        source = first if split == "train" else datasets.load(name, theirs, data_dir=data_dir)
        rows[split] = []
        for number in range(len(source)):
            example = source[number]
            if not {flags.label_column, *columns} <= set(example):
                expected = f"columns of {name}, which has {', '.join(sorted(example))}"
                raise ValueError(
                    f"label_column, text_columns: expected {expected}, got {flags.label_column}, {', '.join(columns)}"
                )
            if other := [column for column in columns if not isinstance(example[column], str)]:
                raise ValueError(f"text_columns: expected columns of texts, got {', '.join(other)}")
            rows[split].append((str(example[flags.label_column]), " ".join(example[column] for column in columns)))
    known = first.classes.get(flags.label_column) or _CLASSES.get(name)
    return _split(name, rows, {}, known, first.fingerprint, report)


def _of_files(flags: TextFlags) -> TextSplits:
    report, rows, lines = Report(), {}, {}
    twice = Duplicates(report, "the same text in two splits")
    for split in ("train", "validation", "test"):
        path = getattr(flags, f"{split}_file")
        if path is None:
            continue
        if not path.is_file():
            raise FileNotFoundError(f"{split}_file: expected a file, found none at {path.absolute()}")
        rows[split], lines[split] = [], []
        _check_columns(path, flags)
        for line, row in read_rows(path, (), flags.header):
            label, text = row[flags.label_column].strip(), " ".join(row[column] for column in flags.text_columns)
            if not label:
                raise ValueError(f"{path}:{line}: expected a class in column {flags.label_column!r}, got none")
            if not text.strip():
                report.found("rows without a text", f"{path.name}:{line}")
            twice.add(text.encode(), split, f"{path.name}:{line}")
            rows[split].append((label, text))
            lines[split].append(f"{path}:{line}")
    assert flags.train_file is not None
    return _split(flags.train_file.name.split(".")[0], rows, lines, None, fingerprint(rows["train"]), report)


def _check_columns(path: Path, flags: TextFlags) -> None:
    """Raises what names the flags where a file has other columns."""
    names, wanted = flags.header or first_row(path), (flags.label_column, *flags.text_columns)
    if names and not set(wanted) <= set(names):
        has = f"header names, {', '.join(names)}" if flags.header else f"{path} names in its first line, {', '.join(names)}"
        without = "; a file that does not begin with names needs --header"
        likely = "" if flags.header else other_separator(path, names) or without
        raise ValueError(f"label_column, text_columns: expected columns that {has}, got {', '.join(wanted)}{likely}")


def texts_of_table(path: Path, flags: TextFlags) -> list[str] | None:
    """The texts of a file with the columns of texts that the flags name, a class or none beside them; None of any other file.

    A first row of a single name is one only in a file called .csv or .tsv, plain, .gz or .xz: elsewhere it is a text, too.

    Raises:
      ValueError: a row that is not what it should be, by file and line; a file called .csv or .tsv whose first row does not
        name these columns, where it is there that the flags look for names.
    """
    first, called_table = first_row(path), unpacked_suffix(path) in (".csv", ".tsv")
    if flags.header:
        is_table = len(first) == len(flags.header)
    else:
        is_table = set(flags.text_columns) <= set(first) and (len(first) > 1 or called_table)
    if not is_table:
        if not flags.header and called_table:
            raise ValueError(f"{path}: expected the columns {', '.join(flags.text_columns)}, got {', '.join(first)}")
        return None
    rows = read_rows(path, flags.text_columns, flags.header)
    return [" ".join(row[column] for column in flags.text_columns) for _, row in rows]


def fingerprint(rows: Sequence[tuple[str, str]]) -> str:
    """Hexadecimal, of classes and texts."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update("\0".join((*row, "")).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def _split(
    name: str,
    rows: dict[str, list[tuple[str, str]]],
    lines: dict[str, list[str]],
    known: Sequence[str] | None,
    of_training: str,
    report: Report,
) -> TextSplits:
    """Classes as numbers, in the order of their numbers where all are numbers, and else of their names.

    `lines` are where rows come from; those of splits that it lacks are told by their number.
    """
    labels = {label for label, _ in rows["train"]}
    ordered = sorted(labels, key=int) if all(label.isdecimal() for label in labels) else sorted(labels)
    if len(ordered) < 2:
        raise ValueError(f"label_column: expected at least two classes in the training texts of {name}, got {ordered}")
    number = {label: place for place, label in enumerate(ordered)}
    for split, of_split in rows.items():
        unknown = next((place for place, (label, _) in enumerate(of_split) if label not in number), None)
        if unknown is not None:
            where = lines[split][unknown] if split in lines else f"{name}, {split} {unknown}"
            raise ValueError(
                f"{where}: expected a class that training texts have, {ordered[:20]}, got {of_split[unknown][0]!r}"
            )
    splits = {
        split: LabelledTexts([text for _, text in of_split], np.array([number[label] for label, _ in of_split], np.int32))
        for split, of_split in rows.items()
    }
    if "validation" not in splits:
        splits["train"], splits["validation"] = held_out(splits["train"], report)
    classes = tuple(known) if known is not None and len(known) == len(ordered) else tuple(ordered)
    report.examples = _counts(splits)
    return TextSplits(name, classes, splits, of_training, report)


def _counts(splits: dict[str, LabelledTexts]) -> dict[str, int]:
    return {split: len(of_split.texts) for split, of_split in splits.items()}


def held_out(texts: LabelledTexts, report: Report) -> tuple[LabelledTexts, LabelledTexts]:
    """Training texts without those for validation, and these, drawn by a fixed seed: `VALIDATION`, or a tenth of all.

    A text that stands in both is left out of training, and reported by its number.

    Raises:
      ValueError: fewer than ten texts, or so many equal ones that none is left for training.
    """
    count = len(texts.texts)
    if count < 10:
        raise ValueError(f"validation_file: expected one with fewer than 10 training texts, got {count} and none")
    order = np.random.default_rng(0).permutation(count)
    cut = min(VALIDATION, count // 10)
    drawn = {texts.texts[place] for place in order[:cut]}
    kept = [place for place in np.sort(order[cut:]) if texts.texts[place] not in drawn]
    if not kept:
        raise ValueError(
            f"train_file: expected texts that differ, got {count} of which none is left beside {cut} for validation"
        )
    for place in sorted(set(order[cut:].tolist()) - set(kept)):
        report.found("training texts left out, as they validate", f"number {place}")

    def at(chosen: Sequence[int]) -> LabelledTexts:
        return LabelledTexts([texts.texts[place] for place in chosen], texts.labels[chosen])

    return at(kept), at(np.sort(order[:cut]).tolist())


class EncodedTexts:
    """Texts as numbers, of long ones the last `max_length` symbols, each with its class.

    Attributes:
      lengths: int32 [N], of what is kept.
      cut: how many are longer.
      unknown: symbols that the tokeniser does not know, of what is kept.
    """

    def __init__(self, texts: LabelledTexts, tokenizer: Tokenizer, max_length: int, unknown: int | None = None):
        if max_length < 1:
            raise ValueError(f"max_length: expected a positive number, got {max_length}")
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
