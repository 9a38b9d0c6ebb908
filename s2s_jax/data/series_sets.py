"""Which series, read and split how: flags that experiments on series share, and the tables that they name."""

import dataclasses
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from s2s_jax.data.calendar import Step, Zone, cycles_of, dates_from, time_features
from s2s_jax.data.datasets.text_files import number_of, read_rows
from s2s_jax.data.own_files import name_own_files
from s2s_jax.data.series import BadRows, Series, read_series, seasonal_series
from s2s_jax.data.windows import Scaler, Table, fit_scaler

SMALL = ("airline-passengers", "daily-min-temperatures", "monthly-sunspots")
ETT_PARTS = (8640, 2880, 2880)  # hours of training, validation and test: 12, 4 and 4 months of 30 days
SEASONS = {"daily-min-temperatures": 365, "monthly-sunspots": 132}  # a year, and the cycle of about 11 years


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowFlags:
    """What is done about a file's rows."""

    bad_rows: BadRows = "error"
    """Rows that are missing, double, out of order or not numbers: stop, or mend and tell them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeriesFlags(RowFlags):
    """Flags of an experiment on series of numbers."""

    dataset: str = "seasonal"
    """seasonal (generated), ett, one of airline-passengers, daily-min-temperatures and monthly-sunspots; or files, which
    --csv names, and which goes without saying with it."""
    csv: Path | None = None
    """A file of your own with a header."""
    date_column: str | None = None
    """Its column of dates; the first if not given."""
    targets: tuple[str, ...] = ()
    """Columns that are forecast; all that are no covariates if none is named."""
    past_covariates: tuple[str, ...] = ()
    """Columns that are read, but not forecast."""
    known_covariates: tuple[str, ...] = ()
    """Columns that are read, and known ahead."""
    static_csv: Path | None = None
    """A file with a header and a row for each target: its name, then numbers that describe it."""
    calendar: bool = True
    """Whether time of hour, day, week, month and year are read, those that the training part holds twice."""
    look_back: int = 96
    """Steps that are read."""
    horizon: int = 24
    """Steps that are forecast."""
    validation_share: float = 0.2
    """Share of the steps, before those of the test; ETTh1 has published parts instead."""
    test_share: float = 0.2
    """Share of the steps, at the end."""
    season: int | None = None
    """Steps of the season that the seasonal naive forecast repeats; by data set and step if not given."""

    def __post_init__(self) -> None:
        name_own_files(self, ("csv",))
        if self.dataset == "files" and self.csv is None:
            raise ValueError("csv: expected it with --dataset files")
        named = (*self.targets, *self.covariates)
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(
                f"targets, known_covariates, past_covariates: expected each column once, got {', '.join(twice)} twice"
            )
        getattr(super(), "__post_init__", lambda: None)()  # of the other flags of an experiment

    @property
    def origin(self) -> str:
        return "generated" if self.dataset == "seasonal" else "real"

    @property
    def covariates(self) -> tuple[str, ...]:
        """Columns that are read and not forecast, those known ahead first."""
        return self.known_covariates + self.past_covariates


class Parts(NamedTuple):
    """A table of standardised values, and the steps that training, validation and test end before.

    Attributes:
      scaler: by which all columns of the series are standardised.
      targets: the columns that the table's values are of.
      cycles: of the calendar that the table's covariates begin with.
      season: in steps; where the training part is too short for the usual one, 1.
    """

    table: Table
    scaler: Scaler
    targets: tuple[int, ...]
    cycles: tuple[str, ...]
    train: int
    validation: int
    test: int
    season: int


def load_series(flags: SeriesFlags, data_dir: Path | None) -> Series:
    """Raises a ValueError where the flags name no series, or one that is not there."""
    if flags.csv is not None:
        if not flags.csv.is_file():
            raise ValueError(f"csv: expected a file, found none at {flags.csv}")
        return _without_ahead(flags, read_own(flags, flags.csv))
    if flags.dataset == "seasonal":
        return seasonal_series()
    if flags.dataset != "ett" and flags.dataset not in SMALL:
        raise ValueError(f"dataset: expected seasonal, ett, {', '.join(SMALL)}, or --csv, got {flags.dataset!r}")
    folder = data_dir or os.environ.get("S2S_DATA_DIR")
    if not folder:
        raise ValueError(f"data_dir: expected a folder that holds {flags.dataset}, got none")
    path = Path(folder) / ("ett/ETTh1.csv.xz" if flags.dataset == "ett" else f"small_series/{flags.dataset}.csv")
    if not path.is_file():
        raise ValueError(f"data_dir: expected a folder that holds {flags.dataset}, found no file at {path}")
    series = read_own(flags, path)
    return series._replace(name="etth1") if flags.dataset == "ett" else series


def read_own(flags: SeriesFlags, path: Path, columns: Sequence[str] = ()) -> Series:
    """Columns of a csv file, those that the flags name if no others are; what is known ahead may go on beyond the others."""
    if not path.is_file():
        raise ValueError(f"{path}: expected a file, found none")
    named = columns or ((*flags.targets, *flags.covariates) if flags.targets else ())
    return read_series(path, date=flags.date_column, columns=named, ahead=flags.known_covariates, bad_rows=flags.bad_rows)


def _without_ahead(flags: SeriesFlags, series: Series) -> Series:
    """Without the steps at its end that only what is known ahead is told of, as in a file that a forecast needs."""
    others = [number for number, column in enumerate(series.columns) if column not in flags.known_covariates]
    end = len(series.dates) - int(series.observed[::-1, others].any(axis=1).argmax())
    if not flags.known_covariates or end == len(series.dates):
        return series
    told = f"{len(series.dates) - end} steps behind the last number of what is not known ahead are left out"
    dates, values, observed = (leaf[:end] for leaf in (series.dates, series.values, series.observed))
    return series._replace(dates=dates, values=values, observed=observed, findings=(*series.findings, told))


def check_dates(series: Series, step: Step, zone: Zone | None, file: str) -> None:
    """Raises a ValueError, which names the file, unless dates go by the training's step and are kept as its were."""
    if series.step != step:
        raise ValueError(f"{file}: expected steps of {step}, as in the training, got steps of {series.step}")
    kept = {None: "without a time zone", True: "with a time zone, in UTC", False: "with a time zone, by the clock there"}
    trained, here = (kept[None if one is None else one.utc] for one in (zone, series.zone))
    if trained != here:
        raise ValueError(f"{file}: expected dates {trained}, as in the training, got dates {here}")


def with_steps_ahead(flags: SeriesFlags, series: Series, file: str) -> tuple[Series, int]:
    """A series with room for the steps ahead of its last observed target, and the first of them; errors name its file.

    Raises:
      ValueError: fewer steps of the past than the look-back; what is known ahead not told of all steps ahead.
    """
    targets = [series.columns.index(column) for column in targets_of(flags, series)]
    origin = int(np.flatnonzero(series.observed[:, targets].any(axis=1))[-1]) + 1
    ahead = origin + flags.horizon
    if origin < flags.look_back:
        raise ValueError(f"{file}: expected at least {flags.look_back} steps, got {origin}")
    for column in flags.known_covariates:
        if (there := int(series.observed[origin:ahead, series.columns.index(column)].sum())) < flags.horizon:
            raise ValueError(f"{file}: expected {column} for {flags.horizon} steps ahead, got {there}")
    missing = max(0, ahead - len(series.dates))
    room = ((0, missing), (0, 0))
    longer = series._replace(
        dates=dates_from(series.dates[0], series.step, len(series.dates) + missing),
        values=np.pad(series.values, room, mode="edge"),
        observed=np.pad(series.observed, room),
    )
    return longer, origin


def parts_of(flags: SeriesFlags, series: Series, *, scaled: bool = True) -> Parts:
    """The table of a series and its parts.

    Args:
      flags: which columns are what, and where parts end.
      series: whole.
      scaled: whether targets are standardised by the training part, as covariates are.

    Raises:
      ValueError: too few steps; parts without a window or an observed target; columns that there are not; a season as long as
        the training.
    """
    if flags.dataset == "ett":
        train, validation, test = np.cumsum(ETT_PARTS).tolist()
        if len(series.dates) < test:
            raise ValueError(f"ett: expected at least {test} hours, got {len(series.dates)}")
    else:
        test = len(series.dates)
        validation = test - round(flags.test_share * test)
        train = validation - round(flags.validation_share * test)
    if not 0 < train < validation < test:
        shares = flags.validation_share, flags.test_share
        if min(shares) > 0 and sum(shares) < 1:  # which some number of steps would fit
            read = flags.look_back + flags.horizon
            # Each end of a part may be rounded by half a step.
            enough = math.ceil(max(flags.horizon / min(shares), (read + 1) / (1 - sum(shares))))
            needed = f"a look-back of {flags.look_back} and a horizon of {flags.horizon}, for which {enough} are enough"
            raise ValueError(f"{series.name}: expected more steps, for {needed}, got {test}")
        raise ValueError(
            f"validation_share, test_share: expected parts of at least a step, got ends {train}, {validation}, {test}"
        )
    scaler = fit_scaler(series.values[:train], series.observed[:train])
    targets = tuple(series.columns.index(column) for column in targets_of(flags, series))
    for part, begin, end in (("training", 0, train), ("validation", train, validation), ("test", validation, test)):
        # What a window reads may lie in the part before, what it forecasts not.
        needed = flags.horizon + (flags.look_back if part == "training" else 0)
        if end - begin < needed:
            expected = f"at least {needed} rows in the {part} part, for a look-back of {flags.look_back}"
            raise ValueError(
                f"look_back, horizon: expected {expected} and a horizon of {flags.horizon}, got {end - begin} of {test}"
            )
        if not series.observed[begin:end, targets].any():
            raise ValueError(f"{series.name}: expected an observed target within the steps {begin} to {end}, got none")
    if not scaled:
        for leaf, as_it_is in ((scaler.mean, 0), (scaler.deviation, 1)):
            leaf[list(targets)] = as_it_is
    season = flags.season or SEASONS.get(flags.dataset, series.step.season)
    if season >= train:
        if flags.season:
            raise ValueError(f"season: expected less than the {train} steps of the training part, got {season}")
        season = 1
    cycles = cycles_of(series.dates[:train], series.step) if flags.calendar else ()
    static = None if flags.static_csv is None else read_static(flags.static_csv, targets_of(flags, series))
    return Parts(table_of(flags, series, scaler, cycles, static), scaler, targets, cycles, train, validation, test, season)


def targets_of(flags: SeriesFlags, series: Series) -> tuple[str, ...]:
    """Raises a ValueError where a column is named that is not there, or nothing is left."""
    if missing := [column for column in (*flags.targets, *flags.covariates) if column not in series.columns]:
        raise ValueError(f"targets, covariates: expected columns among {', '.join(series.columns)}, got {', '.join(missing)}")
    targets = flags.targets or tuple(column for column in series.columns if column not in flags.covariates)
    if not targets:
        raise ValueError("targets: expected a column that is no covariate")
    return targets


def read_static(path: Path, targets: Sequence[str]) -> np.ndarray:
    """What a file says of each target, float32 [C, S], standardised over the targets.

    Raises:
      ValueError: no such file; a row that is not numbers, of an unknown target or double, by file and line; a target without.
    """
    if not path.is_file():
        raise ValueError(f"static_csv: expected a file, found none at {path}")
    found: dict[str, list[float]] = {}
    for line, row in read_rows(path, ()):
        (_, name), *numbers = row.items()
        where = f"{path}:{line}"
        if name not in targets or name in found:
            raise ValueError(f"{where}: expected one row for each of {', '.join(targets)}, got {name!r}")
        found[name] = [number_of(text, float, column, where) for column, text in numbers]
    if missing := [name for name in targets if name not in found]:
        raise ValueError(f"{path}: expected a row for each of {', '.join(targets)}, got none for {', '.join(missing)}")
    values = np.array([found[name] for name in targets], np.float64)
    if not values.shape[1]:
        raise ValueError(f"{path}:1: expected columns of numbers behind the names of the targets, got none")
    return fit_scaler(values, np.ones(values.shape, bool)).into(values)


def table_of(
    flags: SeriesFlags, series: Series, scaler: Scaler, cycles: Sequence[str], static: np.ndarray | None = None
) -> Table:
    """Targets, and beside them the calendar and the covariates, those that are known ahead first.

    Args:
      flags: which columns are what.
      series: whole.
      scaler: of all its columns.
      cycles: see `time_features`.
      static: of each target.
    """
    place = {column: number for number, column in enumerate(series.columns)}
    targets, known, past = (
        [place[column] for column in columns]
        for columns in (targets_of(flags, series), flags.known_covariates, flags.past_covariates)
    )
    values = scaler.into(series.values)
    features = time_features(series.dates, cycles)
    covariates = np.concatenate([features, values[:, known], values[:, past]], axis=1)
    return Table(values[:, targets], series.observed[:, targets], covariates, features.shape[1] + len(known), static)


def fingerprint(series: Series, static: np.ndarray | None = None) -> str:
    """Of the numbers, their dates and what is known of each series, so that a run knows its data again."""
    described = b"" if static is None else static.tobytes()
    return f"{zlib.crc32(series.values.tobytes() + series.dates.tobytes() + described):08x}"
