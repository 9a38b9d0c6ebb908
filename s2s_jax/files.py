"""Files that a kill does not tear: written whole or not at all, and logs whose torn lines are passed over."""

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Where to write what takes the place of `path` in the end: until then, and after a kill or an error, that is as it was."""
    temporary = Path(path).with_name(Path(path).name + ".tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Writes UTF-8.

    Raises:
      TypeError: what JSON has no form for.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Reads UTF-8.

    Raises:
      FileNotFoundError: there is no such file.
      json.JSONDecodeError: it is no JSON.
    """
    return json.loads(Path(path).read_text(encoding="utf-8"))


def append_line(path: str | Path, value: Mapping[str, Any]) -> None:
    """Adds a line of JSON, a new one even where a kill tore the last.

    Raises:
      TypeError: what JSON has no form for.
    """
    line = json.dumps(value) + "\n"
    with Path(path).open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(line.encode())


def whole_lines(path: str | Path) -> list[dict[str, Any]]:
    """What `append_line` wrote, nothing if there is no file; a line that a kill tore is passed over with a warning."""
    path, lines = Path(path), []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], start=1):
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            warnings.warn(f"{path}:{number}: passed over, not a whole line", stacklevel=3)
    return lines
