"""The metric of each cell as text, and over the seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.json_lines import read_lines
from lrsa_lightning.sweep.cells import Cell
from lrsa_lightning.sweep.definition import Sweep

_METRICS, _EMPTY = "metrics.jsonl", "–"


@dataclass(frozen=True)
class Row:
    """A cell's line.

    Attributes:
        cell: the cell.
        status: for people.
        value: of the metric, the last one logged; None without any.
        tokens: learned from; None where unknown.
    """

    cell: Cell
    status: str
    value: float | None
    tokens: int | None


def last_value(run: Path, metric: str | None) -> float | None:
    """What a run logged last of a metric; None where it logged none, or its file is damaged."""
    if metric is None:
        return None
    values = [row[metric] for row in _rows(run) if metric in row]
    return values[-1] if values and isinstance(values[-1], int | float) else None


def logged_metrics(run: Path) -> set[str]:
    """The names in a run's metrics file; none where it is damaged."""
    return {name for row in _rows(run) for name in row}


def _rows(run: Path) -> list[dict[str, Any]]:
    try:
        return [row for _, row in read_lines(run / _METRICS, cut_short=True)]
    except InputError:  # the report says why
        return []


def to_text(sweep: Sweep, rows: Sequence[Row], mark_best: bool) -> str:
    """A line for each cell, in their order; the best value behind a star."""
    best = _best(sweep, [row.value for row in rows if row.status == "finished"]) if mark_best else None
    lines = [["cell", sweep.metric or "no metric", "tokens", "status"]]
    for row in rows:
        star = "* " if best is not None and row.value == best and row.status == "finished" else ""
        tokens = _EMPTY if row.tokens is None else f"{row.tokens:,}"
        lines.append([row.cell.name, f"{star}{_figure(row.value)}", tokens, row.status])
    return _aligned(lines)


def seeds_table(sweep: Sweep, rows: Sequence[Row]) -> str:
    """Mean and sample standard deviation of each setting over the seeds of its finished cells."""
    settings: dict[str, list[float]] = {}
    for row in rows:
        own = settings.setdefault(row.cell.setting, [])
        if row.status == "finished" and row.value is not None:
            own.append(row.value)
    lines = [["setting", f"{sweep.metric}, mean", "deviation", "seeds"]]
    for setting, values in settings.items():
        mean, deviation = fmean(values) if values else None, stdev(values) if len(values) > 1 else None
        lines.append([setting, _figure(mean), _figure(deviation), str(len(values))])
    return _aligned(lines)


def _best(sweep: Sweep, values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and not isnan(value)]
    return (max if sweep.maximize else min)(known) if len(set(known)) > 1 else None


def _figure(value: float | None) -> str:
    return _EMPTY if value is None else f"{value:.4g}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    )
