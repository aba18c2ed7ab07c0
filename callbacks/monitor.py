"""Whether the metric that decides which checkpoints are the best is ever logged."""

import logging
from collections.abc import Iterable

from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_only

from lrsa_lightning.errors import InputError

log = logging.getLogger(__name__)
_BY_CHECKS = ("val/", "ruler")  # measured at times of their own, not at every step


class Monitor:
    """Says, as soon as it can be known, that no metric has the name: no checkpoint would ever be the best."""

    def __init__(self, name: str | None):
        """
        Args:
            name: of the metric; nothing is looked for when None.
        """
        self._name = name
        self._was_logged = self._was_said = False

    def check_data(self, trainer: Trainer) -> None:
        """
        Raises:
            InputError: it is the validation's, and nothing is validated.
        """
        if self._name == "val/loss" and not getattr(trainer.datamodule, "val_files", True):
            raise InputError("Checkpoints.monitor val/loss will not be logged, for data.val_files is empty: give some")

    def check_start(self, trainer: Trainer) -> None:
        """
        Raises:
            InputError: a check before the first step measured others of its family (`ruler/...`), and not this one.
        """
        if self._is_missing(trainer) and (family := self._family(trainer)):
            raise InputError(f"{self._says(family)}: give one of them")

    def look(self, trainer: Trainer, is_due: bool = False) -> None:
        """Warns, once, when others of its family were logged and not this one.

        Args:
            trainer: whose metrics are looked at.
            is_due: whether a metric of every step must be there by now.
        """
        if not self._is_missing(trainer) or self._was_said:
            return
        family = self._family(trainer)
        if family or (is_due and not self._name.startswith(_BY_CHECKS)):
            self._was_said = True
            _warn(f"{self._says(family or trainer.callback_metrics)}; until it is logged no checkpoint is the best")

    def sum_up(self, trainer: Trainer) -> None:
        """Warns at the end of a run that never logged it."""
        if self._is_missing(trainer):
            _warn(f"{self._says(trainer.callback_metrics)}; no checkpoint was kept as the best")

    def _is_missing(self, trainer: Trainer) -> bool:
        self._was_logged = self._was_logged or self._name is None or self._name in trainer.callback_metrics
        return not self._was_logged

    def _family(self, trainer: Trainer) -> list[str]:
        return [name for name in trainer.callback_metrics if name.split("/")[0] == self._name.split("/")[0]]

    def _says(self, names: Iterable[str]) -> str:
        return f"Checkpoints.monitor {self._name} was not logged; metrics so far are {', '.join(sorted(names))}"


@rank_zero_only
def _warn(text: str) -> None:
    log.warning("%s", text)
