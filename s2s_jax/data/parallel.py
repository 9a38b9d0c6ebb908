"""Pairs of lines, each a text and its translation: read, checked, counted, and as numbers."""

import hashlib
import itertools
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from s2s_jax.data import datasets
from s2s_jax.data.datasets.report import Report
from s2s_jax.data.datasets.text_files import decoded_lines, not_utf8
from s2s_jax.data.tokenizers import Tokenizers
from s2s_jax.data.vocabulary import END, normalized

BadLines = Literal["error", "drop"]
_LEFT_OUT = ", left out"  # how a finding ends that says which lines are not among the pairs


class Pairs(NamedTuple):
    """Texts and their translations, in Unicode's form NFC, without white space at their ends.

    Attributes:
      name: of the data set, or the files.
      split: as it was asked for.
      sources: texts.
      targets: as many.
      fingerprint: hexadecimal, of the files that they are from; None for made-up ones.
      report: how many there are, and what was left out or is worth knowing, with the first places of each, file:line.
    """

    name: str
    split: str
    sources: list[str]
    targets: list[str]
    fingerprint: str | None
    report: Report

    @property
    def scope(self) -> str:
        """How many of the lines there are these pairs are: "all 8", or "6 of 8" where lines were left out."""
        count = len(self.sources)
        left_out = sum(found["count"] for what, found in self.report.findings.items() if what.endswith(_LEFT_OUT))
        return f"{count} of {count + left_out}" if left_out else f"all {count}"


def load_pairs(
    name: str,
    split: str,
    *,
    languages: tuple[str, str],
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    bad_lines: BadLines = "error",
    max_characters: int | None = None,
    test: bool | None = None,
) -> Pairs:
    """Pairs of a data set whose folder holds line-aligned text, `train.en.gz` and `train.de.gz` say, or of TFDS's catalogue.

    Args:
      name: the folder's, or the catalogue's, "ted_hrlr_translate/pt_to_en" say; see `datasets.load`.
      split: a name, or slices and sums: "train[:90%]". Of slices the places in the report are numbers of examples.
      languages: of the sources and of the targets.
      data_dir: the folder, or the one that it is in.
      cache_dir: where prepared data sets are kept.
      bad_lines: whether a line that is empty on a side, not UTF-8, or too long is an error, or left out with its other side
        and counted in the report.
      max_characters: longer lines are too long; None: no limit. It does not hold for test splits, of which no line is left
        out or cut for its length: those beyond it are counted.
      test: whether this is a test split; by default whether `split` begins with "test".

    Raises:
      FileNotFoundError: no such folder.
      ValueError: a bad line, by file and line; files of different numbers of lines, with both; no pair; a wrong argument.
    """
    if len(languages) != 2 or isinstance(languages, str):
        raise ValueError(f"languages: expected two, of sources and targets, got {languages!r}")
    options: dict[str, Any] = {}
    if datasets.in_folder(name, data_dir):
        # Sorted, so that both directions share what is prepared.
        options = {"languages": tuple(sorted(languages)), **({"bad_lines": "drop"} if bad_lines == "drop" else {})}
    source = datasets.load(name, split, data_dir=data_dir, cache_dir=cache_dir, **options)
    lacking = set(languages) - set(source[0] if len(source) else languages)
    if lacking:
        raise ValueError(f"languages: expected some of {sorted(source[0])}, the fields of {name}, got {sorted(lacking)}")
    whole = re.fullmatch(r"[\w-]+", split)
    examples = (source[number] for number in range(len(source)))
    pairs = _checked(
        name,
        split,
        ((example[languages[0]], example[languages[1]]) for example in examples),
        lambda number, side: f"{split}.{languages[side]}:{number + 1}" if whole else f"{split}, example {number}",
        bad_lines,
        max_characters,
        test,
        source.fingerprint,
    )
    parts = re.findall(r"[\w-]+", split)
    for what, found in source.report.findings.items() if isinstance(source, datasets.Source) else ():
        if what.split(":")[0] in parts or "two splits" in what:
            pairs.report.findings[what] = found
    return pairs


def read_pairs(
    source: str | Path,
    target: str | Path,
    split: str,
    *,
    bad_lines: BadLines = "error",
    max_characters: int | None = None,
    test: bool | None = None,
) -> Pairs:
    """Pairs of two files of one's own, UTF-8, plain, .gz or .xz: line n of one says what line n of the other says.

    Args:
      source: a file.
      target: a file.
      split: what they are to be called: "train", "validation", "test".
      bad_lines, max_characters, test: as of `load_pairs`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: as of `load_pairs`.
    """
    paths = Path(source), Path(target)
    for name, path in zip(("source", "target"), paths, strict=True):
        if not path.is_file():
            raise FileNotFoundError(f"{name}: expected a file, got {path}")

    def lines() -> Iterable[tuple[str | UnicodeDecodeError, str | UnicodeDecodeError]]:
        for ours, theirs in itertools.zip_longest(*map(decoded_lines, paths)):
            if ours is None or theirs is None:
                counts = [sum(1 for _ in decoded_lines(path)) for path in paths]
                raise ValueError(f"{paths[0]}, {paths[1]}: expected as many lines in both, got {counts[0]} and {counts[1]}")
            yield ours, theirs

    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return _checked(
        f"{paths[0].name}, {paths[1].name}",
        split,
        lines(),
        lambda number, side: f"{paths[side]}:{number + 1}",
        bad_lines,
        max_characters,
        test,
        digest.hexdigest()[:16],
    )


def _checked(
    name: str,
    split: str,
    lines: Iterable[tuple[str | UnicodeDecodeError, str | UnicodeDecodeError]],
    place: Callable[[int, int], str],
    bad_lines: str,
    max_characters: int | None,
    test: bool | None,
    fingerprint: str | None,
) -> Pairs:
    if bad_lines not in ("error", "drop"):
        raise ValueError(f"bad_lines: expected 'error' or 'drop', got {bad_lines!r}")
    if max_characters is not None and max_characters < 1:
        raise ValueError(f"max_characters: expected at least 1, got {max_characters}")
    is_test = split.startswith("test") if test is None else test
    report, kept, number = Report(), ([], []), -1
    for number, both in enumerate(lines):
        texts = [line if isinstance(line, UnicodeDecodeError) else normalized(line).strip() for line in both]
        faults = [(side, *fault) for side, text in enumerate(texts) if (fault := _fault(text, max_characters))]
        if is_test and faults and all(is_long for _, _, _, is_long in faults):
            report.found(f"lines of more than {max_characters} characters, kept in a test split", place(number, faults[0][0]))
            faults = []
        if faults:
            side, what, message, _ = min(faults, key=lambda fault: fault[3])  # of two faults not the length
            if bad_lines == "error":
                raise ValueError(f"{place(number, side)}: {message}; bad_lines='drop' leaves such lines out and counts them")
            report.found(f"{what}{_LEFT_OUT}", place(number, side))
            continue
        for texts_of_side, text in zip(kept, texts, strict=True):
            texts_of_side.append(text)
    if not kept[0]:
        raise ValueError(f"{name}, split {split}: expected at least one pair, got none of {number + 1} lines")
    report.examples[split] = len(kept[0])
    return Pairs(name, split, *kept, fingerprint, report)


def _fault(text: str | UnicodeDecodeError, max_characters: int | None) -> tuple[str, str, bool] | None:
    """What is wrong with a line, in short and in full, and whether that is its length."""
    if isinstance(text, UnicodeDecodeError):
        return "lines that are not UTF-8", not_utf8(text), False
    if not text:
        return "lines with an empty side", "expected a text, got an empty line", False
    if max_characters is not None and len(text) > max_characters:
        what = f"lines of more than {max_characters} characters"
        return what, f"expected at most {max_characters} characters, got {len(text)}", True
    return None


def joined(pairs: Pairs, more: Pairs) -> Pairs:
    """All pairs of both, under the first one's name; what was found in the second ones is told of them."""
    fingerprint = hashlib.sha256(f"{pairs.fingerprint} {more.fingerprint}".encode()).hexdigest()[:16]
    findings = pairs.report.findings | {f"{more.name}: {what}": found for what, found in more.report.findings.items()}
    sources, targets = pairs.sources + more.sources, pairs.targets + more.targets
    report = Report({pairs.split: len(sources)}, findings=findings)
    return Pairs(pairs.name, pairs.split, sources, targets, fingerprint, report)


class EncodedPairs(Sequence[dict[str, np.ndarray]]):
    """Pairs as numbers: `pairs[i]` is {"source": int32 [S], "target": int32 [T]}, for `Batches`.

    Attributes:
      lengths: {"source": int32 [N], "target": int32 [N]}, an end symbol counted.
      name, split, fingerprint, report: of the pairs.
    """

    def __init__(self, pairs: Pairs, tokenizers: Tokenizers, *, source_end: bool, target_end: bool):
        self.name, self.split, self.fingerprint, self.report = pairs.name, pairs.split, pairs.fingerprint, pairs.report
        self.lengths: dict[str, np.ndarray] = {}
        self._symbols, self._ends = {}, {}
        for field, texts, tokenizer, end in (
            ("source", pairs.sources, tokenizers.source, source_end),
            ("target", pairs.targets, tokenizers.target, target_end),
        ):
            tail = np.array([END] if end else [], np.int32)
            encoded = [np.append(tokenizer.encode(text), tail) for text in texts]
            self.lengths[field] = np.array([len(symbols) for symbols in encoded], np.int32)
            self._symbols[field] = np.concatenate(encoded).astype(np.int32)
            self._ends[field] = np.append(0, np.cumsum(self.lengths[field]))

    def __len__(self) -> int:
        return len(self.lengths["source"])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:  # pyrefly: ignore[bad-override]  # no slices
        number = range(len(self))[operator.index(index)]
        return {field: self._symbols[field][slice(*ends[number : number + 2])] for field, ends in self._ends.items()}


def encode_pairs(pairs: Pairs, tokenizers: Tokenizers, *, source_end: bool, target_end: bool) -> EncodedPairs:
    """The pairs as numbers; nothing is cut or left out.

    Args:
      pairs: texts.
      tokenizers: of both sides.
      source_end: whether each source ends with the end symbol.
      target_end: whether each target does.
    """
    return EncodedPairs(pairs, tokenizers, source_end=source_end, target_end=target_end)
