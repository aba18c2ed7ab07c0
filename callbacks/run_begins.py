"""From its first optimizer step on, what a command has added to a run directory stays."""

from lightning import Callback, LightningModule, Trainer

from lrsa_lightning.run_start import RunStart


class RunBegins(Callback):
    """Tells a start that it has succeeded; the command adds it, before all callbacks that save or may fail."""

    def __init__(self, start: RunStart):
        """
        Args:
            start: of the process that writes.
        """
        self.start = start
        self._from_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._from_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        if self.start.is_pending and trainer.global_step > self._from_step:
            self.start.succeed()
