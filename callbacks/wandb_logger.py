"""Weights & Biases for runs that resume."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import loggers
from lightning.pytorch.utilities import rank_zero_only

from lrsa_lightning.disk import BestEffort


class WandbLogger(loggers.WandbLogger):
    """Lightning's, which never tells a figure of a step twice.

    Weights & Biases only appends to a run's history, online and when `wandb sync` uploads the parts of an offline run:
    the steps between a checkpoint and the interruption, which a resumed run repeats, would be there twice. The first
    telling stands. The metrics file, which is cut at the checkpoint, tells what it was.
    """

    _effort = BestEffort("Weights & Biases' files")
    _already_logged: Mapping[int, frozenset[str]] = {}
    _repeated_step: int | None = None

    @rank_zero_only
    def skip(self, rows: Sequence[dict[str, float]]) -> None:
        """Leaves out, from now on, the figures of these rows of the metrics file."""
        told, same = {}, {}
        for row in rows:
            keys = told.get(row["step"], frozenset()).union(row)
            told[row["step"]] = same.setdefault(keys, keys)
        self._already_logged = told

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        new = {key: value for key, value in metrics.items() if not self._is_logged(key, value, step)}
        self._repeated_step = None if new else step
        if new:
            with self._effort.attempt():
                super().log_metrics(new, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        with self._effort.attempt():
            super().finalize(status)
        self._effort.sum_up()

    def _is_logged(self, key: str, value: Any, step: int | None) -> bool:
        """The metrics file has no tables and images: they were told if their step, or the figures before them, were."""
        if step not in self._already_logged or isinstance(value, int | float):
            return key in self._already_logged.get(step, ())
        return step < max(self._already_logged) or step == self._repeated_step
