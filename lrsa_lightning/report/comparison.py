"""Runs side by side: means over the tasks that all of them were scored on, by length and cache budget."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import pandas as pd

from lrsa_lightning.report.runs import Run
from lrsa_lightning.ruler.records import are_of_same_samples, ratio_of
from lrsa_lightning.ruler.results import mean_names
from lrsa_lightning.ruler.tasks import TASKS

AVERAGE = "Avg"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Means over common tasks.

    Attributes:
        labels: of the runs with a mean, in order.
        tasks: the tasks in the means, by length, ascending. All runs scored at a length have these tasks, under each
            of their budgets.
        left_out: the other tasks that some run has, by length.
        means: 0..100; a row for each run and budget (index: model, budget), a column for each length, as 4K, and the
            average over the lengths. NaN where a run was not scored. The dense cache comes first, then smaller ones.
        errors: standard errors of the means, in the same form; NaN also where a single sample was scored.
    """

    labels: list[str]
    tasks: dict[int, list[str]]
    left_out: dict[int, list[str]]
    means: pd.DataFrame
    errors: pd.DataFrame

    @property
    def name(self) -> str:
        """RULER's average only where each mean is over all tasks of RULER."""
        complete = all("average" in mean_names(tasks) for tasks in self.tasks.values())
        return "RULER average" if complete else "subset mean"

    @property
    def of_tasks(self) -> str:
        """The tasks in the means."""
        texts = {length: tasks_text(tasks) for length, tasks in self.tasks.items()}
        if len(set(texts.values())) == 1:
            return next(iter(texts.values()))
        return "; ".join(f"{length_name(length)}: {text}" for length, text in texts.items())

    @property
    def caption(self) -> str:
        """The title of a table."""
        return f"{self.name[0].upper()}{self.name[1:]} over {self.of_tasks}"


def compare(runs: Sequence[Run], only: Collection[str] = tuple(TASKS)) -> Comparison | None:
    """Means over common tasks; None where nothing was scored, or no length has a common task.

    A length has a column where the runs that were scored at it share a task. They need not be all of the runs.

    Args:
        runs: runs without scores are ignored.
        only: tasks that may be in the means.
    """
    scores = _scores(runs, only)
    if scores.empty:
        return None
    tasks, left_out = {}, {}
    for length, own in scores.groupby("length"):
        has = own.pivot(index=["model", "budget"], columns="task", values="score").notna().all()
        common = [task for task in only if has.get(task, False)]
        if common:
            tasks[length] = common
        if others := [task for task in only if task in has and task not in common]:
            left_out[length] = others
    places = zip(scores["length"], scores["task"], strict=True)
    common = scores[[task in tasks.get(length, ()) for length, task in places]]
    if common.empty:
        return None
    labels = [*common["model"].unique()]
    return Comparison(labels, tasks, left_out, *_means(common, labels))


def _scores(runs: Iterable[Run], only: Collection[str]) -> pd.DataFrame:
    """The scores of all runs, one in a row."""
    columns = ["model", "task", "length", "budget", "score", "stderr"]
    rows = [(run.label, *name, own.score, own.stderr) for run in runs for name, own in run.scored.items()]
    scores = pd.DataFrame([row for row in rows if row[1] in only], columns=columns)
    return scores.astype({"score": float, "stderr": float})


def _means(scores: pd.DataFrame, labels: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means and their standard errors over the tasks of each run, budget and length, and over the lengths."""
    by_length = scores.sort_values("length", kind="stable")
    budgets = sorted(by_length["budget"].unique(), key=lambda name: -(ratio_of(name) or 0))
    order = {"model": pd.CategoricalDtype(labels, ordered=True), "budget": pd.CategoricalDtype(budgets, ordered=True)}
    groups = by_length.astype(order).groupby(["budget", "model", "length"], observed=True)
    means, errors = (
        groups[figure].agg(mean).unstack("length").rename(columns=length_name).swaplevel()
        for figure, mean in (("score", fmean), ("stderr", _stderr_of_mean))
    )
    return (
        means.assign(**{AVERAGE: means.agg(fmean, axis=1)}),
        errors.assign(**{AVERAGE: errors.agg(_stderr_of_mean, axis=1)}),
    )


def _stderr_of_mean(errors: Collection[float]) -> float:
    """Of a mean of independent figures: their errors add up in squares."""
    return sum(error**2 for error in errors) ** 0.5 / len(errors)


def other_samples(runs: Iterable[Run]) -> dict[tuple[int, str], list[int]]:
    """Lengths and tasks whose samples differ between runs or budgets, with the number of samples of each."""
    records = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for record in run.records:
            if record.score is not None:
                records[record.length, record.task][run.label, record.budget].append(record)
    return {
        place: [*map(len, own.values())]
        for place, own in sorted(records.items())
        if not are_of_same_samples(own.values())
    }


def budget_name(budget: str) -> str:
    """As in the paper: 1x, 2x, 4x. A mode's name stays as it is."""
    ratio = ratio_of(budget)
    return budget if ratio is None else f"{1 / ratio:.3g}x"


def length_name(length: int) -> str:
    """4096 -> 4K."""
    return f"{length // 1024}K" if length % 1024 == 0 else str(length)


def lengths_text(lengths: Iterable[int]) -> str:
    """4K, 8K."""
    return ", ".join(map(length_name, lengths))


def range_text(numbers: Iterable[int]) -> str:
    """The least and the greatest of some numbers."""
    known = sorted(set(numbers))
    return str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"


def tasks_text(tasks: Collection[str]) -> str:
    """The names of tasks; all 13 are not listed."""
    if set(tasks) == TASKS.keys():
        return f"all {len(TASKS)} tasks"
    return f"{len(tasks)} {'task' if len(tasks) == 1 else 'tasks'} ({', '.join(tasks)})"
