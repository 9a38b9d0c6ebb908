"""Files that a manifest names, in a zip for each split or beside it: that they are there, and in one split each."""

import contextlib
import lzma
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from s2s_jax.data.datasets.report import Report
from s2s_jax.data.datasets.text_files import read_rows

_DAMAGED_ZIP = (zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, RuntimeError, NotImplementedError)


class Medium(NamedTuple):
    line: int  # of the manifest that names it first
    rows: list[dict[str, Any]]


class _Beside:
    """The files beside a manifest, asked for as those of a zip are."""

    def __init__(self, folder: Path):
        self.filename = str(folder)
        self._folder = folder

    def __enter__(self) -> "_Beside":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def read(self, file: str) -> bytes:
        return (self._folder / file).read_bytes()

    def sums(self, files: Iterable[str]) -> dict[str, tuple[int, int]]:
        """{file: (CRC, size)} of those that are there."""
        there = [file for file in files if _inside(file) and (self._folder / file).is_file()]
        return {file: (zlib.crc32(content), len(content)) for file in there for content in [self.read(file)]}


class _Zipped(zipfile.ZipFile):
    def sums(self, files: Iterable[str]) -> dict[str, tuple[int, int]]:
        return {info.filename: (info.CRC, info.file_size) for info in self.infolist() if not info.is_dir()}


def opened(folder: Path, split: str) -> _Beside | _Zipped:
    path = folder / f"{split}.zip"
    return _Zipped(path) if path.exists() else _Beside(folder)


def media_beside(folder: Path) -> list[Path]:
    """Those of the splits that have no zip."""
    rows = [row for _, row in read_rows(folder / "manifest.tsv", ("split", "file"))]
    loose = {row["file"] for row in rows if not (folder / f"{row['split']}.zip").exists()}
    return sorted(path for file in loose if _inside(file) and (path := folder / file).is_file())


def _inside(file: str) -> bool:
    """Whether it is the name of a file below a folder, and not of one elsewhere."""
    return not Path(file).is_absolute() and ".." not in Path(file).parts


def check_media(folder: Path, manifest: Path, media: dict[str, dict[str, Medium]], report: Report) -> None:
    """Each file is there, and none stands in two splits. Sums and sizes, of zips in their own lists, say which may be equal."""
    for path in sorted(folder.glob("*.zip")):
        if path.stem not in media:
            raise ValueError(f"{manifest}: expected lines of the split {path.stem!r}, for there is {path.name}; found none")
    alike: dict[tuple[int, int], list[tuple[str, str]]] = {}
    splits_of: dict[str, list[str]] = {}
    with contextlib.ExitStack() as stack:
        archives: dict[str, _Beside | _Zipped] = {}
        for split, by_file in media.items():
            path = folder / f"{split}.zip"
            try:
                archives[split] = stack.enter_context(opened(folder, split))
            except _DAMAGED_ZIP as error:
                raise ValueError(f"{path}: damaged zip file ({error})") from error
            members = archives[split].sums(by_file)
            if not members:
                first = next(iter(by_file.values())).line
                expected = f"{path.name} for the split {split!r}, or its files beside the manifest"
                raise ValueError(f"{manifest}:{first}: expected {expected}, found neither")
            for file, medium in by_file.items():
                if file not in members:
                    where = path.name if path.exists() else "the folder of the manifest"
                    raise ValueError(f"{manifest}:{medium.line}: expected {file!r} in {where}, found none")
                alike.setdefault(members[file], []).append((split, file))
                splits_of.setdefault(file, []).append(split)
            for file in sorted(set(members) - set(by_file)):
                report.found("files in a zip that no line of the manifest names", f"{path.name}: {file}")
        for group in alike.values():
            equal: dict[bytes, tuple[str, str]] = {}
            for split, file in group if len(group) > 1 else ():
                other, other_file = equal.setdefault(member(archives[split], file), (split, file))
                if other != split:
                    raise ValueError(
                        f"{manifest}:{media[split][file].line}: expected each file in one split, got {file!r} in {split!r} "
                        f"with the bytes of {other_file!r} in {other!r}"
                    )
                if other_file != file:
                    report.found("files of equal bytes in one split", f"{split}: {other_file} and {file}")
    for file, splits in splits_of.items():
        if len(splits) > 1:
            report.found("different files of one name in two splits", f"{file} in {' and '.join(splits)}")


def member(archive: _Beside | _Zipped, file: str) -> bytes:
    try:
        content = archive.read(file)
    except _DAMAGED_ZIP as error:
        raise ValueError(f"{archive.filename}: damaged zip file, at {file!r} ({error})") from error
    if not content:
        raise ValueError(f"{archive.filename}: expected {file!r} to hold something, got an empty file")
    return content
