"""Notes when computing begins. Before that, an error is usually about what the user gave."""

from lightning import Callback, LightningModule, Trainer

from lrsa_lightning.library_errors import computing_has_begun


class FirstStep(Callback):
    """Notes the first micro-batch of training or validation."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        computing_has_begun.set(True)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        computing_has_begun.set(True)
