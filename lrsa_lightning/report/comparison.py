"""Runs side by side: means over the tasks that all of them were scored on, by length and cache budget."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from lrsa_lightning.errors import InputError
from lrsa_lightning.report.runs import Run
from lrsa_lightning.ruler.records import ratio_of
from lrsa_lightning.ruler.results import CellScore, mean_names
from lrsa_lightning.ruler.tasks import TASKS


@dataclass(frozen=True)
class Mean:
    """A mean of independent figures.

    Attributes:
        value: of scores, 0..100.
        stderr: its standard error; None where one of the figures has none.
    """

    value: float
    stderr: float | None

    @classmethod
    def of(cls, figures: Sequence[tuple[float, float | None]]) -> "Mean":
        """Mean of (value, standard error): the errors add up in squares."""
        errors = [error for _, error in figures if error is not None]
        known = len(errors) == len(figures)
        stderr = sum(error**2 for error in errors) ** 0.5 / len(figures) if known else None
        return cls(fmean(value for value, _ in figures), stderr)


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        labels: of the runs with scores, in order.
        tasks: those in the means, by length, ascending: the ones that each run with scores of that length has, under
            each of its budgets there.
        left_out: other tasks that some run has, by length.
        cells: means over the tasks by run label, budget and length.
    """

    labels: list[str]
    tasks: dict[int, list[str]]
    left_out: dict[int, list[str]]
    cells: dict[tuple[str, str, int], Mean]

    @property
    def lengths(self) -> list[int]:
        return list(self.tasks)

    @property
    def budgets(self) -> list[str]:
        """The dense cache first, then ever smaller ones, then modes by name."""
        return sorted(dict.fromkeys(budget for _, budget, _ in self.cells), key=lambda name: -(ratio_of(name) or 0))

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Label and budget, the runs of a budget beside each other."""
        return [(x, b) for b in self.budgets for x in self.labels if any((x, b, n) in self.cells for n in self.lengths)]

    def row(self, label: str, budget: str) -> list[Mean | None]:
        """The mean of each length, and of them all where none is missing."""
        cells = [self.cells.get((label, budget, length)) for length in self.lengths]
        known = [(cell.value, cell.stderr) for cell in cells if cell is not None]
        return [*cells, Mean.of(known) if len(known) == len(cells) else None]

    @property
    def name(self) -> str:
        """What the means are: RULER's average only where all of its tasks are in each of them."""
        complete = all("average" in mean_names(tasks) for tasks in self.tasks.values())
        return "RULER average" if complete else "subset mean"

    @property
    def of_tasks(self) -> str:
        """The tasks in the means."""
        if len({tuple(tasks) for tasks in self.tasks.values()}) == 1:
            return tasks_text(self.tasks[self.lengths[0]])
        return "; ".join(f"{length_name(length)}: {tasks_text(tasks)}" for length, tasks in self.tasks.items())

    @property
    def caption(self) -> str:
        """The header of a table."""
        return f"{self.name[0].upper()}{self.name[1:]} over {self.of_tasks}"


def compare(runs: Sequence[Run], only: Collection[str] = tuple(TASKS)) -> Comparison | None:
    """Means over common tasks; None where nothing was scored.

    Args:
        runs: those without scores do not count.
        only: tasks that may be in the means.

    Raises:
        InputError: there is no length at which one task was scored in all runs.
    """
    runs = [run for run in runs if any(task in only for task, _, _ in run.scored)]
    tasks, left_out, cells = {}, {}, {}
    for length in sorted({name[1] for run in runs for name in run.scored if name[0] in only}):
        own = _by_place(runs, length, only)
        common = [task for task in only if all(task in cell for cell in own.values())]
        others = [task for task in only if task not in common and any(task in cell for cell in own.values())]
        if others:
            left_out[length] = others
        if common:
            tasks[length] = common
        for (label, budget), scores in own.items() if common else ():
            figures = [(scores[task].score, scores[task].stderr) for task in common]
            cells[label, budget, length] = Mean.of(figures)
    labels = [run.label for run in runs]
    if runs and not any({*labels} == {label for label, _, own in cells if own == length} for length in tasks):
        raise InputError("nothing to compare, no task at any length was scored by all: " + _what_each_has(runs))
    return Comparison(labels, tasks, left_out, cells) if runs else None


def _by_place(runs: Iterable[Run], length: int, only: Collection[str]) -> dict[tuple[str, str], dict[str, CellScore]]:
    """Scores of a length by task, for each run and budget that has any."""
    places: dict[tuple[str, str], dict[str, CellScore]] = {}
    for run in runs:
        for (task, own_length, budget), cell in run.scored.items():
            if own_length == length and task in only:
                places.setdefault((run.label, budget), {})[task] = cell
    return places


def _what_each_has(runs: Sequence[Run]) -> str:
    names = {
        run.label: ", ".join(dict.fromkeys(f"{task}/{length_name(length)}" for task, length, _ in run.scored))
        for run in runs
    }
    return "; ".join(f"{label} has {own}" for label, own in names.items()) + ". Report them one by one"


def budget_name(budget: str) -> str:
    """As the paper writes it: 1x, 2x, 4x; a mode's name as it is."""
    ratio = ratio_of(budget)
    return budget if ratio is None else f"{1 / ratio:.3g}x"


def length_name(length: int) -> str:
    """4096 -> 4K."""
    return f"{length // 1024}K" if length % 1024 == 0 else str(length)


def tasks_text(tasks: Collection[str]) -> str:
    """Tasks by name, all 13 in short."""
    if set(tasks) == TASKS.keys():
        return f"all {len(TASKS)} tasks"
    return f"{len(tasks)} {'task' if len(tasks) == 1 else 'tasks'} ({', '.join(tasks)})"
