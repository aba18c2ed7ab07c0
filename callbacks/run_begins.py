"""After the first optimizer step, what a command has added to a run directory stays."""

from lightning import Callback, LightningModule, Trainer

from lrsa_lightning.run_start import RunStart


class RunBegins(Callback):
    """Marks the start of a run as successful. The command adds it before all callbacks that save or may fail."""

    def __init__(self, start: RunStart):
        """
        Args:
            start: the start, in the process that writes.
        """
        self.start = start
        self._from_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._from_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        if self.start.is_pending and trainer.global_step > self._from_step:
            self.start.succeed()
