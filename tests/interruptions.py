"""Callbacks that interrupt a run where a test wants it; named in a command line by their path."""

import os
import signal
import time
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from lightning import Callback

from lrsa_lightning.checkpoints import atomic_files

SIGNALS = {number.name: number for number in signal.Signals}


def interruption(name: str, **arguments) -> dict:
    return {"class_path": f"tests.interruptions.{name}", "init_args": arguments}


class SignalAtBatch(Callback):
    """Sends a process, or its whole group, a signal within a micro-batch, counted from 0 over the whole run."""

    def __init__(self, signal: str, batch: int, group: bool = False, rank: int = 0):
        self.signal = SIGNALS[signal]
        self.batch = batch
        self.group = group
        self.rank = rank
        self._seen = 0

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        if self._seen == self.batch and trainer.global_rank == self.rank:
            (os.killpg if self.group else os.kill)(os.getpgid(0) if self.group else os.getpid(), self.signal)
            time.sleep(0.2 if self.group else 0)
        self._seen += 1


class SignalAfterLastStep(Callback):
    """Sends a process a signal between its last micro-batch and the end of training."""

    def __init__(self, signal: str):
        self.signal = SIGNALS[signal]

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        if trainer.global_step == trainer.max_steps:
            os.kill(os.getpid(), self.signal)


class LongCheck(Callback):
    """Stands for a RULER check after a step, in the middle of which a signal comes."""

    def __init__(self, signal: str, step: int):
        self.signal = SIGNALS[signal]
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signal)
            raise AssertionError("the check went on")


class SignalAfterStep(Callback):
    """Sends a process a signal after a step, before the callbacks behind this one have their turn."""

    def __init__(self, signal: str, step: int, rank: int = 0):
        self.signal = SIGNALS[signal]
        self.step = step
        self.rank = rank

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            os.kill(os.getpid(), self.signal)


class SignalInValidation(Callback):
    """Sends a process a signal in the middle of the first validation; nothing of it may run after the next batch."""

    def __init__(self, signal: str, batch: int, rank: int = 0):
        self.signal = SIGNALS[signal]
        self.batch = batch
        self.rank = rank

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx: int, *_) -> None:
        if batch_idx == self.batch and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.signal)
        assert batch_idx <= self.batch, "the validation went on"


class PoisonedSamples(Callback):
    """Gives samples of some micro-batches, counted over the whole run, a weight that is not a number."""

    def __init__(self, batches: list[int], rank: int = 0):
        self.batches = batches
        self.rank = rank
        self._seen = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        if self._seen in self.batches and trainer.global_rank == self.rank:
            batch["weights"].fill_(float("nan"))
        self._seen += 1


class PoisonedGradient(Callback):
    """Spoils a gradient after a micro-batch, as a faulty device does: the loss was fine."""

    def __init__(self, batch: int, rank: int = 0):
        self.batch = batch
        self.rank = rank
        self._seen = 0

    def on_after_backward(self, trainer, pl_module) -> None:
        if self._seen == self.batch and trainer.global_rank == self.rank:
            next(pl_module.parameters()).grad[0, 0] = float("inf")
        self._seen += 1


class Measure(Callback):
    """Puts a metric where RULER puts its own, at some steps."""

    def __init__(self, values: dict[str, float]):
        self.values = values

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        import torch

        if (value := self.values.get(str(trainer.global_step))) is not None:
            trainer.callback_metrics["ruler/subset_mean"] = torch.tensor(value)


class Keeps(Callback):
    """Keeps something in its state, from a step on."""

    VALUES: ClassVar = {
        "plain": lambda: [1, 2.5, "a"],
        "numpy": lambda: {"score": np.float64(0.5), "curve": np.arange(3.0), "file": Path("a/b")},
        "moment": lambda: {"at": datetime(2026, 1, 1)},
    }
    loaded = None

    def __init__(self, what: str, since: int = 0):
        self.what = what
        self.since = since
        self._step = 0

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self._step = trainer.global_step

    def state_dict(self) -> dict:
        return {"best": self.VALUES[self.what]()} if self._step >= self.since else {}

    def load_state_dict(self, state: dict) -> None:
        Keeps.loaded = state


class FailsAlone(Callback):
    """Ends one of several processes in its third step; the others wait for it as in a collective without an end."""

    def __init__(self, rank: int, how: Literal["raise", "kill"]):
        self.rank = rank
        self.how = how

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        if trainer.global_step < 2:
            return
        if trainer.global_rank != self.rank:
            time.sleep(600)
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("the device fell off the bus")


class FailsAtOnce(Callback):
    """Raises in a micro-batch, counted from 0, of those that follow a step."""

    def __init__(self, step: int = 0, batch: int = 0):
        self.step = step
        self.batch = batch
        self._seen = 0

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        if trainer.global_step == self.step:
            if self._seen == self.batch:
                raise RuntimeError("the device fell off the bus")
            self._seen += 1


class KillAt(Callback):
    """Kills the process within a micro-batch, counted over the whole run and not from where it was resumed."""

    def __init__(self, micro_batch: int, moment: Literal["start", "backward", "end"]):
        self.micro_batch = micro_batch
        self.moment = moment
        self._now = -1

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        steps = trainer.accumulate_grad_batches
        self._now = trainer.global_step * steps + batch_idx % steps
        self._kill("start")

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        self._kill("backward")

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self._kill("end")

    def _kill(self, moment: str) -> None:
        if self._now == self.micro_batch and self.moment == moment:
            os.kill(os.getpid(), signal.SIGKILL)


class KillInSave(Callback):
    """Kills the process while a checkpoint is written: at its half, before or after it is moved or linked."""

    MOMENTS = ("half", "before replace", "after replace", "before link", "after link")

    def __init__(self, step: int, moment: str):
        self.step = step
        self.moment = moment

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        if trainer.global_step == self.step:
            names = {"half": "write_synced", "replace": "replace", "link": "replace"}
            name = names[self.moment.split()[-1]]
            owner = atomic_files if name == "write_synced" else os
            setattr(owner, name, self._deadly(getattr(owner, name)))

    def _deadly(self, function):
        calls = []

        def call(first, second):
            calls.append(second)
            if self.moment == "half":
                function(first, second)
                os.truncate(second, second.stat().st_size // 2)
            elif self.moment.endswith("link") and len(calls) == 1:
                return function(first, second)  # the checkpoint's own move
            elif self.moment.startswith("after"):
                function(first, second)
            os.kill(os.getpid(), signal.SIGKILL)

        return call


class StopAfter(Callback):
    """Asks for the run's end after a step, as Lightning's Timer does when max_time is over."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.step
