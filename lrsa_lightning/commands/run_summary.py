"""What `lrsa fit` begins and ends with: a block of lines about the run."""

import re
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from lrsa_lightning.checkpoints.last import find_last
from lrsa_lightning.step_log import StepRow

_MEAN = re.compile(r"ruler/(?:subset_mean|average)/(\d+)/(r[\d.]+)")
Lines = Iterator[tuple[str, str]]


class RunSummary(Callback):
    """Prints a block before the run and one after it, and notes what the last one needs."""

    def __init__(self):
        self._began: float | None = None
        self._first: StepRow | None = None
        self._last: StepRow | None = None

    def begin(self, given: Any, module: LightningModule, trainer: Trainer, start: str, plan: str | None) -> None:
        """Prints the block at the start.

        Args:
            given: the parsed configuration of `lrsa fit`.
            module: without weights yet.
            trainer: of the run.
            start: what the run goes on from.
            plan: in one line; None for none.
        """
        if trainer.is_global_zero:
            _show("lrsa fit", _about_start(given, module, trainer, start, plan))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.monotonic()

    def on_steps_read(self, trainer: Trainer, pl_module: LightningModule, rows: list[StepRow]) -> None:
        if rows:
            self._first = self._first or rows[0]
            self._last = rows[-1]

    def end(self, trainer: Trainer) -> None:
        """Prints the block at the end; none where no step was trained."""
        if trainer.is_global_zero and self._last is not None:
            _show("lrsa fit: done", self._about_end(trainer))

    def _about_end(self, trainer: Trainer) -> Lines:
        folder, (first, last) = Path(trainer.default_root_dir), (self._first, self._last)
        seconds = timedelta(seconds=round(time.monotonic() - self._began))
        tokens = f"{int(last.values['train/tokens']):,} tokens in all"
        yield "trained", f"to step {trainer.global_step} in {seconds}, evaluations included; {tokens}"
        loss = f"{last.values['train/loss']:.4f} at step {last.step}"
        earlier = f", {first.values['train/loss']:.4f} at step {first.step}" if first.step < last.step else ""
        validation = trainer.callback_metrics.get("val/loss")
        yield "loss", loss + earlier + ("" if validation is None else f"; validation {validation:.4f}")
        yield from _scores(trainer)
        if (checkpoint := find_last(folder / "checkpoints").path) is not None:
            yield "checkpoint", str(checkpoint)
        if (curve := folder / "loss_curve.png").exists():
            yield "loss curve", str(curve)
        yield from (("W&B", where) for logger in trainer.loggers if (where := getattr(logger, "where", None)))
        if checkpoint is not None:
            yield "next", f"lrsa chat {folder} --document FILE"
            yield "", f"lrsa export {folder} --output FOLDER"
            yield "", f"lrsa report {folder}"


def _about_start(given: Any, module: LightningModule, trainer: Trainer, start: str, plan: str | None) -> Lines:
    data = given.data
    yield "run directory", f"{trainer.default_root_dir}, {start}"
    yield "model", _model(module)
    yield "attention", repr(module.attention)
    tokens = data.global_batch_size * module.seq_len
    yield "a step", f"{data.global_batch_size} rows of at most {module.seq_len:,} tokens, {tokens:,} together"
    units = ((trainer.max_steps, "step"), (trainer.max_epochs, "epoch"))
    limits = [f"{n:,} {unit}{'s' if n > 1 else ''}" for n, unit in units if _is(n)]
    yield "length", " or ".join(limits) or "without limit"
    devices = f"{trainer.world_size} x {trainer.strategy.root_device.type}"
    yield "devices", f"{devices}{_strategy(given.trainer.strategy, trainer)}, precision {trainer.precision}"
    if plan is not None:
        yield "plan", plan


def _strategy(given: Any, trainer: Trainer) -> str:
    """The strategy by the name that a user can give; a single device needs none."""
    return "" if given == "auto" else f", {given if isinstance(given, str) else type(trainer.strategy).__name__}"


def _is(limit: int | None) -> bool:
    return limit is not None and limit > 0


def _model(module: LightningModule) -> str:
    start = module.starting_model
    name = start.name_or_path or "random weights (model.from_config)"
    return f"{name}, {'adapters are trained' if start.has_adapters else 'all weights are trained'}"


def _scores(trainer: Trainer) -> Lines:
    """The mean scores of the last RULER check, by length."""
    by_length: dict[str, list[str]] = {}
    for name, value in trainer.callback_metrics.items():
        if found := _MEAN.fullmatch(name):
            by_length.setdefault(found[1], []).append(f"{found[2]} {float(value):g}")
    for length, scores in by_length.items():
        yield "RULER", f"length {length}: {', '.join(scores)}"


def _show(title: str, lines: Lines) -> None:
    body = [f"  {name:<14} {text}" for name, text in lines]
    print("\n".join([title, *body]), flush=True)
