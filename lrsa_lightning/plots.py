"""What pictures have in common: labels, colours that colour-blind people tell apart, and cells of heat maps."""

from collections.abc import Callable, Iterable
from math import isfinite

# Losses that fall by more than this are drawn on a logarithmic axis.
_WIDE = 8
# Of fractions from 0 to 1; it is read in greys, too.
FRACTION_COLOURS = "cividis"
_NOTHING = "0.88"


def literal(name: str) -> str:
    """The name as a label. matplotlib would hide a leading _ and take $ for a formula."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def scale_losses(axes, values: Iterable[float]) -> None:
    """Makes the y axis of losses logarithmic where they fall by much, so that it shows the first and the last ones."""
    from matplotlib.ticker import LogLocator, NullFormatter

    finite = [value for value in values if isfinite(value)]
    if finite and min(finite) > 0 and max(finite) > _WIDE * min(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def empty_cells(axes) -> None:
    """Shows cells of a heat map that are NaN in grey, without a value, and no frame around the map."""
    axes.set_facecolor(_NOTHING)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def write_values(axes, image, cells, text: Callable[[int, int], str], size: float = 7) -> None:
    """Writes into each cell of a heat map that has a value, black on light colours and white on dark ones.

    Args:
        axes: of the map.
        image: of `imshow`.
        cells: its rows of values.
        text: of a row and a column.
        size: of the letters.
    """
    for row, values in enumerate(cells):
        for column, value in enumerate(values):
            if value == value:  # not NaN
                red, green, blue, _ = image.cmap(image.norm(value))
                colour = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
                axes.text(column, row, text(row, column), ha="center", va="center", fontsize=size, color=colour)
