"""A logger that needs no account: one JSON object a line in the run directory."""

import json
import logging
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lrsa_lightning.atomic_text import append_text, write_text
from lrsa_lightning.disk import BestEffort

log = logging.getLogger(__name__)


class MetricsFile(Logger):
    """Appends every logged metric to ``metrics.jsonl``, with its step.

    Rows that a full disk does not take are kept in memory and written as soon as it does.
    """

    def __init__(self, save_dir: str | None = None):
        """
        Args:
            save_dir: folder of the file; the command sets it to the run directory.
        """
        super().__init__()
        self._save_dir = Path(save_dir or ".")
        self._unwritten: list[str] = []
        self._effort = BestEffort(str(self.path))

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self._save_dir)

    @property
    def path(self) -> Path:
        """The file."""
        return self._save_dir / "metrics.jsonl"

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._unwritten.append(json.dumps({"step": step, **{k: float(v) for k, v in metrics.items()}}) + "\n")
        with self._effort.attempt():
            append_text(self.path, "".join(self._unwritten))
            self._unwritten = []

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration is in config.yaml beside the file."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._unwritten:
            log.warning("%s lacks the last %d rows", self.path, len(self._unwritten))
        self._effort.sum_up()

    def rows(self) -> list[dict[str, float]]:
        """What was logged so far."""
        lines = whole_lines(self.path) if self.path.is_file() else []
        return [row for line in lines + self._unwritten if (row := row_of(line)) is not None]

    @rank_zero_only
    def forget_after(self, step: int) -> None:
        """Sets aside, as ``metrics-<n>.jsonl``, what was logged beyond the step that training goes on from.

        Args:
            step: optimizer steps done; Lightning logs the last of them as step - 1.
        """
        if not self.path.is_file():
            return
        kept, beyond = [], []
        for line in whole_lines(self.path):
            row = row_of(line)
            (kept if row is not None and row["step"] < step else beyond).append(line)
        if beyond:
            aside = self._aside()
            write_text(aside, "".join(beyond))
            log.info("%s: %d rows beyond step %d are set aside in %s", self.path, len(beyond), step, aside.name)
        write_text(self.path, "".join(kept))

    def _aside(self) -> Path:
        """The first name that is free."""
        return next(path for n in count(1) if not (path := self.path.with_stem(f"metrics-{n}")).exists())


def metrics_files(loggers: Sequence[Logger]) -> list[MetricsFile]:
    """Those of a trainer's loggers."""
    return [logger for logger in loggers if isinstance(logger, MetricsFile)]


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics file; a last line that was cut short is left out.

    Raises:
        ValueError: a line is no JSON.
    """
    return [json.loads(line) for line in whole_lines(path)]


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that have an end."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]


def row_of(line: str) -> dict[str, float] | None:
    """A line's row; None where it is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def read_metric(path: Path, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric of a metrics file; a last line that was cut short is left out."""
    return points(read_rows(path), key)


def points(rows: Sequence[dict[str, float]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric."""
    found = [(row["step"], row[key]) for row in rows if key in row]
    return [step for step, _ in found], [value for _, value in found]
