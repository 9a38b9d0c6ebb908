"""Series of numbers at even steps of time, from csv files: what is wrong is found and told by line."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from s2s_jax.data.calendar import Step, dates_from, places, step_of
from s2s_jax.data.datasets.text_files import comma_separated

_DATE = re.compile(r"\d{4}(-\d\d(-\d\d([ T]\d\d(:\d\d(:\d\d)?)?)?)?)?")
_MISSING = {"", "na", "nan", "null", "none", "?"}
_TOLD = 5  # findings in an error
_MOST_MISSING = 10  # steps to each row, beyond which a date must be wrong

BadRows = Literal["error", "repair"]


class Series(NamedTuple):
    """Numbers at even steps.

    Attributes:
      name: of the data.
      dates: datetime64[s] [T], a step apart.
      step: between two of them.
      columns: names of the C series.
      values: [T, C]; where there was none, the last one before.
      observed: where `values` were read, and not filled in.
      findings: what was wrong and mended, for people, a line each.
    """

    name: str
    dates: np.ndarray
    step: Step
    columns: tuple[str, ...]
    values: Float[np.ndarray, "T C"]
    observed: Bool[np.ndarray, "T C"]
    findings: tuple[str, ...] = ()


def read_series(
    path: Path, *, date: str | None = None, columns: Sequence[str] = (), bad_rows: BadRows = "error", name: str | None = None
) -> Series:
    """A csv file, plain, .gz or .xz, with a header and dates such as 2016, 2016-07, 2016-07-01 or 2016-07-01 13:00[:00].

    Args:
      path: of the file.
      date: the column of the dates; None for the first.
      columns: those that are read; empty for all others.
      bad_rows: "error", or "repair": rows are sorted, of those with the same date the first stays, and where a row or a number
        is missing, or is none, the last one before stands; rows before the first number of every column are left out. Nothing
        that comes later is used, so that a forecast cannot profit by it. Each is told in `findings`.
      name: None for that of the file.

    Raises:
      ValueError: what is wrong, by line; with "repair" only what cannot be mended: a header without the columns, a row of
        another number of columns, a text that is no date, a date that does not lie on the step, a column without a number.
    """
    header, rows = _rows(path)
    date = header[0] if date is None else date
    columns = tuple(columns) or tuple(column for column in header if column != date)
    if missing := [column for column in (date, *columns) if column not in header]:
        raise ValueError(f"{path}:1: expected the columns {', '.join(missing)}, got {', '.join(header)}")
    if not columns or date in columns:
        raise ValueError(f"{path}:1: expected at least one column besides that of the dates, {date}")
    at, chosen = header.index(date), [header.index(column) for column in columns]
    findings: list[tuple[int, str]] = []
    lines, dates, values = [], [], []
    for line, row in rows:
        if not _DATE.fullmatch(row[at].strip()):
            raise ValueError(f"{path}:{line}: expected a date such as 2016-07-01 or 2016-07-01 13:00, got {row[at]!r}")
        try:
            dates.append(np.datetime64(row[at].strip().replace(" ", "T"), "s"))
        except ValueError as error:
            raise ValueError(f"{path}:{line}: expected a date that there is, got {row[at]!r}") from error
        lines.append(line)
        numbers = [_number(row[column]) for column in chosen]
        values.append([np.nan if number is None else number for number in numbers])
        for column, number in zip(chosen, numbers, strict=True):
            if number is None:
                findings.append((line, f"expected a number in {header[column]}, got {row[column]!r}"))
            elif np.isnan(number):
                findings.append((line, f"no number in {header[column]}"))
    if len(dates) < 2:
        raise ValueError(f"{path}: expected at least two rows, got {len(dates)}")
    ordered, kept = _in_order(np.array(dates), lines, findings)
    step = step_of(ordered)
    place = places(ordered, step)
    if (off := np.flatnonzero(place < 0)).size:
        line = lines[kept[off[0]]]
        raise ValueError(
            f"{path}:{line}: expected a date that is whole steps of {step} behind {ordered[0]}, got {ordered[off[0]]}"
        )
    for gap in np.flatnonzero(np.diff(place) > 1):
        findings.append((lines[kept[gap + 1]], f"{place[gap + 1] - place[gap] - 1} steps of {step} are missing before"))
    findings.sort()
    if findings and bad_rows == "error":
        told = "".join(f"\n{path}:{line}: {what}" for line, what in findings[:_TOLD])
        more = f"\nand {len(findings) - _TOLD} more" if len(findings) > _TOLD else ""
        raise ValueError(f"bad_rows: expected none, got {len(findings)}; repair mends them, and says so:{told}{more}")
    if place[-1] >= _MOST_MISSING * len(ordered):
        raise ValueError(f"{path}: expected steps of {step} with fewer gaps, got {len(ordered)} rows of {place[-1] + 1} steps")
    read = np.full((place[-1] + 1, len(columns)), np.nan)
    read[place] = np.array(values)[kept]
    observed = ~np.isnan(read)
    if not observed.any(axis=0).all():
        raise ValueError(f"{path}: expected numbers in the column {columns[int((~observed.any(axis=0)).argmax())]}, got none")
    begin = int(observed.argmax(axis=0).max())
    if begin:
        findings.append((lines[kept[0]], f"{begin} steps before the first number of every column are left out"))
    last = np.maximum.accumulate(np.where(observed, np.arange(len(read))[:, None], 0))
    read, observed = np.take_along_axis(read, last, axis=0)[begin:], observed[begin:]
    return Series(
        path.name.split(".")[0] if name is None else name,
        dates_from(ordered[0], step, begin + len(read))[begin:],
        step,
        columns,
        read,
        observed,
        tuple(f"line {line}: {what}" for line, what in findings),
    )


def _rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and each row with its line; empty lines are left out, as a file may end with some."""
    rows = comma_separated(path)
    header = [column.strip() for column in next(rows, (1, []))[1]]
    if not header or len(set(header)) != len(header) or not all(header):
        raise ValueError(f"{path}:1: expected a header of different names, got {header}")
    kept = []
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(f"{path}:{line}: expected {len(header)} columns, got {len(row)}")
        kept.append((line, row))
    return header, kept


def _number(text: str) -> float | None:
    """NaN where there is none; None where there is something else than a finite number."""
    if text.strip().lower() in _MISSING:
        return np.nan
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _in_order(dates: np.ndarray, lines: list[int], findings: list[tuple[int, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Rising dates, and the rows that they are of; what had to be done for that is added to the findings."""
    before = np.maximum.accumulate(dates)[:-1]
    for row in np.flatnonzero(dates[1:] < before) + 1:
        findings.append((lines[row], f"{dates[row]} comes after later dates"))
    order = np.argsort(dates, kind="stable")
    again = np.flatnonzero(np.diff(dates[order]) == np.timedelta64(0, "s")) + 1
    for number in again:
        findings.append((lines[order[number]], f"{dates[order[number]]} stands in line {lines[order[number - 1]]} too"))
    kept = np.delete(order, again)
    return dates[kept], kept


def seasonal_series(days: int = 400, seed: int = 0) -> Series:
    """A stand-in for measured series: three hourly ones with a day, a week and a trend that wanders, with noise."""
    rng = np.random.default_rng(seed)
    step = Step(3600, months=False)
    dates = dates_from(np.datetime64("2020-01-01"), step, 24 * days)
    hours = np.arange(len(dates))[:, None]
    phase, size = rng.uniform(0, 2 * np.pi, (2, 3)), rng.uniform(0.5, 2, (2, 3))
    day = size[0] * np.sin(2 * np.pi * hours / 24 + phase[0])
    week = size[1] * np.sin(2 * np.pi * hours / 168 + phase[1])
    wandering = np.cumsum(rng.normal(0, 0.03, (len(dates), 3)), axis=0)
    values = 10 + day * (1 + 0.3 * week) + week + wandering + rng.normal(0, 0.2, (len(dates), 3))
    return Series("seasonal", dates, step, ("north", "middle", "south"), values, np.ones(values.shape, bool))
