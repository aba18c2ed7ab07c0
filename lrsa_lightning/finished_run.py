"""A run that has trained all its steps: what its resume still has to do."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer

from lrsa_lightning.callbacks import RulerEval
from lrsa_lightning.callbacks.metrics_file import metrics_files
from lrsa_lightning.checkpoints.atomic_files import read_written
from lrsa_lightning.data import LongContextDataModule
from lrsa_lightning.data.resume_progress import SavedProgress
from lrsa_lightning.distributed.deepspeed import ZeroStrategy
from lrsa_lightning.trained_model import read_state

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedRun:
    """Makes up for checks after the last step that were interrupted. Lightning itself would do nothing.

    Attributes:
        checkpoint: the checkpoint of the last step.
        limit: the setting that makes it the last, for example "trainer.max_steps 100".
        trainer: the command's trainer.
    """

    checkpoint: Mapping[str, Any]
    limit: str
    trainer: Trainer

    @classmethod
    def of_checkpoint(cls, path: Path | None, trainer: Trainer) -> "FinishedRun | None":
        """The run of a checkpoint, or None if the trainer has steps left."""
        if path is None:
            return None
        if path.is_dir() and (not isinstance(trainer.strategy, ZeroStrategy) or read_written(path) is None):
            return None  # the strategy will refuse the folder, or read it itself
        checkpoint = read_state(path)
        if "loops" not in checkpoint:
            return None
        for name, limit, done in (
            ("max_steps", trainer.max_steps, checkpoint["global_step"]),
            ("max_epochs", trainer.max_epochs, SavedProgress(checkpoint).epochs_done),
        ):
            if 0 < (limit or 0) <= done:
                return cls(checkpoint, f"trainer.{name} {limit}", trainer)
        return None

    def complete(self, model: LightningModule, datamodule: LongContextDataModule, ckpt_path: str, **_) -> None:
        """Runs the missing RULER check and validation, then says that the run is finished."""
        trainer, step = self.trainer, self.checkpoint["global_step"]
        checks = [callback for callback in trainer.callbacks if isinstance(callback, RulerEval)]
        lacking = [callback for callback in checks if not callback.records_path(trainer, step).exists()]
        validates = self._lacks_validation(datamodule, step)
        if lacking or validates:
            log.warning("the last step, %d, is trained: its missing checks run now", step)
            trainer.callbacks = [each for each in trainer.callbacks if each not in checks or each in lacking]
            if not validates:
                datamodule.val_files = []
            trainer.validate(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True, verbose=False)
        log.warning(
            "%s is finished: step %d is its last by %s; to train on, raise this limit",
            *(trainer.default_root_dir, step, self.limit),
        )

    def _lacks_validation(self, datamodule: LongContextDataModule, step: int) -> bool:
        """Whether a validation was due after the last step and the metrics file does not have it."""
        files = metrics_files(self.trainer.loggers)
        is_due = datamodule.val_files and SavedProgress(self.checkpoint).is_validation_due(self.trainer)
        if not files or not is_due:
            return False
        return not any(name.startswith("val/") for row in files[0].rows() if row["step"] == step for name in row)
