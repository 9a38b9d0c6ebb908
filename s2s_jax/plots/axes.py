"""What figures have in common: size, title, legend, lines and colours."""

import textwrap
from typing import Any

COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")


def subplots(rows: int, columns: int, figsize: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """A figure of its own: pyplot would keep it, and choose a backend for the whole program."""
    from matplotlib.figure import Figure  # when first used: slow to import

    figure = Figure(figsize=figsize, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def wrapped(title: str, figure: Any) -> str:
    """In lines that the figure has room for, however long a name in it is."""
    return "\n".join(textwrap.wrap(title, max(20, int(8 * figure.get_figwidth()))))


def legend(axes: Any, **options: Any) -> None:
    """Beside the axes, where it lies over nothing."""
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), **options)


def quiet(*axes: Any) -> None:
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)


def percent() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1)
