"""Losses and validation metrics of a training, of one seed or of several."""

import itertools
from collections.abc import Sequence
from typing import Any

from s2s_jax.plots.axes import COLORS, legend, percent, quiet, subplots, wrapped
from s2s_jax.plots.charts import draw_spread

_RATES = tuple(digit * 10.0**power for power in range(-5, 1) for digit in (1, 2, 5) if digit * 10.0**power <= 1)


def learning_curve(
    histories: Sequence[Sequence[dict[str, float]]], metrics: Sequence[str], title: str, *, unit: str = "nats"
) -> Any:
    """Training and validation loss against the step, and below it validation metrics, if there are any.

    Args:
      histories: for each seed the lines of its metrics.jsonl, such as {"step": 10, "train/loss": 0.7, "validation/loss": 0.8};
        see `Run.history`. Of several the mean is drawn, in a band from the smallest value to the greatest.
      metrics: names of the validation metrics to draw, fractions from 0 to 1; those that no seed has are left out. Where all
        of them fall to less than a fifth, as error rates do, their axis is logarithmic.
      title: over the figure.
      unit: of the loss, whose axis is logarithmic where all of it is above 0.

    Raises:
      ValueError: there are lines, but none has a loss or one of the metrics.
    """
    below_it = {name: values for name in metrics if (values := _by_step(histories, f"validation/{name}"))}
    losses_of = {name: _by_step(histories, f"{name}/loss") for name in ("train", "validation")}
    found = sorted({name for history in histories for line in history for name in line})
    if found and not below_it and not any(losses_of.values()):
        raise ValueError(f"histories: expected lines with train/loss or validation/loss, got {', '.join(found)}")
    panels = 2 if below_it else 1
    figure, axes = subplots(panels, 1, (8, 2.75 * panels), sharex=True)
    above, below = axes[0, 0], axes[-1, 0]
    seeds = f", mean of up to {len(histories)} seeds" if len(histories) > 1 else ""
    for name, label, color in (("train", "training", "tab:gray"), ("validation", "validation", "tab:blue")):
        if losses := losses_of[name]:
            draw_spread(above, losses, label + seeds, color, "o" if name == "validation" or len(losses) < 3 else None)
    positive = all(low > 0 for line in above.get_lines() for low in line.get_ydata())
    above.set(yscale="log" if positive else "linear", ylabel=f"loss ({unit})", title=wrapped(title, figure))
    above.set_xlim(left=0)
    if above.has_data():
        legend(above)
        if positive:
            _plain_ticks(above)
    if below_it:
        for (name, values), color in zip(below_it.items(), itertools.cycle(COLORS), strict=False):
            draw_spread(below, values, name.replace("_", " ") + seeds, color)
        means = [[sum(values[step]) / len(values[step]) for step in sorted(values)] for values in below_it.values()]
        if all(min(values) > 0 and values[-1] < 0.2 and values[-1] < values[0] for values in means):
            lowest = min(min(map(min, values.values())) for values in below_it.values())
            ticks = [tick for tick in _RATES if tick > 0.7 * lowest]
            below.set(yscale="log", ylim=(0.8 * lowest, 1.1))
            below.set_yticks(ticks, [f"{tick:.3g} %" for tick in (100 * tick for tick in ticks)])
            below.minorticks_off()
        else:
            below.set(ylim=(-0.03, 1.03))
            below.yaxis.set_major_formatter(percent())
        if len(below_it) > 1:
            below.set(ylabel="validation")
            legend(below)
        else:
            below.set(ylabel=f"validation {next(iter(below_it)).replace('_', ' ')}")
    below.set(xlabel="step")
    _whole_numbers(below.xaxis)
    quiet(*axes.flat)
    return figure


def _by_step(histories: Sequence[Sequence[dict[str, float]]], name: str) -> dict[float, list[float]]:
    """{step: a value of each seed that has one there}."""
    values: dict[float, list[float]] = {}
    for history in histories:
        for line in history:
            if name in line:
                values.setdefault(line["step"], []).append(line[name])
    return values


def _plain_ticks(axes: Any) -> None:
    """Plain numbers along a logarithmic axis, and some of them however little of it is shown."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    low, high = axes.get_ylim()
    small = LogLocator(subs=(1, 2, 5)) if high / low < 1000 else LogLocator()
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]) if high / low < 10 else small)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    axes.minorticks_off()


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
