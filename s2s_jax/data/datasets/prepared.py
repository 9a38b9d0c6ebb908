"""A data set as array_record: prepared once in a cache folder, and read at random."""

import contextlib
import hashlib
import json
import logging
import operator
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from s2s_jax import cache
from s2s_jax.data.datasets.arrays import SavedArrays, splits_of
from s2s_jax.data.datasets.formats import FORMATS, Contents, files_of, format_of
from s2s_jax.data.datasets.report import Report

_LAYOUT = 1  # of what is prepared; a new number has everything prepared anew


class Source(Sequence[dict[str, Any]]):
    """The examples of a split, read at random: `source[i]` is a dict of NumPy arrays, `bytes` and `str`.

    Attributes:
      name: of the data set.
      split: as it was asked for.
      fingerprint: hexadecimal, of what all splits of the data set are made of: name, options and the bytes of a folder's files;
        of a data set of the catalogue its name, configuration and version, and the sizes of its splits.
      report: what was found in the folder; empty for a data set of the catalogue.
      splits: names of all splits of the data set.
      classes: {field: names of its classes}, of a data set of the catalogue that has them.

    Raises (from `source[i]`):
      IndexError: no such example.
      ValueError: a damaged record; the message names data set, split and index.
    """

    def __init__(
        self,
        name: str,
        split: str,
        records: Any,
        info: Any,
        *,
        fingerprint: str,
        report: Report,
        place: str | Path,
    ):
        features = info.features
        self.name, self.split, self.fingerprint, self.report = name, split, fingerprint, report
        self.splits = tuple(info.splits)
        self.classes = {field: tuple(one.names) for field, one in features.items() if hasattr(one, "int2str")}
        self._records, self._place = records, place
        self._converters = {field: _converter(feature) for field, feature in features.items()}

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:  # pyrefly: ignore[bad-override]  # slices are TFDS's: "train[:9]"
        index = range(len(self))[operator.index(index)]
        try:
            return self._converted(self._records[index])
        except Exception as error:  # whatever TFDS, array_record and protobuf raise
            raise ValueError(
                f"{self.name}, split {self.split}, record {index}: damaged ({error}); "
                f"it is prepared anew when {self._place} is deleted"
            ) from error

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several examples at once, which array_record reads in parallel; the name is Grain's."""
        try:
            return [self._converted(values) for values in self._records.__getitems__(list(indices))]
        except Exception:
            return [self[index] for index in indices]  # one at a time, to name the damaged one

    def __repr__(self) -> str:
        return f"{self.name}, split {self.split}"

    def _converted(self, values: Any) -> dict[str, Any]:
        return {field: self._converters[field](value) for field, value in values.items()}


def load(
    name: str, split: str, *, data_dir: str | Path | None = None, cache_dir: str | Path | None = None, **options: Any
) -> Source | SavedArrays:
    """A split of a data set, from a folder in a plain format (see `formats`) or of saved arrays, or from TFDS's catalogue.

    Args:
      name: the folder's, or the catalogue's.
      split: a name, or any of TFDS's slices and sums of them: "train[:90%]", "train+val".
      data_dir: the folder `name` in it, or else this folder itself; by default the variable S2S_DATA_DIR. Where none is
        given, or nothing is in that of the variable, the catalogue is asked, which needs a network.
      cache_dir: where prepared data sets are kept; by default `s2s_jax` in $XDG_CACHE_HOME or ~/.cache, and TFDS's own folder
        for data sets of the catalogue. A folder is prepared again when the bytes of its files change.
      options: of the format: `languages=("de", "en")` for line-aligned text; for the catalogue, of `tfds.data_source`.

    Raises:
      FileNotFoundError: nothing that can be read in `data_dir`.
      ValueError: a file that is not what it should be, by file and line; no such split, option or data set.
    """
    if place := _find_arrays(name, data_dir):
        if options:
            raise ValueError(f"options: expected none for saved arrays, got {sorted(options)}")
        return SavedArrays(name, place, split)
    folder = _find_folder(name, data_dir)
    if folder is None:
        return _from_catalogue(name, split, cache_dir, options)
    key = str(format_of(folder))
    unknown = set(options) - set(FORMATS[key].options)
    if unknown:
        raise ValueError(f"options: expected some of {list(FORMATS[key].options)} for {key}, got {sorted(unknown)}")
    fingerprint, prepared = _prepare(name, folder, key, options, _cache(cache_dir))
    import tensorflow_datasets as tfds

    report = Report(**json.loads((prepared / "report.json").read_text("utf-8")))
    (place,) = prepared.glob("*/*/dataset_info.json")
    builder: Any = tfds.builder_from_directory(place.parent)
    try:
        records = builder.as_data_source(split)
    except ValueError as error:
        raise ValueError(f"split: expected one or a slice of {sorted(report.examples)} of {name}, got {split!r}") from error
    return Source(name, split, records, builder.info, fingerprint=fingerprint, report=report, place=prepared)


def in_folder(name: str, data_dir: str | Path | None = None) -> bool:
    """Whether `load` reads a folder in a plain format, and not saved arrays or the catalogue.

    Raises:
      FileNotFoundError: as `load` does.
    """
    return _find_arrays(name, data_dir) is None and _find_folder(name, data_dir) is not None


def _find_arrays(name: str, data_dir: str | Path | None) -> Path | None:
    given = data_dir or os.environ.get("S2S_DATA_DIR")
    return next((place for place in (Path(given) / name, Path(given)) if splits_of(place)), None) if given else None


def _find_folder(name: str, data_dir: str | Path | None) -> Path | None:
    given = data_dir or os.environ.get("S2S_DATA_DIR")
    if not given:
        return None
    for folder in (Path(given) / name, Path(given)):
        if format_of(folder) is not None:
            return folder
    if data_dir or (Path(given) / name).is_dir():
        raise FileNotFoundError(f"data_dir: expected {name!r} in {given}, in one of these formats: {', '.join(FORMATS)}")
    return None


def _from_catalogue(name: str, split: str, cache_dir: str | Path | None, options: dict[str, Any]) -> Source:
    import tensorflow_datasets as tfds

    # In a folder that is given TFDS writes tfrecord unless told otherwise, and that needs TensorFlow.
    builder_kwargs = {"file_format": "array_record", **options.pop("builder_kwargs", {})}
    try:
        records: Any = tfds.data_source(name, split=split, data_dir=cache_dir, builder_kwargs=builder_kwargs, **options)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"name: expected a folder of that name or a data set of TFDS's catalogue, got {name!r}; folders are looked for in "
            "--data-dir (data_dir), or else in the variable S2S_DATA_DIR"
        ) from error
    info = records.dataset_info
    sizes = {split: [part.num_examples, part.num_bytes] for split, part in info.splits.items()}
    fingerprint = _hash_of([info.full_name, sizes])
    return Source(name, split, records, info, fingerprint=fingerprint, report=Report(), place=info.data_dir)


# Preparing -----------------------------------------------------------------------------------------------------------------


def _cache(cache_dir: str | Path | None) -> Path:
    if cache_dir:
        return Path(cache_dir)
    return cache.folder()


def _prepare(name: str, folder: Path, key: str, options: dict[str, Any], kept: Path) -> tuple[str, Path]:
    """Fingerprint and folder of the data set as array_record. The folder appears whole, by a rename, or not at all."""
    digests = _digests(folder, key)
    fingerprint = _hash_of([_LAYOUT, name, key, options, digests])
    plain_name = re.sub(r"\W+", "_", name, flags=re.ASCII).lower()
    prepared = kept / f"{plain_name}-{fingerprint}"
    if prepared.exists():
        return fingerprint, prepared
    kept.mkdir(parents=True, exist_ok=True)
    with _locked(kept / f"{prepared.name}.lock"):
        if not prepared.exists():  # another process may have held the lock, and be done
            partial = kept / f"{prepared.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed: the lock is ours
            try:
                contents = FORMATS[key].read(folder, name, **options)
                _write(plain_name, contents, partial)
                after = _digests(folder, key)
                changed = sorted(file for file in digests | after if digests.get(file) != after.get(file))
                if changed:
                    raise ValueError(f"{folder}: expected files at rest, got {', '.join(changed)} changed while they were read")
                partial.rename(prepared)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            if contents.report.findings:
                logging.getLogger(__name__).warning("%s: %s", folder, contents.report)
    return fingerprint, prepared


def _digests(folder: Path, key: str) -> dict[str, str]:
    """A hash of the bytes of each file that is read.

    Of the bytes, not of sizes and times: those of another folder, or of a file that was written twice within one tick of the
    clock or unpacked with the times of its archive, may be the same. 100 MB take a tenth of a second.
    """
    digests = {}
    for path in files_of(folder, key):
        with path.open("rb") as file:
            digests[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock of a process that dies is free again."""
    import fcntl  # Windows has none, and no array_record either

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(name: str, contents: Contents, folder: Path) -> None:
    import tensorflow_datasets as tfds

    features = tfds.features
    kinds = {
        "text": features.Text,
        # Not features.Image or Audio: encoding those needs TensorFlow, and bytes come back as they were.
        "bytes": lambda: features.Tensor(shape=(), dtype=np.object_),
        "int": lambda: features.Scalar(np.int32),
        "float": lambda: features.Scalar(np.float32),
        "texts": lambda: features.Sequence(features.Text()),
        "ints": lambda: features.Tensor(shape=(None,), dtype=np.int32),
        "floats": lambda: features.Tensor(shape=(None,), dtype=np.float32),
    }

    def feature(kind: Any) -> Any:
        if isinstance(kind, tuple):
            return features.Tensor(shape=kind, dtype=np.uint8, encoding="bytes")  # and not as a list of integers
        return kinds[kind]()

    def checked(split: str, examples: Iterator[Any]) -> Iterator[tuple[int, Any]]:
        number = -1
        for number, example in enumerate(examples):
            yield number, example
        if number < 0:
            raise ValueError(f"{name}: expected examples in the split {split!r}, found none")
        contents.report.examples[split] = number + 1

    # Not a GeneratorBasedBuilder: that holds a split in memory, and beyond 1 GB goes on with TensorFlow's files. This one
    # writes as it reads, in the order of the folder. Not registered, for these names are the user's and not the catalogue's.
    class Builder(tfds.core.ShardBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # where TFDS looks for checksums of downloads, of which there are none here

        def _log_download_bytes(self) -> None:
            """Prints nothing, where TFDS tells of a download and of a folder that gets another name."""

        _log_download_done = _log_download_bytes

        def _info(self) -> Any:
            fields = features.FeaturesDict({field: feature(kind) for field, kind in contents.fields.items()})
            return tfds.core.DatasetInfo(builder=self, features=fields)

        def _shard_iterators_per_split(self, dl_manager: Any) -> Any:
            return {split: [lambda split=split: checked(split, contents.splits[split]())] for split in contents.splits}

    Builder.name = name
    Builder(data_dir=folder, file_format="array_record").download_and_prepare()
    (folder / "report.json").write_text(json.dumps(vars(contents.report)), "utf-8")


def _converter(feature: Any) -> Any:
    """From what TFDS returns without TensorFlow (`bytes` for text, Python's numbers) to what the feature says."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Text):
        return _text
    if isinstance(feature, tfds.features.Sequence) and isinstance(feature.feature, tfds.features.Text):
        return lambda values: np.array([_text(value) for value in values], dtype=object)
    if isinstance(feature, tfds.features.Tensor) and feature.np_dtype not in (np.object_, np.str_):
        dtype: Any = feature.np_dtype
        return lambda value: np.asarray(value, dtype)
    return lambda value: value


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8")
