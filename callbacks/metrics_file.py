"""A logger that needs no account: one JSON object a line in the run directory."""

import json
import logging
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lrsa_lightning.files.atomic_text import append_text, write_text
from lrsa_lightning.files.disk import BestEffort
from lrsa_lightning.metrics import METRICS, Row, in_steps_done, is_counted_from_zero

log = logging.getLogger(__name__)


class MetricsFile(Logger):
    """Appends every logged metric to ``metrics.jsonl``, with the number of optimizer steps done.

    While the disk is full, the rows stay in memory. The next write that succeeds writes them all.
    """

    def __init__(self, save_dir: str | None = None):
        """
        Args:
            save_dir: folder of the file; the command sets it to the run directory.
        """
        super().__init__()
        self._save_dir = Path(save_dir or ".")
        self._unwritten: list[str] = []
        self._is_checked = False
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
        return self._save_dir / METRICS

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._unwritten.append(json.dumps({"step": step, **{k: float(v) for k, v in metrics.items()}}) + "\n")
        with self._effort.attempt():
            self._count_from_one()
            append_text(self.path, "".join(self._unwritten))
            self._unwritten = []

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Writes nothing: config.yaml beside the file holds the configuration."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._unwritten:
            log.warning("%s lacks the last %d rows", self.path, len(self._unwritten))
        self._effort.sum_up()

    def rows(self) -> list[Row]:
        """All rows so far, also those that are not on the disk yet. Damaged lines are left out."""
        lines = [*self._lines(), *self._unwritten]
        return in_steps_done([row for line in lines if (row := _row(line)) is not None])

    @rank_zero_only
    def forget_after(self, step: int | None) -> None:
        """Moves the rows of all later steps to ``metrics-<n>.jsonl``: a resumed run logs these steps again.

        Args:
            step: number of optimizer steps done; None for a run that starts again, and keeps no row.
        """
        if not self.path.is_file():
            return
        self._count_from_one()
        last = -1 if step is None else step
        kept, later = [], []
        for line in self._lines():
            row = _row(line)
            (kept if row is not None and row["step"] <= last else later).append(line)
        if later:
            aside = next(path for n in count(1) if not (path := self.path.with_stem(f"metrics-{n}")).exists())
            write_text(aside, "".join(later))
            log.info("%s: %d rows after step %d moved to %s", self.path, len(later), step or 0, aside.name)
        write_text(self.path, "".join(kept))

    def _count_from_one(self) -> None:
        """Writes a file of an earlier version anew, once: its first step was 0."""
        if self._is_checked or not self.path.is_file():
            return
        self._is_checked = True
        rows = [row for line in self._lines() if (row := _row(line)) is not None]
        if is_counted_from_zero(rows):
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in in_steps_done(rows)))

    def _lines(self) -> list[str]:
        """The complete lines of the file; a killed run may leave half a line at the end."""
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.is_file() else []
        return [line for line in lines if line.endswith("\n")]


def metrics_files(loggers: Sequence[Logger]) -> list[MetricsFile]:
    """The metrics files among a trainer's loggers."""
    return [logger for logger in loggers if isinstance(logger, MetricsFile)]


def _row(line: str) -> Row | None:
    """The row of a line; None for a damaged line."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
