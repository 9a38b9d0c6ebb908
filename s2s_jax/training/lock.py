"""A file that stands for a folder in use."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Whether this process got the lock of the file, which it then keeps until the end; a process that dies lets it go.

    Where files cannot be locked there is a warning, and everybody gets it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        free = True
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except (ImportError, OSError) as error:  # Windows, and some network file systems
            warnings.warn(f"{path}: cannot be locked ({error}); let no two processes train there at once", stacklevel=4)
        yield free
