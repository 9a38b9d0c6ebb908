"""Numbers of rows and columns as colours, such as attention weights."""

from collections.abc import Sequence
from typing import Any

from s2s_jax.plots.axes import subplots, wrapped
from s2s_jax.plots.fonts import fonts_for, literal


def heatmap(
    values: Any, rows: Sequence[str], columns: Sequence[str], *, xlabel: str, ylabel: str, title: str, label: str = "weight"
) -> Any:
    """Values [rows, columns] from 0 to 1 as dark cells, each row and column with its label, in any script."""
    cell = min(0.34, 16 / max(len(columns), len(rows), 1))  # inches
    width, height = (max(2.5, cell * count) for count in (len(columns), len(rows)))
    size = min(9.0, 60 * cell)  # of letters, in points, so that no label reaches the next
    figure, ((axes,),) = subplots(1, 1, (width + 2.0, height + 1.4))
    drawn = axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    fonts, known = fonts_for("".join([*rows, *columns]))
    axes.set_xticks(range(len(columns)), [literal(text, known) for text in columns], rotation=90, fontsize=size)
    axes.set_yticks(range(len(rows)), [literal(text, known) for text in rows], fontsize=size)
    for tick in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        tick.set_fontfamily(fonts)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=wrapped(title, figure))
    figure.colorbar(drawn, ax=axes, label=label, shrink=0.8)
    return figure
