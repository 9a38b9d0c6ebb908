"""Forecasting: small runs of every model from training to prediction, and what is refused."""

import csv
import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tyro
from flax import nnx

from experiments import forecasting
from experiments.forecasting import Config
from s2s_jax.data.series import seasonal_series
from s2s_jax.data.series_sets import parts_of
from s2s_jax.data.windows import Scaler
from s2s_jax.forecast_metrics import mae, mse
from s2s_jax.models.backtest import ForecastBatch
from s2s_jax.training.command import main
from tests.oracles import oracle

FUNCTIONS = {"train": forecasting.train, "evaluate": forecasting.evaluate, "predict": forecasting.predict}
SMALL = ["--steps", "3", "--evaluate-every", "3", "--hidden-features", "4", "--look-back", "24", "--horizon", "6"]
SMALL += ["--samples", "7"]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.delenv("S2S_DATA_DIR", raising=False)
    monkeypatch.setattr("s2s_jax.data.series_sets.seasonal_series", lambda: seasonal_series(days=9))


def call(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["forecasting.py", *map(str, arguments)])
        patch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="experiments.forecasting"))
        main("forecasting", Config, **FUNCTIONS)


def own_csv(path, days, missing=0):
    """The generated series as a file; the last rows have no targets, but what is known ahead."""
    series = seasonal_series(days=days)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["date", *series.columns, "hour"])
        for number, (date, row) in enumerate(zip(series.dates, series.values, strict=True)):
            shown = row.tolist() if number < len(series.dates) - missing else [""] * 3
            writer.writerow([str(date).replace("T", " "), *shown, number % 24])
    return path


def test_a_run_from_training_to_prediction(tmp_path, capsys):
    call(*SMALL, "--runs-dir", tmp_path, "--batch-size", 128)
    printed = capsys.readouterr().out
    assert "trains on generated series, whose figures say nothing about measured ones" in printed
    assert "Only 101 windows of 24 + 6 steps to train on, less than a batch of 128" in printed
    folder = tmp_path / "forecasting/default"
    result = json.loads((folder / "result.json").read_text())
    assert (result["data"], result["dataset"], result["published"]) == ("generated", "seasonal", [])
    # 216 hours: 43 of the test, of which 38 begin a future of 6.
    assert result["split"] == "test, all 38 windows"
    names = {"mse", "mae", "mase", "smape", "crps", "coverage"}
    assert set(result["metrics"]) == names | {f"{name}_validation" for name in names}
    assert set(result["details"]["baselines"]["test"]) == {"naive", "seasonal naive", "linear"}
    assert {path.name for path in (folder / "figures").iterdir()} == {"learning_curve.png", "forecasts.png"}
    call("evaluate", "--runs-dir", tmp_path)
    again = json.loads((folder / "result.json").read_text())
    assert (again["metrics"], again["test_reads"]) == (result["metrics"], 2)
    call("evaluate", "--runs-dir", tmp_path, "--split", "validation")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["metrics"] == {f"{name}_validation": result["metrics"][f"{name}_validation"] for name in names}
    assert evaluation["test_reads"] == 2

    # The baselines by hand, over every window of the test.
    series = seasonal_series(days=9)
    values = series.values[: 216 - 43 - 43]
    standard = ((series.values - values.mean(0)) / values.std(0)).astype(np.float32)
    origins = np.arange(216 - 43, 216 - 6 + 1)
    truth = standard[origins[:, None] + np.arange(6)]
    for name, back in (("naive", [-1] * 6), ("seasonal naive", range(-24, -18))):
        said = standard[origins[:, None] + np.array(back)]
        found = result["details"]["baselines"]["test"][name]
        assert found["mse"] == pytest.approx(mse(said, truth), rel=1e-5)
        assert found["mae"] == pytest.approx(mae(said, truth), rel=1e-5)

    path = own_csv(tmp_path / "more.csv", 3)
    call("predict", path, "--runs-dir", tmp_path)
    assert "trained on generated data: what it says of any other means little" in capsys.readouterr().err
    forecast = (folder / "forecast_more.csv").read_text()
    rows = list(csv.DictReader(forecast.splitlines()))
    assert [row["date"] for row in rows] == [f"2020-01-04 0{hour}:00:00" for hour in range(6)]
    assert list(rows[0])[:4] == ["date", "north", "north q0.1", "north q0.9"]
    assert all(float(row["north q0.1"]) < float(row["north"]) < float(row["north q0.9"]) for row in rows)
    assert (folder / "figures/forecast_more.png").exists()
    reordered = [[row[number] for number in (0, 3, 1, 4, 2)] for row in csv.reader(path.read_text().splitlines())]
    path.write_text("\n".join(",".join(row) for row in reordered) + "\n")
    call("predict", path, "--runs-dir", tmp_path)
    assert (folder / "forecast_more.csv").read_text() == forecast
    lines = path.read_text().splitlines()
    for other, message in (
        (
            [lines[0].replace("north", "west"), *lines[1:]],
            "more.csv:1: expected the columns north, got date",
        ),
        ([lines[0], *lines[1::2]], "more.csv: expected steps of 1 hour, as in the training, got steps of 2 hours"),
    ):
        path.write_text("\n".join(other) + "\n")
        with pytest.raises(SystemExit, match=message):
            call("predict", path, "--runs-dir", tmp_path)
    with pytest.raises(SystemExit, match="expected files of different names"):
        call("predict", path, path, "--runs-dir", tmp_path)


def test_dates_of_days_have_no_hours(tmp_path):
    for dates, told in (
        (np.arange("2020-02-28", "2020-03-01", dtype="datetime64[D]"), ["2020-02-28", "2020-02-29"]),
        (np.array(["2020-02-28T00", "2020-02-28T12"], "datetime64[h]"), ["2020-02-28 00:00:00", "2020-02-28 12:00:00"]),
    ):
        shown = {"dates": dates.astype("datetime64[s]"), "mean": np.array([0.5, 2.0]), "interval": None}
        forecasting.write(tmp_path / "said.csv", [shown], ("y",))
        assert (tmp_path / "said.csv").read_text() == f"date,y\n{told[0]},0.5\n{told[1]},2.0\n"


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_large_numbers_that_differ_little_stay_apart(tmp_path, dtype):
    """What is read of the file is what was said, to the bit."""
    mean = np.array([12345678.4, 12345690.9, 1 / 3], dtype)
    dates = np.arange("2020-02-28", "2020-03-02", dtype="datetime64[D]").astype("datetime64[s]")
    forecasting.write(tmp_path / "said.csv", [{"dates": dates, "mean": mean, "interval": (mean - 3, mean + 3)}], ("y",))
    rows = list(csv.DictReader((tmp_path / "said.csv").read_text().splitlines()))
    for name, column in (("y", mean), ("y q0.1", mean - 3), ("y q0.9", mean + 3)):
        np.testing.assert_array_equal(np.array([row[name] for row in rows], dtype), column)


@pytest.mark.parametrize(
    "flags",
    [
        ("--model", "repeat_vector", "--distribution", "squared_error"),
        ("--model", "segments", "--distribution", "absolute_error", "--cell", "gru", "--segment", "6"),
        ("--model", "autoregressive", "--distribution", "student_t", "--series", "each", "--window-scaling", "mean"),
    ],
    ids=lambda flags: flags[1],
)
def test_the_other_models(tmp_path, flags):
    call(*SMALL, "--runs-dir", tmp_path, *flags)
    metrics = json.loads((tmp_path / "forecasting/default/result.json").read_text())["metrics"]
    assert ("coverage" in metrics) == (flags[1] == "autoregressive")
    assert np.isfinite(list(metrics.values())).all()


def documented(word):
    """The arguments of the command in the module's docstring that names a word."""
    commands = (forecasting.__doc__ or "").replace("\\\n", " ").splitlines()
    return shlex.split(next(line for line in commands if word in line and "python -m" in line))[3:]


def test_segrnn_is_the_command_that_was_measured():
    """Flag by flag that of the card, but for its name and flags that came later."""
    config = tyro.cli(Config, args=documented("segments"))
    card = "experiments/results/forecasting-etth1-multivariate-96-segments-24-decay-0.8-seed0.json"
    measured = json.loads((Path(__file__).parents[2] / card).read_text())["config"]
    differ = {name for name, value in measured.items() if json.loads(json.dumps(getattr(config, name))) != value}
    assert differ == {"name"}


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_segrnn_begins_as_published(cell):
    """With weights and biases that spread as those of PyTorch's modules do."""
    torch = oracle("torch")
    flags = ["--model", "segments", "--cell", cell, "--hidden-features", "256", "--segment", "24", "--horizon", "48"]
    config = tyro.cli(Config, args=[*flags, "--look-back", "48", "--distribution", "squared_error"])
    model = forecasting.build_model(config, 1, 0, 0, 0)
    layer = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM, "rnn": torch.nn.RNN}[cell](256, 256)
    recurrent = {"w": layer.weight_ih_l0, "u": layer.weight_hh_l0, "b": layer.bias_ih_l0}
    pairs = [(getattr(model.parameters, name)[...], theirs) for name, theirs in recurrent.items()]
    for ours, theirs in ((model.embed, torch.nn.Linear(24, 256)), (model.output, torch.nn.Linear(256, 24))):
        pairs += [(ours.kernel[...], theirs.weight), (ours.bias[...], theirs.bias)]
    for ours, theirs in pairs:
        theirs = theirs.detach().numpy()
        few = 1 / np.sqrt(ours.size)
        assert np.std(ours) == pytest.approx(np.std(theirs), rel=4 * few)
        assert np.max(np.abs(ours)) == pytest.approx(np.max(np.abs(theirs)), rel=8 * few)
        assert abs(np.mean(ours)) < 4 * few * np.std(theirs)


def test_the_stack_of_keras_is_one_command():
    arguments = documented("repeat_vector")
    guide = (Path(__file__).parents[2] / "docs/guide.md").read_text()
    assert f"`{' '.join(arguments)}`" in " ".join(guide.split())
    config = tyro.cli(Config, args=arguments)
    series = seasonal_series(days=9)
    table = parts_of(
        config, series._replace(columns=("y",), values=series.values[:, :1], observed=series.observed[:, :1])
    ).table
    model = forecasting.build_model(config, *forecasting.sizes_of(table))
    shapes = {"/".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    gru = {"b": (60,), "b_n": (20,), "u": (20, 60)}
    layers = {"encoder": {"w": (1, 60), **gru}, "decoder": {"w": (20, 60), **gru}}
    want = {f"{name}/layers/0/0/{leaf}": shape for name, of in layers.items() for leaf, shape in of.items()}
    want |= {"norm/scale": (20,), "norm/bias": (20,), "output/kernel": (20, 1), "output/bias": (1,)}
    assert shapes == want
    assert (config.head.name, config.optimizer, config.window_scaling) == ("squared_error", "adam", "none")


def test_what_is_known_of_each_series_is_read(tmp_path, capsys):
    static = tmp_path / "static.csv"
    static.write_text("series,area\nnorth,1\nmiddle,2\nsouth,4\nhour,0\n")
    path = own_csv(tmp_path / "own.csv", 9)
    flags = ["--csv", path, "--static-csv", static]
    with pytest.raises(SystemExit, match="--static-csv: expected it with --series each, got it with joint"):
        call(*SMALL, "--runs-dir", tmp_path, *flags)
    call(*SMALL, "--runs-dir", tmp_path, *flags, "--series", "each", "--split", "validation")
    result = json.loads((tmp_path / "forecasting/default/result.json").read_text())
    assert (result["split"].split(",")[0], result["test_reads"]) == ("validation", 0)
    assert all(name.endswith("_validation") for name in result["metrics"])
    printed = capsys.readouterr().out
    assert "No mase of hour: in training each repeats exactly after 24 steps, stands still, or has no two values" in printed
    assert result["details"]["without_mase"] == ["hour"]
    assert {"mase_validation"} == {name for name in result["metrics"] if "mase" in name}
    assert all("mase" in of_name for of_name in result["details"]["baselines"]["validation"].values())
    static.write_text(static.read_text().replace("4", "5"))
    with pytest.raises(SystemExit, match="expected the data that the run was trained on"):
        call("evaluate", "--runs-dir", tmp_path)
    static.unlink()  # of a prediction the run has what it needs
    call("predict", path, "--runs-dir", tmp_path)
    assert (tmp_path / "forecasting/default/forecast_own.csv").exists()


def test_what_is_known_ahead_is_read_beyond_the_targets(tmp_path, capsys):
    path = own_csv(tmp_path / "own.csv", 9)
    known = ["--csv", path, "--known-covariates", "hour", "--distribution", "quantiles"]
    call(*SMALL, "--runs-dir", tmp_path, *known)
    with pytest.raises(SystemExit, match="expected hour for 6 steps ahead, got 0"):
        call("predict", path, "--runs-dir", tmp_path)
    ahead = own_csv(tmp_path / "ahead.csv", 5, missing=6)
    rows = ahead.read_text().splitlines()
    ahead.write_text("\n".join([*rows[:50], rows[50].replace(rows[50].split(",")[1], "?"), *rows[51:]]) + "\n")
    with pytest.raises(SystemExit, match=r"ahead\.csv:51: no number in north"):  # as in the training
        call("predict", ahead, "--runs-dir", tmp_path)
    capsys.readouterr()
    call("predict", ahead, "--runs-dir", tmp_path, "--bad-rows", "repair")
    printed = capsys.readouterr().out
    found = tmp_path / "forecasting/default/findings_ahead.txt"
    assert printed.startswith(f"Found: ahead, line 51: no number in north\nall are in {found}\n")
    assert printed.count("no number") == 1  # what is to be forecast is not missed
    rows = list(csv.DictReader((tmp_path / "forecasting/default/forecast_ahead.csv").read_text().splitlines()))
    assert rows[0]["date"] == "2020-01-05 18:00:00"
    assert len(rows) == 6


def test_dates_with_a_time_zone_and_findings_are_kept(tmp_path, capsys):
    path = own_csv(tmp_path / "own.csv", 9)
    header, *rows = path.read_text().splitlines()
    rows = [",".join([row.split(",")[0] + "+02:00", *row.split(",")[1:]]) for row in rows]
    kept = [row for number, row in enumerate(rows) if number % 20 != 10]
    path.write_text("\n".join([header, *kept]) + "\n")
    call(*SMALL, "--runs-dir", tmp_path, "--csv", path, "--bad-rows", "repair", "--split", "validation")
    folder = tmp_path / "forecasting/default"
    lines = (folder / "findings.txt").read_text().splitlines()
    assert (len(lines), sum("1 steps of 1 hour are missing before" in line for line in lines)) == (12, 11)
    assert f"and 7 more; all are in {folder / 'findings.txt'}\n" in capsys.readouterr().out
    assert json.loads((folder / "result.json").read_text())["details"]["findings"] == 12
    call("predict", path, "--runs-dir", tmp_path, "--bad-rows", "repair")
    assert "6 steps from 2020-01-10 00:00:00+02:00 on are in" in capsys.readouterr().out
    said = list(csv.DictReader((folder / "forecast_own.csv").read_text().splitlines()))
    assert [row["date"] for row in said] == [f"2020-01-10 0{hour}:00:00+02:00" for hour in range(6)]
    assert (folder / "findings_own.txt").read_text() == (folder / "findings.txt").read_text()
    path.write_text("\n".join([header, *rows]).replace("+02:00", "") + "\n")
    with pytest.raises(
        SystemExit, match=r"own\.csv: expected dates with a time zone, in UTC, as in the training, got dates without"
    ):
        call("predict", path, "--runs-dir", tmp_path)


def test_bad_rows_and_flags_that_do_not_fit(tmp_path, capsys):
    path = own_csv(tmp_path / "own.csv", 9, missing=2)
    with pytest.raises(SystemExit, match=r"own.csv:216: no number in north"):
        call(*SMALL, "--runs-dir", tmp_path, "--csv", path)
    for flags, message in (
        (("--distribution", "negative_binomial"), "--window-scaling: expected mean with counts"),
        (("--distribution", "negative_binomial", "--window-scaling", "mean"), "distribution: expected whole numbers from 0"),
        (("--goal", "min:mse"), "--goal: expected one of the metrics loss, got 'mse'"),
        (("--look-back", "500"), "--look-back, --horizon: expected at least 506 rows in the training part, .*, got 130 of 216"),
        (("--horizon", "44"), "--horizon: expected at least 44 rows in the validation part, .*, got 43 of 216"),
    ):
        with pytest.raises(SystemExit, match=message):
            call(*SMALL, "--runs-dir", tmp_path, *flags)
    assert "Batches" not in capsys.readouterr().out  # the summary, with which a training begins


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"model": "segments", "segment": 5},
            "horizon, segment: expected multiples of the segment of 5 steps, got 96 and 24",
        ),
        ({"model": "segments", "segment": 6, "look_back": 25}, "expected multiples of the segment of 6 steps, got 25 and 24"),
        (
            {"model": "segments", "series": "each"},
            "series: expected it with repeat_vector, attention, autoregressive, got it with",
        ),
        (
            {"model": "autoregressive", "past_covariates": ("a",)},
            "past_covariates: expected it with repeat_vector, attention",
        ),
        ({"model": "repeat_vector", "cell": "rnn"}, "cell: expected it with attention, autoregressive, segments, got it with"),
        ({"model": "repeat_vector", "dropout": 0.9}, "dropout: expected it with attention"),
        ({"segment": 5}, "segment: expected it with segments, got it with attention"),
        ({"model": "segments", "calendar": False}, "calendar: expected no --no-calendar with segments, which reads the series"),
        ({"dropout": 1.5}, r"^dropout: expected a rate in \[0, 1\), got 1.5"),
        ({"csv": Path("a.csv"), "dataset": "ett"}, "csv: expected --dataset files with it, got --dataset ett"),
    ],
)
def test_flags_that_contradict_each_other(flags, message):
    with pytest.raises(ValueError, match=message):
        Config(**flags)


def test_published_figures_are_of_etth1_alone():
    seven = tuple("abcdefg")

    def published(targets, look_back, horizon, **data):
        return forecasting.published_of(Config(look_back=look_back, horizon=horizon, **(data or {"dataset": "ett"})), targets)

    first = published(seven, 96, 336)[0]
    assert (first["metric"], first["value"], first["how"]) == ("mse", 0.444, "SegRNN")
    assert {row["how"] for row in published(("OT",), 48, 24)} == {"LSTMa", "DeepAR", "Informer"}
    assert {row["how"] for row in published(seven, 48, 336)} == {"LSTMa", "LSTNet", "Informer"}
    for covariates in ({"past_covariates": ("HUFL",)}, {"known_covariates": ("HUFL",)}):
        assert published(("OT",), 48, 24, dataset="ett", **covariates) == []
    assert published(("HUFL",), 96, 24) == published(seven, 96, 336, csv=Path("etth1.csv")) == []


def test_what_was_filled_in_of_the_past_is_not_drawn():
    series = seasonal_series(days=9)
    series.observed[30, 1] = False
    config, values = Config(look_back=24, horizon=6), series.values[None]
    said = ForecastBatch(np.array([48]), values[:, 24:48], *(values[:, 48:54],) * 4, np.zeros((1, 1, 6, 3)))
    scaler = Scaler(np.zeros(3), np.ones(3))
    for column in range(3):
        drawn = forecasting.panel(config, series, series.columns, scaler, said, 0, column)
        assert np.flatnonzero(np.isnan(drawn["history"])).tolist() == ([6] if column == 1 else [])
        np.testing.assert_array_equal(np.delete(drawn["history"], 6), np.delete(values[0, 24:48, column], 6))
