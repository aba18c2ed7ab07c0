"""RULER's scores as text for a terminal."""

from collections.abc import Mapping, Sequence

from lrsa_lightning.ruler.records import CellName

_MEANS = {"subset_mean", "average"}


def score_table(figures: Mapping[str, float], figure: str = "ruler") -> str:
    """A row for each task and length, and for means over several tasks; a column for each cache budget.

    Args:
        figures: of `results.metrics`.
        figure: the one to show: ruler, ruler_exact_match, ...
    """
    cells: dict[tuple[str, int], dict[str, float]] = {}
    for name, value in figures.items():
        first, *rest = name.split("/")
        if first == figure and len(rest) == 3:
            task, length, budget = rest
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


def check_summary(
    step: int, figures: Mapping[str, float], left_out: Sequence[CellName], max_seconds: float | None
) -> str:
    """The scores of a check in training, or its exact matches where nothing was generated.

    Args:
        step: of the check.
        figures: of `results.metrics`.
        left_out: cells for which the time did not suffice.
        max_seconds: time of a check; None: no limit.
    """
    generated = any(name.startswith("ruler/") for name in figures)
    what, figure = ("RULER", "ruler") if generated else ("RULER (references, teacher-forced)", "ruler_exact_match")
    text = f"{what} at step {step}\n{score_table(figures, figure)}"
    if left_out:
        names = ", ".join(f"{task}/{length}/{budget}" for task, length, budget in left_out)
        text += f"\nleft out after {max_seconds:g} s (max_seconds): {names}"
    return text
