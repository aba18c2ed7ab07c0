"""Where a run is in its data. No other file reads or writes the private state of Lightning's loops."""

from collections.abc import Mapping
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


def take_back_step(trainer: Trainer) -> None:
    """Makes the next checkpoint one from before the current optimizer step, which is not taken.

    To be called at the last micro-batch of the step. The resumed run reads the global batch of the step again.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    # The same as when a signal stops the run after a micro-batch, within an epoch.
    progress.increment_processed()
    progress.is_last_batch = False
    if isinstance(trainer.train_dataloader, ResumableLoader):
        trainer.train_dataloader.take_back_step()


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
