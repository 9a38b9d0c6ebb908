"""Steps of time: what step a list of dates goes by, the dates that follow, and the features of a date that a network reads."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

MINUTE, HOUR, DAY, WEEK = 60, 3_600, 86_400, 604_800  # seconds
_MOST = 0.75  # of the dates: where more stand at one place of a month, the step is in months, and the others are wrong


class Step(NamedTuple):
    """So many months, counted from their beginning or, where dates are the last days of months, from their end; or seconds."""

    amount: int
    months: bool
    from_end: bool = False

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
        """Steps of the season where nobody says another: of a day, a week or a year, the shortest that is several whole
        steps. A year counts as 12 months, or 52 weeks where the step is a week; where none is whole steps, 1.
        """
        if self.months:
            return 1 if 12 % self.amount else 12 // self.amount
        if self.amount == WEEK:
            return 52
        return next((whole // self.amount for whole in (DAY, WEEK) if self.amount < whole and whole % self.amount == 0), 1)


def step_of(dates: np.ndarray) -> Step:
    """The step that most neighbours of rising dates [T] are apart, in months where nearly all stand at the same place of one.

    Raises:
      ValueError: fewer than two dates, or dates that do not rise.
    """
    if len(dates) < 2:
        raise ValueError(f"dates: expected at least two, got {len(dates)}")
    seconds = dates.astype("datetime64[s]")
    apart = np.diff(seconds).astype(np.int64)
    if (apart <= 0).any():
        raise ValueError("dates: expected them to rise")
    months = int(_most_frequent(np.diff(seconds.astype("datetime64[M]")).astype(np.int64)))
    shares = {from_end: float(_on_grid(_within_month(seconds, from_end)).mean()) for from_end in (False, True)}
    from_end = shares[True] > shares[False]
    if months and shares[from_end] > _MOST:
        return Step(months, months=True, from_end=from_end)
    return Step(int(_most_frequent(apart)), months=False)


def _within_month(seconds: np.ndarray, from_end: bool) -> np.ndarray:
    """How far each date is behind the beginning of its month, or of the next one."""
    return seconds - (seconds.astype("datetime64[M]") + np.timedelta64(int(from_end), "M")).astype("datetime64[s]")


def _on_grid(places: np.ndarray) -> Bool[np.ndarray, " T"]:
    """Which dates stand where most of them do."""
    return places == _most_frequent(places)


def _most_frequent(numbers: np.ndarray) -> Any:
    values, counts = np.unique(numbers, return_counts=True)
    return values[counts.argmax()]


def places(dates: np.ndarray, step: Step) -> Int[np.ndarray, " T"]:
    """How many steps each of rising dates is behind the first of those that are whole steps apart, as most are; -1 of the
    others.
    """
    seconds = dates.astype("datetime64[s]")
    number = seconds.astype("datetime64[M]" if step.months else "datetime64[s]").astype(np.int64)
    on_grid = _on_grid(_within_month(seconds, step.from_end)) if step.months else np.ones(len(dates), bool)
    on_grid[on_grid] = _on_grid(number[on_grid] % step.amount)
    return np.where(on_grid, (number - number[on_grid.argmax()]) // step.amount, -1)


def dates_from(first: np.datetime64, step: Step, count: int) -> np.ndarray:
    """The first date and those that follow it by the step, datetime64[s]."""
    first = first.astype("datetime64[s]")
    ahead = np.arange(count) * step.amount
    if not step.months:
        return first + ahead.astype("timedelta64[s]")
    month = first.astype("datetime64[M]") + np.timedelta64(int(step.from_end), "M")
    return (month + ahead.astype("timedelta64[M]")).astype("datetime64[s]") + _within_month(np.array([first]), step.from_end)


class Zone(NamedTuple):
    """How dates that have a time zone are kept.

    Attributes:
      utc: whether they are brought to UTC; else they are the time on the clock there, as in daily data of a place whose clocks
        change, which are no even steps in UTC.
      offset: seconds that each of them was ahead of UTC; None where they differ.
    """

    utc: bool
    offset: int | None


def zoned(clock: np.ndarray, offsets: Int[np.ndarray, " T"]) -> tuple[np.ndarray, Zone]:
    """Dates with a time zone as they are kept, and how.

    They are kept as the time on the clock where that makes steps of a day or more, and as many dates lie on them as on those in
    UTC; else in UTC.

    Args:
      clock: datetime64[s] [T], as written, without the offset.
      offsets: seconds that each is ahead of UTC.
    """
    utc = clock - offsets.astype("timedelta64[s]")
    local, apart = np.unique(clock), np.unique(utc)
    of_local, step = _regular(local)
    by_clock = step is not None and (step.months or step.amount >= DAY) and of_local >= _regular(apart)[0]
    same = len(set(offsets.tolist())) == 1
    return clock if by_clock else utc, Zone(not by_clock, int(offsets[0]) if same else None)


def _regular(dates: np.ndarray) -> tuple[int, Step | None]:
    """How many of rising dates lie on their step, and the step, where there are enough for one."""
    step = step_of(dates) if len(dates) > 1 else None
    return (0 if step is None else int((places(dates, step) >= 0).sum())), step


def as_written(dates: np.ndarray, zone: Zone | None) -> tuple[np.ndarray, str]:
    """Dates that are kept by a zone, or have none, as their file would write them, and what it would write behind each.

    With the one offset of all dates of the file, such as +02:00. Where offsets differ nobody knows that of another date: those
    in UTC are written with +00:00, and the time on the clock without an offset.
    """
    if zone is None or (zone.offset is None and not zone.utc):
        return dates, ""
    offset = zone.offset or 0
    hours, minutes = divmod(abs(offset) // MINUTE, 60)
    shown = dates + np.timedelta64(offset, "s") if zone.utc else dates
    return shown, f"{'-' if offset < 0 else '+'}{hours:02}:{minutes:02}"


class _Cycle(NamedTuple):
    """How long it is, from which step on it says nothing (both in seconds), and the share of it that a date is through."""

    length: int
    least: int
    share: Callable[[np.ndarray], np.ndarray]


_CYCLES = {
    "hour": _Cycle(HOUR, HOUR, lambda dates: (dates - _floor(dates, "h")) / np.timedelta64(HOUR, "s")),
    "day": _Cycle(DAY, DAY, lambda dates: (dates - _floor(dates, "D")) / np.timedelta64(DAY, "s")),
    # 1970-01-01 was a Thursday.
    "week": _Cycle(WEEK, WEEK, lambda dates: ((dates.astype("datetime64[D]").astype(np.int64) + 3) % 7) / 7),
    "month": _Cycle(31 * DAY, 28 * DAY, lambda dates: (dates - _floor(dates, "M")) / np.timedelta64(31 * DAY, "s")),
    "year": _Cycle(366 * DAY, 365 * DAY, lambda dates: (dates - _floor(dates, "Y")) / np.timedelta64(366 * DAY, "s")),
}


def cycles_of(dates: np.ndarray, step: Step) -> tuple[str, ...]:
    """Hour, day, week, month and year, without those that are no longer than the step, or that the dates do not span twice.

    What a network has seen once it cannot tell from what will not come again.
    """
    size = step.amount * 61 * DAY // 2 if step.months else step.amount
    span = (dates[-1] - dates[0]).astype("timedelta64[s]").astype(np.int64) + size if len(dates) else 0
    return tuple(name for name, cycle in _CYCLES.items() if size < cycle.least and span >= 1.99 * cycle.length)


def time_features(dates: np.ndarray, cycles: Sequence[str]) -> Float[np.ndarray, "T F"]:
    """Sine and cosine of where each date stands in each cycle; with two features a cycle, its end is next to its beginning.

    Raises:
      ValueError: a cycle that there is not.
    """
    if unknown := [name for name in cycles if name not in _CYCLES]:
        raise ValueError(f"cycles: expected {', '.join(_CYCLES)}, got {', '.join(unknown)}")
    angles = [2 * np.pi * _CYCLES[name].share(dates.astype("datetime64[s]")) for name in cycles]
    columns = [of_angle for angle in angles for of_angle in (np.sin(angle), np.cos(angle))]
    return np.stack(columns, axis=-1).astype(np.float32) if columns else np.zeros((len(dates), 0), np.float32)


def _floor(dates: np.ndarray, unit: str) -> np.ndarray:
    return dates.astype(f"datetime64[{unit}]").astype("datetime64[s]")
