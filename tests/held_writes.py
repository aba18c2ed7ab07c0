"""A callback that holds the write of a checkpoint while training goes on; named in a command line by its path."""

import errno
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

from lightning import Callback

from lrsa_lightning.checkpoints import atomic_files
from tests.interruptions import SIGNALS

_PATIENCE = 20


class HeldWrite(Callback):
    """Holds the write of a step's checkpoint until a later step is taken, and notes and prints the order of events.

    Attributes:
        events: of this process.
    """

    events: ClassVar[list[str]] = []

    def __init__(self, step: int, until: int, then: str = "complete", linger: bool = False, rank: int = 0):
        """
        Args:
            step: whose write is held, at its half.
            until: the write goes on when this step is taken.
            then: how it goes on: complete, late (by a second), fail, full (the disk), or a signal to the process.
            linger: whether that step's other callbacks follow only when the write is over.
            rank: the process that does all this.
        """
        self.step = step
        self.until = until
        self.then = then
        self.linger = linger
        self.rank = rank
        self._is_reached = threading.Event()

    def on_train_start(self, trainer, pl_module) -> None:
        self._write, self._rank = atomic_files.write_synced, trainer.global_rank
        if trainer.global_rank == self.rank:
            atomic_files.write_synced = self._hold
            if hasattr(trainer.strategy, "deepspeed_engine"):
                from lrsa_lightning.distributed import zero_files

                zero_files.write_synced = self._hold

    def on_train_batch_start(self, trainer, pl_module, *_) -> None:
        last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        if last.is_symlink():
            self._note(f"last is {last.readlink()}")

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self._note(f"step {trainer.global_step}")
        if trainer.global_step != self.until:
            return
        self._is_reached.set()
        patience = _PATIENCE
        while self.linger and patience > 0 and not trainer.strategy.checkpoint_io.is_written:
            time.sleep(0.01)
            patience -= 0.01

    def _note(self, event: str) -> None:
        if event not in self.events:
            self._append(event)

    def _append(self, event: str) -> None:
        self.events.append(event)
        print(f"rank {self._rank}: {event}", file=sys.stderr)

    def _hold(self, checkpoint: dict, path: Path) -> None:
        step = int(re.search(r"step=(\d+)", str(path))[1])
        self._append(f"step {step} is written")
        if step == self.step:
            path.write_bytes(b"half")
            if not self._is_reached.wait(_PATIENCE):
                raise AssertionError("training waits for the write")
            self._go_on()
        self._write(checkpoint, path)
        self._append(f"step {step} is complete")

    def _go_on(self) -> None:
        if self.then == "fail":
            raise RuntimeError("the file system fell off the bus")
        if self.then == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.then in SIGNALS:
            os.kill(os.getpid(), SIGNALS[self.then])
            time.sleep(0.3)  # the run is about to end meanwhile
        if self.then == "late":
            time.sleep(1)
