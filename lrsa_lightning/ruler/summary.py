"""RULER's figures as text for a terminal."""

from collections.abc import Mapping

_MEANS = {"subset_mean", "average"}


def score_table(figures: Mapping[str, float], figure: str = "ruler") -> str:
    """Tasks by length, and their means where there are several, a column for each cache budget.

    Args:
        figures: as `results.metrics` names them.
        figure: which of them: ruler, ruler_exact_match, ...
    """
    cells: dict[tuple[str, int], dict[str, float]] = {}
    for name, value in figures.items():
        kind, *place = name.split("/")
        if kind == figure and len(place) == 3:
            task, length, budget = place
            cells.setdefault((task, int(length)), {})[budget] = value
    if len({task for task, _ in cells} - _MEANS) == 1:
        cells = {place: row for place, row in cells.items() if place[0] not in _MEANS}
    budgets = list(dict.fromkeys(budget for row in cells.values() for budget in row))
    width = max((len(task) for task, _ in cells), default=4) + 2
    lines = ["".join([f"{'task':<{width}}{'length':>8}", *(f"{budget:>9}" for budget in budgets)])]
    for (task, length), row in cells.items():
        values = "".join(f"{row[budget]:>9g}" if budget in row else " " * 9 for budget in budgets)
        lines.append(f"{task:<{width}}{length:>8}{values}")
    return "\n".join(lines)
