"""Metrics of optimizer steps. They wait on the device until one transfer reads those of several steps.

Callbacks may define two hooks besides Lightning's:

- `on_gradient_norm(trainer, pl_module, optimizer, norm)`, before each optimizer step and before clipping. The norm is
  a tensor on the device, None under DeepSpeed.
- `on_steps_read(trainer, pl_module, rows)`, when the host has read the values of some steps. All work of the device is
  then done. The hook may add values to the rows, and remove rows.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from lightning import Trainer
from torch import Tensor

from lrsa_lightning.errors import Stopped

EARLY_STEPS = (1, 2, 5, 10)  # of a command, whose values a user waits for
READING = "read the metrics of steps"  # what Lightning's profiler calls the wait for the device


@dataclass
class StepRow:
    """The metrics of an optimizer step.

    Attributes:
        step: optimizer steps done, with this one: the first is 1.
        values: by name; scalar tensors until they are read, then numbers.
    """

    step: int
    values: dict[str, float | Tensor] = field(default_factory=dict)


class StepLog:
    """Rows of the steps whose values the host has not read yet."""

    def __init__(self):
        self._rows: list[StepRow] = []
        self._first_step: int | None = None  # the trainer's count before the first step of this command

    def begin(self, trainer: Trainer) -> None:
        """Begins the row of the current step."""
        if self._first_step is None:
            self._first_step = trainer.global_step
        self._rows = [row for row in self._rows if row.step <= trainer.global_step]  # none of a step that failed
        self._rows.append(StepRow(trainer.global_step + 1, {"epoch": trainer.current_epoch}))

    def add(self, values: Mapping[str, float | Tensor]) -> None:
        """Adds values to the row of the current step; tensors stay on the device."""
        self._rows[-1].values.update(values)

    def is_due(self, trainer: Trainer) -> bool:
        """Whether to read after this step: every `log_every_n_steps`, after the last one, after a few early ones."""
        every, step = trainer.log_every_n_steps, trainer.global_step
        ends = step == trainer.max_steps or trainer.should_stop
        is_early = self._first_step is not None and step - self._first_step in EARLY_STEPS
        return is_early or ends or (every > 0 and step % every == 0)

    def has_rows(self, last: int) -> bool:
        """Whether rows of steps up to ``last`` wait."""
        return any(row.step <= last for row in self._rows)

    def read(self, last: int) -> list[StepRow]:
        """Reads the rows of steps up to ``last``, and forgets them. One transfer has all their tensors."""
        rows = [row for row in self._rows if row.step <= last]
        self._rows = [row for row in self._rows if row.step > last]
        _read([row.values for row in rows])
        return rows


def _read(rows: list[dict[str, float | Tensor]]) -> None:
    """Puts numbers in the place of tensors, by one transfer from each device. DeepSpeed may keep norms on the host."""
    places: dict[torch.device, list[tuple[dict, str]]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, Tensor):
                places.setdefault(value.device, []).append((row, name))
    for of_device in places.values():
        # In float64: float32 cannot count tokens beyond 16 million.
        numbers = torch.stack([row[name].double() for row, name in of_device]).tolist()
        for (row, name), number in zip(of_device, numbers, strict=True):
            row[name] = number


def write_steps(trainer: Trainer, last: int | None = None) -> None:
    """Reads the metrics of steps that still wait on the device, and writes a row of each to the loggers.

    All ranks must call it at the same steps, for a callback may end the run. No collective runs within it.

    Args:
        last: the last step to write; None for all that the trainer counts. A callback that runs between two others
            leaves out the current step, whose row is not complete.

    Raises:
        Stopped: a callback ends the run for what it finds in the rows.
    """
    module, steps = trainer.lightning_module, trainer.global_step if last is None else last
    log = getattr(module, "step_log", None)
    if log is None or not log.has_rows(steps):
        return
    with writing(trainer):
        with trainer.profiler.profile(READING):
            rows = log.read(steps)
        stopped = None
        for callback in trainer.callbacks:
            if hasattr(callback, "on_steps_read"):
                try:
                    callback.on_steps_read(trainer, module, rows)
                except Stopped as error:
                    stopped = error
        _write(trainer, rows)
        if stopped is not None:
            raise stopped


def _write(trainer: Trainer, rows: list[StepRow]) -> None:
    for logger in trainer.loggers:
        for row in rows:
            logger.log_metrics(row.values, row.step)
        logger.save()
    if rows:  # callbacks such as ModelCheckpoint monitor them; Lightning itself holds the newest loss
        newest = {name: torch.tensor(value) for name, value in rows[-1].values.items() if name != "train/loss"}
        trainer.callback_metrics.update(newest)


@contextmanager
def writing(trainer: Trainer) -> Iterator[None]:
    """Goes around a write that must be complete, such as a checkpoint: no signal interrupts it.

    Raises:
        Stopped: at the end, if a signal came inside.
    """
    with ExitStack() as stack:
        for callback in trainer.callbacks:
            if hasattr(callback, "writing"):
                stack.enter_context(callback.writing())
        yield
