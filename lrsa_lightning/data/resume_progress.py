"""Where a resumed run stands, in micro-batches of its own."""

from typing import Any


def align(checkpoint: dict[str, Any], samples_at_a_time: int) -> None:
    """Makes a checkpoint's counts those of its last whole step.

    The run may have other ranks or micro-batches than the one that wrote it; and Lightning also writes amid the first
    step after a resume, whose gradients are then lost.

    Args:
        checkpoint: Lightning's, before it takes its progress from it; changed in place.
        samples_at_a_time: samples that all ranks read together while each reads one micro-batch.
    """
    loops = checkpoint["loops"]["fit_loop"]
    current = loops["epoch_loop.batch_progress"]["current"]
    (loader,) = loops["state_dict"]["combined_loader"]
    read = loader["consumed"] // samples_at_a_time
    # The checkpoint is written within a micro-batch, ready but not yet completed: that difference stays.
    current.update({name: read - (current["ready"] - count) for name, count in current.items()})
    if current["completed"] < current["processed"]:
        # A run that was resumed at the end of an epoch has not counted the next one as begun.
        epoch = loader["epoch"]
        begun = {"ready": epoch + 1, "started": epoch + 1, "processed": epoch, "completed": epoch}
        loops["epoch_progress"] = {"total": dict(begun), "current": dict(begun)}
    steps = loops["epoch_loop.state_dict"]
    steps["_batches_that_stepped"] = min(steps["_batches_that_stepped"], checkpoint["global_step"] - 1)
