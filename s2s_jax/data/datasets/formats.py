"""Five plain formats of a folder, each checked as it is read: nothing is skipped, and faults are named by file and line."""

import decimal
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from s2s_jax.data.datasets.media import Medium, check_media, media_beside, member, opened
from s2s_jax.data.datasets.report import Duplicates, Report
from s2s_jax.data.datasets.text_files import (
    Kind,
    comma_separated,
    decoded_lines,
    kind_of,
    number_of,
    read_lines,
    read_rows,
    value_of,
)
from s2s_jax.data.images import load_mnist, read_idx

Example = dict[str, Any]

_LIST_OF: dict[Kind, Kind] = {"text": "texts", "int": "ints", "float": "floats"}
_MEDIA = {".png": "image", ".jpg": "image", ".jpeg": "image", ".flac": "audio", ".wav": "audio", ".ogg": "audio"}
_TABLE = re.compile(r"(?P<split>.+?)\.(?P<kind>tsv|csv)(\.gz|\.xz)?")
_LANGUAGE = re.compile(r"(?P<split>.+?)\.(?P<language>[a-z]{2,3}([-_][A-Za-z]{2,4})?)(\.gz|\.xz)?")
_NO_LANGUAGES = {"tsv", "csv", "txt", "zip", "md", "npy", "npz", "png", "jpg", "wav"}
_INTEGER = re.compile(r"\s*[+-]?\d+(\.0*)?\s*")
_IDX = re.compile(r"(?P<prefix>.+)-(?P<what>images|labels)-idx\d-ubyte(\.gz)?")


class Contents(NamedTuple):
    """A folder that is ready to be read: the kind or shape of each field, and the examples of each split.

    `splits` holds functions, each called once; they fill in the report, and raise a ValueError where a file is wrong.
    """

    fields: dict[str, Kind | tuple[int, ...]]  # a tuple is the shape of an array of uint8
    splits: dict[str, Callable[[], Iterator[Example]]]
    report: Report


class Format(NamedTuple):
    """A way to lay out a folder: which file names show it, and how it is read.

    Attributes:
      files: `names -> names` of those that are read; none where the folder is not of this format.
      read: `(folder, name, **options) -> Contents`.
      options: the names that `read` knows.
      named: `folder -> paths` of files that are read too, as those name them.
    """

    files: Callable[[Sequence[str]], list[str]]
    read: Callable[..., Contents]
    options: tuple[str, ...] = ()
    named: Callable[[Path], list[Path]] = lambda folder: []


def format_of(folder: Path) -> str | None:
    """The key in FORMATS of a folder's format; None where no file shows one.

    Raises:
      ValueError: files of two formats.
    """
    shown = [key for key in FORMATS if _shown_by(folder, key)]
    if len(shown) > 1:
        raise ValueError(f"{folder}: expected files of one format, got those of {' and '.join(shown)}")
    return shown[0] if shown else None


def files_of(folder: Path, key: str) -> list[Path]:
    """The files of a folder that are read in a format; what else lies there, a README say, is no part of the data."""
    shown = _shown_by(folder, key)
    return shown + (FORMATS[key].named(folder) if shown else [])


def _shown_by(folder: Path, key: str) -> list[Path]:
    names = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return [folder / name for name in FORMATS[key].files(names)]


# Idx images ----------------------------------------------------------------------------------------------------------------


def _read_idx_images(folder: Path, name: str) -> Contents:
    """Pictures and labels by pairs of idx files; the prefix is the split, and MNIST's t10k is "test"."""
    found: dict[str, dict[str, Path]] = {}
    for path, match in _matching(folder, _IDX):
        found.setdefault(match["prefix"], {})[match["what"]] = path
    arrays: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for prefix, paths in found.items():
        split = "test" if prefix == "t10k" else _split_name(prefix, folder)
        if len(paths) != 2:
            raise ValueError(f"{folder}: expected images and labels of {prefix!r}, got only {next(iter(paths.values())).name}")
        if name == "mnist":
            arrays[split] = load_mnist(folder, split)
            continue
        images, labels = read_idx(paths["images"]), read_idx(paths["labels"])
        if images.ndim != 3 or images.dtype != np.uint8:
            raise ValueError(f"{paths['images']}: expected uint8 [N, H, W], got {images.dtype} {list(images.shape)}")
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            expected = f"{len(images)} integers, as many as {paths['images'].name} has pictures"
            raise ValueError(f"{paths['labels']}: expected {expected}, got {labels.dtype} {list(labels.shape)}")
        arrays[split] = images, labels
    shapes = {images.shape[1:] for images, _ in arrays.values()}
    if len(shapes) != 1:
        raise ValueError(f"{folder}: expected pictures of one shape, got {sorted(shapes)}")
    report = Report()
    twice = Duplicates(report, "the same picture in two splits")

    def examples(split: str) -> Iterator[Example]:
        for number, (image, label) in enumerate(zip(*arrays[split], strict=True)):
            twice.add(image.tobytes(), split, f"{split} {number}")
            yield {"image": image, "label": int(label)}

    return Contents({"image": shapes.pop(), "label": "int"}, _per_split(examples, arrays), report)


# Line-aligned text ---------------------------------------------------------------------------------------------------------


def _languages(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """{split: {language: file name}} of the files that are named alike but for a language, two languages at least."""
    files: dict[str, dict[str, str]] = {}
    for name in names:
        match = _LANGUAGE.fullmatch(name)
        if match and match["language"] not in _NO_LANGUAGES:
            files.setdefault(match["split"], {})[match["language"]] = name
    known = set().union(*(set(by_language) for by_language in files.values() if len(by_language) > 1))
    # A split that lacks a language stays in, so that it is an error and not a split that nobody misses.
    return {split: by_language for split, by_language in files.items() if known & set(by_language)}


def _read_parallel_text(folder: Path, name: str, languages: Sequence[str] | None = None, bad_lines: str = "error") -> Contents:
    """Line n of `train.de.gz` says what line n of `train.en.gz` says; all languages, or those that are asked for.

    `bad_lines="drop"` reads a line that is not UTF-8 as an empty one, and counts it in the report by its split; whoever reads
    the pairs leaves it out.
    """
    if bad_lines not in ("error", "drop"):
        raise ValueError(f"bad_lines: expected 'error' or 'drop', got {bad_lines!r}")
    files = _languages([path.name for path in folder.iterdir()])
    present = sorted(set().union(*files.values()))
    chosen = tuple(present) if languages is None else tuple(languages)
    if len(chosen) < 2 or len(set(chosen)) != len(chosen) or not set(chosen) <= set(present):
        raise ValueError(f"languages: expected two or more of {present}, got {list(chosen)}")
    for split, by_language in files.items():
        _split_name(split, folder)
        for language in chosen:
            if language not in by_language:
                other = next(iter(by_language.values()))
                raise ValueError(f"{folder}: expected {split}.{language}, plain, .gz or .xz, to go with {other}, found none")
    report = Report()
    twice = Duplicates(report, "the same text in two splits")

    def lines_of(path: Path, split: str) -> Iterator[str]:
        if bad_lines == "error":
            yield from read_lines(path)
            return
        for number, line in enumerate(decoded_lines(path), start=1):
            if isinstance(line, UnicodeDecodeError):
                report.found(f"{split}: lines that are not UTF-8, read as empty", f"{path.name}:{number}")
                line = ""
            yield line

    def examples(split: str) -> Iterator[Example]:
        paths = [folder / files[split][language] for language in chosen]
        for number, lines in enumerate(itertools.zip_longest(*(lines_of(path, split) for path in paths)), start=1):
            if None in lines:
                counts = ", ".join(f"{path.name} {sum(1 for _ in decoded_lines(path))}" for path in paths)
                raise ValueError(f"{folder}: expected the same number of lines in each language, got {counts}")
            if not all(line.strip() for line in lines):
                report.found("lines with an empty side", f"{paths[0].name}:{number}")
            twice.add("\n".join(lines).encode(), split, f"{paths[0].name}:{number}")
            yield dict(zip(chosen, lines, strict=True))

    return Contents(dict.fromkeys(chosen, "text"), _per_split(examples, files), report)


# A manifest and zips -------------------------------------------------------------------------------------------------------


def _read_manifest(folder: Path, name: str) -> Contents:
    """`manifest.tsv` and `<split>.zip`, or the files beside it: one example for each file, as its encoded bytes.

    Where files have several lines each (five captions of a picture), every other column is an array of theirs.
    """
    manifest = folder / "manifest.tsv"
    media: dict[str, dict[str, Medium]] = {}
    columns: list[str] = []
    for line, row in read_rows(manifest, ("split", "file")):
        where = f"{manifest}:{line}"
        columns = columns or [column for column in row if column not in ("split", "file")]
        values = {column: value_of(row[column], column, where) for column in columns}
        by_file = media.setdefault(_split_name(row["split"], where), {})
        by_file.setdefault(row["file"], Medium(line, [])).rows.append(values)
    endings = {Path(file).suffix.lower() for by_file in media.values() for file in by_file}
    kinds = {_MEDIA.get(ending) for ending in endings}
    if len(kinds) != 1 or None in kinds:
        raise ValueError(f"{manifest}: expected files of one kind, images or audio ({' '.join(_MEDIA)}), got {sorted(endings)}")
    kind = str(kinds.pop())
    if kind in columns:
        raise ValueError(f"{manifest}:1: expected no column {kind!r}, which is what the bytes are called, got {columns}")
    several = any(len(medium.rows) > 1 for by_file in media.values() for medium in by_file.values())
    fields: dict[str, Any] = {kind: "bytes", "file": "text"}
    for column in columns:
        fields[column] = _LIST_OF[kind_of(column)] if several else kind_of(column)
    report = Report()
    check_media(folder, manifest, media, report)

    def examples(split: str) -> Iterator[Example]:
        with opened(folder, split) as archive:
            for file, medium in media[split].items():
                first = medium.rows[0]
                others = {column: [row[column] for row in medium.rows] for column in columns} if several else first
                yield {kind: member(archive, file), "file": file, **others}

    return Contents(fields, _per_split(examples, media), report)


# Tables of labelled text ---------------------------------------------------------------------------------------------------


def _read_labelled_text(folder: Path, name: str) -> Contents:
    """`<split>.tsv`, plain, .gz or .xz: a header line, then a label, a text, and other columns by name."""
    paths = _tables(folder, "tsv")
    headers = {split: next(read_lines(path), "").split("\t") for split, path in paths.items()}
    columns = next(iter(headers.values()))
    for split, header in headers.items():
        if header != columns:
            raise ValueError(f"{paths[split]}:1: expected the columns of the other splits, {columns}, got {header}")
    report = Report()
    twice = Duplicates(report, "the same text in two splits")

    def examples(split: str) -> Iterator[Example]:
        for line, row in read_rows(paths[split], ("label", "text")):
            where = f"{paths[split]}:{line}"
            twice.add(row["text"].encode(), split, f"{paths[split].name}:{line}")
            yield {column: value_of(text, column, where) for column, text in row.items()}

    return Contents({column: kind_of(column) for column in columns}, _per_split(examples, paths), report)


# Series --------------------------------------------------------------------------------------------------------------------


def _read_series(folder: Path, name: str) -> Contents:
    """`<series>.csv`, plain, .gz or .xz: a header line, then ISO dates that go up, each with its numbers.

    Each file is a split, each row an example, so that TFDS's slices cut it: "ETTh1[:8640]".
    """
    paths = _tables(folder, "csv")
    report = Report()

    def examples(split: str) -> Iterator[Example]:
        path = paths[split]
        rows = comma_separated(path)
        before = None
        _, header = next(rows, (1, []))
        if len(header) < 2 or len(set(header)) != len(header):
            raise ValueError(f"{path}:1: expected the names of a date column and of columns of numbers, got {header}")
        report.columns[split] = header[1:]
        for line, row in rows:
            where = f"{path}:{line}"
            if len(row) != len(header):
                raise ValueError(f"{where}: expected {len(header)} columns, got {len(row)}")
            date = _date(row[0], where)
            if before is not None and not date > before:
                raise ValueError(f"{where}: expected a date after {before}, got {row[0]}")
            before = date
            numbers = [number_of(text, float, column, where) for text, column in zip(row[1:], header[1:], strict=True)]
            values = np.array(numbers, np.float32)
            for text, value, column in zip(row[1:], values.tolist(), header[1:], strict=True):
                # Up to 2^24 float32 holds every integer.
                if abs(value) >= 2**24 and _INTEGER.fullmatch(text) and decimal.Decimal(text) != decimal.Decimal(value):
                    report.found("numbers that float32 rounds to another integer", f"{path.name}:{line} {column!r}")
            yield {"date": row[0], "values": values}

    # TFDS writes all numbers with a fraction as float32, so that float64 here would promise too much.
    return Contents({"date": "text", "values": "floats"}, _per_split(examples, paths), report)


def _date(text: str, where: str) -> np.datetime64:
    try:
        date = np.datetime64(text)
    except ValueError:
        date = np.datetime64("NaT", "s")
    if np.isnat(date):
        raise ValueError(f"{where}: expected an ISO date such as 1949-01 or 2016-07-01 00:00:00, got {text!r}")
    return date


# What they share -----------------------------------------------------------------------------------------------------------

FORMATS = {
    "idx images": Format(lambda names: [name for name in names if _IDX.fullmatch(name)], _read_idx_images),
    "manifest and zips": Format(
        lambda names: [name for name in names if "manifest.tsv" in names and (name == "manifest.tsv" or name.endswith(".zip"))],
        _read_manifest,
        named=media_beside,
    ),
    "labelled text": Format(
        lambda names: [] if "manifest.tsv" in names else _table_names(names, "tsv"),
        _read_labelled_text,
    ),
    "csv series": Format(lambda names: _table_names(names, "csv"), _read_series),
    "parallel text": Format(
        lambda names: [name for by_language in _languages(names).values() for name in by_language.values()],
        _read_parallel_text,
        ("languages", "bad_lines"),
    ),
}


def _per_split(examples: Callable[[str], Iterator[Example]], splits: Any) -> dict[str, Callable[[], Iterator[Example]]]:
    return {split: lambda split=split: examples(split) for split in sorted(splits)}


def _matching(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
    for path in sorted(folder.iterdir()):
        match = pattern.fullmatch(path.name)
        if match:
            yield path, match


def _table_names(names: Sequence[str], kind: str) -> list[str]:
    return [match[0] for match in map(_TABLE.fullmatch, names) if match and match["kind"] == kind]


def _tables(folder: Path, kind: str) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for path, match in _matching(folder, _TABLE):
        split = _split_name(match["split"], folder)
        if match["kind"] == kind and split in paths:
            raise ValueError(f"{folder}: expected one file for {split!r}, got {paths[split].name} and {path.name}")
        if match["kind"] == kind:
            paths[split] = path
    return paths


def _split_name(name: str, where: Path | str) -> str:
    if not re.fullmatch(r"[\w-]+", name) or name == "all":  # TFDS's own language of splits has the rest, and "all"
        raise ValueError(f"{where}: expected a split named by letters, digits, _ and -, and not 'all', got {name!r}")
    return name
