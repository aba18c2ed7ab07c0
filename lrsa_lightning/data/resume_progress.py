"""Where a run is in its data. No other file reads or writes the private state of Lightning's loops."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from lightning import Trainer

from lrsa_lightning.data.loader import ResumableLoader


def ends_step(trainer: Trainer) -> bool:
    """Whether the optimizer steps after the current micro-batch."""
    return not trainer.fit_loop._should_accumulate()


def is_after_micro_batch(trainer: Trainer) -> bool:
    """Whether callbacks run after a micro-batch: weights and counts then belong to complete steps."""
    progress = trainer.fit_loop.epoch_loop.batch_progress.current
    return progress.completed < progress.processed


def count_steps(trainer: Trainer) -> float:
    """Optimizer steps of the run; infinity where only a time or a signal ends it.

    Where epochs limit the run, Lightning makes the loader to count them. It does so before it has read where a resumed
    run stands. It must make the loader again, or the epoch would begin again.
    """
    loop = trainer.fit_loop
    has_loader, steps = loop._combined_loader is not None, trainer.estimated_stepping_batches
    if trainer.ckpt_path is not None and not has_loader:
        loop._combined_loader = loop._data_fetcher = None
    return steps


def leave_signals_alone(trainer: Trainer) -> None:
    """Turns off Lightning's exchange about signals, for which all devices wait at each micro-batch."""
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


class StepStart:
    """Where a run stands at the last micro-batch of an optimizer step, before the step is taken. The host knows it all.

    Later steps of the same epoch may follow before the step is taken back, unless they change weights.
    """

    def __init__(self, trainer: Trainer):
        self._loops = trainer.fit_loop.state_dict()
        self._schedulers = deepcopy([config.scheduler.state_dict() for config in trainer.lr_scheduler_configs])
        self._settings = [
            [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]
        self._read = trainer.train_dataloader.state_dict() if _resumes(trainer) else None

    def take_back(self, trainer: Trainer) -> None:
        """Makes the next checkpoint one from before the step. A resumed run reads its global batch again."""
        trainer.fit_loop.load_state_dict(self._loops)
        for config, state in zip(trainer.lr_scheduler_configs, self._schedulers, strict=True):
            config.scheduler.load_state_dict(state)
        for optimizer, of_groups in zip(trainer.optimizers, self._settings, strict=True):
            for group, settings in zip(optimizer.param_groups, of_groups, strict=True):
                group.update(settings)
        progress = trainer.fit_loop.epoch_loop.batch_progress
        # The same as when a signal stops the run after a micro-batch, within an epoch.
        progress.increment_processed()
        progress.is_last_batch = False
        if self._read is not None:
            trainer.train_dataloader.load_state_dict(self._read)
            trainer.train_dataloader.take_back_step()


def _resumes(trainer: Trainer) -> bool:
    return isinstance(trainer.train_dataloader, ResumableLoader)


class SavedProgress:
    """The progress that a checkpoint holds."""

    def __init__(self, checkpoint: Mapping[str, Any]):
        self._step = checkpoint["global_step"]
        self._loops = checkpoint["loops"]["fit_loop"]
        self._batches = self._loops["epoch_loop.batch_progress"]

    @property
    def epochs_done(self) -> int:
        """Complete epochs. One counts as complete if the checkpoint was written within its last step."""
        epochs = self._loops["epoch_progress"]["current"]
        return epochs["processed"] + (epochs["processed"] < epochs["ready"] and self._batches["is_last_batch"])

    def is_validation_due(self, trainer: Trainer) -> bool:
        """Whether Lightning validates after this step.

        For an interval that is a fraction of an epoch the answer is yes, because the epoch's length is not known yet.
        """
        interval, every_n_epochs = trainer.val_check_interval, trainer.check_val_every_n_epoch
        if trainer.limit_val_batches == 0:
            return False
        if every_n_epochs is None:
            return self._batches["total"]["ready"] % interval == 0
        if self._loops["epoch_progress"]["current"]["ready"] % every_n_epochs:
            return False
        if isinstance(interval, int):
            return self._batches["current"]["ready"] % interval == 0
        return self._batches["is_last_batch"] or interval != 1.0

    def align(self, samples_at_a_time: int) -> None:
        """Changes the checkpoint's counts to those of its last complete step, in micro-batches of this run.

        This run may have other ranks or micro-batches than the run that wrote the checkpoint. Lightning also writes
        checkpoints within the first step after a resume, and their gradients are lost.

        Args:
            samples_at_a_time: samples that all ranks read together while each reads one micro-batch.
        """
        current = self._batches["current"]
        (loader,) = self._loops["state_dict"]["combined_loader"]
        read = loader["consumed"] // samples_at_a_time
        # A checkpoint written within a micro-batch has counted it as ready, but not as completed: keep the difference.
        current.update({name: read - (current["ready"] - count) for name, count in current.items()})
        if current["completed"] < current["processed"]:
            # A run that was resumed at the end of an epoch has not counted the next epoch as begun.
            epoch = loader["epoch"]
            begun = {"ready": epoch + 1, "started": epoch + 1, "processed": epoch, "completed": epoch}
            self._loops["epoch_progress"] = {"total": dict(begun), "current": dict(begun)}
        steps = self._loops["epoch_loop.state_dict"]
        steps["_batches_that_stepped"] = min(steps["_batches_that_stepped"], self._step - 1)
