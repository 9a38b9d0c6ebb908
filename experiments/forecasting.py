r"""A network learns to forecast series: classic encoder-decoders, probabilistic DeepAR, and recurrence over segments.

    python -m experiments.forecasting            generated series: MSE 0.022, least squares 0.028 (seed 0, 2 minutes on 2 cores)
    python -m experiments.forecasting --dataset ett --data-dir FOLDER --targets OT      ETTh1, where FOLDER holds ett
    python -m experiments.forecasting --dataset airline-passengers --data-dir FOLDER --look-back 24 --horizon 12
            this, monthly-sunspots, and daily-min-temperatures (--bad-rows repair), where FOLDER holds small_series
    python -m experiments.forecasting --csv own.csv --look-back 48 --horizon 12 --name own   a csv file of your own
    python -m experiments.forecasting predict own.csv --name own               what comes next, as csv and picture
    python -m experiments.forecasting --model repeat_vector --hidden-features 20 --distribution squared_error --no-calendar \
            --window-scaling none --schedule constant --warmup-steps 0 --clip 0 --learning-rate 1e-3
            the stack of Keras' tutorials: noise of 0.01, GRU of relu, repeat vector, GRU of relu, batch norm, and a linear
            layer for each step, trained by Adam on the squared error
    python -m experiments.forecasting --data-dir FOLDER --dataset ett --model segments --cell gru --dropout 0.5 \
            --batch-size 256 --look-back 96 --distribution squared_error --hidden-features 512 --segment 24 \
            --learning-rate 1e-3 --warmup-steps 0 --clip 0 --steps 990 --evaluate-every 33 --patience 10 --horizon 96 \
    --schedule "exponential_decay(init_value=1e-3, transition_steps=33, decay_rate=0.8, transition_begin=99, staircase=True)"
            SegRNN as it is published: MSE 0.36 of all seven series of ETTh1 (7 to 30 minutes on one core)

Every window of the test part is scored, those that overlap too, and each step ahead counts alike. Series are standardised by
the training part, but counts are not; `mse`, `mae` and `crps` are of standardised values, as published figures are. `mase`
divides by the error of the seasonal naive forecast within the training part, and leaves out, by name, series that repeat
exactly there, stand still, or have no two values a season apart; `smape` is of the values as they come, 0 to 2;
`coverage` is the share of true values between the quantiles 0.1 and 0.9. Beside them: the last value, the last season, and
least squares (NLinear). Of the autoregressive model the loss in training is of past and future, in validation of the future.
"""

import csv
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from flax import nnx

from s2s_jax import cells, plots, published
from s2s_jax.data.calendar import Step, Zone, as_written
from s2s_jax.data.pipeline import Batches
from s2s_jax.data.series import Series, keep_findings
from s2s_jax.data.series_sets import (
    Parts,
    RowFlags,
    SeriesFlags,
    check_dates,
    fingerprint,
    load_series,
    parts_of,
    read_own,
    table_of,
    targets_of,
    with_steps_ahead,
)
from s2s_jax.data.windows import Scaler, Scaling, Table
from s2s_jax.distributions import DISTRIBUTIONS, Distribution
from s2s_jax.files import read_json, write_json
from s2s_jax.metrics import Mean
from s2s_jax.models.autoregressive_forecaster import AutoregressiveForecaster
from s2s_jax.models.backtest import ForecastBatch, ForecastTask, forecast_windows, score_windows
from s2s_jax.models.forecaster import AttentionForecaster, RepeatVectorForecaster, Sizes
from s2s_jax.models.segment_forecaster import SegmentForecaster
from s2s_jax.training import checkpoint
from s2s_jax.training.command import main
from s2s_jax.training.config import ScoredSplit
from s2s_jax.training.loop import make_measure
from s2s_jax.training.recipe import TrainingConfig, train_by_recipe
from s2s_jax.training.run import Run
from s2s_jax.training.state import count_parameters

LOW, HIGH = 0.1, 0.9  # quantiles of the interval
LAYERED = ("attention", "autoregressive")
# Which models take which flags; the others take none of them.
TAKEN_BY = {
    "num_layers": LAYERED,
    "segment": ("segments",),
    **dict.fromkeys(("cell", "dropout"), (*LAYERED, "segments")),
    **dict.fromkeys(("series", "known_covariates"), ("repeat_vector", *LAYERED)),
    "past_covariates": ("repeat_vector", "attention"),
}
# SegRNN is trained with PyTorch's first weights: all within ±1 / sqrt(units), biases too, none of them 1.
_UNIFORM: Any = dict.fromkeys(("kernel_init", "recurrent_init", "bias_init"), "uniform")
_DRAWN_AS_PUBLISHED = {
    "rnn": cells.make_rnn(**_UNIFORM),
    "lstm": cells.make_lstm(**_UNIFORM, forget_bias=0.0),
    "gru": cells.make_gru(**_UNIFORM),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """How a probabilistic model forecasts."""

    samples: int = 100
    """Futures that are drawn for each window."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored(ScoredSplit, Drawing):
    """What `evaluate` scores."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Drawing, SeriesFlags, TrainingConfig):
    steps: int = 400
    series: Literal["joint", "each"] = "joint"
    """All columns in one window, or each by itself by one network that is told which it is."""
    window_scaling: Scaling = "last"
    """What each window is brought to: as it is, less its last value, over its mean size, or mean 0 and deviation 1."""
    model: Literal["repeat_vector", "attention", "autoregressive", "segments"] = "attention"
    """Encoder and decoder of Keras' tutorials, with attention, DeepAR, or SegRNN."""
    distribution: Literal["squared_error", "absolute_error", "gaussian", "student_t", "negative_binomial", "quantiles"] = (
        "gaussian"
    )
    """What is said of each step, and the loss."""
    cell: cells.Name = "lstm"
    """Recurrent cell; of the repeat vector always a GRU of relu."""
    hidden_features: int = 64
    """Width of the state."""
    num_layers: int = 1
    """Recurrent layers of attention and autoregressive."""
    segment: int = 12
    """Steps of a segment."""
    dropout: float = 0.1
    """Between layers and before the last one; not of the repeat vector, which has noise instead."""
    batch_size: int = 64
    """Windows in a step."""
    learning_rate: float = 3e-3
    evaluate_every: int = 100
    goal: str | None = "min:loss"

    may_be_zero: ClassVar[tuple[str, ...]] = TrainingConfig.may_be_zero
    places: ClassVar[tuple[str, ...]] = (*TrainingConfig.places, "csv", "static_csv")
    flags_of: ClassVar[Mapping[str, tuple[type, ...]]] = {
        "train": (ScoredSplit,),
        "evaluate": (Scored,),
        "predict": (Drawing, RowFlags),
    }
    taken_by: ClassVar[Mapping[str, tuple[str, ...]]] = TAKEN_BY
    validated: ClassVar[tuple[str, ...]] = ("loss",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model == "segments" and not self.calendar:
            raise ValueError("calendar: expected no --no-calendar with segments, which reads the series alone, got it")
        if self.model == "segments" and (self.look_back % self.segment or self.horizon % self.segment):
            expected = f"multiples of the segment of {self.segment} steps"
            raise ValueError(f"look_back, horizon, segment: expected {expected}, got {self.look_back} and {self.horizon}")

    @property
    def head(self) -> Distribution:
        return DISTRIBUTIONS[self.distribution]

    @property
    def task(self) -> ForecastTask:
        options: dict[str, Any] = {"window_scaling": self.window_scaling, "split_series": self.series == "each"}
        return ForecastTask(self.look_back, self.horizon, self.head, **options, covariates=self.model != "segments")


def build_model(config: Config, series: int, covariates: int, known: int, static: int) -> Any:
    """For so many series, covariates, of which some are known ahead, and numbers that describe a series."""
    if config.head.counts and config.window_scaling != "mean":
        raise ValueError(f"window_scaling: expected mean with counts, got {config.window_scaling}")
    if not config.task.covariates:
        covariates = known = 0
    each = config.series == "each"
    if static and not each:
        raise ValueError(f"static_csv: expected it with --series each, got it with {config.series}")
    static = series + static if each else 0  # which series it is, and what is known of it
    sizes = Sizes(1 if each else series, config.horizon, covariates, known, static, config.head.features)
    rngs, cell = nnx.Rngs(config.seed), cells.BY_NAME[config.cell]
    if config.model == "repeat_vector":
        return RepeatVectorForecaster(sizes, config.hidden_features, rngs=rngs)
    options: dict[str, Any] = {"cell": cell, "dropout": config.dropout, "rngs": rngs}
    if config.model == "segments":
        options["cell"] = _DRAWN_AS_PUBLISHED.get(config.cell, cell)
        return SegmentForecaster(sizes, config.hidden_features, segment=config.segment, **options)
    make = AttentionForecaster if config.model == "attention" else AutoregressiveForecaster
    return make(sizes, config.hidden_features, num_layers=config.num_layers, **options)


def loss(config: Config, table: Table, model: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, Mean]]:
    found = config.task.loss(table, model, batch, training=True, key=key)
    return found.loss(), {"loss": found}


def measure(config: Config, table: Table, model: Any, batch: Any) -> dict[str, Mean]:
    return {"loss": config.task.loss(table, model, batch)}


def train(run: Run[Config]) -> None:
    config = run.config
    series = load_series(config, config.data_dir)
    if config.origin == "generated":
        run.say("No data set named: trains on generated series, whose figures say nothing about measured ones.")
    parts = parts_of(config, series, scaled=not config.head.counts)
    model = build_model(config, *sizes_of(parts.table))
    if config.head.counts and ((parts.table.values < 0) | (parts.table.values % 1 != 0)).any():
        raise ValueError(f"distribution: expected whole numbers from 0 in the targets with {config.distribution}")
    run.trained_on(series.name, config.origin, fingerprint(series, parts.table.static))
    run.say(f"{series.name}: {len(series.dates)} steps of {series.step} from {series.dates[0]}, {', '.join(series.columns)}")
    if run.writes:
        scaler = {name: leaf.tolist() for name, leaf in parts.scaler._asdict().items()}
        static = None if parts.table.static is None else parts.table.static.tolist()
        kept = {"columns": series.columns, "step": series.step, "cycles": parts.cycles, "static": static, "zone": series.zone}
        write_json(run.folder / "series.json", kept | scaler)
        if told := keep_findings(series, run.folder / "findings.txt"):
            run.say(told)
    windows = config.task.origins(0, parts.train)
    if (count := len(windows["origin"])) < config.batch_size:
        run.say(
            f"Only {count} windows of {config.look_back} + {config.horizon} steps to train on, less than a batch of "
            f"{config.batch_size}: a shorter --look-back or --horizon gives more."
        )
    measure_over = make_measure(functools.partial(measure, config, parts.table))
    validated = config.task.in_order(parts.table, parts.train, parts.validation, samples=1)
    trained = train_by_recipe(
        run,
        model,
        functools.partial(loss, config, parts.table),
        Batches(windows, config.batch_size, seed=config.seed),
        lambda model: measure_over(model, validated),
    )
    report(run, trained.model, series, parts)


def sizes_of(table: Table) -> tuple[int, int, int, int]:
    return table.values.shape[1], table.covariates.shape[1], table.known, 0 if table.static is None else table.static.shape[1]


def report(run: Run[Config], model: Any, series: Series, parts: Parts) -> None:
    """Scores all windows of the splits beside the baselines, draws, and writes result.json."""
    splits, targets = run.flags.splits, targets_of(run.config, series)
    config, task = run.config, run.config.task
    ends = {"validation": (parts.train, parts.validation), "test": (parts.validation, parts.test)}
    metrics: dict[str, float] = {}
    baselines: dict[str, Any] = {}
    count, shown, without_mase = 0, list[ForecastBatch](), list[str]()
    for split in splits:
        plan = task.in_order(parts.table, *ends[split], config.samples)
        said = forecast_windows(task, model, parts.table, plan, samples=config.samples, levels=(LOW, HIGH), seed=config.seed)
        scored = score_windows(task, said, parts.table, parts.train, parts.scaler.of(parts.targets), parts.season)
        found, shown = scored.scores, scored.shown
        count = len(task.origins(*ends[split])["origin"])
        run.say(f"\n{split}, {count} windows of {series.name} ({config.origin}), {task.length} steps to {task.horizon}:")
        names = list(found["model"])
        run.say(f"{'':<16}" + "".join(f"{name:>10}" for name in names))
        for name, of_name in found.items():
            told = "".join(f"{of_name[metric]:10.4f}" if metric in of_name else f"{'':>10}" for metric in names)
            run.say(f"{config.model if name == 'model' else name:<16}{told}")
        if without_mase := [targets[column] for column in scored.without_mase]:
            why = (
                f"in training each repeats exactly after {parts.season} steps, stands still, or has no two values so far apart"
            )
            run.say(f"No mase of {', '.join(without_mase)}: {why}.")
        suffix = "" if split == "test" else f"_{split}"
        metrics |= {f"{metric}{suffix}": value for metric, value in found.pop("model").items()}
        baselines[split] = found
    result = run.finish(
        split=f"{splits[-1]}, all {count} windows",
        metrics=metrics,
        published=published_of(config, targets),
        examples_per_step=config.batch_size,
        reads_test="test" in splits,
        parameters=count_parameters(model),
        details={"baselines": baselines, "without_mase": without_mase, "findings": len(series.findings)},
    )
    if not run.changed:
        draw(run, series, parts, shown)
    run.say_end(result)


def published_of(config: Config, targets: tuple[str, ...]) -> list[published.Published]:
    """What is known of ETTh1, of OT alone or of all seven, read by themselves."""
    if config.dataset != "ett" or config.covariates or (targets != ("OT",) and len(targets) != 7):
        return []
    return published.etth1(len(targets), config.look_back, config.horizon)


def draw(run: Run[Config], series: Series, parts: Parts, shown: list[ForecastBatch]) -> None:
    """Learning curve, and forecasts of the last series at the beginning and the end of the last part."""
    config = run.config
    title = f"{series.name}, {config.model}, {config.distribution.replace('_', ' ')}"
    units = {"squared_error": "squared", "absolute_error": "absolute", "quantiles": "quantile loss"}
    unit = units.get(config.distribution, "nats")
    run.figure("learning_curve", plots.learning_curve([run.history()], (), title, unit=unit))
    last = len(parts.targets) - 1  # what is of interest stands last, ETTh1's OT say
    names, scaler = targets_of(config, series), parts.scaler.of(parts.targets)
    panels = [panel(config, series, names, scaler, said, row, last) for said, row in ((shown[0], 0), (shown[-1], -1))]
    run.figure("forecasts", plots.forecasts(panels, title=f"{title}{interval_name(config)}"))


def interval_name(config: Config) -> str:
    return f"; interval of {HIGH - LOW:.0%}" if not config.head.point else ""


def panel(
    config: Config, series: Series, names: tuple[str, ...], scaler: Scaler, said: ForecastBatch, row: int, column: int
) -> dict[str, Any]:
    """What `plots.forecasts` draws of a target in a window, in its own units; `names` and `scaler` are of all targets.

    What was filled in of the past is left out.
    """
    back, origin = scaler.of([column]).back, int(said.origins[row])
    there = series.observed[origin - config.look_back : origin, series.columns.index(names[column])]
    truth = back(said.truth[row, :, column])
    dates, _ = as_written(series.dates[origin - config.look_back : origin + config.horizon], series.zone)
    return {
        "dates": dates,
        "history": np.where(there, back(said.past[row, :, column]), np.nan),
        "mean": back(said.mean[row, :, column]),
        "truth": None if np.isnan(truth).all() else truth,
        "interval": [back(end[row, :, column]) for end in (said.low, said.high)] if not config.head.point else None,
        "title": f"{names[column]}, forecast from {str(dates[config.look_back].item()).removesuffix(' 00:00:00')} on",
    }


def load(run: Run[Config], table: Table) -> Any:
    model = build_model(run.config, *sizes_of(table))
    checkpoint.load_weights(run.weights, model)
    return model


def evaluate(run: Run[Config]) -> None:
    config = run.config
    series = load_series(config, config.data_dir)
    parts = parts_of(config, series, scaled=not config.head.counts)
    run.trained_on(series.name, config.origin, fingerprint(series, parts.table.static))
    report(run, load(run, parts.table), series, parts)


def predict(run: Run[Config], inputs: list[str]) -> None:
    """Forecasts what comes after csv files: a csv and a picture of each in the run's folder, both named after it.

    Columns are found by name; others may stand beside them. Those that are known ahead have to go on beyond the
    targets, whose cells are empty there. Dates are written as a file writes its own, see `as_written`.
    """
    if not inputs:
        raise ValueError("expected at least one csv file")
    config = run.config
    stems = [Path(name).name.split(".")[0] for name in inputs]
    if len(set(stems)) < len(stems):
        raise ValueError(f"expected files of different names, which those of the forecasts bear, got {', '.join(inputs)}")
    for stem, name in zip(stems, inputs, strict=True):
        series, table, scaler, origin = extended(run, name)
        names = targets_of(config, series)
        model = load(run, table)
        plan = Batches({"origin": np.array([origin], np.int32)}, 1, seed=None)
        (said,) = forecast_windows(
            config.task, model, table, plan, samples=config.samples, levels=(LOW, HIGH), seed=config.seed
        )
        panels = [panel(config, series, names, scaler, said, 0, column) for column in range(len(names))]
        path = run.folder / f"forecast_{stem}.csv"
        first, behind = as_written(series.dates[origin], series.zone)
        write(path, panels, names, behind)
        print(f"{name}: {config.horizon} steps from {first.item()}{behind} on are in {path}")
        figure = plots.forecasts(panels, title=f"{Path(name).name}{interval_name(config)}")
        print(f"  drawn in {run.figure(f'forecast_{stem}', figure)}")


def extended(run: Run[Config], name: str) -> tuple[Series, Table, Scaler, int]:
    """The series of a file with room for the steps ahead, its table, the scaler of its targets, and the first step ahead."""
    config, kept = run.config, read_json(run.folder / "series.json")
    series = read_own(config, Path(name), kept["columns"])
    print(keep_findings(series, run.folder / f"findings_{series.name}.txt"), end="")
    zone = kept.get("zone", series.zone)  # of older runs it is not known
    check_dates(series, Step(*kept["step"]), zone and Zone(*zone), name)
    longer, origin = with_steps_ahead(config, series, name)
    targets = [series.columns.index(column) for column in targets_of(config, series)]
    scaler = Scaler(np.array(kept["mean"]), np.array(kept["deviation"]))
    static = None if kept["static"] is None else np.array(kept["static"], np.float32)
    return longer, table_of(config, longer, scaler, kept["cycles"], static), scaler.of(targets), origin


def write(path: Path, panels: list[dict[str, Any]], names: tuple[str, ...], behind: str = "") -> None:
    """A row for each step ahead: its date, and of each series the mean and the ends of the interval, to their last bit.

    `behind` is written behind each date, which then has its hour; see `as_written`.
    """
    dates = panels[0]["dates"][-len(panels[0]["mean"]) :]
    daily = not behind and bool((dates == dates.astype("datetime64[D]")).all())
    told = [f"{date}{behind}" for date in (dates.astype("datetime64[D]") if daily else dates).tolist()]
    header, columns = ["date"], list[np.ndarray]()
    for name, shown in zip(names, panels, strict=True):
        header, columns = [*header, name], [*columns, shown["mean"]]
        if shown["interval"] is not None:
            header, columns = [*header, f"{name} q{LOW}", f"{name} q{HIGH}"], [*columns, *shown["interval"]]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(zip(told, *columns, strict=True))


if __name__ == "__main__":
    main("forecasting", Config, train=train, evaluate=evaluate, predict=predict)
