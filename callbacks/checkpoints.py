"""Checkpoints that survive a kill, and which of them are kept."""

import json
import logging
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from lrsa_lightning.atomic_text import write_text
from lrsa_lightning.callbacks.monitor import Monitor
from lrsa_lightning.checkpoint_files import BEST, LAST, PARTIAL, AtomicFiles, link, remove
from lrsa_lightning.disk import BestEffort
from lrsa_lightning.errors import InputError, Stopped
from lrsa_lightning.plain_state import LEFT_OUT, check_plain
from lrsa_lightning.ranges import PositiveInt, checked
from lrsa_lightning.step_log import write_steps, writing

log = logging.getLogger(__name__)
_SCORES = "scores.json"


class Checkpoints(Checkpoint):
    """Writes ``checkpoints/step=<n>.ckpt`` every n steps, at the last step and when a signal ends the run.

    ``last.ckpt`` and ``best.ckpt`` are links to one of them. Writes are atomic: a run that is killed during a write
    resumes from the previous checkpoint. Every rule for keeping refers to the same file (a folder under ZeRO), so
    nothing is written twice.
    """

    @checked
    def __init__(
        self,
        every_n_steps: PositiveInt = 500,
        keep_last: PositiveInt | None = None,
        keep_every_n_steps: PositiveInt | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "max",
        keep_best: PositiveInt = 1,
        on_full_disk: Literal["continue", "stop"] = "continue",
        dirpath: str | None = None,
    ):
        """
        Args:
            every_n_steps: optimizer steps between two checkpoints.
            keep_last: how many of the newest to keep; all if None.
            keep_every_n_steps: checkpoints of these steps are never removed.
            monitor: a logged metric, such as ruler/subset_mean or val/loss, whose best checkpoints are kept. A
                checkpoint has a score if the metric was measured at its step.
            mode: whether a high or a low value is better.
            keep_best: how many of the best to keep.
            on_full_disk: whether training goes on without the checkpoint, with a warning, or ends. Earlier checkpoints
                remain either way. A run whose last step could not be saved ends with an error.
            dirpath: folder; checkpoints/ in the run directory if None.
        """
        self.every_n_steps = every_n_steps
        self.keep_last = keep_last
        self.keep_every_n_steps = keep_every_n_steps
        self.monitor = monitor
        self.mode = mode
        self.keep_best = keep_best
        self.on_full_disk = on_full_disk
        self.dirpath = dirpath
        self._folder = Path()
        self._saved_step = 0  # there is nothing to save before the first step
        self._scores: dict[int, float] = {}
        self._measured = None
        self._given_up, self._given_up_step = "", 0  # reason and step of the newest checkpoint, if it was not saved
        self._monitor = Monitor(monitor)
        self._effort = BestEffort(f"{LAST}, {BEST} and {_SCORES}")

    @property
    def best_model_path(self) -> str:
        """Path of the best checkpoint by `monitor`; empty if none has a score."""
        return str(self._path(best[0])) if (best := self._best()) else ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = Path(self.dirpath or Path(trainer.default_root_dir) / "checkpoints")
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicFiles()
        if stage == "fit":
            self._monitor.check_data(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Removes the partial files of interrupted writes.

        Raises:
            InputError: the state of a callback or the datamodule could not be loaded again from a checkpoint.
        """
        for name, part in _states(trainer):
            check_plain(part, name)
        if trainer.is_global_zero:
            for partial in self._folder.glob(f".*{PARTIAL}"):
                remove(partial)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        self._saved_step = checkpoint["global_step"]
        if left_out := checkpoint.get(LEFT_OUT):
            log.warning("the checkpoint of step %d was saved without %s", self._saved_step, ", ".join(left_out))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        file = self._folder / _SCORES
        scores = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        # The run may resume from an earlier step: later steps are measured again.
        self._scores = {int(step): value for step, value in scores.items() if int(step) <= trainer.global_step}
        self._measured = trainer.callback_metrics.get(self.monitor)
        if trainer.global_step == 0:
            self._monitor.check_start(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        step = trainer.global_step
        # A run ends by steps, by epochs, or by max_time and other reasons to stop.
        is_last_epoch = trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        ends = step == trainer.max_steps or is_last_epoch or trainer.should_stop
        if step not in (self._saved_step, self._given_up_step) and (step % self.every_n_steps == 0 or ends):
            self._save(trainer)
        self._score(trainer)
        if step == self._saved_step > 0:
            self._monitor.look(trainer, is_due=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._score(trainer)
            self._monitor.look(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises an InputError if the last step could not be saved; it names the newest saved one."""
        self._monitor.sum_up(trainer)
        if self._given_up:
            saved = self._path(self._saved_step)
            safe = f"step {self._saved_step} is safe in {saved}" if self._saved_step else "no step is saved"
            raise InputError(
                f"the last step, {trainer.global_step}, was not saved ({self._given_up}); {safe}: free the disk and "
                "resume with --ckpt_path last"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._effort.sum_up()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves if a signal ended the run. After an error it does not: the step may be incomplete."""
        if isinstance(exception, Stopped):
            if trainer.global_step not in (0, self._saved_step):
                self._save(trainer)
            exception.saved = str(self._path(self._saved_step)) if self._saved_step else None

    def _save(self, trainer: Trainer) -> None:
        with writing(trainer):
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        write_steps(trainer)  # a resumed run finds the rows of all steps of its checkpoint
        path, refused = self._path(trainer.global_step), ""
        try:
            trainer.save_checkpoint(path, weights_only=False)
        except InputError as error:
            refused = str(error)
            trainer.strategy.barrier("Trainer.save_checkpoint")  # the ranks that do not write wait there
        full = str(getattr(trainer.strategy.checkpoint_io, "disk_full", None) or "")
        full, refused = trainer.strategy.broadcast((full, refused))
        if full:
            self._given_up, self._given_up_step = full, trainer.global_step
            self._give_up(path, full)
        elif not refused or path.exists():
            self._saved_step, self._given_up = trainer.global_step, ""
            if trainer.is_global_zero:
                with self._effort.attempt():
                    link(self._folder / LAST, path)
                    self._prune()
        if refused:
            raise InputError(f"{refused}: fix it and resume with --ckpt_path last")

    def _give_up(self, path: Path, reason: str) -> None:
        what = f"{path} was not saved ({reason}); the earlier checkpoints are complete"
        if self.on_full_disk == "stop":
            raise InputError(f"{what}: free the disk and resume with --ckpt_path last, or lower Checkpoints.keep_last")
        if rank_zero_only.rank == 0:
            log.warning("%s; training goes on, the next checkpoint is due in %d steps", what, self.every_n_steps)

    def _score(self, trainer: Trainer) -> None:
        """Notes the metric if it was measured at the step of the newest checkpoint."""
        measured = trainer.callback_metrics.get(self.monitor) if self.monitor is not None else None
        fresh, self._measured = measured is not None and measured is not self._measured, measured
        # NaN and infinity are no scores: NaN cannot be compared, and infinity means that something broke.
        if fresh and trainer.global_step == self._saved_step and math.isfinite(measured):
            self._scores[self._saved_step] = float(measured)
            if trainer.is_global_zero:
                with self._effort.attempt():
                    write_text(self._folder / _SCORES, json.dumps(self._scores))
                    if best := self._best():
                        link(self._folder / BEST, self._path(best[0]))
                    self._prune()

    def _best(self) -> list[int]:
        """Steps of the best checkpoints, the best first; of two equal ones the earlier first."""
        sign = 1 if self.mode == "min" else -1
        scored = [step for step in self._scores if self._path(step).exists()]
        return sorted(scored, key=lambda step: (sign * self._scores[step], step))[: self.keep_best]

    def _prune(self) -> None:
        """Removes the checkpoints that no rule keeps. Those of later steps stay: the run resumed from before them."""
        if self.keep_last is None:
            return
        files = self._folder.glob("step=*.ckpt")
        found = {int(name[1]): path for path in files if (name := re.fullmatch(r"step=(\d+)\.ckpt", path.name))}
        steps = sorted(step for step in found if step <= self._saved_step)
        kept = {*steps[-self.keep_last :], *self._best()}
        kept |= {step for step in steps if self.keep_every_n_steps and step % self.keep_every_n_steps == 0}
        for step in set(steps) - kept:
            remove(found[step])

    def _path(self, step: int) -> Path:
        return self._folder / f"step={step}.ckpt"


def _states(trainer: Trainer) -> Iterator[tuple[str, dict]]:
    """Names and states of callbacks, module and datamodule in a checkpoint, as far as they exist before training."""
    modules = [module for module in (trainer.lightning_module, trainer.datamodule) if module is not None]
    for module in modules:
        yield "hyper_parameters", dict(module.hparams)
    owners = {f"callbacks[{callback.state_key!r}]": callback for callback in trainer.callbacks}
    owners |= {type(module).__qualname__: module for module in modules[1:]}
    for name, owner in owners.items():
        state = {}
        with suppress(Exception):  # some states exist only during training: they are checked when they are written
            state = owner.state_dict()
        yield name, state
