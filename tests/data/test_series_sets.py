"""Which series flags name, their parts, and what a table has in which column."""

import dataclasses
import lzma
import re

import numpy as np
import pytest

from s2s_jax.data.calendar import Step, Zone, time_features
from s2s_jax.data.series import seasonal_series
from s2s_jax.data.series_sets import (
    SeriesFlags,
    check_dates,
    fingerprint,
    load_series,
    parts_of,
    read_own,
    read_static,
    with_steps_ahead,
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("S2S_DATA_DIR", raising=False)
    hours = np.datetime64("2016-07-01T00") + np.arange(17_420).astype("timedelta64[h]")
    rows = [f"{str(hour).replace('T', ' ')}:00:00,{n % 24},{n % 7}" for n, hour in enumerate(hours)]
    (tmp_path / "ett").mkdir()
    (tmp_path / "ett/ETTh1.csv.xz").write_bytes(lzma.compress(("date,HUFL,OT\n" + "\n".join(rows) + "\n").encode()))
    (tmp_path / "small_series").mkdir()
    months = "".join(f'"{1949 + n // 12}-{n % 12 + 1:02}",{n}\n' for n in range(40))
    (tmp_path / "small_series/airline-passengers.csv").write_text('"Month","Passengers"\n' + months)
    return tmp_path


def test_the_hours_of_ett_have_their_published_parts(folder):
    flags = SeriesFlags(dataset="ett", targets=("OT",))
    series = load_series(flags, folder)
    parts = parts_of(flags, series)
    assert (series.name, series.columns, len(series.dates)) == ("etth1", ("OT",), 17_420)
    assert (parts.train, parts.validation, parts.test) == (8640, 11_520, 14_400)
    of_training = parts.table.values[:8640, 0].astype(float)
    assert of_training.mean() == pytest.approx(0, abs=1e-6)
    assert of_training.std() == pytest.approx(1, abs=1e-6)


def test_other_series_are_cut_by_shares(folder, monkeypatch):
    monkeypatch.setenv("S2S_DATA_DIR", str(folder))
    room = {"look_back": 3, "horizon": 1}
    flags = SeriesFlags(dataset="airline-passengers", validation_share=0.25, test_share=0.1, **room)
    parts = parts_of(flags, load_series(flags, None))
    assert (parts.train, parts.validation, parts.test) == (26, 36, 40)
    assert parts.season == 12
    with pytest.raises(ValueError, match="season: expected less than the 26 steps of the training part, got 30"):
        parts_of(dataclasses.replace(flags, season=30), load_series(flags, None))
    with pytest.raises(ValueError, match="validation_share, test_share: expected parts of at least a step"):
        parts_of(SeriesFlags(dataset="airline-passengers", test_share=0.0), load_series(flags, None))
    for sizes, message in (
        (
            {"look_back": 25, "horizon": 2},
            "expected at least 27 rows in the training part, for a look-back of 25 and a horizon of 2,",
        ),
        ({"horizon": 5}, "expected at least 5 rows in the test part, for a look-back of 3 and a horizon of 5, got 4 of 40"),
    ):
        with pytest.raises(ValueError, match=f"look_back, horizon: {message}"):
            parts_of(dataclasses.replace(flags, **sizes), load_series(flags, None))


def test_a_file_of_few_steps_is_told_how_many_are_enough(tmp_path):
    path = tmp_path / "two.csv"

    def parts(steps, **options):
        path.write_text("date,a\n" + "".join(f"{1900 + step},{step}\n" for step in range(steps)))
        flags = SeriesFlags(csv=path, look_back=5, horizon=2, **options)
        return parts_of(flags, load_series(flags, None))

    for options in ({}, {"validation_share": 0.05, "test_share": 0.45}):
        told = "^two: expected more steps, for a look-back of 5 and a horizon of 2, for which ([0-9]+) are enough, got 2$"
        with pytest.raises(ValueError, match=told) as error:
            parts(2, **options)
        enough = int(re.search(told, str(error.value))[1])
        for steps in range(enough, enough + 30):
            assert parts(steps, **options).test == steps
    assert enough == 40


def test_a_file_of_the_name_of_a_data_set_is_not_that_data_set(folder):
    """Neither its season nor its parts."""
    path = folder / "monthly-sunspots.csv"
    path.write_text("month,a\n" + "".join(f"{1900 + n // 12}-{n % 12 + 1:02},{n}\n" for n in range(400)))
    flags = SeriesFlags(csv=path)
    assert parts_of(flags, load_series(flags, None)).season == 12
    path.rename(folder / "small_series/monthly-sunspots.csv")
    flags = SeriesFlags(dataset="monthly-sunspots")
    assert parts_of(flags, load_series(flags, folder)).season == 132


def test_a_cycle_that_the_training_part_has_not_seen_twice_is_none(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("date,a\n" + "".join(f"2020-01-{day:02},{day}\n" for day in range(1, 26)))
    for share, cycles in ((0.25, ()), (0.2, ("week",))):  # 13 and 15 days of training
        flags = SeriesFlags(csv=path, validation_share=share, test_share=share, look_back=3, horizon=1)
        assert parts_of(flags, load_series(flags, None)).cycles == cycles


def test_flags_that_contradict_each_other(folder):
    path = folder / "small_series/airline-passengers.csv"
    for options, message in (
        ({"csv": path, "dataset": "ett"}, "csv: expected --dataset files with it, got --dataset ett"),
        ({"dataset": "files"}, "csv: expected it with --dataset files"),
        (
            {"targets": ("a", "b"), "known_covariates": ("b",)},
            "known_covariates, past_covariates: expected each column once, got b",
        ),
        ({"past_covariates": ("c",), "known_covariates": ("c",)}, "expected each column once, got c twice"),
        ({"targets": ("a", "a")}, "expected each column once, got a twice"),
    ):
        with pytest.raises(ValueError, match=message):
            SeriesFlags(**options)


def test_what_is_known_ahead_may_go_on_but_nothing_else(tmp_path):
    path = tmp_path / "own.csv"
    rows = [f"2020-01-{day:02},{'' if day > 8 else day},{'' if day > 6 else day},{day % 3}" for day in range(1, 11)]
    path.write_text("date,y,rain,holiday\n" + "\n".join(rows) + "\n")
    flags = SeriesFlags(csv=path, known_covariates=("holiday",), bad_rows="repair")
    series = load_series(flags, None)
    assert (len(series.dates), series.observed.shape) == (8, (8, 3))
    left_out = "2 steps behind the last number of what is not known ahead are left out"
    assert series.findings == ("line 8: no number in rain", "line 9: no number in rain", left_out)
    assert len(read_own(flags, path).dates) == 10
    short = tmp_path / "short.csv"
    short.write_text("date,y,rain,holiday\n" + "\n".join(rows[:8]) + "\n")
    assert fingerprint(load_series(SeriesFlags(csv=short, bad_rows="repair"), None)) == fingerprint(series)
    path.write_text(path.read_text().replace("2020-01-10,,,1", "2020-01-10,,,"))
    assert "line 11: no number in holiday" in load_series(flags, None).findings
    plain = load_series(dataclasses.replace(flags, known_covariates=()), None)
    assert "line 11: no number in y" in plain.findings


def test_dates_have_to_be_as_in_the_training():
    series = seasonal_series(days=3)
    zoned, hour = series._replace(zone=Zone(True, None)), series.step
    check_dates(series, hour, None, "own.csv")
    check_dates(zoned, hour, zoned.zone, "own.csv")
    clock, there = zoned.zone._replace(utc=False), "with a time zone, "
    for found, step, zone, message in (
        (series, Step(60, False), None, "steps of 1 minute, as in the training, got steps of 1 hour"),
        (series, hour, zoned.zone, f"dates {there}in UTC, as in the training, got dates without a time zone"),
        (zoned, hour, None, f"dates without a time zone, as in the training, got dates {there}in UTC"),
        (zoned, hour, clock, f"dates {there}by the clock there, as in the training, got dates {there}in UTC"),
    ):
        with pytest.raises(ValueError, match=f"^own.csv: expected {message}$"):
            check_dates(found, step, zone, "own.csv")


def test_steps_ahead_have_room_and_what_is_known_of_them_stands_there(tmp_path):
    path = tmp_path / "own.csv"
    rows = [f"2020-01-{day:02},{'' if day > 8 else day},{day % 3}" for day in range(1, 11)]
    path.write_text("date,y,holiday\n" + "\n".join(rows) + "\n")
    flags = SeriesFlags(csv=path, targets=("y",), look_back=8, horizon=3)
    short = tmp_path / "short.csv"
    short.write_text("\n".join(path.read_text().splitlines()[:9]) + "\n")
    series = read_own(flags, short)
    longer, origin = with_steps_ahead(flags, series, "own.csv")
    assert origin == 8
    np.testing.assert_array_equal(longer.dates, np.datetime64("2020-01-01", "s") + np.arange(11) * np.timedelta64(86400, "s"))
    np.testing.assert_array_equal(longer.values[:, 0], [*range(1, 9), 8, 8, 8])
    assert longer.observed[:, 0].tolist() == [True] * 8 + [False] * 3
    with pytest.raises(ValueError, match=r"^own\.csv: expected at least 9 steps, got 8$"):
        with_steps_ahead(dataclasses.replace(flags, look_back=9), series, "own.csv")
    known = dataclasses.replace(flags, known_covariates=("holiday",))
    series = read_own(known, path)
    with pytest.raises(ValueError, match=r"^own\.csv: expected holiday for 3 steps ahead, got 2$"):
        with_steps_ahead(known, series, "own.csv")
    longer, origin = with_steps_ahead(dataclasses.replace(known, horizon=2), series, "own.csv")
    assert (origin, len(longer.dates)) == (8, 10)
    assert longer.values[8:, longer.columns.index("holiday")].tolist() == [9 % 3, 10 % 3]


def test_a_table_has_the_calendar_then_what_is_known_then_the_rest(tmp_path):
    rows = "".join(f"2020-01-{day:02},{day},{day % 3},{10 * day},{-day}\n" for day in range(1, 31))  # 18 of training
    path = tmp_path / "own.csv"
    path.write_text("when,y,holiday,rain,z\n" + rows)
    room = {"look_back": 3, "horizon": 1}
    flags = SeriesFlags(csv=path, past_covariates=("rain",), known_covariates=("holiday",), **room)
    series = load_series(flags, None)
    parts = parts_of(flags, series)
    assert [series.columns[column] for column in parts.targets] == ["y", "z"]
    table, scaler = parts.table, parts.scaler.into(series.values)
    assert parts.cycles == ("week",)
    features = time_features(series.dates, ["week"])
    assert table.known == 3
    np.testing.assert_array_equal(table.values, scaler[:, [0, 3]])
    np.testing.assert_array_equal(table.covariates, np.concatenate([features, scaler[:, [1, 2]]], axis=1))
    plain = parts_of(SeriesFlags(csv=path, calendar=False, **room), series, scaled=False)
    assert (plain.table.covariates.shape, plain.table.known) == ((30, 0), 0)
    np.testing.assert_array_equal(plain.table.values, series.values[:, [0, 1, 2, 3]].astype(np.float32))
    counts = parts_of(flags, series, scaled=False).table
    np.testing.assert_array_equal(counts.values, series.values[:, [0, 3]].astype(np.float32))
    np.testing.assert_array_equal(counts.covariates, table.covariates)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "etth1"}, "dataset: expected seasonal, ett, airline-passengers"),
        ({"dataset": "ett"}, "data_dir: expected a folder that holds ett, got none"),
    ],
)
def test_what_is_not_there_is_named(monkeypatch, options, message):
    monkeypatch.delenv("S2S_DATA_DIR", raising=False)
    with pytest.raises(ValueError, match=message):
        load_series(SeriesFlags(**options), None)


def test_columns_and_files_that_are_not_there(folder):
    path = folder / "small_series/monthly-sunspots.csv"
    with pytest.raises(ValueError, match=f"^data_dir: expected a folder that holds monthly-sunspots, found no file at {path}$"):
        load_series(SeriesFlags(dataset="monthly-sunspots"), folder)
    with pytest.raises(ValueError, match=f"^csv: expected a file, found none at {path}$"):
        load_series(SeriesFlags(csv=path), folder)
    with pytest.raises(ValueError, match=f"^{path}: expected a file, found none$"):  # one to predict, which no flag names
        read_own(SeriesFlags(), path)
    series = load_series(SeriesFlags(dataset="airline-passengers"), folder)
    with pytest.raises(ValueError, match="targets, covariates: expected columns among Passengers, got rain"):
        parts_of(SeriesFlags(dataset="airline-passengers", past_covariates=("rain",)), series)
    with pytest.raises(ValueError, match="targets: expected a column that is no covariate"):
        parts_of(SeriesFlags(dataset="airline-passengers", past_covariates=("Passengers",)), series)


def test_a_fingerprint_is_of_the_numbers():
    series = seasonal_series(days=3)
    assert fingerprint(series) == fingerprint(seasonal_series(days=3)) != fingerprint(seasonal_series(days=3, seed=1))
    assert len(series.dates) == 72


def test_what_is_known_of_each_target_is_standardised_and_in_their_order(tmp_path):
    path = tmp_path / "static.csv"
    path.write_text("series,area,height\nsouth,1,7\nnorth,3,7\nmiddle,8,7\n")
    names = ("north", "middle", "south")
    found = read_static(path, names)
    area = np.array([3, 8, 1])
    np.testing.assert_allclose(found, np.stack([(area - 4) / area.std(), np.zeros(3)], 1), rtol=1e-6)
    series = seasonal_series(days=9)
    assert parts_of(SeriesFlags(static_csv=path), series).table.static.shape == (3, 2)
    assert fingerprint(series, found) != fingerprint(series, found[:, ::-1]) != fingerprint(series)
    for content, message in (
        ("series,area\nnorth,1\nwest,2\n", r"static.csv:3: expected one row for each of north, middle, south, got 'west'"),
        ("series,area\nnorth,1\nnorth,2\n", r"static.csv:3: expected one row for each of north, middle, south, got 'north'"),
        ("series,area\nnorth,1\nmiddle,x\n", r"static.csv:3: expected a finite number that float32 holds in column 'area'"),
        ("series,area\nnorth,1\nmiddle,1\n", "expected a row for each of north, middle, south, got none for south"),
        ("series\nnorth\nmiddle\nsouth\n", "static.csv:1: expected columns of numbers behind the names"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_static(path, names)
    with pytest.raises(ValueError, match="static_csv: expected a file, found none at"):
        read_static(tmp_path / "none.csv", names)
