"""RULER's scores as text for a terminal."""

from collections.abc import Mapping

from lrsa_lightning.ruler.records import CellName

_MEANS = {"subset_mean", "average"}


def score_table(figures: Mapping[str, float], figure: str = "ruler") -> str:
    """A row for each task and length, and for means over several tasks; a column for each cache budget.

    The last column is the number of samples under each budget, or from the least to the most.

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
    lines = ["".join([f"{'task':<{width}}{'length':>8}", *(f"{budget:>9}" for budget in [*budgets, "samples"])])]
    for (task, length), row in cells.items():
        values = "".join(f"{row[budget]:>9g}" if budget in row else " " * 9 for budget in budgets)
        counts = {figures.get(f"ruler_samples/{task}/{length}/{budget}") for budget in row} - {None}
        samples = "-".join(map(str, sorted({min(counts), max(counts)}))) if counts else ""
        lines.append(f"{task:<{width}}{length:>8}{values}{samples:>9}".rstrip())
    return "\n".join(lines)


def check_summary(step: int, figures: Mapping[str, float]) -> str:
    """The scores of a check in training, or its exact matches where nothing was generated.

    Args:
        step: of the check.
        figures: of `results.metrics`.
    """
    generated = any(name.startswith("ruler/") for name in figures)
    what, figure = ("RULER", "ruler") if generated else ("RULER (references, teacher-forced)", "ruler_exact_match")
    return f"{what} at step {step}\n{score_table(figures, figure)}"


def left_out(scored: Mapping[CellName, int], wanted: Mapping[CellName, int], seconds: float | None) -> str:
    """What a check had no time for, in one line; empty where it had time for everything.

    Args:
        scored: samples of each cell that have scores; a cell without scores may be missing.
        wanted: samples of each cell.
        seconds: time of the check.
    """
    missing = sum(wanted.values()) - sum(scored.values())
    if not missing:
        return ""
    cells: dict[tuple[int, int], list[str]] = {}
    for place in dict.fromkeys((task, length) for task, length, _ in wanted):
        of_budgets = {cell: (scored.get(cell, 0), number) for cell, number in wanted.items() if cell[:2] == place}
        names = [place] if len(set(of_budgets.values())) == 1 else of_budgets
        for name, counts in zip(names, of_budgets.values(), strict=False):
            if counts[0] < counts[1]:
                cells.setdefault(counts, []).append("/".join(map(str, name)))
    parts = [
        f"{f'{count} of {of} samples' if count else 'none'} of {', '.join(names)}"
        for (count, of), names in sorted(cells.items())
    ]
    return f"left out after {seconds:g} s (max_seconds): {missing} of {sum(wanted.values())}; scored {'; '.join(parts)}"
