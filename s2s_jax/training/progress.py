"""How far a training is, on the terminal."""

import sys
import time
from typing import Any


class Progress:
    """A bar with loss, rate and time left on a terminal that has rich; elsewhere a line now and then."""

    def __init__(self, steps: int, done: int = 0, seconds_between_lines: float = 10.0):
        self._steps = steps
        self._done_before = done
        self._since = time.perf_counter(), done
        self._first, self._said = True, self._since[0]
        self._between = seconds_between_lines
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        if sys.stdout.isatty():
            try:
                from rich import progress
            except ImportError:
                return self
            columns = ("step {task.completed}/{task.total}", "loss {task.fields[loss]}", "{task.fields[rate]} steps/s")
            self._bar = progress.Progress(
                progress.BarColumn(), *columns, progress.TimeElapsedColumn(), "left", progress.TimeRemainingColumn()
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self._steps, completed=self._done_before, loss="", rate="")
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, loss: float) -> float:
        """Tells how many steps are done and the mean loss since the last call; returns the steps a second.

        They are counted from the first call of this sitting on, as most compiling comes before it; the first call counts that.
        """
        now = time.perf_counter()
        began, before = self._since
        rate = (done - before) / (now - began)
        if self._first:
            self._first, self._since = False, (now, done)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, loss=f"{loss:.4f}", rate=f"{rate:.1f}")
        elif now - self._said >= self._between or done == self._steps:
            self._said = now
            left = (self._steps - done) / rate
            print(f"step {done}/{self._steps}  loss {loss:.4f}  {rate:.1f} steps/s  {left:.0f} s left", flush=True)
        return rate

    def say(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, flush=True)
