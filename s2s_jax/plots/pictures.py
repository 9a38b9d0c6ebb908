"""Pictures, and what was read of one."""

import unicodedata
from collections.abc import Sequence
from typing import Any

from s2s_jax.plots.axes import subplots, wrapped
from s2s_jax.plots.fonts import boxed, fonts_for


def images(
    pictures: Sequence[Any], titles: Sequence[str], *, title: str, columns: int = 8, right: Sequence[bool] | None = None
) -> Any:
    """Grey pictures [H, W] in rows, each with a title of its own, green where it is `right` and red where it is not."""
    rows = max(1, -(-len(pictures) // columns))
    figure, axes = subplots(rows, columns, (1.15 * columns, 1.4 * rows + 0.5))
    for axis in axes.flat:
        axis.axis("off")
    colors = ["black"] * len(pictures) if right is None else ["tab:green" if good else "tab:red" for good in right]
    for axis, picture, text, color in zip(axes.flat, pictures, titles, colors, strict=False):
        axis.imshow(picture, cmap="gray_r", interpolation="nearest")
        axis.set_title(text, fontsize=8, color=color)
    figure.suptitle(wrapped(title, figure))
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
    figure, axes = subplots(parts * rows, 1, (figure_width, (1.3 * parts + 0.4) * rows), height_ratios=ratios)
    axes = axes[:, 0].reshape(rows, parts)
    across = max(columns, (figure_width - 1.4) * height / panel)  # what is beyond a short line stays white
    fonts, known = fonts_for("".join(symbols))
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
    axes[0, 0].set(title=wrapped(title, figure))
    axes[-1, -1].set(xlabel="column of the picture")
    for number, (symbol, (start, end), confidence) in enumerate(zip(symbols, spans, confidences, strict=True)):
        above, below = axes[min(rows - 1, int((start + end) / 2 // columns))]
        level, middle = number % 3, (start + end) / 2  # side by side they would overlap
        above.barh(level, end - start, left=start, height=0.3, color=colors(confidence))
        told = "\u2423" if symbol == " " else f"\u25cc{symbol}" if unicodedata.combining(symbol) else symbol
        text = boxed(told, known | {"\u2423", "\u25cc"})
        above.text(middle, level - 0.25, text, ha="center", fontfamily=fonts, fontsize=9)
        below.axvline(middle, color="tab:blue", linewidth=0.4, alpha=0.5)
    if symbols:
        figure.colorbar(_scalar_mappable(colors), ax=list(axes.flat), label="confidence", shrink=0.8)
    return figure


def _color_map(name: str) -> Any:
    import matplotlib

    return matplotlib.colormaps[name]


def _scalar_mappable(colors: Any) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(0, 1), colors)
