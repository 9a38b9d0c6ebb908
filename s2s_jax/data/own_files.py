"""Data sets that are files of one's own, by flags: that flags of files and the name of a data set agree."""

from collections.abc import Sequence
from typing import Any


def name_own_files(flags: Any, paths: Sequence[str]) -> None:
    """Calls the data set of a frozen dataclass of flags "files" where one of its paths is given and no data set is named.

    Raises:
      ValueError: a path is given beside another data set.
    """
    given = [name for name in paths if getattr(flags, name) is not None]
    if given and flags.dataset == type(flags).dataset:  # no other was named
        object.__setattr__(flags, "dataset", "files")
    if given and flags.dataset != "files":
        raise ValueError(f"{given[0]}: expected --dataset files with it, got --dataset {flags.dataset}")
