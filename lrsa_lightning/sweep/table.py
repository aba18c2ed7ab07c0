"""The metric of each cell as text, and over the seeds."""

from collections.abc import Sequence
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
        error: standard error of the value over RULER's samples; None for other metrics.
        tokens: number of training tokens; None where it is unknown.
        logged: names of all metrics in the cell's metrics file.
    """

    cell: Cell
    status: str
    value: float | None
    error: float | None
    tokens: int | None
    logged: set[str]

    @property
    def final_value(self) -> float | None:
        """The value of a finished cell."""
        return self.value if self.status == FINISHED else None


def cells_frame(sweep: Sweep, rows: Sequence[Row]) -> pd.DataFrame:
    """For programs: one row for each cell, in their order."""
    columns = {
        "cell": [row.cell.name for row in rows],
        sweep.metric or "no metric": [row.value for row in rows],
        "standard error": [row.error for row in rows],
        "tokens": [row.tokens for row in rows],
        "status": [row.status for row in rows],
    }
    return pd.DataFrame(columns, dtype=object)


def seeds_frame(sweep: Sweep, rows: Sequence[Row]) -> pd.DataFrame:
    """For programs: each setting over the seeds of its finished cells.

    The columns are mean, sample standard deviation, standard error of the mean and number of seeds.
    """
    settings: dict[str, list[float]] = {}
    for row in rows:
        settings.setdefault(row.cell.setting, []).extend([] if row.final_value is None else [row.final_value])
    columns = {
        "setting": [*settings],
        f"{sweep.metric}, mean": [fmean(values) if values else None for values in settings.values()],
        "deviation": [_deviation(values) for values in settings.values()],
        "standard error": [_error(values) for values in settings.values()],
        "seeds": [len(values) for values in settings.values()],
    }
    return pd.DataFrame(columns, dtype=object)


def cells_table(sweep: Sweep, rows: Sequence[Row], mark_best: bool) -> pd.DataFrame:
    """The texts of `cells_frame`. A star marks the best value of the finished cells."""
    known = {row.final_value for row in rows if row.final_value is not None and not isnan(row.final_value)}
    best = (max if sweep.maximize else min)(known) if mark_best and len(known) > 1 else None
    stars = ["* " if best is not None and row.final_value == best else "" for row in rows]
    frame = cells_frame(sweep, rows)
    _, metric, error, tokens, _ = frame.columns
    frame[metric] = [star + _figure(row.value) for star, row in zip(stars, rows, strict=True)]
    frame[error] = [_figure(row.error and float(f"{row.error:.3g}")) for row in rows]
    frame[tokens] = [_EMPTY if row.tokens is None else f"{row.tokens:,}" for row in rows]
    return frame


def seeds_table(sweep: Sweep, rows: Sequence[Row]) -> pd.DataFrame:
    """The texts of `seeds_frame`."""
    return seeds_frame(sweep, rows).map(lambda value: value if isinstance(value, str) else _figure(value))


def _error(values: Sequence[float]) -> float | None:
    return None if (deviation := _deviation(values)) is None else deviation / len(values) ** 0.5


def _deviation(values: Sequence[float]) -> float | None:
    return pd.Series(values).std(skipna=False) if len(values) > 1 else None


def _figure(value: float | None) -> str:
    return _EMPTY if value is None else f"{value:.6g}"


def aligned(table: pd.DataFrame) -> str:
    """A table for a terminal: its first column to the left, the others to the right."""
    name, *_ = table.columns
    return table.set_index(name).rename_axis(index=None, columns=name).to_string()
