"""A signal of the scheduler, or Ctrl+C, ends training where it can go on."""

import logging
import signal
import threading

from lightning import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(SystemExit):
    """Training was ended by a signal; the exit status is 128 + its number, as a shell's.

    Attributes:
        signal: the signal.
        saved: the checkpoint to resume from, None when no optimizer step was done or nothing saves checkpoints.
    """

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.signal = signal.Signals(number)
        self.saved: str | None = None


class StopOnSignal(Callback):
    """Ends training on SIGTERM, SIGUSR1 and Ctrl+C at the end of the running micro-batch.

    What `Checkpoints` then saves counts as the last whole optimizer step: gradients amid an accumulation are
    computed again. A RULER check that is under way is broken off (on one device; on several the ranks agree at the
    end of the micro-batch). A second Ctrl+C ends at once, without saving. Replaces Lightning's handlers, which exit
    with status 0, let SIGUSR1 kill the process, and save within the handler under SLURM; a job that is queued again
    with `--ckpt_path last` goes on. First of all callbacks, so that nothing long runs between signal and exit.
    """

    def __init__(self):
        self._received: int | None = None
        self._trainer: Trainer | None = None
        self._at_rest = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning, which has registered its handlers by now, also puts the process's own back in the end."""
        self._trainer, self._received, self._at_rest = trainer, None, True
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._receive)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        self._at_rest = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        number = self._received or 0
        if trainer.world_size > 1:
            # One rank may have heard what the others have not: all stop, for the greatest number any has.
            number = _greatest(trainer, number)
        if number:
            raise Stopped(number)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._at_rest = True

    def _receive(self, number: int, frame: object) -> None:
        if self._received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._received = number
        log.warning("%s: saving and stopping after this micro-batch", signal.Signals(number).name)
        if self._trainer.world_size == 1 and (self._at_rest or self._in_callbacks()):
            raise Stopped(number)

    def _in_callbacks(self) -> bool:
        """Whether callbacks have their turn after a micro-batch: weights and counts are those of whole steps."""
        progress = self._trainer.fit_loop.epoch_loop.batch_progress.current
        return progress.completed < progress.processed


def _greatest(trainer: Trainer, number: int) -> int:
    import torch

    return int(trainer.strategy.reduce(torch.tensor(number, device=trainer.strategy.root_device), reduce_op="max"))
