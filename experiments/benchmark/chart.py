"""The ratios as a picture: for each shape a line, for each peer a dot."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.benchmark.case import CELLS

# A marker of its own for each, which tells them apart in grey, and colours that the colour-blind tell apart (most of them those
# of Okabe and Ito).
_LOOKS = {
    "torch": {"marker": "o", "color": "#D55E00"},
    "torch, allocator tuned": {"marker": "D", "color": "#D55E00", "markerfacecolor": "white"},
    "flax linen": {"marker": "s", "color": "#0072B2"},
    "flax nnx": {"marker": "P", "color": "#56B4E9"},
    "keras": {"marker": "^", "color": "#009E73"},
    "jax cudnn": {"marker": "v", "color": "#CC79A7"},
    "scan": {"marker": "x", "color": "black"},
    "native": {"marker": "+", "color": "0.35"},
    "diagonal": {"marker": "d", "color": "#999933"},
    "fused": {"marker": "*", "color": "#E69F00"},
    "cudnn": {"marker": "<", "color": "#785EF0"},
    "persistent": {"marker": "p", "color": "#117733"},
    "associative": {"marker": ">", "color": "#DC267F"},
    "parallel": {"marker": "h", "color": "#332288"},
}
_STEP_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:gray")


def ratios(rows: Sequence[Mapping[str, Any]], title: str) -> Any:
    """A matplotlib figure: panels by cell and part, and in each the peers' times over ours at every shape, logarithmic.

    Bars span the quartiles over the rounds. Right of the line at 1 the peer is slower.
    """
    from matplotlib.figure import Figure  # when first used: slow to import
    from matplotlib.ticker import FuncFormatter, NullFormatter

    places = {panel: {tuple(row["shape"]) for row in rows if (row["cell"], row["part"]) == panel} for panel in _panels(rows)}
    most = max(map(len, places.values()))
    # A cell that is measured at one shape of many, to be compared with others, is better told than drawn.
    shown = [panel for panel in places if len(places[panel]) > 1 or most == 1]
    rows = [row for row in rows if (row["cell"], row["part"]) in shown]
    panels = sorted(shown, key=lambda p: ([*CELLS].index(p[0]), p[1]))
    shapes = sorted({tuple(row["shape"]) for row in rows}, key=lambda s: s[0] * s[1] * s[3] * (s[2] + s[3]), reverse=True)
    names = list(dict.fromkeys(row["peer"] for row in rows))
    reach = [value for row in rows for value in row["ratio_quartiles"]] + [0.8, 2.0]
    # A place of its own for each peer within a shape's row, lest equal ratios hide each other.
    height = max(3.0, 1.4 + len(shapes) * max(0.3, 0.07 * len(names)))  # at least what the label of the axis needs
    figure = Figure(figsize=(2.2 + 2.6 * len(panels), height), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    drawn = {}
    for axis, (cell, part) in zip(axes, panels, strict=True):
        axis.axvline(1, color="gray", linewidth=1)
        for y in range(0, len(shapes), 2):
            axis.axhspan(y - 0.5, y + 0.5, color="0.96", zorder=0)
        for row in rows:
            if (row["cell"], row["part"]) == (cell, part):
                looks = _LOOKS[row["peer"]]
                shift = 0.8 * ((names.index(row["peer"]) + 0.5) / len(names) - 0.5)
                y = shapes.index(tuple(row["shape"])) + shift
                axis.plot(row["ratio_quartiles"], [y, y], color=looks["color"], linewidth=1, alpha=0.6)
                (drawn[row["peer"]],) = axis.plot(row["ratio"], y, linestyle="none", markersize=5, **looks)
        axis.set_xscale("log")
        axis.set_xlim(0.9 * min(reach), 1.1 * max(reach))
        ticks = [t for t in (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128) if 0.9 * min(reach) <= t <= 1.1 * max(reach)]
        axis.set_xticks(ticks)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.minorticks_off()
        axis.set_title(f"{cell.upper()}, {part.replace('+grad', ' and gradient')}", fontsize=10)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(shapes)), ["  ".join(map(str, shape)) for shape in shapes], fontsize=8)
    axes[0].set_ylim(len(shapes) - 0.5, -0.5)
    axes[0].set_ylabel("batch, time, features, hidden")
    figure.suptitle(f"Time of others over ours: right of 1 ours is faster. {title}", fontsize=10)
    columns = min(len(names), 2 * len(panels))
    handles = [drawn[name] for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return figure


def _panels(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["cell"], row["part"]) for row in rows))


def steps(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A matplotlib figure: for each task and backend a bar of the step's milliseconds, divided into what they go to."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(rows) + 0.5 * len(tasks)), layout="constrained")
    axes = figure.subplots(len(tasks), 1, squeeze=False)[:, 0]
    for axis, task in zip(axes, tasks, strict=True):
        of_task = [row for row in rows if row["task"] == task]
        for y, row in enumerate(of_task):
            left = 0.0
            for (what, ms), color in zip(row["division_ms"].items(), _STEP_COLORS, strict=False):
                # Differences of two measurements: what is too small to tell can come out below zero.
                axis.barh(y, max(0.0, ms), left=left, color=color, height=0.7, label=what if y == 0 else None)
                left += max(0.0, ms)
            axis.text(left, y, f" {row['step_ms']:.3g} ms, {row['ratio']:.2f} times as fast as scan", va="center", fontsize=8)
        axis.set_yticks(range(len(of_task)), [row["backend"] for row in of_task], fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.45 * max(sum(max(0.0, ms) for ms in row["division_ms"].values()) for row in of_task))
        axis.set_title(task, fontsize=10, loc="left")
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[-1].set_xlabel("ms of a training step")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure
