"""Plain text files: UTF-8 lines, tab- and comma-separated rows, plain, gzip or xz; what is wrong is named by file and line."""

import csv
import gzip
import lzma
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

Kind = Literal["text", "bytes", "int", "float", "texts", "ints", "floats"]  # the plural is an array [n] of them

_DAMAGE = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError)
_OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".xz": lzma.open}
_FINITE = math.nextafter(2.0**128 - 2.0**103, 0)  # beyond it float32 rounds to infinity
_RANGES: dict[type, tuple[float, float]] = {int: (-(2**31), 2**31 - 1), float: (-_FINITE, _FINITE)}
_NUMERIC_COLUMNS: dict[str, Kind] = {"label": "int", "rating": "int", "seconds": "float"}


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, without their ends; a line ends at a line feed and nowhere else.

    Raises:
      ValueError: a damaged .gz or .xz file, or bytes that are not UTF-8.
    """
    return _all_utf8(decoded_lines(path), str(path))


def read_stream(file: IO[bytes], name: str) -> Iterator[str]:
    """The lines of an open file, as `read_lines` has those of one with a path.

    Raises:
      ValueError: bytes that are not UTF-8, by name and line.
    """
    return _all_utf8(map(_decoded, _raw_lines(file)), name)


def texts_named(inputs: Iterable[str]) -> list[str]:
    """Each input, or each line of a file, or of standard input for "-".

    Raises:
      FileNotFoundError: no such file, of an input that looks like the name of one, as `_is_name` has it, or a folder.
      ValueError: bytes that are not UTF-8, of an input or by file and line; a damaged .gz or .xz file; a file or an input
        without a line.
    """
    texts: list[str] = []
    for text in inputs:
        if text == "-":
            texts += _some(read_stream(sys.stdin.buffer, "standard input"), "standard input")
        elif os.path.exists(text) and not os.path.isdir(text):  # a pipe too; Path's form raises an error for a long text
            texts += _some(read_lines(Path(text)), text)
        elif len(text) > 1 and os.sep in text and os.path.isdir(text):  # a word may be the name of one by chance
            raise FileNotFoundError(f"{text}: expected a text or a file, got a folder; as a text it can come by standard input")
        elif _is_name(text):
            raise FileNotFoundError(f"{text}: expected a file, found none; as a text it can come by standard input")
        else:
            texts += _all_utf8([_decoded(os.fsencode(text))], repr(text))  # the shell hands bytes on as they are
    return texts


def _some(lines: Iterator[str], name: str) -> list[str]:
    found = list(lines)
    if not found:
        raise ValueError(f"{name}: expected at least one line, got none")
    return found


def _is_name(text: str) -> bool:
    """Whether a text looks like the name of a file of texts: by its ending, a language's too, or as a path from somewhere."""
    stem = r"[\w~./\\:+-]*[\w-]"
    languages = "bg|cs|da|de|el|en|es|et|fi|fr|ga|he|hi|hr|hu|it|ja|ko|lt|lv|mt|nl|pl|pt|ro|ru|sk|sl|sv|tr|uk|vi|zh"
    ending = rf"(txt|tok|bpe|csv|tsv|src|tgt|source|target|(?-i:{languages}))"
    named = re.fullmatch(rf"{stem}\.{ending}(\.gz|\.xz)?|{stem}\.(gz|xz)", text, re.IGNORECASE | re.ASCII)
    path = re.fullmatch(r"(\.{1,2}|~)/\S+|/\S+/\w\S*", text)
    return (path is not None or named is not None) and "://" not in text


def write_texts(path: Path, texts: Iterable[str]) -> None:
    """One text a line, as `read_lines` reads them: a line feed within a text becomes a space."""
    path.write_text("".join(text.replace("\n", " ") + "\n" for text in texts), encoding="utf-8", newline="\n")


def _all_utf8(lines: Iterable[str | UnicodeDecodeError], name: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if isinstance(line, UnicodeDecodeError):
            raise ValueError(f"{name}:{number}: {not_utf8(line)}") from line
        yield line


def decoded_lines(path: Path) -> Iterator[str | UnicodeDecodeError]:
    """As `read_lines`, but with the error in place of a line of bytes that are not UTF-8.

    Raises:
      ValueError: a damaged .gz or .xz file.
    """
    number = 0
    try:
        with _OPENERS.get(path.suffix, _open_plain)(path) as file:
            for raw in _raw_lines(file):
                number += 1
                yield _decoded(raw)
    except _DAMAGE as error:
        raise ValueError(f"{path}: damaged {path.suffix[1:]} file, after line {number} ({error})") from error


def _raw_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Without their ends and without the mark that some programs put before the first."""
    for number, raw in enumerate(file):
        raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 0 else raw
        yield raw.removesuffix(b"\n").removesuffix(b"\r")


def not_utf8(error: UnicodeDecodeError) -> str:
    return f"expected UTF-8, got the byte 0x{error.object[error.start]:02x} at place {error.start}"


def _decoded(raw: bytes) -> str | UnicodeDecodeError:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return error


def _open_plain(path: Path) -> IO[bytes]:
    return path.open("rb")


def read_rows(path: Path, required: Sequence[str], header: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and columns by name of each row of a file with a header, or of one without, whose columns `header` names.

    Tab-separated, where quotes mean nothing; or comma-separated, where the file is named .csv, plain, .gz or .xz: there a cell
    in quotes may hold commas and line ends, and the number is that of the row's last line.

    Raises:
      ValueError: no row, a row of another number of columns, or a header without the required names.
    """
    rows = _rows(path)
    names = list(header) or next(rows, (1, []))[1]
    if not names:
        raise ValueError(f"{path}: expected a header and rows, got an empty file")
    if len(names) > 1 and not names[0] and all(names[1:]):
        likely = "which is as pandas writes its index; with index=False it writes none"
        raise ValueError(f"{path}:1: expected a name of each column, got none of the first, {likely}")
    if not set(required) <= set(names) or len(set(names)) != len(names) or not all(names):
        told = f"a header of different names, {', '.join(required)} among them" if required else "a header of different names"
        raise ValueError(f"{path}:1: expected {told}, got {names}{other_separator(path, names)}")
    found = False
    for line, columns in rows:
        found = True
        if len(columns) != len(names):
            likely = other_separator(path, columns)
            raise ValueError(f"{path}:{line}: expected {len(names)} columns, got {len(columns)}{likely}")
        yield line, dict(zip(names, columns, strict=True))
    if not found:
        raise ValueError(f"{path}: expected lines{'' if header else ' after the header'}, found none")


def first_row(path: Path) -> list[str]:
    """The cells of the first row of what `read_rows` reads, none of an empty file.

    Raises:
      ValueError: as `read_rows` does.
    """
    return next(_rows(path), (1, []))[1]


def other_separator(path: Path, cells: Sequence[str]) -> str:
    """For an error: which other separator a row seems to have, as it is a single cell with that in it; else nothing."""
    names = {";": "semicolons", "\t": "tabs", ",": "commas"}
    here = "," if _has_commas(path) else "\t"
    likely = [name for mark, name in names.items() if mark != here and len(cells) == 1 and mark in cells[0]]
    return f"; it seems to be separated by {likely[0]}, where {names[here]} are expected" if likely else ""


def unpacked_suffix(path: Path) -> str:
    """The ending in small letters of a file's name, of one that is packed that of what is in it."""
    return (path.with_suffix("") if path.suffix in _OPENERS else path).suffix.lower()


def _has_commas(path: Path) -> bool:
    return unpacked_suffix(path) == ".csv"


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    return comma_separated(path) if _has_commas(path) else _tab_separated(path)


def _tab_separated(path: Path) -> Iterator[tuple[int, list[str]]]:
    for line, text in enumerate(read_lines(path), start=1):
        yield line, text.split("\t")


def comma_separated(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a comma-separated file, the header too, each with the number of its last line; empty lines are none.

    Raises:
      ValueError: quotes that make no sense, by file and line; of one that does not end the line where its row begins. A line
        that ends with a carriage return alone, as those of `read_lines` do not.
    """
    rows = csv.reader((f"{line}\n" for line in read_lines(path)), strict=True)
    first = 1  # line of the row that is read
    try:
        for row in rows:
            first = rows.line_num + 1
            if row:
                yield rows.line_num, row
    except csv.Error as error:
        if str(error) == "unexpected end of data":
            raise ValueError(f"{path}:{first}: expected an end of the quote that begins in this row, got none") from error
        if str(error).startswith("new-line character"):
            expected = "lines that end with a line feed, with a carriage return before it or without"
            raise ValueError(f"{path}:{rows.line_num}: expected {expected}, got a carriage return alone") from error
        begins = f", in the row that begins in line {first}" if first < rows.line_num else ""
        raise ValueError(f"{path}:{rows.line_num}: {error}{begins}") from error


def kind_of(column: str) -> Kind:
    return _NUMERIC_COLUMNS.get(column, "text")


def value_of(text: str, column: str, where: str) -> Any:
    kind = kind_of(column)
    return text if kind == "text" else number_of(text, {"int": int, "float": float}[kind], column, where)


def number_of(text: str, of: type[int] | type[float], column: str, where: str) -> Any:
    """The number that a text says, if it is within what it will be kept as: int32, or float32, which will round it."""
    least, greatest = _RANGES[of]
    try:
        number = of(text) if text.isascii() and "_" not in text else math.nan  # Python takes digits of any script, and 1_0
    except ValueError:
        number = math.nan
    if not least <= number <= greatest:  # NaN is neither
        what = "an integer that int32 holds" if of is int else "a finite number that float32 holds"
        raise ValueError(f"{where}: expected {what} in column {column!r}, got {text!r}")
    return number
