"""Checkpoints that survive a kill, and which of them are kept."""

import logging
import math
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Literal

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from lrsa_lightning.callbacks.kept_checkpoints import KeptCheckpoints
from lrsa_lightning.callbacks.monitor import Monitor
from lrsa_lightning.callbacks.state_check import check_states
from lrsa_lightning.checkpoints.atomic_files import AtomicFiles
from lrsa_lightning.checkpoints.host_copy import HostCopies
from lrsa_lightning.checkpoints.plain_state import LEFT_OUT
from lrsa_lightning.data.resume_progress import ends_step
from lrsa_lightning.errors import InputError, Stopped
from lrsa_lightning.ranges import PositiveInt, checked
from lrsa_lightning.step_log import write_steps, writing

log = logging.getLogger(__name__)


class Checkpoints(Checkpoint):
    """Writes ``checkpoints/step=<n>.ckpt`` every n steps, at the last step and when a signal ends the run.

    ``last.ckpt`` and ``best.ckpt`` are links to one of them. Writes are atomic: a run that is killed during a write
    resumes from the previous checkpoint. Every rule for keeping refers to the same file (a folder under ZeRO), so
    nothing is written twice.

    Training waits only until the state is copied to host memory. A thread writes the copy, and at most one write is in
    flight: the next save, the end of the run, an error and a signal wait for it. Links, scores and removals follow when
    it is complete.
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
        asynchronous: bool = True,
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
            asynchronous: whether training goes on while a checkpoint is written. This takes as much host memory as the
                checkpoint; where it is too small, training waits, and the log says so.
        """
        self.every_n_steps = every_n_steps
        self.monitor = monitor
        self.on_full_disk = on_full_disk
        self.dirpath = dirpath
        self.asynchronous = asynchronous
        self._kept = KeptCheckpoints(keep_last, keep_every_n_steps, mode, keep_best)
        self._in_flight = 0  # the step that is being written; 0 if none is
        self._in_flight_score: float | None = None
        self._has_reserved = False
        self._measured = None
        self._given_up, self._given_up_step = "", 0  # reason and step of the newest checkpoint, if it was not saved
        self._monitor = Monitor(monitor)

    @property
    def best_model_path(self) -> str:
        """Path of the best checkpoint by `monitor`; empty if none has a score."""
        return str(self._kept.path(best[0])) if (best := self._kept.best()) else ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._kept.folder = Path(self.dirpath or Path(trainer.default_root_dir) / "checkpoints")
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicFiles(getattr(trainer.strategy, "host_copies", HostCopies)())
        if stage == "fit":
            self._monitor.check_data(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Removes the partial files of interrupted writes.

        Raises:
            InputError: the state of a callback or the datamodule could not be loaded again from a checkpoint.
        """
        check_states(trainer)
        if trainer.is_global_zero:
            self._kept.remove_interrupted()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        self._kept.newest = checkpoint["global_step"]
        if left_out := checkpoint.get(LEFT_OUT):
            log.warning("the checkpoint of step %d was saved without %s", self._kept.newest, ", ".join(left_out))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._kept.read_scores(trainer.global_step)
        self._measured = trainer.callback_metrics.get(self.monitor)
        if trainer.global_step == 0:
            self._monitor.check_start(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        step = trainer.global_step
        self._look_at_write(trainer)
        if step > 0 and not self._has_reserved:
            self._reserve(trainer)
        # A run ends by steps, by epochs, or by max_time and other reasons to stop.
        is_last_epoch = trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        ends = step == trainer.max_steps or is_last_epoch or trainer.should_stop
        handled = (self._kept.newest, self._in_flight, self._given_up_step)
        if step not in handled and (step % self.every_n_steps == 0 or ends):
            self._save(trainer)
        self._score(trainer)
        if step > 0 and step in (self._kept.newest, self._in_flight):
            self._monitor.look(trainer, is_due=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._score(trainer)
            self._monitor.look(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises an InputError if the last step could not be saved; it names the newest saved one."""
        self._finish(trainer)
        self._monitor.sum_up(trainer)
        if self._given_up:
            saved = self._kept.path(self._kept.newest)
            safe = f"step {self._kept.newest} is safe in {saved}" if self._kept.newest else "no step is saved"
            raise InputError(
                f"the last step, {trainer.global_step}, was not saved ({self._given_up}); {safe}: free the disk and "
                "resume with --ckpt_path last"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._kept.sum_up()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves if a signal ended the run. After an error it does not: the step may be incomplete."""
        if isinstance(exception, Stopped):
            self._finish(trainer)
            if trainer.global_step not in (0, self._kept.newest):
                self._save(trainer)
                self._finish(trainer)
            exception.saved = str(self._kept.path(self._kept.newest)) if self._kept.newest else None
        elif self._in_flight:
            self._finish_alone(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._finish(trainer)
        with writing(trainer):
            refused, is_written = self._begin(trainer)
            if refused or is_written:
                self._conclude(trainer, refused)

    def _is_asynchronous(self, trainer: Trainer) -> bool:
        return self.asynchronous and isinstance(trainer.strategy.checkpoint_io, AtomicFiles)

    def _begin(self, trainer: Trainer) -> tuple[str, bool]:
        """Returns why the state, or a part of it, is refused, and whether the write is over; the same on all ranks."""
        step, files, refused = trainer.global_step, trainer.strategy.checkpoint_io, ""
        write_steps(trainer)  # a resumed run finds the rows of all steps of its checkpoint
        try:
            with files.in_background() if self._is_asynchronous(trainer) else nullcontext():
                trainer.save_checkpoint(self._kept.path(step), weights_only=False)
        except InputError as error:
            refused = str(error)
            trainer.strategy.barrier("Trainer.save_checkpoint")  # the ranks that do not write wait there
        self._in_flight = step
        is_written = trainer.strategy.reduce_boolean_decision(getattr(files, "is_written", True), all=True)
        return trainer.strategy.broadcast(refused), is_written

    def _reserve(self, trainer: Trainer) -> None:
        """Has memory pinned for the copies, as soon as the optimizer has its states."""
        self._has_reserved = True
        if self._is_asynchronous(trainer) and trainer.is_global_zero:
            states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
            tensors = [*trainer.lightning_module.parameters(), *chain(*(state.values() for state in states))]
            trainer.strategy.checkpoint_io.copies.reserve(tensors)

    def _look_at_write(self, trainer: Trainer) -> None:
        """Concludes a write that is complete. Ranks ask one another at growing distances, since they must agree."""
        distance = trainer.global_step - self._in_flight
        if not self._in_flight or distance == 0:
            return
        is_due = trainer.world_size == 1 or (ends_step(trainer) and distance & (distance - 1) == 0)
        files = trainer.strategy.checkpoint_io
        if is_due and trainer.strategy.reduce_boolean_decision(files.is_written, all=True):
            self._finish(trainer)

    def _finish(self, trainer: Trainer) -> None:
        """Waits for the write in flight, if there is one. All ranks must call it.

        Raises:
            InputError: the disk is full, and this is to end the run.
        """
        if self._in_flight:
            with writing(trainer):
                self._conclude(trainer)

    def _conclude(self, trainer: Trainer, refused: str = "") -> None:
        files, (step, self._in_flight) = trainer.strategy.checkpoint_io, (self._in_flight, 0)
        score, self._in_flight_score = self._in_flight_score, None
        if isinstance(files, AtomicFiles):
            with trainer.profiler.profile("save_checkpoint"):
                files.finish()
        full = trainer.strategy.broadcast(str(getattr(files, "disk_full", None) or ""))
        path = self._kept.path(step)
        if full:
            self._given_up, self._given_up_step = full, step
            self._give_up(path, full)
        elif not refused or path.exists():
            self._kept.newest, self._given_up = step, ""
            if trainer.is_global_zero:
                self._kept.name_last()
            self._add_score(trainer, score)
        if refused:
            raise InputError(f"{refused}: fix it and resume with --ckpt_path last")

    def _finish_alone(self, trainer: Trainer) -> None:
        """Waits for the write of this rank after an error: the other ranks may be elsewhere."""
        step, self._in_flight = self._in_flight, 0
        path = self._kept.path(step)
        if error := trainer.strategy.checkpoint_io.abandon():
            log.warning("%s was not saved (%s); the earlier checkpoints are complete", path, error)
        elif path.is_file() and trainer.is_global_zero:  # a folder needs all ranks
            self._kept.newest = step
            self._kept.name_last()

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
        # To look at a value is to wait for the device: only at a checkpoint's step. NaN and infinity are no scores: NaN
        # cannot be compared, and infinity means that something broke.
        at_checkpoint = trainer.global_step in (self._in_flight, self._kept.newest)
        if not fresh or not at_checkpoint or not math.isfinite(measured):
            return
        if trainer.global_step == self._in_flight:
            self._in_flight_score = float(measured)
        elif trainer.global_step == self._kept.newest:
            self._add_score(trainer, float(measured))

    def _add_score(self, trainer: Trainer, score: float | None) -> None:
        if score is not None:
            self._kept.scores[self._kept.newest] = score
            if trainer.is_global_zero:
                self._kept.save_scores()
