"""Callbacks that interrupt a run where a test wants it; named in a command line by their path."""

import os
import signal
import time

from lightning import Callback

SIGNALS = {number.name: number for number in signal.Signals}


def interruption(name: str, **arguments) -> dict:
    return {"class_path": f"tests.interruptions.{name}", "init_args": arguments}


class SignalAtBatch(Callback):
    """Sends the process, or its whole group, a signal within a micro-batch, counted from 0 over the whole run."""

    def __init__(self, signal: str, batch: int, group: bool = False):
        self.signal = SIGNALS[signal]
        self.batch = batch
        self.group = group
        self._seen = 0

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        if self._seen == self.batch:
            (os.killpg if self.group else os.kill)(os.getpgid(0) if self.group else os.getpid(), self.signal)
            time.sleep(0.2 if self.group else 0)
        self._seen += 1


class LongCheck(Callback):
    """Stands for a RULER check after a step, in the middle of which a signal comes."""

    def __init__(self, signal: str, step: int):
        self.signal = SIGNALS[signal]
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signal)
            raise AssertionError("the check went on")


class Measure(Callback):
    """Puts a metric where RULER puts its own, at some steps."""

    def __init__(self, values: dict[str, float]):
        self.values = values

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        import torch

        if (value := self.values.get(str(trainer.global_step))) is not None:
            trainer.callback_metrics["ruler/subset_mean"] = torch.tensor(value)
