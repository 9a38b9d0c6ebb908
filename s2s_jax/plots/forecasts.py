"""Forecasts of series, between what was known and what came."""

from collections.abc import Mapping, Sequence
from typing import Any

from s2s_jax.plots.axes import quiet, subplots, wrapped


def forecasts(panels: Sequence[Mapping[str, Any]], *, title: str) -> Any:
    """A panel below the other for each forecast: history, what was said, the interval, and what came.

    Args:
      panels: each with `dates` [L + H], datetime64; `history` [L]; `mean` [H]; `truth` [H], or None where it is not known;
        `interval`, a pair of [H], or None; and `title`.
      title: over the figure; what the interval is goes with it.
    """
    figure, axes = subplots(len(panels), 1, (9, 2.4 * len(panels) + 0.7))
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
        axis.set_title(wrapped(panel["title"], figure), fontsize="medium")
        axis.margins(x=0.01)
        _concise_dates(axis.xaxis)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=4)
    figure.suptitle(wrapped(title, figure))
    quiet(*axes.flat)
    return figure


def _concise_dates(axis: Any) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator()
    axis.set_major_locator(locator)
    axis.set_major_formatter(ConciseDateFormatter(locator))
