"""Figures. Each function returns a matplotlib figure; the caller saves it."""

from collections.abc import Mapping, Sequence
from typing import Any

_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")


def learning_curve(history: Sequence[dict[str, float]], metrics: Sequence[str], title: str) -> Any:
    """Training loss (logarithmic), and below it validation metrics, against the step.

    Args:
      history: lines of metrics.jsonl; see `Run.history`.
      metrics: names of the validation metrics to draw, fractions from 0 to 1.
      title: over the figure.
    """
    figure, ((above,), (below,)) = _subplots(2, 1, (7, 5.5), sharex=True)
    steps, losses = _series(history, "train/loss")
    above.plot(steps, losses, color="tab:gray", label="training", marker="o" if len(steps) < 3 else None, markersize=3)
    validation_steps, validation_losses = _series(history, "validation/loss")
    if validation_steps:
        above.plot(validation_steps, validation_losses, marker="o", markersize=3, color="tab:blue", label="validation")
    above.set(yscale="log", ylabel="loss (nats)", title=title)
    above.set_xlim(left=0)
    above.legend(frameon=False)
    for name in metrics:
        steps, values = _series(history, f"validation/{name}")
        below.plot(steps, values, marker="o", markersize=3, label=name.replace("_", " "))
    below.set(xlabel="step", ylabel="validation", ylim=(-0.03, 1.03))
    below.yaxis.set_major_formatter(_percent())
    below.legend(frameon=False, loc="best")
    _quiet(above, below)
    return figure


def bars(labels: Sequence[str], values: Sequence[float], *, xlabel: str, ylabel: str, title: str) -> Any:
    """A bar for each label, with its value written over it; values are fractions from 0 to 1."""
    figure, ((axes,),) = _subplots(1, 1, (max(4.0, 0.9 * len(labels) + 2), 3.6))
    drawn = axes.bar(labels, values, color="tab:blue", width=0.6)
    axes.bar_label(drawn, [f"{value:.1%}" for value in values], padding=2)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title, ylim=(0, 1.12))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(_percent())
    _quiet(axes)
    return figure


def spread(
    lines: Mapping[str, Mapping[float, Sequence[float]]], *, xlabel: str, ylabel: str, title: str, logarithmic: bool = True
) -> Any:
    """A line for each name through the means of the values at each place; every value is a dot, and the values span a band.

    Args:
      lines: {name: {place: values, one for each seed}}; values are fractions from 0 to 1.
      xlabel, ylabel, title: of the figure.
      logarithmic: whether places are drawn by their logarithm.
    """
    figure, ((axes,),) = _subplots(1, 1, (6.4, 4.2))
    for color, (name, by_place) in zip(_COLORS, sorted(lines.items()), strict=False):
        places = sorted(by_place)
        values = [by_place[place] for place in places]
        most = max(map(len, values))
        axes.plot(
            places, [sum(v) / len(v) for v in values], color=color, label=f"{name} (mean of {most})" if most > 1 else name
        )
        axes.fill_between(places, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.15, linewidth=0)
        dots = [(place, value) for place, several in zip(places, values, strict=True) for value in several]
        axes.scatter(*zip(*dots, strict=True), color=color, s=14, zorder=3)
    places = sorted({place for by_place in lines.values() for place in by_place})
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:,}" for place in places])
    axes.minorticks_off()
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.yaxis.set_major_formatter(_percent())
    axes.legend(frameon=False, loc="best")
    _quiet(axes)
    return figure


def images(pictures: Sequence[Any], titles: Sequence[str], *, title: str, columns: int = 8) -> Any:
    """Grey pictures [H, W] in rows, each with a title of its own."""
    rows = max(1, -(-len(pictures) // columns))
    figure, axes = _subplots(rows, columns, (1.15 * columns, 1.4 * rows + 0.5))
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, text in zip(axes.flat, pictures, titles, strict=False):
        axis.imshow(picture, cmap="gray_r", interpolation="nearest")
        axis.set_title(text, fontsize=8)
    figure.suptitle(title)
    return figure


def _series(history: Sequence[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    points = [(line["step"], line[name]) for line in history if name in line]
    return [step for step, _ in points], [value for _, value in points]


def _quiet(*axes: Any) -> None:
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)


def _percent() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1)


def _subplots(rows: int, columns: int, figsize: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """A figure of its own: pyplot would keep it, and choose a backend for the whole program."""
    from matplotlib.figure import Figure  # when first used: slow to import

    figure = Figure(figsize=figsize, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)
