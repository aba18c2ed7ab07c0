"""The limits and labels of pictures of curves."""

from collections.abc import Iterable
from math import isfinite


def limits(lines: Iterable, margin: float) -> tuple[float, float] | None:
    """Limits of the y axis that show these lines of matplotlib large; outliers of other lines are cut off.

    The margin above and below is relative to the range of the values. Where they have none, matplotlib chooses (None).
    """
    values = [value for line in lines for value in line.get_ydata() if isfinite(value)]
    if len(set(values)) < 2:
        return None
    space = margin * (max(values) - min(values))
    return max(0, min(values) - space), max(values) + space


def literal(name: str) -> str:
    """The name as a label. matplotlib would hide a leading _ and take $ for a formula."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")
