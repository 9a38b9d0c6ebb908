"""Which lines of writing: flags that experiments on them share, and the splits that they name."""

import dataclasses
import os
from pathlib import Path
from typing import Literal, get_args

from s2s_jax.data.text_lines import Split, TextLines, digit_lines, drawn_lines, in_colour, load_lines, splits_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class LineFlags:
    """Flags of an experiment whose examples are pictures of lines."""

    dataset: str = "drawn"
    """drawn; mnist_lines; or a folder, such as froc_mss, of pictures of lines and a manifest.tsv, tab-separated, with a header
    and the columns split (train, val and, if any, test), file and text."""
    text_column: str = "text"
    """Of the manifest: what the lines say."""
    height: int = 32
    """Rows that all pictures are scaled to."""
    colour: bool = False
    """Read three channels instead of grey."""

    @property
    def channels(self) -> int:
        return 3 if self.colour else 1

    @property
    def origin(self) -> Literal["real", "generated"]:
        return "generated" if self.dataset == "drawn" else "real"


def load_splits(
    flags: LineFlags, scored: Literal["test", "validation"], data_dir: str | Path | None = None
) -> dict[str, TextLines]:
    """Training and validation, and where it is scored the test, if there is one: a folder may have none.

    Raises:
      ValueError, FileNotFoundError: flags that name no data; see `splits_of` and `load_split`.
    """
    splits: tuple[Split, ...] = get_args(Split) if scored == "test" else ("train", "validation")
    own = splits if flags.dataset in ("drawn", "mnist_lines") else splits_of(flags.dataset, data_dir)
    return {split: load_split(flags, split, data_dir) for split in splits if split in own}


def load_split(flags: LineFlags, split: Split, data_dir: str | Path | None = None) -> TextLines:
    """One of them.

    Raises:
      ValueError, FileNotFoundError: flags that name no data; see `digit_lines` and `load_lines`.
    """
    if flags.dataset == "drawn":
        return in_colour(drawn_lines(split, height=flags.height), flags.channels)
    if flags.dataset == "mnist_lines":
        given = data_dir or os.environ.get("S2S_DATA_DIR")
        if not given:
            raise ValueError("data_dir: expected a folder that holds mnist, got none")
        folder = Path(given) / "mnist"
        return in_colour(digit_lines(split, folder if folder.is_dir() else given, height=flags.height), flags.channels)
    return load_lines(flags.dataset, split, flags.height, flags.channels, data_dir, flags.text_column)
