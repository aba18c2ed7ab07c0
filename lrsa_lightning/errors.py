"""The exceptions that the commands print without a traceback."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning import Trainer


class InputError(ValueError):
    """The user gave something wrong. The message says what, where, what was expected and what to do."""


class Stopped(SystemExit):
    """Ends training between two optimizer steps; `Checkpoints` saves the state to resume from.

    Attributes:
        reason: in one line.
        advice: what to do about it; empty if resuming is all there is to do.
        saved: the checkpoint to resume from; None before the first optimizer step, or if nothing saves checkpoints.
    """

    def __init__(self, trainer: "Trainer", status: int, reason: str, advice: str = ""):
        """
        Args:
            trainer: is stopped, in all of its processes alike.
            status: exit status of the command.
            reason: in one line.
            advice: what to do about it.
        """
        # Only the first process of a node reports the status. If another one's were not 0, Lightning's launcher and
        # torchrun would kill the first one, which may still be writing its logs.
        super().__init__(status if trainer.local_rank == 0 else 0)
        self.reason = reason
        self.advice = advice
        self.saved: str | None = None

    def __str__(self) -> str:
        saved = f"saved in {self.saved}: go on with --ckpt_path last" if self.saved else "nothing to save yet"
        return f"{self.reason}; {saved}{self.advice}"
