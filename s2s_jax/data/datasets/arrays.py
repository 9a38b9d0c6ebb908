"""A split as a folder of NumPy files, for machines that have NumPy and little else."""

import hashlib
import json
import operator
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_FIELDS = "fields.json"
_SLICE = re.compile(r"(?P<name>[\w-]+)(\[(?P<first>-?\d+%?)?:(?P<last>-?\d+%?)?\])?")


def save_arrays(source: Sequence[dict[str, Any]], folder: str | Path) -> None:
    """Writes the examples of a split to `folder`, which `load` of the folder above it then reads, without TFDS.

    `<field>.npy` holds a field of all examples: [N, ...] where all have one shape, else all values one after the other, and
    `<field>-lengths.npy` how many are each example's. Text is kept as the bytes of UTF-8.

    What `folder` holds of an earlier call is removed.

    Raises:
      ValueError: no examples, or a field whose values are neither numbers nor text, or differ in more than their length.
    """
    folder = Path(folder)
    examples = [source[number] for number in range(len(source))]
    if not examples:
        raise ValueError("source: expected at least one example, got none")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _FIELDS).unlink(missing_ok=True)  # first, so that a folder that has it is whole
    for before in folder.glob("*.npy"):
        before.unlink()
    kinds = {}
    for field, first in examples[0].items():
        kinds[field] = type(first).__name__ if isinstance(first, str | bytes) else "array"
        values = [_as_array(example[field]) for example in examples]
        if any(value.dtype.kind not in "biufc" for value in values):
            raise ValueError(f"{field}: expected numbers, text or bytes, got {type(first).__name__} {first!r}")
        if len({value.shape for value in values}) == 1 and kinds[field] == "array":
            np.save(folder / f"{field}.npy", np.stack(values))
            continue
        if len({value.shape[1:] for value in values}) > 1 or not all(value.ndim for value in values):
            raise ValueError(
                f"{field}: expected arrays that differ in their first axis alone, got {sorted({v.shape for v in values})}"
            )
        np.save(folder / f"{field}.npy", np.concatenate(values))
        np.save(folder / f"{field}-lengths.npy", np.array([len(value) for value in values]))
    of_all = getattr(source, "fingerprint", None) if str(getattr(source, "split", "")).isidentifier() else None
    fingerprint = of_all or _hash_of(folder, kinds)
    (folder / _FIELDS).write_text(json.dumps({"fields": kinds, "fingerprint": fingerprint}))


class SavedArrays(Sequence[dict[str, Any]]):
    """The examples that `save_arrays` wrote, mapped into memory: `source[i]` is a dict of arrays, `bytes` and `str`.

    Attributes:
      name: of the data set.
      split: as it was asked for: a name, or a slice such as "train[:-500]" or "train[90%:]".
      fingerprint: that of the source that was saved; of the saved bytes where it had none or was a slice.
    """

    def __init__(self, name: str, folder: Path, split: str):
        match = _SLICE.fullmatch(split)
        there = splits_of(folder)
        if match is None or match["name"] not in there:
            raise ValueError(f"split: expected one or a slice of {there} of {name}, got {split!r}")
        self.name, self.split = name, split
        place = folder / match["name"]
        about = json.loads((place / _FIELDS).read_text())
        self.fingerprint: str = about["fingerprint"]
        self._kinds: dict[str, str] = about["fields"]
        self._values = {field: np.load(place / f"{field}.npy", mmap_mode="r") for field in self._kinds}
        self._ends = {}
        for field in self._kinds:
            lengths = place / f"{field}-lengths.npy"
            if lengths.exists():
                self._ends[field] = np.concatenate([[0], np.cumsum(np.load(lengths))])
        counts = {len(self._ends[field]) - 1 if field in self._ends else len(self._values[field]) for field in self._kinds}
        if len(counts) != 1:
            raise ValueError(f"{place}: expected one number of examples in all fields, got {sorted(counts)}")
        (count,) = counts
        self._numbers = range(count)[slice(*(_bound(match[end], count) for end in ("first", "last")))]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:  # pyrefly: ignore[bad-override]  # slices are in `split`
        number = self._numbers[operator.index(index)]
        return {field: self._value(field, number) for field in self._kinds}

    def _value(self, field: str, number: int) -> Any:
        values = self._values[field]
        if field in self._ends:
            start, end = self._ends[field][number : number + 2]
            values = values[start:end]
        else:
            values = values[number]
        kind = self._kinds[field]
        if kind == "array":
            return np.asarray(values)
        return values.tobytes() if kind == "bytes" else values.tobytes().decode("utf-8")


def splits_of(folder: Path) -> list[str]:
    """The splits that `save_arrays` has written below `folder`."""
    return sorted(path.parent.name for path in folder.glob(f"*/{_FIELDS}"))


def _hash_of(folder: Path, kinds: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(kinds).encode())
    for path in sorted(folder.glob("*.npy")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _as_array(value: Any) -> np.ndarray:
    if isinstance(value, str | bytes):
        return np.frombuffer(value.encode("utf-8") if isinstance(value, str) else value, np.uint8)
    return np.asarray(value)


def _bound(text: str | None, count: int) -> int | None:
    if text is None:
        return None
    bound = round(int(text[:-1]) * count / 100) if text.endswith("%") else int(text)
    if abs(bound) > count:
        raise ValueError(f"split: expected bounds within its {count} examples, got {text}")
    return bound
