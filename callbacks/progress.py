"""Shows progress in optimizer steps: a bar in a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from math import inf

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lrsa_lightning.files.disk import BestEffort
from lrsa_lightning.ranges import PositiveInt, checked
from lrsa_lightning.ruler.progress import ProgressLines
from lrsa_lightning.step_log import EARLY_STEPS, StepRow

_EVERY_S = 30.0  # between two lines where there is no terminal


class StepProgress(ProgressBar):
    """Shows optimizer steps, loss, tokens per second and the time left.

    Lightning's own bars count the micro-batches of an epoch. Loss and tokens per second are those of the newest steps
    whose metrics have been read: see `trainer.log_every_n_steps`. Tokens per second are measured since the previous
    line or reading. They include the time of evaluations and checkpoints.

    Where there is no terminal, lines come after steps 1, 2, 5 and 10 of the command, then every 30 seconds, and after
    the last step. A line waits for the next reading of the metrics. The loss of a validation has a line of its own.
    """

    @checked
    def __init__(self, every_n_lines: PositiveInt | None = None):
        """
        Args:
            every_n_lines: optimizer steps between two lines where there is no terminal, in place of the 30 seconds.
        """
        super().__init__()
        self.every_n_lines = every_n_lines
        self._enabled = True
        self._bar: Progress | None = None
        self._last_step = self._last_line = self._first_step = 0
        self._last_line_at = -_EVERY_S
        self._total: int | None = None
        self._speed: Speed | None = None
        self._effort = BestEffort("standard output")

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args, **kwargs) -> None:
        """Prints above the bar."""
        with self._effort.attempt():
            (self._bar.console if self._bar is not None else Console(soft_wrap=True)).print(*args, highlight=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = self._last_line = self._first_step = trainer.global_step
        total = trainer.estimated_stepping_batches  # by max_steps and max_epochs
        self._speed, self._total = None, None if total == inf else int(total)
        console = Console()
        if self._enabled and console.is_terminal:
            self._bar = _make_bar(console)
            self._bar.start()
            self._bar.add_task("step", total=self._total, completed=trainer.global_step, figures="")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        if self._speed is None:  # only now: the time of an evaluation before the first step does not count
            self._speed = Speed(trainer.global_step, pl_module.seen_tokens[0])

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        if trainer.global_step == self._last_step or not self._enabled:
            return
        self._last_step = trainer.global_step
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step)

    def on_steps_read(self, trainer: Trainer, pl_module: LightningModule, rows: list[StepRow]) -> None:
        if not rows or not self._enabled:
            return
        step, newest = rows[-1].step, rows[-1].values
        ends = step == self._total or trainer.should_stop
        if self._bar is None and not (ends or self._is_line_due(step)):
            return
        self._last_line, self._last_line_at = step, time.monotonic()
        rate, left = self._speed.at(step, int(newest["train/tokens"]), self._total)
        figures = f"loss {newest['train/loss']:.4f}  {rate:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], figures=figures)
        else:
            self._line(step, f"{figures}  {left} left")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = trainer.callback_metrics.get("val/loss")
        if self._enabled and loss is not None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._line(trainer.global_step, f"validation loss {loss:.4f}")

    def _is_line_due(self, step: int) -> bool:
        if self.every_n_lines is not None:
            return step // self.every_n_lines != self._last_line // self.every_n_lines
        is_early = any(self._last_line < self._first_step + early <= step for early in EARLY_STEPS)
        return is_early or time.monotonic() - self._last_line_at >= _EVERY_S

    def _line(self, step: int, text: str) -> None:
        line = f"step {step}/{self._total or '?'}  {text}"
        if self._bar is not None:
            self.print(line)
            return
        with self._effort.attempt():
            print(line, flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    @contextmanager
    def part(self, description: str, total: int) -> Iterator[Callable[[str, float | None], None]]:
        """A second bar in a terminal, for the length of a `with` block; elsewhere lines of the log, every ten seconds.

        It yields a function that advances it by one. Its arguments are those of `ProgressLines.advance`.
        """
        bar, is_own = self._bar or _make_bar(Console()), self._bar is None
        if not (self._enabled and bar.console.is_terminal):
            yield ProgressLines(description, total).advance
            return
        if is_own:
            bar.start()
        task = bar.add_task(description, total=total, figures="")
        try:
            yield lambda at="", left=None: bar.update(task, advance=1, figures=at)
        finally:
            bar.remove_task(task)
            if is_own:
                bar.stop()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _make_bar(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}")
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


class Speed:
    """Tokens per second since the last call, and the time left at the average speed."""

    def __init__(self, step: int, tokens: int):
        self._first = self._last = (time.monotonic(), step, tokens)

    def at(self, step: int, tokens: int, total_steps: int | None) -> tuple[float, str]:
        """Tokens per second since the last call, and the time left as h:mm:ss, or ? where the end is unknown."""
        now = (time.monotonic(), step, tokens)
        (start, first_step, _), (before, _, fewer) = self._first, self._last
        self._last = now
        rate = (tokens - fewer) / max(now[0] - before, 1e-9)
        if total_steps is None:
            return rate, "?"
        left = (now[0] - start) / (step - first_step) * (total_steps - step)
        return rate, str(timedelta(seconds=round(left)))
