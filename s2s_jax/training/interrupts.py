"""Ctrl-C and SIGTERM, held back until a step in progress has ended and its state can be saved."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_caught: list[int] = []
_previous: dict[int, Any] = {}


def hold() -> None:
    """From now on an interrupt is taken down and not raised; a second one raises at once.

    Called before training begins, so that no import and no compilation is interrupted half-way; `held` ends it.
    """
    if _previous or threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        return
    _caught.clear()
    for number in _NUMBERS:
        _previous[number] = signal.signal(number, _take_down)


def release() -> None:
    """Interrupts raise again."""
    for number, handler in _previous.items():
        signal.signal(number, handler)
    _previous.clear()


@contextlib.contextmanager
def held() -> Iterator[list[int]]:
    """The numbers of the signals that came since `hold`, which it calls if need be; released at the end."""
    hold()
    try:
        yield _caught if _previous else []
    finally:
        release()


def _take_down(number: int, frame: Any) -> None:
    if _caught:
        raise KeyboardInterrupt
    _caught.append(number)
    # Not by print: a signal may come in the middle of one.
    os.write(2, b"\nStops after this step, and saves; again to stop at once.\n")
