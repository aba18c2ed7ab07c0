"""Progress in optimizer steps: a bar in a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class StepProgress(ProgressBar):
    """Shows optimizer steps, loss and time left. Lightning's own bars count micro-batches of an epoch."""

    def __init__(self, every_n_lines: int = 50):
        """
        Args:
            every_n_lines: steps between two plain lines where there is no terminal.
        """
        super().__init__()
        self.every_n_lines = every_n_lines
        self._enabled = True
        self._bar: Progress | None = None
        self._last_step = 0
        self._started = 0.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args, **kwargs) -> None:
        """Prints above the bar."""
        (self._bar.console if self._bar is not None else Console(soft_wrap=True)).print(*args, highlight=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step, self._started = trainer.global_step, time.monotonic()
        console = Console()
        if self._enabled and console.is_terminal:
            self._bar = _make_bar(console)
            self._bar.start()
            self._bar.add_task("step", total=self._total(trainer), completed=trainer.global_step, loss="")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        if trainer.global_step == self._last_step or not self._enabled:
            return
        self._last_step = trainer.global_step
        loss = f"loss {float(trainer.callback_metrics['train/loss']):.4f}"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step, loss=loss)
        elif trainer.global_step % self.every_n_lines == 0:
            seconds = time.monotonic() - self._started
            print(f"step {trainer.global_step}/{self._total(trainer)}  {loss}  {seconds:.0f} s", flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    @contextmanager
    def part(self, description: str, total: int) -> Iterator[Callable[[], None]]:
        """A second bar for the length of a `with` block, in a terminal; yields what advances it by one."""
        own = None if self._bar is not None else _make_bar(Console())
        bar = self._bar or own
        if own is not None and self._enabled and own.console.is_terminal:
            own.start()
        task = bar.add_task(description, total=total, loss="")
        try:
            yield lambda: bar.advance(task)
        finally:
            bar.remove_task(task)
            if own is not None:
                own.stop()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @staticmethod
    def _total(trainer: Trainer) -> int | None:
        return trainer.max_steps if trainer.max_steps > 0 else None


def _make_bar(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}")
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
