"""Checks whether the metric that ranks checkpoints is ever logged."""

import logging
from collections.abc import Iterable

from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_only

from lrsa_lightning.errors import InputError

log = logging.getLogger(__name__)
_BY_CHECKS = ("val/", "ruler")  # not measured at every step


class Monitor:
    """Reports as early as possible that no metric has the given name: no checkpoint would ever be the best.

    Without a name it checks nothing.
    """

    def __init__(self, name: str | None):
        self._name = name
        self._was_logged = self._has_warned = False

    def check_data(self, trainer: Trainer) -> None:
        """Raises an InputError if it is a validation metric, and there are no validation files."""
        if self._name == "val/loss" and not getattr(trainer.datamodule, "val_files", True):
            raise InputError("Checkpoints.monitor val/loss will not be logged, for data.val_files is empty: give some")

    def check_start(self, trainer: Trainer) -> None:
        """Raises an InputError if a check before the first step measured other metrics of its family, but not this."""
        if self._is_missing(trainer) and (family := self._family(trainer)):
            raise InputError(f"{self._message(family)}: give one of them")

    def look(self, trainer: Trainer, is_due: bool = False) -> None:
        """Warns once if other metrics of its family (`ruler/...`) were logged, but not this one.

        With ``is_due`` a metric that is logged at every step must exist by now, whatever its family.
        """
        if not self._is_missing(trainer) or self._has_warned:
            return
        family = self._family(trainer)
        if family or (is_due and not self._name.startswith(_BY_CHECKS)):
            self._has_warned = True
            _warn(f"{self._message(family or trainer.callback_metrics)}; until it is logged no checkpoint is the best")

    def sum_up(self, trainer: Trainer) -> None:
        """Warns at the end of a run that never logged the metric."""
        if self._is_missing(trainer):
            _warn(f"{self._message(trainer.callback_metrics)}; no checkpoint was kept as the best")

    def _is_missing(self, trainer: Trainer) -> bool:
        self._was_logged = self._was_logged or self._name is None or self._name in trainer.callback_metrics
        return not self._was_logged

    def _family(self, trainer: Trainer) -> list[str]:
        return [name for name in trainer.callback_metrics if name.split("/")[0] == self._name.split("/")[0]]

    def _message(self, names: Iterable[str]) -> str:
        return f"Checkpoints.monitor {self._name} was not logged; metrics so far are {', '.join(sorted(names))}"


@rank_zero_only
def _warn(text: str) -> None:
    log.warning("%s", text)
