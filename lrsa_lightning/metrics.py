"""A run's metrics file: one JSON object a line. Its ``step`` is the number of optimizer steps done."""

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
    return in_steps_done(rows)


def in_steps_done(rows: Sequence[Row]) -> list[Row]:
    """The rows of a metrics file, with the optimizer steps done under ``step``.

    Earlier versions gave the first step the number 0. There, the first RULER check of step 0 precedes training.
    """
    if not is_counted_from_zero(rows):
        return list(rows)
    counted, checked = [], set()
    for row in rows:
        precedes = row["step"] == 0 and checked.isdisjoint(row) and not any(map(_is_of_step, row))
        checked |= row.keys() - {"step", "epoch"} if precedes else set()
        counted.append(row if precedes else {**row, "step": row["step"] + 1})
    return counted


def is_counted_from_zero(rows: Sequence[Row]) -> bool:
    """Whether an earlier version wrote the rows: they hold a training loss at step 0."""
    return any(row["step"] == 0 and "train/loss" in row for row in rows)


def _is_of_step(name: str) -> bool:
    return name.startswith(("train/", "val/", "throughput/"))


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
