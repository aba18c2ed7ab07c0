"""A signal of the scheduler, or Ctrl+C, ends training at a point from which it can resume."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lightning import Callback, LightningModule, Trainer

from lrsa_lightning.collectives import Hosts
from lrsa_lightning.data.resume_progress import ends_step, is_after_micro_batch, leave_signals_alone
from lrsa_lightning.errors import Stopped

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopOnSignal(Callback):
    """Ends training on SIGTERM, SIGUSR1 and Ctrl+C; the exit status is 128 + the signal.

    One process stops after the running micro-batch, several after the running optimizer step. `Checkpoints` then saves
    the last complete optimizer step; the gradients of a partial accumulation are computed again. A second Ctrl+C ends
    the run without saving; only a checkpoint that is being written is waited for.

    A running validation or RULER check is interrupted: on one device at once, on several at the end of its batch. All
    processes agree, whichever gets the signal, and wait for no device to do so. A resumed run makes up for a RULER
    check, and for a validation after the last step. It does not repeat an earlier validation, which Lightning counts as
    done.

    This replaces Lightning's handlers. They exit with status 0, let SIGUSR1 kill the process, and save inside the
    handler under SLURM. A job that is queued again with `--ckpt_path last` resumes. This callback comes first, so that
    nothing long runs between signal and exit.
    """

    def __init__(self):
        self._received: int | None = None
        self._trainer: Trainer | None = None
        self._at_rest = False
        self._writes = False
        self._hosts = Hosts()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replaces the handlers that Lightning has registered; Lightning restores the process's own at the end."""
        self._trainer, self._received, self._at_rest = trainer, None, True
        leave_signals_alone(trainer)
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._receive)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        self._at_rest = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        if trainer.world_size == 1 or ends_step(trainer):
            self.raise_if_signalled(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._at_rest = True
        self.raise_if_signalled(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        self.raise_if_signalled(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._at_rest = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops for a signal that came after the end of the last batch: no later batch does."""
        self._at_rest = True
        self.raise_if_signalled(trainer)

    def raise_if_signalled(self, trainer: Trainer) -> None:
        """Stops if any process got a signal. All processes must call this at the same point.

        Raises:
            Stopped: in all processes, if any got a signal.
        """
        number = self._received or 0
        if trainer.world_size > 1:
            number = self._hosts.largest(number)
        if number:
            raise _stopped_by(trainer, number)

    def _receive(self, number: int, frame: object) -> None:
        if self._received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._received = number
        what = "batch" if self._trainer.world_size == 1 else "step"
        log.warning("%s: saving and stopping after this %s", signal.Signals(number).name, what)
        can_stop = not self._writes and (self._at_rest or is_after_micro_batch(self._trainer))
        if self._trainer.world_size == 1 and can_stop:
            raise _stopped_by(self._trainer, number)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Delays a signal that comes inside until the end of the outermost write.

        Raises:
            Stopped: a signal has come, and there is only one process.
        """
        if self._writes:
            yield
            return
        before, self._writes = self._received, True
        try:
            yield
        finally:
            self._writes = False
        if self._received != before and self._trainer.world_size == 1:
            raise _stopped_by(self._trainer, self._received)


def raise_if_signalled(trainer: Trainer) -> None:
    """Stops if a signal has come. For long work that all processes do together, such as a check of the model.

    Raises:
        Stopped: a signal has come.
    """
    for callback in trainer.callbacks:
        if isinstance(callback, StopOnSignal):
            callback.raise_if_signalled(trainer)


def _stopped_by(trainer: Trainer, number: int) -> Stopped:
    return Stopped(trainer, 128 + number, f"stopped by {signal.Signals(number).name}")
