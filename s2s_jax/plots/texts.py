"""Texts, each character on a colour."""

import unicodedata
from collections.abc import Sequence
from typing import Any

from s2s_jax.plots.axes import subplots, wrapped
from s2s_jax.plots.fonts import boxed, fonts_for


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
    figure, ((axes,),) = subplots(1, 1, (max(3.5, 0.105 * columns + 1.4), 0.23 * rows + 1.1))
    cells = [*values, *[0.0] * (rows * columns - len(values))]
    most = max(map(abs, cells))
    matters = most > 1e-6  # less is what rounding leaves
    most = most if matters else 1.0
    shown = [cells[row * columns : (row + 1) * columns] for row in range(rows)]
    drawn = axes.imshow(shown, cmap="RdBu", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
    fonts, known = fonts_for("".join(symbols))
    for place, (symbol, value) in enumerate(zip(symbols, values, strict=True)):
        row, column = divmod(place, columns)
        color = "white" if abs(value) > 0.6 * most else "black"
        text = "" if symbol.isspace() else boxed(symbol, known)
        size = 6 if unicodedata.east_asian_width(text[:1] or " ") in "WF" else 8  # in points; a wide one would reach the next
        axes.text(column, row, text, ha="center", va="center", fontfamily=fonts, fontsize=size, color=color)
    axes.set(xticks=[], yticks=[], title=wrapped(title, figure))
    axes.spines[:].set_visible(False)
    if matters:
        figure.colorbar(drawn, ax=axes, label=label, shrink=min(1.0, 0.5 + 0.5 / rows))
    else:
        axes.set_xlabel("no symbol mattered")
    return figure
