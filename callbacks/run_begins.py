"""What begins with the first micro-batch, and with the first optimizer step."""

from lightning import Callback, LightningModule, Trainer

from lrsa_lightning.library_errors import computing_has_begun
from lrsa_lightning.run.start import RunStart


class FirstStep(Callback):
    """Notes that computing has begun. Before the first micro-batch, an error is usually about what the user gave."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        computing_has_begun.set(True)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        computing_has_begun.set(True)


class RunBegins(Callback):
    """Marks the start of a run as successful: what the command has added to the run directory stays.

    The command adds it in the process that writes, before all callbacks that save or may fail.
    """

    def __init__(self, start: RunStart):
        self.start = start
        self._from_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._from_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        if self.start.is_pending and trainer.global_step > self._from_step:
            self.start.succeed()
