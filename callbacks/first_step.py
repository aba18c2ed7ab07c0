"""Whether computing has begun, before which an error is most often about what the user gave."""

from contextvars import ContextVar

from lightning import Callback, LightningModule, Trainer

_begun: ContextVar[bool] = ContextVar("begun", default=False)


class FirstStep(Callback):
    """Notes the first micro-batch of training or validation."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        _begun.set(True)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        _begun.set(True)


def has_begun() -> bool:
    """Whether the running command has come to its first micro-batch."""
    return _begun.get()


def begin_anew() -> None:
    """To be called by a command that starts, in a process that may have run another one."""
    _begun.set(False)
