"""A logger that needs no account: one JSON object a line in the run directory."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lrsa_lightning.whole_text import write_text


class MetricsFile(Logger):
    """Appends every logged metric to ``metrics.jsonl``, with its step."""

    def __init__(self, save_dir: str | None = None):
        """
        Args:
            save_dir: folder of the file; the command sets it to the run directory.
        """
        super().__init__()
        self._save_dir = Path(save_dir or ".")

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
        self._save_dir.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **{k: float(v) for k, v in metrics.items()}}) + "\n")

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration is in config.yaml beside the file."""

    def rows(self) -> list[dict[str, float]]:
        """What was logged so far."""
        return read_rows(self.path) if self.path.exists() else []

    @rank_zero_only
    def forget_after(self, step: int) -> None:
        """Drops what an earlier, interrupted run logged beyond the step that training resumes from.

        Args:
            step: optimizer steps done; Lightning logs the last of them as step - 1.
        """
        if self.path.exists():
            kept = [row for row in self.rows() if row["step"] < step]
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))


def metrics_files(loggers: Sequence[Logger]) -> list[MetricsFile]:
    """Those of a trainer's loggers."""
    return [logger for logger in loggers if isinstance(logger, MetricsFile)]


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics file; a last line that was cut short is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read_metric(path: Path, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric of a metrics file; a last line that was cut short is left out."""
    return points(read_rows(path), key)


def points(rows: Sequence[dict[str, float]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric."""
    found = [(row["step"], row[key]) for row in rows if key in row]
    return [step for step, _ in found], [value for _, value in found]
