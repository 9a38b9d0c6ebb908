"""Figures. Each function returns a matplotlib figure; the caller saves it."""

import itertools
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")
_RATES = tuple(digit * 10.0**power for power in range(-5, 1) for digit in (1, 2, 5) if digit * 10.0**power <= 1)
_MARKERS = ("o", "s", "^", "D", "v", "P")  # beside the colours, for those who see none


def learning_curve(
    histories: Sequence[Sequence[dict[str, float]]], metrics: Sequence[str], title: str, *, unit: str = "nats"
) -> Any:
    """Training and validation loss against the step, and below it validation metrics, if there are any.

    Args:
      histories: for each seed the lines of its metrics.jsonl; see `Run.history`. Of several the mean is drawn, in a band from
        the smallest value to the greatest.
      metrics: names of the validation metrics to draw, fractions from 0 to 1; those that no seed has are left out. Where all
        of them fall to less than a fifth, as error rates do, their axis is logarithmic.
      title: over the figure.
      unit: of the loss, whose axis is logarithmic where all of it is above 0.
    """
    below_it = {name: values for name in metrics if (values := _by_step(histories, f"validation/{name}"))}
    panels = 2 if below_it else 1
    figure, axes = _subplots(panels, 1, (8, 2.75 * panels), sharex=True)
    above, below = axes[0, 0], axes[-1, 0]
    seeds = f", mean of up to {len(histories)} seeds" if len(histories) > 1 else ""
    for name, label, color in (("train", "training", "tab:gray"), ("validation", "validation", "tab:blue")):
        losses = _by_step(histories, f"{name}/loss")
        if losses:
            _draw_spread(above, losses, label + seeds, color, "o" if name == "validation" or len(losses) < 3 else None)
    positive = all(low > 0 for line in above.get_lines() for low in line.get_ydata())
    above.set(yscale="log" if positive else "linear", ylabel=f"loss ({unit})", title=_wrapped(title, figure))
    above.set_xlim(left=0)
    if above.has_data():
        _legend(above)
        if positive:
            _plain_ticks(above)
    if below_it:
        for (name, values), color in zip(below_it.items(), itertools.cycle(_COLORS), strict=False):
            _draw_spread(below, values, name.replace("_", " ") + seeds, color)
        means = [[sum(values[step]) / len(values[step]) for step in sorted(values)] for values in below_it.values()]
        if all(min(values) > 0 and values[-1] < 0.2 and values[-1] < values[0] for values in means):
            lowest = min(min(map(min, values.values())) for values in below_it.values())
            ticks = [tick for tick in _RATES if tick > 0.7 * lowest]
            below.set(yscale="log", ylim=(0.8 * lowest, 1.1))
            below.set_yticks(ticks, [f"{tick:.3g} %" for tick in (100 * tick for tick in ticks)])
            below.minorticks_off()
        else:
            below.set(ylim=(-0.03, 1.03))
            below.yaxis.set_major_formatter(_percent())
        if len(below_it) > 1:
            below.set(ylabel="validation")
            _legend(below)
        else:
            below.set(ylabel=f"validation {next(iter(below_it)).replace('_', ' ')}")
    below.set(xlabel="step")
    _whole_numbers(below.xaxis)
    _quiet(*axes.flat)
    return figure


def bars(labels: Sequence[str], values: Sequence[float], *, xlabel: str, ylabel: str, title: str) -> Any:
    """A bar for each label, with its value written over it; values are fractions from 0 to 1."""
    figure, ((axes,),) = _subplots(1, 1, (max(4.0, 0.9 * len(labels) + 2), 3.6))
    drawn = axes.bar(labels, values, color="tab:blue", width=0.6)
    axes.bar_label(drawn, [f"{value:.1%}" for value in values], padding=2)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=_wrapped(title, figure), ylim=(0, 1.12))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(_percent())
    _quiet(axes)
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
    figure, ((axes,),) = _subplots(1, 1, (8.4, 4.2))
    looks = zip(itertools.cycle(_COLORS), itertools.cycle(_MARKERS), sorted(lines.items()), strict=False)
    for color, marker, (name, by_place) in looks:
        counts = sorted(set(map(len, by_place.values())))
        seeds = f", {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} seeds" if counts[-1] > 1 else ""
        _draw_spread(axes, by_place, name + seeds, color, marker)
        if counts[-1] > 1:
            dots = [(place, value) for place, values in by_place.items() for value in values]
            axes.scatter(*zip(*dots, strict=True), color=color, s=12, alpha=0.5, zorder=3)
    places = sorted({place for by_place in lines.values() for place in by_place})
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:,}" for place in places])
    axes.minorticks_off()
    axes.set(xlabel=xlabel, ylabel=ylabel, title=_wrapped(title, figure))
    axes.yaxis.set_major_formatter(_percent())
    several = any(len(values) > 1 for by_place in lines.values() for values in by_place.values())
    told = "line: mean over seeds; small dots: each seed\nband: from the lowest seed to the highest" if several else None
    _legend(axes, title=told, title_fontsize="small", alignment="left")
    _quiet(axes)
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
    figure, ((axes,),) = _subplots(1, 1, (max(6.4, 1.1 * len(places) + 1) + 1.6 * several, 4.4))
    looks = zip(itertools.cycle(_COLORS), itertools.cycle(_MARKERS), values.items(), strict=False)
    for number, (color, marker, (name, heights)) in enumerate(looks):
        # Side by side, so that no bar hides another.
        across = [place + 0.07 * (number - (len(values) - 1) / 2) for place in range(len(places))]
        axes.plot(across, heights, marker=marker, markersize=5, color=color, label=name)
        axes.vlines(across, *zip(*intervals[name], strict=True), color=color, linewidth=1.2, alpha=0.7)
    axes.set_xticks(range(len(places)), places)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=_wrapped(title, figure))
    axes.set_ylim(bottom=0)
    if fractions:
        top = max([*itertools.chain(*values.values()), *(end for ends in intervals.values() for _, end in ends)])
        axes.set_ylim(-0.03 * top, min(1.03, 1.1 * top) or 1.03)  # to 100 % where anything comes near it
        axes.yaxis.set_major_formatter(_percent())
    if several:
        _legend(axes)
    _quiet(axes)
    return figure


def images(
    pictures: Sequence[Any], titles: Sequence[str], *, title: str, columns: int = 8, right: Sequence[bool] | None = None
) -> Any:
    """Grey pictures [H, W] in rows, each with a title of its own, green where it is `right` and red where it is not."""
    rows = max(1, -(-len(pictures) // columns))
    figure, axes = _subplots(rows, columns, (1.15 * columns, 1.4 * rows + 0.5))
    for axis in axes.flat:
        axis.axis("off")
    colors = ["black"] * len(pictures) if right is None else ["tab:green" if good else "tab:red" for good in right]
    for axis, picture, text, color in zip(axes.flat, pictures, titles, colors, strict=False):
        axis.imshow(picture, cmap="gray_r", interpolation="nearest")
        axis.set_title(text, fontsize=8, color=color)
    figure.suptitle(_wrapped(title, figure))
    return figure


def read_line(
    picture: Any, symbols: Sequence[str], spans: Sequence[tuple[float, float]], confidences: Sequence[float], *, title: str
) -> Any:
    """A picture of a line [H, W], dark where it is high, and over it each symbol with the columns it was read from.

    A long line goes on below; where nothing was read the picture stands alone.

    Args:
      picture: values [H, W].
      symbols: characters, in any script; a space is shown as an open box.
      spans: first column of each, and the one behind its last.
      confidences: of each, 0 to 1: from red to green.
      title: over the figure.
    """
    height, width = picture.shape
    rows = max(1, -(-width // (14 * height)))
    columns = -(-width // rows)
    panel = 0.9  # inches that a picture is high, of which its other measure follows
    figure_width = max(6.0, panel * columns / height + 1.4)
    parts = 2 if symbols else 1
    ratios = ((1.3, 1) if symbols else (1,)) * rows
    figure, axes = _subplots(parts * rows, 1, (figure_width, (1.3 * parts + 0.4) * rows), height_ratios=ratios)
    axes = axes[:, 0].reshape(rows, parts)
    across = max(columns, (figure_width - 1.4) * height / panel)  # what is beyond a short line stays white
    fonts, known = _fonts_for("".join(symbols))
    colors = _color_map("RdYlGn")
    for row, of_row in enumerate(axes):
        first = row * columns
        shown = picture[:, first : first + columns]
        extent = (first, first + shown.shape[1], height, 0)
        of_row[-1].imshow(shown, cmap="gray_r", aspect="auto", interpolation="nearest", extent=extent)
        of_row[-1].set(yticks=[], xlim=(first, first + across))
        of_row[-1].set_box_aspect(height / across)
        if symbols:
            of_row[0].set_box_aspect(1.3 * height / across)
            of_row[0].set(ylim=(2.6, -0.9), yticks=[], xlim=(first, first + across))
            of_row[0].tick_params(labelbottom=False)
            of_row[0].spines[["top", "right", "left"]].set_visible(False)
    axes[0, 0].set(title=_wrapped(title, figure))
    axes[-1, -1].set(xlabel="column of the picture")
    for number, (symbol, (start, end), confidence) in enumerate(zip(symbols, spans, confidences, strict=True)):
        above, below = axes[min(rows - 1, int((start + end) / 2 // columns))]
        level, middle = number % 3, (start + end) / 2  # side by side they would overlap
        above.barh(level, end - start, left=start, height=0.3, color=colors(confidence))
        told = "\u2423" if symbol == " " else f"\u25cc{symbol}" if unicodedata.combining(symbol) else symbol
        text = _boxed(told, known | {"\u2423", "\u25cc"})
        above.text(middle, level - 0.25, text, ha="center", fontfamily=fonts, fontsize=9)
        below.axvline(middle, color="tab:blue", linewidth=0.4, alpha=0.5)
    if symbols:
        figure.colorbar(_scalar_mappable(colors), ax=list(axes.flat), label="confidence", shrink=0.8)
    return figure


def forecasts(panels: Sequence[Mapping[str, Any]], *, title: str) -> Any:
    """A panel below the other for each forecast: history, what was said, the interval, and what came.

    Args:
      panels: each with `dates` [L + H], datetime64; `history` [L]; `mean` [H]; `truth` [H], or None where it is not known;
        `interval`, a pair of [H], or None; and `title`.
      title: over the figure; what the interval is goes with it.
    """
    figure, axes = _subplots(len(panels), 1, (9, 2.4 * len(panels) + 0.7))
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        dates, known = panel["dates"], len(panel["history"])
        # The last step of the history is the first of all lines, so that there is no gap between them.
        after, joint = dates[known - 1 :], panel["history"][-1:]
        axis.plot(dates[:known], panel["history"], color="tab:gray", linewidth=1.2, label="history")
        if panel["truth"] is not None:
            axis.plot(after, [*joint, *panel["truth"]], color="black", linewidth=1.2, label="what came")
        axis.plot(after, [*joint, *panel["mean"]], color="tab:blue", linewidth=1.6, linestyle="--", label="forecast")
        if panel["interval"] is not None:
            low, high = ([*joint, *end] for end in panel["interval"])
            axis.fill_between(after, low, high, color="tab:blue", alpha=0.2, linewidth=0, label="interval")
        axis.set_title(_wrapped(panel["title"], figure), fontsize="medium")
        axis.margins(x=0.01)
        _concise_dates(axis.xaxis)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=4)
    figure.suptitle(_wrapped(title, figure))
    _quiet(*axes.flat)
    return figure


def marked_text(symbols: Sequence[str], values: Sequence[float], *, title: str, label: str, columns: int = 80) -> Any:
    """A text, each of its characters on a colour: blue where its value is above 0, and red where it is below.

    Where all values are zero, or as good as, it says so.

    Args:
      symbols: characters, in any script.
      values: of each.
      title: over the figure.
      label: what the values are.
      columns: characters in a row, at most.
    """
    columns = max(1, min(columns, len(symbols)))
    rows = max(1, -(-len(symbols) // columns))
    figure, ((axes,),) = _subplots(1, 1, (max(3.5, 0.105 * columns + 1.4), 0.23 * rows + 1.1))
    cells = [*values, *[0.0] * (rows * columns - len(values))]
    most = max(map(abs, cells))
    matters = most > 1e-6  # less is what rounding leaves
    most = most if matters else 1.0
    shown = [cells[row * columns : (row + 1) * columns] for row in range(rows)]
    drawn = axes.imshow(shown, cmap="RdBu", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
    fonts, known = _fonts_for("".join(symbols))
    for place, (symbol, value) in enumerate(zip(symbols, values, strict=True)):
        row, column = divmod(place, columns)
        color = "white" if abs(value) > 0.6 * most else "black"
        text = "" if symbol.isspace() else _boxed(symbol, known)
        size = 6 if unicodedata.east_asian_width(text[:1] or " ") in "WF" else 8  # in points; a wide one would reach the next
        axes.text(column, row, text, ha="center", va="center", fontfamily=fonts, fontsize=size, color=color)
    axes.set(xticks=[], yticks=[], title=_wrapped(title, figure))
    axes.spines[:].set_visible(False)
    if matters:
        figure.colorbar(drawn, ax=axes, label=label, shrink=min(1.0, 0.5 + 0.5 / rows))
    else:
        axes.set_xlabel("no symbol mattered")
    return figure


def heatmap(
    values: Any, rows: Sequence[str], columns: Sequence[str], *, xlabel: str, ylabel: str, title: str, label: str = "weight"
) -> Any:
    """Values [rows, columns] from 0 to 1 as dark cells, each row and column with its label, in any script."""
    cell = min(0.34, 16 / max(len(columns), len(rows), 1))  # inches
    width, height = (max(2.5, cell * count) for count in (len(columns), len(rows)))
    size = min(9.0, 60 * cell)  # of letters, in points, so that no label reaches the next
    figure, ((axes,),) = _subplots(1, 1, (width + 2.0, height + 1.4))
    drawn = axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    fonts, known = _fonts_for("".join([*rows, *columns]))
    axes.set_xticks(range(len(columns)), [_literal(text, known) for text in columns], rotation=90, fontsize=size)
    axes.set_yticks(range(len(rows)), [_literal(text, known) for text in rows], fontsize=size)
    for tick in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        tick.set_fontfamily(fonts)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=_wrapped(title, figure))
    figure.colorbar(drawn, ax=axes, label=label, shrink=0.8)
    return figure


def curves(values: Mapping[str, Mapping[float, float]], *, xlabel: str, ylabel: str, title: str) -> Any:
    """A line for each name through its points {x: y}, both axes logarithmic; numbers above 0."""
    figure, ((axes,),) = _subplots(1, 1, (6.4, 4.4))
    looks = zip(itertools.cycle(_COLORS), itertools.cycle(_MARKERS), values.items(), strict=False)
    for color, marker, (name, points) in looks:
        axes.loglog(list(points), list(points.values()), marker=marker, markersize=5, color=color, label=name)
    places = sorted({x for points in values.values() for x in points})
    axes.set_xticks(places, [f"{place:,g}" for place in places])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,g}")
    axes.set(xlabel=xlabel, ylabel=ylabel, title=_wrapped(title, figure))
    _legend(axes)
    _quiet(axes)
    return figure


def _fonts_for(text: str) -> tuple[list[str], set[str]]:
    """Fonts of this machine that have the characters of a text between them, as few as are needed, and those they have."""
    from matplotlib import font_manager

    fonts, known = ["DejaVu Sans"], set()  # comes with matplotlib
    entries = sorted(font_manager.fontManager.ttflist, key=lambda entry: (entry.name != fonts[0], entry.name))
    for entry in entries:
        missing = set(text) - known
        if not missing:
            break
        if entry.name.startswith("Last Resort"):  # has a box for everything
            continue
        try:
            has = missing & set(map(chr, font_manager.get_font(entry.fname).get_charmap()))
        except (OSError, RuntimeError):  # a font that cannot be read
            continue
        if has:
            known |= has
            fonts += [entry.name] * (entry.name not in fonts)
    return fonts, known


def _literal(text: str, known: set[str]) -> str:
    """A character that no font has by its number, and no dollar sign that would begin a formula."""
    return "".join(character if character in known else f"U+{ord(character):04X}" for character in text).replace("$", r"\$")


def _boxed(text: str, known: set[str]) -> str:
    """A small box for each character that no font has, where its number would reach over its neighbours."""
    return _literal("".join(character if character in known else "\u25ab" for character in text), known | {"\u25ab"})


def _wrapped(title: str, figure: Any) -> str:
    """In lines that the figure has room for, however long a name in it is."""
    return "\n".join(textwrap.wrap(title, max(20, int(8 * figure.get_figwidth()))))


def _legend(axes: Any, **options: Any) -> None:
    """Beside the axes, where it lies over nothing."""
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), **options)


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


def _concise_dates(axis: Any) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator()
    axis.set_major_locator(locator)
    axis.set_major_formatter(ConciseDateFormatter(locator))


def _by_step(histories: Sequence[Sequence[dict[str, float]]], name: str) -> dict[float, list[float]]:
    """{step: a value of each seed that has one there}."""
    values: dict[float, list[float]] = {}
    for history in histories:
        for line in history:
            if name in line:
                values.setdefault(line["step"], []).append(line[name])
    return values


def _draw_spread(axes: Any, values: Mapping[float, Sequence[float]], label: str, color: str, marker: str | None = "o") -> None:
    """The means at each place, and a band from the smallest to the greatest value."""
    places = sorted(values)
    means = [sum(values[place]) / len(values[place]) for place in places]
    axes.plot(places, means, marker=marker, markersize=4, color=color, label=label)
    least, most = ([extreme(values[place]) for place in places] for extreme in (min, max))
    if least != most:
        axes.fill_between(places, least, most, color=color, alpha=0.2, linewidth=0)


def _quiet(*axes: Any) -> None:
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)


def _color_map(name: str) -> Any:
    import matplotlib

    return matplotlib.colormaps[name]


def _scalar_mappable(colors: Any) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(0, 1), colors)


def _percent() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1)


def _subplots(rows: int, columns: int, figsize: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """A figure of its own: pyplot would keep it, and choose a backend for the whole program."""
    from matplotlib.figure import Figure  # when first used: slow to import

    figure = Figure(figsize=figsize, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)
