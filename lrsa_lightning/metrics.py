"""A run's metrics file: one JSON object a line, with the optimizer step under ``step``."""

from collections.abc import Sequence
from math import isfinite, nan
from pathlib import Path

from lrsa_lightning.errors import InputError
from lrsa_lightning.files.json_lines import read_lines

METRICS = "metrics.jsonl"

Row = dict[str, float]


def read_rows(path: Path) -> list[Row]:
    """Reads all rows. A last line without its end is left out: a killed run leaves one.

    Raises:
        InputError: the file cannot be read, or a line is not a JSON object of numbers with a step; names the line.
    """
    rows = []
    for number, row in read_lines(path, cut_short=True):
        if not isinstance(row.get("step"), int):
            raise _malformed(path, number, "step", row.get("step"), "a whole number")
        for key, value in row.items():
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise _malformed(path, number, key, value, "a number")
        rows.append(row)
    return rows


def _malformed(path: Path, number: int, key: str, value, expected: str) -> InputError:
    return InputError(f"{path}, line {number}: {key} is {value!r}, expected {expected}; remove the line")


def points(rows: Sequence[Row], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric; a value that is null is NaN."""
    found = [(row["step"], row[key]) for row in rows if key in row]
    return [step for step, _ in found], [nan if value is None else value for _, value in found]


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """Exponential moving average, corrected for its start. Values that are NaN or infinite do not enter it.

    Args:
        values: one for each step.
        weight: of the past, 0..1.
    """
    smoothed, average, norm = [], 0.0, 0.0
    for value in values:
        if isfinite(value):
            average = weight * average + (1 - weight) * value
            norm = weight * norm + (1 - weight)
        smoothed.append(average / norm if norm else value)
    return smoothed
