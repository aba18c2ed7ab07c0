"""Weights & Biases for runs that resume."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import loggers
from lightning.pytorch.utilities import rank_zero_only

from lrsa_lightning.files.disk import BestEffort


class WandbLogger(loggers.WandbLogger):
    """Lightning's logger, which never logs a value of a step twice.

    Weights & Biases only appends to a run's history, online and when `wandb sync` uploads an offline run. A resumed run
    repeats the steps between its checkpoint and the interruption: their values would appear twice. The first values
    stay. The metrics file, which is cut at the checkpoint, says which they were.
    """

    _effort = BestEffort("Weights & Biases' files")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._wandb_init.pop("anonymous", None)  # gone from wandb, which warns of it
        # wandb's own summary repeats numbers of the log, and the command gives the address.
        if self._wandb_init.get("settings") is None and "WANDB_QUIET" not in os.environ:
            self._wandb_init["settings"] = {"quiet": True}

    _already_logged: Mapping[int, frozenset[str]] = {}
    _repeated_step: int | None = None

    @property
    def where(self) -> str | None:
        """The address of the run, or the command that uploads an offline run; None where nothing was logged."""
        run = self._experiment
        if run is None or run.disabled:
            return None
        return f"wandb sync {os.path.relpath(run.settings.sync_dir)}" if run.offline else run.url

    @rank_zero_only
    def skip(self, rows: Sequence[dict[str, float]]) -> None:
        """Does not log the values of these rows again.

        Args:
            rows: of the metrics file, before it is cut.
        """
        logged, same = {}, {}  # all steps with the same keys share one set: a long run has many steps
        for row in rows:
            keys = logged.get(row["step"], frozenset()).union(row)
            logged[row["step"]] = same.setdefault(keys, keys)
        self._already_logged = logged

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
        """Whether an earlier process logged this value.

        The metrics file has no tables and images. They were logged if a later step was, or if the numbers logged just
        before them were.
        """
        if step not in self._already_logged or isinstance(value, int | float):
            return key in self._already_logged.get(step, ())
        return step < max(self._already_logged) or step == self._repeated_step
