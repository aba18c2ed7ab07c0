"""The inputs of a report: run directories of `lrsa fit` and folders of scripts/eval_ruler.py, under one roof."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lrsa_lightning.errors import InputError
from lrsa_lightning.ruler.records import record_of
from lrsa_lightning.ruler.results import CellName, CellScore, Record, cell_scores, read_records
from lrsa_lightning.yaml_text import read_mapping

_METRICS, _RESULTS, _CONFIG, _SETTINGS = "metrics.jsonl", "results.jsonl", "config.yaml", "settings.json"
# What a budget means at a length.
_CACHE_SIZES = {"lag_divisor": 32, "sink_size": 16}
_CHECK = re.compile(r"step-(\d+)\.jsonl")
# Beside depths_ and .png, below what file systems take in any alphabet.
_LONGEST_STEM = 60
# Keys of data that change neither the samples nor their order.
_DATA_SPEED = {"micro_batch_size", "num_workers", "prepare_workers", "cache_dir", "val_files"}


@dataclass(frozen=True)
class Run:
    """What one folder says.

    Attributes:
        label: its name in tables and figures.
        path: the folder.
        step: optimizer step the records are of; None for an evaluation folder and where there are none.
        records: of RULER.
        losses: steps and training losses.
        config: the resolved configuration; empty where there is none.
        settings: of an evaluation folder; empty for others.
    """

    label: str
    path: Path
    step: int | None = None
    records: list[Record] = field(default_factory=list)
    losses: tuple[list[int], list[float]] = field(default_factory=lambda: ([], []))
    config: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def cells(self) -> dict[CellName, CellScore]:
        """The means of the records, by task, length and budget."""
        return {(cell.task, cell.length, cell.budget): cell for cell in cell_scores(self.records)}

    @cached_property
    def scored(self) -> dict[CellName, CellScore]:
        """Those of the cells for which answers were generated."""
        return {name: cell for name, cell in self.cells.items() if cell.score is not None}

    @property
    def file_stem(self) -> str:
        """The label as part of a file's name."""
        return re.sub(r"[^\w.-]+", "_", self.label)[:_LONGEST_STEM]

    @property
    def attention(self) -> str:
        """The mode it was trained with, and its sizes."""
        mode = self._part("model").get("attention")
        if not isinstance(mode, dict) or "class_path" not in mode:
            return str(mode or "")
        arguments = _mapping(mode.get("init_args"))
        sizes = [f"{key}={arguments[key]}" for key in ("lag_size", "retention_ratio", "sink_size") if key in arguments]
        return str(mode["class_path"]).rsplit(".", 1)[-1] + (f"({', '.join(sizes)})" if sizes else "")

    @property
    def cache_sizes(self) -> dict[str, Any]:
        """What its budgets mean at a length: lag_divisor and sink_size; empty where that is not known."""
        if self.settings:
            return {key: self.settings[key] for key in _CACHE_SIZES if key in self.settings}
        callbacks = self._part("trainer").get("callbacks")
        for callback in callbacks if isinstance(callbacks, list) else []:
            if str(_mapping(callback).get("class_path")).endswith("RulerEval"):
                arguments = _mapping(callback.get("init_args"))
                return {key: arguments.get(key, default) for key, default in _CACHE_SIZES.items()}
        return {}

    def _part(self, key: str) -> dict[str, Any]:
        return _mapping(self.config.get(key))

    @property
    def trained_on(self) -> dict[str, Any]:
        """What decides on the samples, their order and the number of tokens; empty without a configuration."""
        data, trainer = self._part("data"), self._part("trainer")
        named = {f"data.{key}": value for key, value in data.items() if key not in _DATA_SPEED}
        named |= {f"trainer.{key}": trainer[key] for key in ("max_steps", "max_epochs") if key in trainer}
        return named | {key: self.config[key] for key in ("seed_everything",) if key in self.config}


def read_runs(arguments: Sequence[str], step: int | None = None) -> list[Run]:
    """Reads folders given as PATH or LABEL=PATH.

    Args:
        arguments: the folders; without a label the folder's name is it.
        step: of the checks in run directories; the last with scores when None.

    Raises:
        InputError: a folder that holds nothing to report, a malformed line, a step without scores, a label given twice.
    """
    runs = [_read_run(*_split(argument), step) for argument in arguments]
    for number, run in enumerate(runs):
        if run.file_stem in [other.file_stem for other in runs[:number]]:
            raise InputError(f"two inputs are called {run.label!r}: name {run.path} otherwise, as LABEL={run.path}")
    return runs


def _split(argument: str) -> tuple[str, Path]:
    label, separator, path = argument.partition("=")
    if separator and label and not Path(argument).exists():
        return shown(label), Path(path)
    return shown(Path(argument).resolve().name), Path(argument)


def shown(name: str) -> str:
    """A name in one line, as any file can hold it: a folder's may be no text at all."""
    return " ".join(name.encode("utf-8", "replace").decode("utf-8").split())


def _mapping(value: Any) -> dict[str, Any]:
    """The value, or nothing where something else stands in its place."""
    return value if isinstance(value, dict) else {}


def _read_run(label: str, path: Path, step: int | None) -> Run:
    if not path.is_dir():
        raise InputError(f"{path} is not a folder: give a run directory of `lrsa fit` or a folder of eval_ruler.py")
    config = read_mapping(path / _CONFIG, "the configuration of `lrsa fit`") if (path / _CONFIG).exists() else {}
    if (path / _RESULTS).exists():
        step, records = None, _read(path / _RESULTS, read_records, _record)
    else:
        step, records = _last_check(path, step)
    losses = ([], [])
    if (metrics := path / _METRICS).exists():
        losses = _read(metrics, _losses, _metrics_row)
    if not records and not losses[0]:
        raise InputError(
            f"{path} holds neither RULER records ({_RESULTS}, ruler/step-<n>.jsonl) nor train/loss in {_METRICS}: give "
            "a run directory of `lrsa fit` or a folder of eval_ruler.py"
        )
    settings = _settings(path / _SETTINGS) if (path / _SETTINGS).exists() else {}
    return Run(label, path, step, records, losses, config, settings)


def _last_check(path: Path, step: int | None) -> tuple[int | None, list[Record]]:
    """Step and records of the check asked for, else of the last with scores, else of the last with any record."""
    files = {int(match[1]): file for file in path.glob("ruler/*.jsonl") if (match := _CHECK.fullmatch(file.name))}
    rated = None, []
    for number in sorted(files, reverse=True):
        if step not in (None, number):
            continue
        records = _read(files[number], read_records, _record)
        if any(record.score is not None for record in records):
            return number, records
        if records and rated[0] is None:
            rated = number, records
    if files and step is not None:
        there = ", ".join(str(number) for number in sorted(files) if number != step)
        raise InputError(
            f"{path}/ruler has no scores of step {step}: give --step one of its checks with scores ({there})"
        )
    return rated


_MALFORMED = (ValueError, TypeError, KeyError, RecursionError, OSError)


def _read(path: Path, reader: Callable[[Path], Any], check: Callable[[bytes], Any]) -> Any:
    """What the reader reads; on failure the first line that does not pass is named."""
    try:
        return reader(path)
    except _MALFORMED as error:
        for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], 1):
            try:
                check(line)
            except _MALFORMED as reason:
                text = f"{path}:{number}: {reason}; expected {check.__doc__}. Remove the line or make the file again"
                raise InputError(text) from error
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read: {error}") from error


def _record(line: bytes) -> Record:
    """a RULER record as one JSON object"""
    return record_of(dict(json.loads(line)))


def _losses(path: Path) -> tuple[list[int], list[float]]:
    """Steps and training losses; a last line that was cut short is left out."""
    lines = path.read_bytes().split(b"\n")[:-1]
    found = [(step, loss) for step, loss in map(_metrics_row, lines) if loss is not None]
    return [step for step, _ in found], [loss for _, loss in found]


def _metrics_row(line: bytes) -> tuple[int, float | None]:
    """metrics with their step as one JSON object"""
    row = json.loads(line)
    if not isinstance(row["step"], int):
        raise TypeError(f"step is {row['step']!r}")
    if "train/loss" not in row:
        return row["step"], None
    loss = row["train/loss"]
    if isinstance(loss, bool) or not isinstance(loss, int | float | None):
        raise TypeError(f"train/loss is {loss!r}")
    return row["step"], math.nan if loss is None else float(loss)


def _settings(path: Path) -> dict[str, Any]:
    try:
        return _mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; expected the settings of eval_ruler.py") from error
