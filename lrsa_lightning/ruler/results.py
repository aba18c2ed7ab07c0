"""The result of an evaluation: the means of its records by task, length and cache budget."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from lrsa_lightning.ruler.records import Record, by_cell
from lrsa_lightning.ruler.tasks import TASKS

# Metrics of a cell and their values.
_FIGURES = {"ruler": "score", "ruler_stderr": "stderr", "ruler_nll": "nll", "ruler_exact_match": "exact_match"}
_FIGURES |= {"ruler_samples": "count"}


@dataclass(frozen=True)
class CellScore:
    """Means over the samples of a task, length and budget; None where no sample has the value.

    Attributes:
        task: its task.
        length: its maximum length in tokens.
        budget: its label.
        count: number of samples.
        score: RULER's, 0..100.
        stderr: standard error of the score; None for a single sample.
        nll: mean negative log-likelihood of the references' tokens.
        exact_match: percentage of the references that greedy decoding would write.
        kv_bytes: bytes of the cache after the prompt.
        fill: tokens over the maximum length.
    """

    task: str
    length: int
    budget: str
    count: int
    score: float | None
    stderr: float | None
    nll: float | None
    exact_match: float | None
    kv_bytes: float | None
    fill: float

    @property
    def name(self) -> str:
        """The cell's part of a metric's name."""
        return f"{self.task}/{self.length}/{self.budget}"


def cell_scores(records: Iterable[Record]) -> list[CellScore]:
    """The means of each cell, in the order of their first records."""
    return [_mean_of(own) for own in by_cell(records).values()]


def _mean_of(records: list[Record]) -> CellScore:
    def known(attribute: str) -> list[float]:
        return [value for record in records if (value := getattr(record, attribute)) is not None]

    scores, exact, nll, sizes = map(known, ("score", "exact_match", "nll", "kv_bytes"))
    percentages = [100 * score for score in scores]
    return CellScore(
        *records[0].cell,
        count=len(records),
        score=round(fmean(percentages), 2) if scores else None,
        stderr=round(stdev(percentages) / len(scores) ** 0.5, 2) if len(scores) > 1 else None,
        nll=fmean(nll) if nll else None,
        exact_match=round(fmean(100.0 * value for value in exact), 2) if exact else None,
        kv_bytes=fmean(sizes) if sizes else None,
        fill=fmean(record.fill for record in records),
    )


def metrics(cells: list[CellScore]) -> dict[str, float]:
    """Metrics for a logger.

    ``ruler/<task>/<length>/<budget>`` is the score. ``ruler_stderr``, ``ruler_nll``, ``ruler_exact_match`` and
    ``ruler_samples``, the number of samples, have the same form. ``ruler/subset_mean`` is the mean over the tasks
    scored, by length and budget and over everything. With all 13 tasks ``ruler/average`` is the same mean.
    ``ruler_kv_bytes/<length>/<budget>`` is the mean size of the cache, ``ruler_fill/<length>`` the mean fill of the
    prompts.
    """
    named = {
        figure: {cell: value for cell in cells if (value := getattr(cell, attribute)) is not None}
        for figure, attribute in _FIGURES.items()
    }
    figures = {f"{figure}/{cell.name}": value for figure, values in named.items() for cell, value in values.items()}
    for figure in ("ruler", "ruler_nll", "ruler_exact_match"):
        if named[figure]:
            figures |= _means(figure, named[figure])
    for length, budget in dict.fromkeys((cell.length, cell.budget) for cell in cells):
        sizes = [c.kv_bytes for c in cells if (c.length, c.budget) == (length, budget) and c.kv_bytes is not None]
        if sizes:
            figures[f"ruler_kv_bytes/{length}/{budget}"] = fmean(sizes)
        figures[f"ruler_fill/{length}"] = fmean(cell.fill for cell in cells if cell.length == length)
    return figures


def _means(figure: str, values: Mapping[CellScore, float]) -> dict[str, float]:
    """The means over tasks, for each length and budget and over everything."""
    means = {}
    for length, budget in dict.fromkeys((cell.length, cell.budget) for cell in values):
        own = {cell.task: value for cell, value in values.items() if (cell.length, cell.budget) == (length, budget)}
        for name in mean_names(own):
            means[f"{figure}/{name}/{length}/{budget}"] = round(fmean(own.values()), 4)
    complete = all(f"{figure}/average/{cell.length}/{cell.budget}" in means for cell in values)
    for name in ("subset_mean", "average") if complete else ("subset_mean",):
        means[f"{figure}/{name}"] = round(fmean(values.values()), 4)
    return means


def mean_names(tasks: Iterable[str]) -> tuple[str, ...]:
    """Names of a mean over these tasks: only a mean over all 13 is RULER's average."""
    return ("subset_mean", "average") if set(tasks) == TASKS.keys() else ("subset_mean",)


def table(records: Iterable[Record]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the table of predictions."""
    columns = ["id", "task", "length", "budget", "outputs", "prediction", "score", "nll", "exact_match", "fill"]
    return columns, [
        [" | ".join(record.outputs) if column == "outputs" else getattr(record, column) for column in columns]
        for record in records
    ]
