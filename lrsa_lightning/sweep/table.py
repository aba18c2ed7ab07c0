"""The metric of each cell as text, and over the seeds."""

from collections.abc import Mapping, Sequence
from math import isnan
from statistics import fmean
from typing import NamedTuple

import pandas as pd

from lrsa_lightning.sweep.cells import Cell
from lrsa_lightning.sweep.definition import Sweep

FINISHED, _EMPTY = "finished", "–"


class Row(NamedTuple):
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

    @property
    def final_value(self) -> float | None:
        """The value of a finished cell."""
        return self.value if self.status == FINISHED else None


def cells_table(sweep: Sweep, rows: Sequence[Row], mark_best: bool) -> str:
    """One line for each cell, in their order. A star marks the best value of the finished cells."""
    known = {row.final_value for row in rows if row.final_value is not None and not isnan(row.final_value)}
    best = (max if sweep.maximize else min)(known) if mark_best and len(known) > 1 else None
    stars = ["* " if best is not None and row.final_value == best else "" for row in rows]
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
        settings.setdefault(row.cell.setting, []).extend([] if row.final_value is None else [row.final_value])
    columns = {
        f"{sweep.metric}, mean": [_figure(fmean(values) if values else None) for values in settings.values()],
        "deviation": [
            _figure(pd.Series(values).std(skipna=False) if len(values) > 1 else None) for values in settings.values()
        ],
        "seeds": [len(values) for values in settings.values()],
    }
    return _aligned("setting", [*settings], columns)


def _figure(value: float | None) -> str:
    return _EMPTY if value is None else f"{value:.4g}"


def _aligned(title: str, names: Sequence[str], columns: Mapping[str, Sequence]) -> str:
    """The names to the left, the columns to the right."""
    return pd.DataFrame(columns, index=names).rename_axis(columns=title).to_string()
