"""One history of a run's metrics, however often it is resumed."""

from lightning import Callback, LightningModule, Trainer

from lrsa_lightning.callbacks.metrics_file import metrics_files


class ResumedHistory(Callback):
    """Sets aside what an interrupted run logged beyond the step it goes on from; the command adds it to every trainer.

    Loggers that can only append are told first what they have been told, and leave it out.
    """

    def __init__(self, resumes: bool = False):
        """
        Args:
            resumes: a checkpoint will be loaded. Lightning says so only when it does, under DeepSpeed after the fit
                has started; until then nothing is set aside.
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
                file.forget_after(0)  # an attempt that was killed before its first checkpoint

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        if trainer.state.fn == "fit":
            for file in metrics_files(trainer.loggers):
                file.forget_after(checkpoint["global_step"])
