"""Steps of time: what step a list of dates goes by, the dates that follow, and the features of a date that a network reads."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

MINUTE, HOUR, DAY, WEEK = 60, 3_600, 86_400, 604_800  # seconds


class Step(NamedTuple):
    """So many months, or so many seconds."""

    amount: int
    months: bool

    def __str__(self) -> str:
        if self.months:
            size, unit = (self.amount // 12, "year") if self.amount % 12 == 0 else (self.amount, "month")
        else:
            sizes = [(WEEK, "week"), (DAY, "day"), (HOUR, "hour"), (MINUTE, "minute"), (1, "second")]
            seconds, unit = next((size, unit) for size, unit in sizes if self.amount % size == 0)
            size = self.amount // seconds
        return f"{size} {unit}{'' if size == 1 else 's'}"

    @property
    def season(self) -> int:
        """Steps of the season where nobody says another: of a day, a week or a year, the shortest that is longer."""
        if self.months:
            return max(1, 12 // self.amount)
        return next((whole // self.amount for whole in (DAY, WEEK) if self.amount < whole), 52 if self.amount == WEEK else 1)


def step_of(dates: np.ndarray) -> Step:
    """The step that most neighbours of rising dates [T] are apart, in months where all stand at the same place of one.

    Raises:
      ValueError: fewer than two dates, or dates that do not rise.
    """
    if len(dates) < 2:
        raise ValueError(f"dates: expected at least two, got {len(dates)}")
    seconds = dates.astype("datetime64[s]")
    apart = np.diff(seconds).astype(np.int64)
    if (apart <= 0).any():
        raise ValueError("dates: expected them to rise")
    months = seconds.astype("datetime64[M]")
    within = seconds - months.astype("datetime64[s]")
    if (within == within[0]).all():
        return Step(_most_frequent(np.diff(months).astype(np.int64)), months=True)
    return Step(_most_frequent(apart), months=False)


def _most_frequent(numbers: Int[np.ndarray, " N"]) -> int:
    values, counts = np.unique(numbers, return_counts=True)
    return int(values[counts.argmax()])


def places(dates: np.ndarray, step: Step) -> Int[np.ndarray, " T"]:
    """How many steps each date is behind the first; -1 where it is none of these."""
    seconds = dates.astype("datetime64[s]")
    if step.months:
        months = seconds.astype("datetime64[M]")
        apart = (months - months[0]).astype(np.int64)
        within = seconds - months.astype("datetime64[s]")
        on_grid = (apart % step.amount == 0) & (within == within[0])
    else:
        apart = (seconds - seconds[0]).astype(np.int64)
        on_grid = apart % step.amount == 0
    return np.where(on_grid, apart // step.amount, -1)


def dates_from(first: np.datetime64, step: Step, count: int) -> np.ndarray:
    """The first date and those that follow it by the step, datetime64[s]."""
    first = first.astype("datetime64[s]")
    ahead = np.arange(count) * step.amount
    if not step.months:
        return first + ahead.astype("timedelta64[s]")
    month = first.astype("datetime64[M]")
    return (month + ahead.astype("timedelta64[M]")).astype("datetime64[s]") + (first - month.astype("datetime64[s]"))


# Name, from which step on it says nothing, and the share of its cycle that a date is through, from 0 to 1.
_FEATURES: list[tuple[str, int, Callable[[np.ndarray], np.ndarray]]] = [
    ("minute of hour", HOUR, lambda dates: (dates - _floor(dates, "h")) / np.timedelta64(HOUR, "s")),
    ("hour of day", DAY, lambda dates: (dates - _floor(dates, "D")) / np.timedelta64(DAY, "s")),
    # 1970-01-01 was a Thursday.
    ("day of week", WEEK, lambda dates: ((dates.astype("datetime64[D]").astype(np.int64) + 3) % 7) / 7),
    ("day of month", 28 * DAY, lambda dates: (dates - _floor(dates, "M")) / np.timedelta64(31 * DAY, "s")),
    ("day of year", 365 * DAY, lambda dates: (dates - _floor(dates, "Y")) / np.timedelta64(366 * DAY, "s")),
]


def time_features(dates: np.ndarray, step: Step) -> tuple[Float[np.ndarray, "T F"], tuple[str, ...]]:
    """Sine and cosine of where each date stands in its hour, day, week, month and year, and their names.

    Cycles that are not longer than the step are left out. With two features a cycle, its end is next to its beginning.
    """
    seconds = dates.astype("datetime64[s]")
    size = step.amount * 28 * DAY if step.months else step.amount
    columns, names = [], []
    for name, least, share in _FEATURES:
        if size < least:
            angle = 2 * np.pi * share(seconds)
            columns += [np.sin(angle), np.cos(angle)]
            names += [f"sine of {name}", f"cosine of {name}"]
    made = np.stack(columns, axis=-1) if columns else np.zeros((len(dates), 0))
    return made.astype(np.float32), tuple(names)


def _floor(dates: np.ndarray, unit: str) -> np.ndarray:
    return dates.astype(f"datetime64[{unit}]").astype("datetime64[s]")
