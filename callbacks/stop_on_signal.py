"""A signal of the scheduler, or Ctrl+C, ends training where it can go on."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from lightning import Callback, LightningModule, Trainer

from lrsa_lightning.data.resume_progress import is_after_micro_batch
from lrsa_lightning.errors import Stopped

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopOnSignal(Callback):
    """Ends training on SIGTERM, SIGUSR1 and Ctrl+C at the end of the running micro-batch, with status 128 + its number.

    What `Checkpoints` then saves counts as the last whole optimizer step: gradients amid an accumulation are
    computed again. A validation or a RULER check that is under way is broken off, on one device at once, on several at
    the end of its batch: whichever of them hears the signal, all agree. The resumed run makes up for a RULER check, and
    for a validation after the last step; one before it Lightning takes as done. A second Ctrl+C ends at once, without
    saving.
    Replaces Lightning's handlers, which exit with status 0, let SIGUSR1 kill the process, and save within the handler
    under SLURM; a job that is queued again with `--ckpt_path last` goes on. First of all callbacks, so that nothing
    long runs between signal and exit.
    """

    def __init__(self):
        self._received: int | None = None
        self._trainer: Trainer | None = None
        self._at_rest = False
        self._writes = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning, which has registered its handlers by now, also puts the process's own back in the end."""
        self._trainer, self._received, self._at_rest = trainer, None, True
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._receive)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        self._at_rest = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        self.raise_if_signalled(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._at_rest = True
        self.raise_if_signalled(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        self.raise_if_signalled(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._at_rest = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._at_rest = True

    def raise_if_signalled(self, trainer: Trainer) -> None:
        """Stops if a signal has come; all processes must ask at the same place.

        Raises:
            Stopped: it has, to any of them; then in all.
        """
        number = self._received or 0
        if trainer.world_size > 1:
            number = _greatest(trainer, number)
        if number:
            raise _stopped_by(trainer, number)

    def _receive(self, number: int, frame: object) -> None:
        if self._received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._received = number
        log.warning("%s: saving and stopping after this micro-batch, or batch of a check", signal.Signals(number).name)
        can_stop = not self._writes and (self._at_rest or is_after_micro_batch(self._trainer))
        if self._trainer.world_size == 1 and can_stop:
            raise _stopped_by(self._trainer, number)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A signal that comes within takes effect at the end.

        Raises:
            Stopped: one has come, to the only process.
        """
        before, self._writes = self._received, True
        try:
            yield
        finally:
            self._writes = False
        if self._received != before and self._trainer.world_size == 1:
            raise _stopped_by(self._trainer, self._received)


def raise_if_signalled(trainer: Trainer) -> None:
    """Within what takes long and all processes do together, such as a check of the model: stops if a signal has come.

    Raises:
        Stopped: it has.
    """
    for callback in trainer.callbacks:
        if isinstance(callback, StopOnSignal):
            callback.raise_if_signalled(trainer)


@contextmanager
def writing(trainer: Trainer) -> Iterator[None]:
    """Around a write that must be complete, such as a checkpoint: no signal breaks it off.

    Raises:
        Stopped: at the end, if a signal came meanwhile.
    """
    with ExitStack() as stack:
        for callback in trainer.callbacks:
            if isinstance(callback, StopOnSignal):
                stack.enter_context(callback.writing())
        yield


def _stopped_by(trainer: Trainer, number: int) -> Stopped:
    return Stopped(trainer, 128 + number, f"stopped by {signal.Signals(number).name}")


def _greatest(trainer: Trainer, number: int) -> int:
    return int(trainer.strategy.reduce(torch.tensor(number, device=trainer.strategy.root_device), reduce_op="max"))
