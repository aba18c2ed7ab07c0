"""From its first optimizer step on, a run directory holds a run."""

from lightning import Callback, LightningModule, Trainer

from lrsa_lightning.run_start import RunStart


class FirstStep(Callback):
    """Tells a run's start that it has succeeded; the command adds it, before all that saves or may fail."""

    def __init__(self, start: RunStart):
        """
        Args:
            start: of the process that writes.
        """
        self.start = start

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        if self.start.is_pending and trainer.global_step > 0:
            self.start.succeed()
