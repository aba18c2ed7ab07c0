"""The inputs of a report: run directories of `lrsa fit` and folders of `lrsa eval`."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from pathlib import Path
from statistics import fmean, median
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.metrics import METRICS, Row, points, read_rows
from lrsa_lightning.ruler.records import CellName, Record, read_records
from lrsa_lightning.ruler.results import CellScore, cell_scores
from lrsa_lightning.run.config import CACHE_SIZES, RunConfig

RESULTS, SETTINGS = "results.jsonl", "settings.json"
SECONDS = "throughput/seconds/"
_CHECK = re.compile(r"step-(\d+)\.jsonl(\.xz)?")
# With depths_ and .png, file systems take a name of this length in any alphabet.
_LONGEST_STEM = 60
# Steps at the start that are slower: kernels are compiled, caches filled.
_WARM_UP = 10


@dataclass(frozen=True)
class Measured:
    """What a run's metrics say about its training; None where they say nothing.

    Attributes:
        tokens_per_second: of all devices, the median over its steps.
        peak_memory_gib: of the fullest device.
        train_loss: mean over the last hundredth of the steps.
        val_loss: of the last validation.
    """

    tokens_per_second: float | None = None
    peak_memory_gib: float | None = None
    train_loss: float | None = None
    val_loss: float | None = None

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Measured":
        """From the rows of a metrics file."""
        names = ("throughput/tokens_per_second", "throughput/peak_memory_gib", "train/loss", "val/loss")
        speeds, memory, losses, validation = ([z for z in points(rows, name)[1] if isfinite(z)] for name in names)
        steady = speeds[_WARM_UP:] or speeds
        return cls(
            median(steady) if steady else None,
            max(memory, default=None),
            fmean(losses[-max(1, len(losses) // 100) :]) if losses else None,
            validation[-1] if validation else None,
        )


@dataclass(frozen=True)
class Run:
    """What one folder holds.

    Attributes:
        label: name of the run in tables and figures.
        path: the folder.
        step: optimizer step of the records; None for an evaluation folder and where there are no records.
        records: of RULER.
        losses: steps and training losses.
        seconds: of training, without evaluations, up to the end of each step; empty without the callback Throughput.
        tokens: number of training tokens; None where none were logged.
        config: the newest configuration; empty where there is none.
        settings: of an evaluation folder; empty for a run directory.
        measured: speed, memory and losses of the training.
    """

    label: str
    path: Path
    step: int | None = None
    records: list[Record] = field(default_factory=list)
    losses: tuple[list[int], list[float]] = field(default_factory=lambda: ([], []))
    seconds: dict[int, float] = field(default_factory=dict)
    tokens: int | None = None
    config: RunConfig = field(default_factory=RunConfig)
    settings: dict[str, Any] = field(default_factory=dict)
    measured: Measured = field(default_factory=Measured)

    @cached_property
    def means(self) -> dict[CellName, CellScore]:
        """Means of the records by task, length and budget."""
        return {(mean.task, mean.length, mean.budget): mean for mean in cell_scores(self.records)}

    @cached_property
    def scored(self) -> dict[CellName, CellScore]:
        """The means that have a score: answers were generated for them."""
        return {name: mean for name, mean in self.means.items() if mean.score is not None}

    @property
    def file_stem(self) -> str:
        """The label as part of a file name."""
        return re.sub(r"[^\w.-]+", "_", self.label)[:_LONGEST_STEM]

    @property
    def cache_sizes(self) -> dict[str, Any]:
        """What the cache budgets mean at a length; empty where this is unknown."""
        if self.settings:
            return {key: self.settings[key] for key in CACHE_SIZES if key in self.settings}
        return self.config.cache_sizes


def read_runs(arguments: Sequence[str], step: int | None = None) -> list[Run]:
    """Reads folders given as PATH or LABEL=PATH.

    Args:
        arguments: the folders. The default label is the folder's name.
        step: of the RULER check to read from run directories; the last one with scores when None.

    Raises:
        InputError: a folder holds nothing to report, a line is malformed, the step has no scores, or two labels are
            equal.
    """
    runs = [_read_run(*_split(argument), step) for argument in arguments]
    for number, run in enumerate(runs):
        if run.file_stem in [other.file_stem for other in runs[:number]]:
            raise InputError(f"two inputs are called {run.label!r}: give one of them another name, as LABEL={run.path}")
    return runs


def _split(argument: str) -> tuple[str, Path]:
    label, separator, path = argument.partition("=")
    if separator and label and not Path(argument).exists():
        return printable(label), Path(path)
    return printable(Path(argument).resolve().name), Path(argument)


def printable(name: str) -> str:
    """A file name as one line of valid text; names of files may hold any bytes."""
    return " ".join(name.encode("utf-8", "replace").decode("utf-8").split())


def _read_run(label: str, path: Path, step: int | None) -> Run:
    if not path.is_dir():
        raise InputError(f"{path} is not a folder: give a run directory of `lrsa fit` or a folder of `lrsa eval`")
    config, metrics = RunConfig.of_directory(path), path / METRICS
    results = next((file for name in (RESULTS, f"{RESULTS}.xz") if (file := path / name).exists()), None)
    step, records = _last_check(path, step) if results is None else (None, read_records(results))
    rows = read_rows(metrics) if metrics.exists() else []
    losses, (_, tokens) = points(rows, "train/loss"), points(rows, "train/tokens")
    if not records and not losses[0]:
        raise InputError(
            f"{path} holds neither RULER records ({RESULTS}, ruler/step-<n>.jsonl) nor train/loss in {METRICS}: give "
            "a run directory of `lrsa fit` or a folder of `lrsa eval`"
        )
    seen = int(tokens[-1]) if tokens and isfinite(tokens[-1]) else None
    settings, seconds = _read_settings(path / SETTINGS), _seconds(rows)
    return Run(label, path, step, records, losses, seconds, seen, config, settings, Measured.of(rows))


def _seconds(rows: Sequence[Row]) -> dict[int, float]:
    total, seconds = 0.0, {}
    for row in rows:
        parts = [value for key, value in row.items() if key.startswith(SECONDS) and key != f"{SECONDS}evaluation"]
        if parts and None not in parts:
            seconds[row["step"]] = total = total + sum(parts)
    return seconds


def _last_check(path: Path, step: int | None) -> tuple[int | None, list[Record]]:
    """Step and records of the given check, else of the last one with scores, else of the last one with any record."""
    files = {int(match[1]): file for file in path.glob("ruler/*") if (match := _CHECK.fullmatch(file.name))}
    without_scores = None, []
    for number in sorted(files if step is None else files.keys() & {step}, reverse=True):
        records = read_records(files[number])
        if any(record.score is not None for record in records):
            return number, records
        if records and without_scores[0] is None:
            without_scores = number, records
    if files and step is not None:
        others = ", ".join(str(number) for number in sorted(files) if number != step)
        raise InputError(f"{path}/ruler has no scores of step {step}: give --step one of its other checks ({others})")
    return without_scores


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; expected the settings of `lrsa eval`") from error
    return settings if isinstance(settings, dict) else {}
