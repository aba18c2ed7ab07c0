"""The metric of each cell as text, and over the seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from statistics import fmean, stdev

import pandas as pd

from lrsa_lightning.sweep.cells import Cell
from lrsa_lightning.sweep.definition import Sweep

FINISHED, _EMPTY = "finished", "–"


@dataclass(frozen=True)
class Row:
    """One cell in the table.

    Attributes:
        cell: the cell.
        status: for people.
        value: the last logged value of the metric; None without one.
        tokens: number of training tokens; None where it is unknown.
        logged: names of all metrics in the cell's metrics file.
    """

    cell: Cell
    status: str
    value: float | None
    tokens: int | None
    logged: set[str]


def to_text(sweep: Sweep, rows: Sequence[Row], mark_best: bool) -> str:
    """One line for each cell, in their order. A star marks the best value of the finished cells."""
    finished = [row.value for row in rows if row.status == FINISHED and row.value is not None]
    best = _best(sweep, finished) if mark_best else None
    stars = ["* " if best is not None and (row.status, row.value) == (FINISHED, best) else "" for row in rows]
    columns = {
        sweep.metric or "no metric": [star + _figure(row.value) for star, row in zip(stars, rows, strict=True)],
        "tokens": [_EMPTY if row.tokens is None else f"{row.tokens:,}" for row in rows],
        "status": [row.status for row in rows],
    }
    return _aligned("cell", [row.cell.name for row in rows], columns)


def seeds_table(sweep: Sweep, rows: Sequence[Row]) -> str:
    """Mean and sample standard deviation of each setting over the seeds of its finished cells."""
    settings: dict[str, list[float]] = {}
    for row in rows:
        own = settings.setdefault(row.cell.setting, [])
        if row.status == FINISHED and row.value is not None:
            own.append(row.value)
    columns = {
        f"{sweep.metric}, mean": [_figure(fmean(values) if values else None) for values in settings.values()],
        "deviation": [_figure(stdev(values) if len(values) > 1 else None) for values in settings.values()],
        "seeds": [len(values) for values in settings.values()],
    }
    return _aligned("setting", [*settings], columns)


def _best(sweep: Sweep, values: Sequence[float]) -> float | None:
    known = {value for value in values if not isnan(value)}
    return (max if sweep.maximize else min)(known) if len(known) > 1 else None


def _figure(value: float | None) -> str:
    return _EMPTY if value is None else f"{value:.4g}"


def _aligned(title: str, names: Sequence[str], columns: Mapping[str, Sequence]) -> str:
    """The names to the left, the columns to the right."""
    return pd.DataFrame(columns, index=names).rename_axis(columns=title).to_string()
