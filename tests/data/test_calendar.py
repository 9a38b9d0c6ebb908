"""Steps, dates and their features, beside the calendar of Python."""

import datetime
import json

import numpy as np
import pytest

from s2s_jax.data.calendar import Step, Zone, as_written, cycles_of, dates_from, places, step_of, time_features, zoned
from tests.samples import assert_close


def moments(*texts):
    return np.array(texts, "datetime64[s]")


@pytest.mark.parametrize(
    ("dates", "step", "told", "season"),
    [
        (moments("2016-07-01T00:00", "2016-07-01T01:00", "2016-07-01T02:00"), Step(3600, False), "1 hour", 24),
        (moments("2016-02-28", "2016-02-29", "2016-03-02", "2016-03-03"), Step(86_400, False), "1 day", 7),
        (moments("2016-01-31", "2016-02-07"), Step(604_800, False), "1 week", 52),
        (moments("2016-01-01T00:00", "2016-01-01T00:15"), Step(900, False), "15 minutes", 96),
        (moments("2016-01-01T00:00:00", "2016-01-01T00:00:07"), Step(7, False), "7 seconds", 86_400),
        (moments("2015-12", "2016-01", "2016-02"), Step(1, True), "1 month", 12),
        (moments("2015-12-15T12:00", "2016-03-15T12:00"), Step(3, True), "3 months", 4),
        (moments("2015", "2016", "2017"), Step(12, True), "1 year", 1),
        (moments("2016-01-31", "2016-02-29", "2016-03-31", "2016-05-31"), Step(1, True, from_end=True), "1 month", 12),
        (moments("2016-02-29", "2016-03-31", "2016-04-30", "2016-05-30", "2016-06-30"), Step(1, True, True), "1 month", 12),
        (moments("2015-12-31T12:00", "2016-03-31T12:00", "2016-06-30T12:00"), Step(3, True, from_end=True), "3 months", 4),
    ],
)
def test_the_step_is_that_of_most_neighbours(dates, step, told, season):
    found = step_of(dates)
    assert (found, str(found), found.season) == (step, told, season)
    assert json.loads(json.dumps(found)) == list(step)  # as a run keeps it


@pytest.mark.parametrize(
    ("step", "season"),
    [
        (Step(5 * 3600, False), 1),  # of neither a day nor a week
        (Step(7 * 3600, False), 24),  # a week
        (Step(12 * 3600, False), 2),
        (Step(2 * 86_400, False), 1),
        (Step(14 * 86_400, False), 1),
        (Step(5, True), 1),
        (Step(4, True), 3),
        (Step(24, True), 1),
    ],
)
def test_a_season_is_whole_steps_of_a_cycle(step, season):
    assert step.season == season


def test_dates_and_places_are_each_others_inverse():
    for first, step in (("2015-11-30T06:00", Step(6 * 3600, False)), ("2015-11-15T06:00", Step(2, True))):
        dates = dates_from(np.datetime64(first), step, 9)
        assert dates[0] == np.datetime64(first)
        np.testing.assert_array_equal(places(dates[[0, 1, 3, 8]], step), [0, 1, 3, 8])
    assert dates_from(np.datetime64("2015-11-15T06:00"), Step(2, True), 3)[-1] == np.datetime64("2016-03-15T06:00")
    ends = dates_from(np.datetime64("2015-12-31T06:00"), Step(1, True, from_end=True), 5)
    assert (
        ends.tolist()
        == moments(*(f"{day}T06:00" for day in ("2015-12-31", "2016-01-31", "2016-02-29", "2016-03-31", "2016-04-30"))).tolist()
    )
    np.testing.assert_array_equal(places(ends[[0, 2, 4]], Step(1, True, from_end=True)), [0, 2, 4])
    dates = moments("2016-01-01T00:00", "2016-01-01T01:30", "2016-01-01T03:00")
    np.testing.assert_array_equal(places(dates, Step(3600, False)), [0, -1, 3])
    dates = moments("2016-01-01T00:07", "2016-01-01T01:00", "2016-01-01T02:00", "2016-01-01T04:00")
    np.testing.assert_array_equal(places(dates, Step(3600, False)), [-1, 0, 1, 3])
    np.testing.assert_array_equal(places(moments("2016-01-01", "2016-02-02", "2016-03-01"), Step(2, True)), [0, -1, 1])


def test_dates_are_written_as_their_file_writes_them():
    """What `zoned` has read comes back where one offset is that of all; else as the same moment, or the same day."""
    days, hours = np.arange("2016-03-25", "2016-03-31", dtype="datetime64[D]"), np.arange(6).astype("timedelta64[h]")
    summer = 3600 * (1 + (np.arange(6) > 2))
    for clock, offsets, dates, zone, behind in (
        (days, np.full(6, -12_600), days, Zone(False, -12_600), "-03:30"),
        (days, np.zeros(6, int), days, Zone(False, 0), "+00:00"),
        (days, summer, days, Zone(False, None), ""),
        (days + summer.astype("timedelta64[s]"), summer, days, Zone(True, None), "+00:00"),
        (days[0] + hours, np.full(6, 7200), days[0] + hours - np.timedelta64(2, "h"), Zone(True, 7200), "+02:00"),
        (days[:1], np.full(1, 3600), days[:1] - np.timedelta64(1, "h"), Zone(True, 3600), "+01:00"),
    ):
        kept, found = zoned(clock.astype("datetime64[s]"), offsets)
        np.testing.assert_array_equal(kept, dates)
        assert found == zone
        shown, after = as_written(kept, zone)
        assert after == behind
        np.testing.assert_array_equal(shown, kept if zone.offset is None else clock)
    assert as_written(days, None) == (days, "")


def test_features_are_those_of_pythons_calendar():
    dates = dates_from(np.datetime64("2015-12-30T21:00"), Step(5 * 1800, False), 300)
    cycles = ("hour", "day", "week", "month", "year")
    features = time_features(dates, cycles)
    assert features.shape == (300, 10)
    shares = {name: [] for name in cycles}
    for date in dates.astype(datetime.datetime):
        day = (date.hour + date.minute / 60) / 24
        shares["hour"].append(date.minute / 60)
        shares["day"].append(day)
        shares["week"].append(date.weekday() / 7)
        shares["month"].append((date.day - 1 + day) / 31)
        shares["year"].append((date.timetuple().tm_yday - 1 + day) / 366)
    for number, of_cycle in enumerate(shares.values()):
        angle = 2 * np.pi * np.array(of_cycle)
        assert_close(features[:, 2 * number : 2 * number + 2], np.stack([np.sin(angle), np.cos(angle)], -1), 1e-6)
    assert_close(time_features(dates, ("week",)), features[:, 4:6], 0)
    assert time_features(dates, ()).shape == (300, 0)
    with pytest.raises(ValueError, match="cycles: expected hour, day, week, month, year, got moon"):
        time_features(dates, ("day", "moon"))


@pytest.mark.parametrize(
    ("step", "count", "cycles"),
    [
        (Step(60, False), 120, "hour"),
        (Step(60, False), 119, ""),
        (Step(3600, False), 2 * 24 * 7, "day week"),
        (Step(3600, False), 2 * 24 * 366, "day week month year"),
        (Step(86_400, False), 2 * 366, "week month year"),
        (Step(604_800, False), 105, "month year"),
        (Step(1, True), 24, "year"),
        (Step(1, True), 20, ""),
        (Step(12, True), 30, ""),
    ],
)
def test_cycles_are_longer_than_the_step_and_seen_twice(step, count, cycles):
    assert " ".join(cycles_of(dates_from(np.datetime64("2015-01-01"), step, count), step)) == cycles


def test_dates_without_a_step_are_an_error():
    with pytest.raises(ValueError, match="dates: expected at least two, got 1"):
        step_of(moments("2016"))
    with pytest.raises(ValueError, match="dates: expected them to rise"):
        step_of(moments("2016", "2016"))
