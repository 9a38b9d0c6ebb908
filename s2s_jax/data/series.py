"""Series of numbers at even steps of time, from csv files: what is wrong is found and told by line."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from s2s_jax.data.calendar import HOUR, MINUTE, Step, Zone, dates_from, places, step_of, zoned
from s2s_jax.data.datasets.text_files import comma_separated, number_of, write_texts

_DATE = re.compile(r"\d{4}(-\d\d(-\d\d([ T]\d\d(:\d\d(:\d\d(\.0+)?)?(?P<zone>Z|[+-]\d\d:?\d\d)?)?)?)?)?", re.ASCII)
_SEPARATED = re.compile(r"[+-]?\d+([.,' ]\d+)+")  # 1,234 or 1.234,5: numbers to people, but none of these
_MISSING = {"", "na", "nan", "null", "none", "?"}
_TOLD = 5  # findings that are shown
_MOST_MISSING = 10  # steps to each row, beyond which a date must be wrong
_MOST_WRONG = 0.1  # of the rows, or one row: beyond it a column is no series of numbers, or there are several series

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
      findings: what was wrong and mended, or is not as in the file, for people, a line each.
      zone: how dates that have a time zone are kept; None where they have none.
    """

    name: str
    dates: np.ndarray
    step: Step
    columns: tuple[str, ...]
    values: Float[np.ndarray, "T C"]
    observed: Bool[np.ndarray, "T C"]
    findings: tuple[str, ...] = ()
    zone: Zone | None = None


def read_series(
    path: str | Path,
    *,
    date: str | None = None,
    columns: Sequence[str] = (),
    ahead: Sequence[str] = (),
    bad_rows: BadRows = "error",
    name: str | None = None,
) -> Series:
    """A csv file, plain, .gz or .xz, with a header and dates such as 2016, 2016-07, 2016-07-01 or 2016-07-01 13:00[:00].

    Dates may end with Z or +02:00, all or none: they are brought to UTC, or stay the time on the clock where that goes by a day
    or more, as in daily data of a place whose clocks change; see `zoned`. A first column without a name, as pandas writes an
    index, is left out; where it holds the dates, it is called date.

    Args:
      path: of the file.
      date: the column of the dates; None for the first.
      columns: those that are read; empty for all others.
      ahead: those that go on when the others have ended, whose empty cells are then no fault.
      bad_rows: "error", or "repair": rows are sorted, of those with the same date the first number of each column stays, and
        where a row or a number is missing, or is none, the last one before stands; rows before the first number of every column
        are left out. Nothing that comes later is used, so that a forecast cannot profit by it. Each is told in `findings`.
      name: None for that of the file.

    Raises:
      ValueError: what is wrong, by line; with "repair" only what cannot be mended: a header without the columns, a row of
        another number of columns, a text that is no date, a date that does not lie on the step or is far from all others, a
        column without a number, or one of which more than a tenth is texts; more than a tenth of rows with a date that stands
        there already.
    """
    path = Path(path)
    notes: list[str] = []
    header, rows = _rows(path, notes)
    date = header[0] if date is None else date
    columns = tuple(columns) or tuple(column for column in header if column != date)
    if missing := [column for column in (date, *columns) if column not in header]:
        raise ValueError(f"{path}:1: expected the columns {', '.join(missing)}, got {', '.join(header)}")
    if not columns or date in columns:
        raise ValueError(f"{path}:1: expected at least one column besides that of the dates, {date}")
    chosen = [header.index(column) for column in columns]
    lines, cells = [line for line, _ in rows], [[row[column] for column in chosen] for _, row in rows]
    dates, zone = _dates_of(path, rows, header.index(date), notes)
    if len(dates) < 2:
        raise ValueError(f"{path}: expected at least two rows, got {len(dates)}")
    values, wrong = _numbers_of(path, columns, lines, cells)
    empty = np.isnan(values) & ~wrong
    findings = [(lines[row], f"expected a number in {columns[at]}, got {cells[row][at]!r}") for row, at in np.argwhere(wrong)]
    ordered, kept = _in_order(path, dates, lines, values, findings)
    if ahead:
        others = np.array([column not in ahead for column in columns])
        there = np.any(~empty[kept][:, others], axis=1)
        ended = kept[len(kept) - np.argmax(there[::-1]) :]
        empty[np.ix_(ended, others)] = False
    findings += [(lines[row], f"no number in {columns[at]}") for row, at in np.argwhere(empty)]
    step = step_of(ordered)
    place = places(ordered, step)
    if (off := np.flatnonzero(place < 0)).size:
        line, others = lines[kept[off[0]]], ordered[place.argmax()]
        raise ValueError(f"{path}:{line}: expected a date that is whole steps of {step} from {others}, got {ordered[off[0]]}")
    if place[-1] >= _MOST_MISSING * len(ordered):
        raise ValueError(_alone(path, ordered, place, step, [lines[row] for row in kept]))
    for gap in np.flatnonzero(np.diff(place) > 1):
        findings.append((lines[kept[gap + 1]], f"{place[gap + 1] - place[gap] - 1} steps of {step} are missing before"))
    findings.sort()
    if findings and bad_rows == "error":
        told = "".join(f"\n{path}:{line}: {what}" for line, what in findings[:_TOLD])
        more = f"\nand {len(findings) - _TOLD} more; repair keeps a list of all" if len(findings) > _TOLD else ""
        raise ValueError(f"bad_rows: expected none, got {len(findings)}; repair mends them, and says so:{told}{more}")
    read = np.full((place[-1] + 1, len(columns)), np.nan)
    read[place] = values[kept]
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
        (*notes, *(f"line {line}: {what}" for line, what in findings)),
        zone,
    )


def keep_findings(series: Series, path: Path) -> str:
    """Writes the findings of a series to a file, a line each, and tells the first of them and the file, for people.

    Where there are none, nothing is told, and no file stays.
    """
    if not series.findings:
        path.unlink(missing_ok=True)
        return ""
    write_texts(path, series.findings)
    told = "".join(f"Found: {series.name}, {finding}\n" for finding in series.findings[:_TOLD])
    more = f"and {len(series.findings) - _TOLD} more; " if len(series.findings) > _TOLD else ""
    return f"{told}{more}all are in {path}\n"


def _rows(path: Path, notes: list[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and each row with its line; empty lines are left out, as a file may end with some."""
    rows = comma_separated(path)
    header = [column.strip() for column in next(rows, (1, []))[1]]
    if not header:
        raise ValueError(f"{path}: expected a header and rows, got an empty file")
    if len(header) == 1 and (separator := next((sign for sign in ";\t" if sign in header[0]), None)):
        raise ValueError(f"{path}:1: expected commas between columns, got {'a semicolon' if separator == ';' else 'a tab'}")
    if _DATE.fullmatch(header[0]):
        raise ValueError(f"{path}:1: expected a header, got a row that begins with the date {header[0]}")
    kept = []
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(f"{path}:{line}: expected {len(header)} columns, got {len(row)}")
        kept.append((line, row))
    if len(header) > 1 and not header[0]:
        if "date" not in header and kept and _DATE.fullmatch(kept[0][1][0].strip()):
            header[0] = "date"
        else:
            header, kept = header[1:], [(line, row[1:]) for line, row in kept]
            notes.append("line 1: the first column, which has no name, is taken for an index and left out")
    if len(set(header)) != len(header) or not all(header):
        raise ValueError(f"{path}:1: expected a header of different names, got {header}")
    return header, kept


def _dates_of(path: Path, rows: list[tuple[int, list[str]]], at: int, notes: list[str]) -> tuple[np.ndarray, Zone | None]:
    """datetime64[s] [N], and how they are kept where they have a time zone."""
    dates: list[np.datetime64] = []
    offsets: list[int] = []  # seconds
    zones: set[str | None] = set()
    for line, row in rows:
        text = row[at].strip()
        found = _DATE.fullmatch(text)
        if found is None:
            raise ValueError(f"{path}:{line}: expected a date such as 2016-07-01 or 2016-07-01 13:00, got {row[at]!r}")
        zone = found["zone"]
        zones.add(zone)
        if None in zones and len(zones) > 1:
            expected = f"a date with{'out' if zone else ''} a time zone, as in the rows before"
            raise ValueError(f"{path}:{line}: expected {expected}, got {row[at]!r}")
        try:
            date = np.datetime64(text.removesuffix(zone or "").partition(".")[0].replace(" ", "T"), "s")
        except ValueError as error:
            raise ValueError(f"{path}:{line}: expected a date that there is, got {row[at]!r}") from error
        ahead = 0 if zone in (None, "Z") else HOUR * int(zone[1:3]) + MINUTE * int(zone[-2:])
        offsets.append(-ahead if zone and zone[0] == "-" else ahead)
        dates.append(date)
    if zones <= {None}:
        return np.array(dates), None
    kept, how = zoned(np.array(dates), np.array(offsets))
    if zones != {"Z"}:
        are = "are brought to UTC" if how.utc else "are read as the time on the clock there"
        notes.append(f"the dates, which have a time zone, {are}")
    return kept, how


def _numbers_of(path: Path, columns: Sequence[str], lines: list[int], cells: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
    """[N, C], NaN where there is none, and where there is something else than a number, in a tenth of a column at most."""
    numbers = [[_number(text) for text in row] for row in cells]
    wrong = np.array([[number is None for number in row] for row in numbers])
    for row, at in np.argwhere(wrong):
        if _SEPARATED.fullmatch(text := cells[row][at].strip()):
            expected = "numbers such as 1234.5, with a point and nothing between thousands"
            raise ValueError(f"{path}:{lines[row]}: expected {expected}, in {columns[at]}, got {text!r}")
    for at in np.flatnonzero(wrong.sum(axis=0) > _most_wrong(len(wrong))).tolist():
        row = int(wrong[:, at].argmax())
        hint = "--targets names columns that are; of several series each needs a column of its own"
        told = f"{wrong[:, at].sum()} of {len(wrong)} that are none, such as {cells[row][at]!r}"
        raise ValueError(f"{path}:{lines[row]}: expected numbers in the column {columns[at]}, got {told}; {hint}")
    return np.array([[np.nan if number is None else number for number in row] for row in numbers]), wrong


def _most_wrong(rows: int) -> float:
    return max(1.0, _MOST_WRONG * rows)


def _number(text: str) -> float | None:
    """NaN where there is none; None where there is something else than a finite number."""
    if text.strip().lower() in _MISSING:
        return np.nan
    try:
        return number_of(text, float, "", "")
    except ValueError:
        return None


def _in_order(
    path: Path, dates: np.ndarray, lines: list[int], values: np.ndarray, findings: list[tuple[int, str]]
) -> tuple[np.ndarray, np.ndarray]:
    """Rising dates, and the rows that they are of; what had to be done for that is added to the findings.

    Of rows with the same date the first takes the numbers that it lacks from the others.
    """
    before = np.maximum.accumulate(dates)[:-1]
    for row in np.flatnonzero(dates[1:] < before) + 1:
        findings.append((lines[row], f"{dates[row]} comes after later dates"))
    order = np.argsort(dates, kind="stable")
    again = np.flatnonzero(np.diff(dates[order]) == np.timedelta64(0, "s")) + 1
    if len(again) > _most_wrong(len(dates)):
        line, hint = lines[order[again[0]]], "of several series each needs a column of its own"
        raise ValueError(f"{path}:{line}: expected one row for each date, got {len(again)} more of {len(dates)}; {hint}")
    kept = np.delete(order, again)
    for number in again:
        row, first = order[number], kept[np.searchsorted(dates[kept], dates[order[number]])]
        values[first] = np.where(np.isnan(values[first]), values[row], values[first])
        findings.append((lines[row], f"{dates[row]} stands in line {lines[order[number - 1]]} too"))
    return dates[kept], kept


def _alone(path: Path, dates: np.ndarray, place: np.ndarray, step: Step, lines: list[int]) -> str:
    """What is said of a file that is nearly all gaps: the fewer rows beside the longest of them must be the wrong ones."""
    gap = int(np.diff(place).argmax())
    row = gap if 2 * (gap + 1) <= len(place) else gap + 1
    missing = f"{'behind' if row == gap else 'before'} which {place[gap + 1] - place[gap] - 1} steps are missing"
    told = f"{dates[row]}, {missing}; {len(dates)} rows of {place[-1] + 1} steps"
    return f"{path}:{lines[row]}: expected steps of {step} with fewer gaps, got {told}"


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
