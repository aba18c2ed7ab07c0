"""One history of a run's metrics, however often it is resumed."""

import logging

from lightning import Callback, LightningModule, Trainer

from lrsa_lightning.callbacks.metrics_file import metrics_files
from lrsa_lightning.errors import Stopped
from lrsa_lightning.step_log import write_steps

log = logging.getLogger(__name__)


class ResumedHistory(Callback):
    """Sets aside rows that an interrupted run logged after the step it resumes from. The command adds it to trainers.

    Loggers that can only append first get the rows that were logged before, so that they skip them. When a signal or an
    error ends the run, the rows that still wait on the device are written.
    """

    def __init__(self, resumes: bool = False):
        """
        Args:
            resumes: whether a checkpoint will be loaded. Lightning loads it late, under DeepSpeed after the fit has
                started. Until then nothing is set aside.
        """
        self.resumes = resumes

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        files = metrics_files(trainer.loggers)
        rows = [row for file in files for row in file.rows()]
        for logger in trainer.loggers:
            if hasattr(logger, "skip"):
                logger.skip(rows)
        if not self.resumes:
            for file in files:
                file.forget_after(None)  # rows of a run that was killed before its first checkpoint

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        if trainer.state.fn == "fit":
            for file in metrics_files(trainer.loggers):
                file.forget_after(checkpoint["global_step"])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):  # the second one: the user waits for no device
            return
        try:
            write_steps(trainer)
        except Stopped as found:  # the run ends in any case; its state is now that before the step
            log.warning("%s", found.reason)
        except RuntimeError as error:
            log.warning("the device does not answer, and the metrics of the last steps are lost: %s", error)
