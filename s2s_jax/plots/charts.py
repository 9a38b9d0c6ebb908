"""Numbers by name: bars, spreads over seeds, lines with intervals, curves on logarithmic axes."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from s2s_jax.plots.axes import COLORS, legend, percent, quiet, subplots, wrapped

_MARKERS = ("o", "s", "^", "D", "v", "P")  # beside the colours, for those who see none


def bars(labels: Sequence[str], values: Sequence[float], *, xlabel: str, ylabel: str, title: str) -> Any:
    """A bar for each label, with its value written over it; values are fractions from 0 to 1.

    Raises:
      ValueError: not one value for each label, or a value that is no such fraction.
    """
    if len(labels) != len(values) or not all(0 <= value <= 1 for value in values):
        raise ValueError(f"values: expected {len(labels)} fractions from 0 to 1, one for each label, got {list(values)}")
    figure, ((axes,),) = subplots(1, 1, (max(4.0, 0.9 * len(labels) + 2), 3.6))
    drawn = axes.bar(labels, values, color="tab:blue", width=0.6)
    axes.bar_label(drawn, [f"{value:.1%}" for value in values], padding=2)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=wrapped(title, figure), ylim=(0, 1.12))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(percent())
    quiet(axes)
    return figure


def spread(
    lines: Mapping[str, Mapping[float, Sequence[float]]], *, xlabel: str, ylabel: str, title: str, logarithmic: bool = True
) -> Any:
    """A line for each name through the means of the values at each place; every value is a dot, and the values span a band.

    The figure says so itself, and how many values each line is of.

    Args:
      lines: {name: {place: values, one for each run}}; values are fractions from 0 to 1.
      xlabel, ylabel, title: of the figure.
      logarithmic: whether places are drawn by their logarithm.
    """
    figure, ((axes,),) = subplots(1, 1, (8.4, 4.2))
    looks = zip(itertools.cycle(COLORS), itertools.cycle(_MARKERS), sorted(lines.items()), strict=False)
    for color, marker, (name, by_place) in looks:
        counts = sorted(set(map(len, by_place.values())))
        seeds = f", {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} seeds" if counts[-1] > 1 else ""
        draw_spread(axes, by_place, name + seeds, color, marker)
        if counts[-1] > 1:
            dots = [(place, value) for place, values in by_place.items() for value in values]
            axes.scatter(*zip(*dots, strict=True), color=color, s=12, alpha=0.5, zorder=3)
    places = sorted({place for by_place in lines.values() for place in by_place})
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:,}" for place in places])
    axes.minorticks_off()
    axes.set(xlabel=xlabel, ylabel=ylabel, title=wrapped(title, figure))
    axes.yaxis.set_major_formatter(percent())
    several = any(len(values) > 1 for by_place in lines.values() for values in by_place.values())
    told = "line: mean over seeds; small dots: each seed\nband: from the lowest seed to the highest" if several else None
    legend(axes, title=told, title_fontsize="small", alignment="left")
    quiet(axes)
    return figure


def lines(
    values: Mapping[str, Sequence[float]],
    intervals: Mapping[str, Sequence[tuple[float, float]]],
    places: Sequence[str],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    fractions: bool,
) -> Any:
    """A line for each name through its values, one for each place, and at each value a bar from end to end of its interval.

    Args:
      values: {name: [values]}.
      intervals: {name: [(lower end, upper end)]}.
      places: labels along the horizontal axis.
      xlabel, ylabel, title: of the figure.
      fractions: whether values are fractions from 0 to 1, shown as per cent.
    """
    several = len(values) > 1
    figure, ((axes,),) = subplots(1, 1, (max(6.4, 1.1 * len(places) + 1) + 1.6 * several, 4.4))
    looks = zip(itertools.cycle(COLORS), itertools.cycle(_MARKERS), values.items(), strict=False)
    for number, (color, marker, (name, heights)) in enumerate(looks):
        # Side by side, so that no bar hides another.
        across = [place + 0.07 * (number - (len(values) - 1) / 2) for place in range(len(places))]
        axes.plot(across, heights, marker=marker, markersize=5, color=color, label=name)
        axes.vlines(across, *zip(*intervals[name], strict=True), color=color, linewidth=1.2, alpha=0.7)
    axes.set_xticks(range(len(places)), places)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=wrapped(title, figure))
    axes.set_ylim(bottom=0)
    if fractions:
        top = max([*itertools.chain(*values.values()), *(end for ends in intervals.values() for _, end in ends)])
        axes.set_ylim(-0.03 * top, min(1.03, 1.1 * top) or 1.03)  # to 100 % where anything comes near it
        axes.yaxis.set_major_formatter(percent())
    if several:
        legend(axes)
    quiet(axes)
    return figure


def curves(values: Mapping[str, Mapping[float, float]], *, xlabel: str, ylabel: str, title: str) -> Any:
    """A line for each name through its points {x: y}, both axes logarithmic.

    Raises:
      ValueError: a number that is not above 0, and so has no place there.
    """
    for name, points in values.items():
        if wrong := [number for point in points.items() for number in point if not number > 0]:
            raise ValueError(f"values[{name!r}]: expected numbers above 0, got {wrong[0]}")
    figure, ((axes,),) = subplots(1, 1, (6.4, 4.4))
    looks = zip(itertools.cycle(COLORS), itertools.cycle(_MARKERS), values.items(), strict=False)
    for color, marker, (name, points) in looks:
        axes.loglog(list(points), list(points.values()), marker=marker, markersize=5, color=color, label=name)
    places = sorted({x for points in values.values() for x in points})
    axes.set_xticks(places, [f"{place:,g}" for place in places])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,g}")
    axes.set(xlabel=xlabel, ylabel=ylabel, title=wrapped(title, figure))
    legend(axes)
    quiet(axes)
    return figure


def draw_spread(axes: Any, values: Mapping[float, Sequence[float]], label: str, color: str, marker: str | None = "o") -> None:
    """The means at each place, and a band from the smallest to the greatest value."""
    places = sorted(values)
    means = [sum(values[place]) / len(values[place]) for place in places]
    axes.plot(places, means, marker=marker, markersize=4, color=color, label=label)
    least, most = ([extreme(values[place]) for place in places] for extreme in (min, max))
    if least != most:
        axes.fill_between(places, least, most, color=color, alpha=0.2, linewidth=0)
