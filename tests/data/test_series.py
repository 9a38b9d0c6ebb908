"""Series from csv files: what is read, and what is found wrong, by line."""

import lzma
import re

import numpy as np
import pytest

from s2s_jax.data.calendar import Step, Zone
from s2s_jax.data.series import keep_findings, read_series

GOOD = "date,a,b\n2016-07-01 00:00,1,2.5\n2016-07-01 01:00,-3e1,4\n2016-07-01 02:00,5,6\n"


def written(folder, text, name="own.csv"):
    path = folder / name
    path.write_bytes(lzma.compress(text.encode()) if name.endswith(".xz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["own.csv", "own.csv.xz"])
def test_a_good_file_is_read_as_it_is(tmp_path, name):
    series = read_series(written(tmp_path, GOOD, name))
    assert (series.name, series.step, series.columns, series.findings) == ("own", Step(3600, False), ("a", "b"), ())
    np.testing.assert_array_equal(series.values, [[1, 2.5], [-30, 4], [5, 6]])
    assert series.observed.all()
    assert series.dates[-1] == np.datetime64("2016-07-01T02:00")


def test_columns_are_chosen_by_name(tmp_path):
    path = written(tmp_path, 'x,"when",y\n1,2016-01,2\n3,2016-02,4\n')
    series = read_series(path, date="when", columns=["y"], name="mine")
    assert (series.name, series.columns, series.values.tolist(), series.step) == ("mine", ("y",), [[2], [4]], Step(1, True))


# Line, what is in it, and what is said of it. Row 4 of the file is 2016-07-04.
WRONG = [
    (5, "2016-07-04,x,8", "line 5: expected a number in a, got 'x'"),
    (5, "2016-07-04,inf,8", "line 5: expected a number in a, got 'inf'"),
    (5, "2016-07-04,1_0,8", "line 5: expected a number in a, got '1_0'"),
    (5, "2016-07-04,\u0663,8", "line 5: expected a number in a, got '\u0663'"),
    (5, "2016-07-04,,8", "line 5: no number in a"),
    (5, "2016-07-04,NaN,8", "line 5: no number in a"),
    (5, None, "line 5: 1 steps of 1 day are missing before"),
    (5, "2016-07-02,70,80\n2016-07-04,7,8", "line 5: 2016-07-02T00:00:00 stands in line 3 too"),
]


@pytest.mark.parametrize(("line", "row", "told"), WRONG)
def test_what_is_wrong_is_an_error_or_mended_and_told(tmp_path, line, row, told):
    rows = ["date,a,b", *(f"2016-07-0{day},{2 * day - 1},{2 * day}" for day in range(1, 7))]
    rows[line - 1 : line] = [] if row is None else row.split("\n")
    path = written(tmp_path, "\n".join(rows) + "\n\n")
    with pytest.raises(ValueError, match=rf"repair mends them, and says so:\n{path}:{line}: "):
        read_series(path)
    series = read_series(path, bad_rows="repair")
    assert told in series.findings
    # Where a number is missing the one before stands; nothing that comes later is read.
    unknown = [] if "stands" in told else [(3, 0)] if row else [(3, 0), (3, 1)]
    want = np.arange(1, 13).reshape(6, 2)
    for at in unknown:
        want[at] -= 2
    np.testing.assert_array_equal(series.values, want)
    assert list(zip(*np.nonzero(~series.observed), strict=True)) == unknown


def test_rows_out_of_order_are_sorted(tmp_path):
    path = written(tmp_path, "date,a\n2016-07-01,1\n2016-07-03,3\n2016-07-02,2\n2016-07-04,4\n")
    with pytest.raises(ValueError, match=r":4: 2016-07-02T00:00:00 comes after later dates"):
        read_series(path)
    series = read_series(path, bad_rows="repair")
    assert series.values[:, 0].tolist() == [1, 2, 3, 4]
    assert series.findings == ("line 4: 2016-07-02T00:00:00 comes after later dates",)


def test_what_comes_before_all_columns_is_left_out(tmp_path):
    path = written(tmp_path, "date,a,b\n2016-07-01,,1\n2016-07-02,5,?\n2016-07-03,?,1\n")
    series = read_series(path, bad_rows="repair")
    assert series.values.tolist() == [[5, 1], [5, 1]]
    assert series.observed.tolist() == [[True, False], [False, True]]
    assert series.dates[0] == np.datetime64("2016-07-02")
    assert "line 2: 1 steps before the first number of every column are left out" in series.findings


def test_of_two_rows_of_a_date_the_first_number_of_each_column_stays(tmp_path):
    path = written(tmp_path, "date,a,b\n2016-07-01,1,2\n2016-07-02,,4\n2016-07-02,5,6\n2016-07-03,7,8\n")
    series = read_series(path, bad_rows="repair")
    np.testing.assert_array_equal(series.values, [[1, 2], [5, 4], [7, 8]])
    assert series.observed.all()
    assert series.findings == ("line 3: no number in a", "line 4: 2016-07-02T00:00:00 stands in line 3 too")


@pytest.mark.parametrize(
    ("dates", "told"),
    [
        (["2016-07-01T00:00:00Z", "2016-07-01T01:00:00Z", "2016-07-01T02:00:00Z"], ()),
        (["2016-07-01 02:00+02:00", "2016-07-01 03:00+0200", "2016-06-30 21:30-04:30"], ("are brought to UTC",)),
        (["2016-07-01 00:00:00.000", "2016-07-01 01:00:00.0", "2016-07-01 02:00:00"], ()),
    ],
)
def test_time_zones_and_fractions(tmp_path, dates, told):
    path = written(tmp_path, "date,a\n" + "".join(f"{date},1\n" for date in dates))
    series = read_series(str(path))
    np.testing.assert_array_equal(series.dates, np.arange("2016-07-01T00", "2016-07-01T03", dtype="datetime64[h]"))
    assert len(series.findings) == len(told)
    assert all(part in finding for part, finding in zip(told, series.findings, strict=True))


def spring(count, hour="00:00"):
    """Days around the change of the clocks of Berlin in 2016, 27 March at 2:00."""
    days = np.datetime64("2016-03-20") + np.arange(count)
    return [f"{day}T{hour}+0{1 + (day > np.datetime64('2016-03-27'))}:00" for day in days]


@pytest.mark.parametrize("bad", [None, "double", "stray"])
def test_days_of_a_place_whose_clocks_change_are_even_steps(tmp_path, bad):
    dates = spring(20)
    rows = [f"{date},{number}\n" for number, date in enumerate(dates)]
    rows = [*rows[:5], *{None: [], "double": [rows[4]], "stray": ["2016-03-24T12:00+01:00,1\n"]}[bad], *rows[5:]]
    path = written(tmp_path, "date,a\n" + "".join(rows))
    if bad == "stray":
        with pytest.raises(
            ValueError, match=r"own.csv:7: expected a date that is whole steps of 1 day from 2016-.*T00:00:00, got"
        ):
            read_series(path)
        return
    series = read_series(path, bad_rows="repair")
    np.testing.assert_array_equal(series.dates, np.datetime64("2016-03-20", "s") + np.arange(20) * np.timedelta64(1, "D"))
    assert (series.values[:, 0].tolist(), series.step, series.zone) == (list(range(20)), Step(86_400, False), Zone(False, None))
    assert series.findings[0] == "the dates, which have a time zone, are read as the time on the clock there"


def test_hours_of_a_place_whose_clocks_change_are_in_utc(tmp_path):
    """There the time on the clock leaves out an hour."""
    rows = "".join(f"2016-03-27T{hour}:00,1\n" for hour in ("00:00+01", "01:00+01", "03:00+02", "04:00+02"))
    series = read_series(written(tmp_path, "date,a\n" + rows))
    np.testing.assert_array_equal(series.dates, np.arange("2016-03-26T23", "2016-03-27T03", dtype="datetime64[h]"))
    assert series.zone == Zone(True, None)


def test_findings_are_kept_whole(tmp_path):
    rows = "".join(f"2016-07-{day:02},{'x' if day in (8, 9) else '' if day % 4 == 0 else day}\n" for day in range(1, 31))
    path, kept = written(tmp_path, "date,a\n" + rows), tmp_path / "findings.txt"
    with pytest.raises(ValueError, match=r"(?s)got 8; repair .*\nand 3 more; repair keeps a list of all$") as error:
        read_series(path)
    assert str(error.value).count("own.csv:") == 5
    series = read_series(path, bad_rows="repair")
    told = keep_findings(series, kept).splitlines()
    assert (len(series.findings), tuple(kept.read_text().splitlines())) == (8, series.findings)
    assert told == [*(f"Found: own, {finding}" for finding in series.findings[:5]), f"and 3 more; all are in {kept}"]
    few = series._replace(findings=series.findings[:2])
    assert keep_findings(few, kept).splitlines()[1:] == [f"Found: own, {series.findings[1]}", f"all are in {kept}"]
    assert keep_findings(series._replace(findings=()), kept) == ""
    assert not kept.exists()


def test_an_index_as_pandas_writes_it(tmp_path):
    """It names neither a numbered index nor one of dates that has no name."""
    rows = ["2016-07-01,1.0", "2016-07-02,2.0", "2016-07-03,3.0"]
    numbered = written(tmp_path, ",day,a\n" + "".join(f"{number},{row}\n" for number, row in enumerate(rows)))
    series = read_series(numbered)
    assert (series.columns, series.values[:, 0].tolist()) == (("a",), [1, 2, 3])
    assert series.findings == ("line 1: the first column, which has no name, is taken for an index and left out",)
    series = read_series(written(tmp_path, ",a\n" + "\n".join(rows) + "\n"))
    assert (series.columns, series.values[:, 0].tolist(), series.findings) == (("a",), [1, 2, 3], ())


def test_years_alone_are_dates(tmp_path):
    series = read_series(written(tmp_path, "year,a\n1949,1\n1950,2\n1951,3\n"))
    assert (series.step, str(series.step)) == (Step(12, True), "1 year")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": expected a header and rows, got an empty file"),
        ("\n\n", ": expected a header and rows, got an empty file"),
        ("date,a\r2016-01,1\r2016-02,2\r", ":1: expected lines that end with a line feed, with a carriage return before it or"),
        ("date,a,a\n", ":1: expected a header of different names"),
        ("date,b\n2016,1\n", ":1: expected the columns a, got date, b"),
        ("date,a\n2016-01,1\n", ": expected at least two rows, got 1"),
        ("date,a\n2016-01,1\n2016-02,1,2\n", ":3: expected 2 columns, got 3"),
        ("date,a\n2016-01,1\n01/02/2016,1\n", ":3: expected a date such as 2016-07-01 or 2016-07-01 13:00, got '01/02/2016'"),
        ("date,a\n2016-01,1\n2016-02-30,1\n", ":3: expected a date that there is, got '2016-02-30'"),
        ("date;a\n2016-01;1\n", ":1: expected commas between columns, got a semicolon"),
        ("date\ta\n2016-01\t1\n", ":1: expected commas between columns, got a tab"),
        ("2016-01,1\n2016-02,1\n", ":1: expected a header, got a row that begins with the date 2016-01"),
        ("date,a\n2016-01-01T00:00Z,1\n2016-01-02T00:00,1\n", ":3: expected a date with a time zone, as in the rows before"),
        ("date,a\n2016-01-01T00:00,1\n2016-01-02T00:00Z,1\n", ":3: expected a date without a time zone, as in the rows"),
        ("date,a\n2016-01-01 00:00:00.5,1\n2016-01-02,1\n", ":2: expected a date such as 2016-07-01"),
        (
            'date,a\n2016-01,1\n2016-02,"1,234"\n',
            ":3: expected numbers such as 1234.5, with a point and nothing between thousands",
        ),
        (
            "date,shop,a\n2016-01,shop A,1\n2016-01,shop B,1\n2016-02,shop A,1\n2016-02,shop B,1\n",
            ":2: expected numbers in the column shop, got 4 of 4 that are none, such as 'shop A'; --targets names columns that",
        ),
        (
            "date,a\n2016-01,1\n2016-01,1\n2016-02,1\n2016-02,1\n",
            ":3: expected one row for each date, got 2 more of 4",
        ),
        (
            "date,a\n" + "".join(f"20{n:02},{'x' if n in (3, 4, 5) else n}\n" for n in range(29)),
            ":5: expected numbers in the column a, got 3",
        ),
        (
            "date,a\n2016-01-01,1\n2016-01-02,1\n2916-01-03,1\n",
            ":4: expected steps of 1 day with fewer gaps, got 2916-01-03T00:00:00, before which 328718 steps are missing; "
            "3 rows of 328721 steps",
        ),
        (
            "date,a\n" + "".join(f"2020-01-{day:02},1\n" for day in range(1, 13)) + "1920-01-01,1\n2020-01-13,1\n",
            ":14: expected steps of 1 day with fewer gaps, got 1920-01-01T00:00:00, behind which 36524 steps are missing; "
            "14 rows of 36538 steps",
        ),
        (
            "date,a\n2020-01-01 00:07,1\n" + "".join(f"2020-01-01 {hour:02}:00,1\n" for hour in range(1, 9)),
            ":2: expected a date that is whole steps of 1 hour from 2020-01-01T08:00:00, got 2020-01-01T00:07:00",
        ),
        (
            "date,a\n2020-01-02,1\n" + "".join(f"2020-{month:02}-01,1\n" for month in range(2, 9)),
            ":2: expected a date that is whole steps of 1 month from 2020-08-01T00:00:00, got 2020-01-02T00:00:00",
        ),
        (
            "date,a\n" + "".join(f"2020-{end},1\n" for end in ("01-31", "02-28", "03-31", "04-30", "05-31", "06-30")),
            ":3: expected a date that is whole steps of 1 month from 2020-06-30T00:00:00, got 2020-02-28T00:00:00",
        ),
        ("date,a\n2016-01-01,x\n2016-01-02,\n", ": expected numbers in the column a, got none"),
        (
            "date,a\n2016-01-01 00:00,1\n2016-01-01 01:00,1\n2016-01-01 02:00,1\n2016-01-01 02:20,1\n",
            ":5: expected a date that is whole steps of 1 hour from 2016-01-01T02:00:00, got 2016-01-01T02:20:00",
        ),
    ],
)
def test_what_cannot_be_mended_is_an_error(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_series(path, columns=["a"] if "date,b" in text else [], bad_rows="repair")


def test_a_wrong_date_is_told_before_what_can_be_mended(tmp_path):
    path = written(tmp_path, "date,a\n1920-01-01,1\n" + "".join(f"2020-01-{day},?\n" for day in range(10, 30)))
    with pytest.raises(ValueError, match=r":2: expected steps of 1 day with fewer gaps, got 1920-01-01T00:00:00"):
        read_series(path)


def test_the_dates_alone_are_no_series(tmp_path):
    with pytest.raises(ValueError, match="expected at least one column besides that of the dates, date"):
        read_series(written(tmp_path, "date\n2016-01\n2016-02\n"))
