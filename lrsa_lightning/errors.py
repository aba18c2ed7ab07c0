"""The exceptions that the commands print without a traceback."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning import Trainer


class InputError(ValueError):
    """Something the user gave is wrong: says what, where, what was expected and the way out."""


class Stopped(SystemExit):
    """Training was ended between two optimizer steps; `Checkpoints` saves the state it can go on from.

    Attributes:
        reason: in a line.
        advice: what to do about it; empty where going on is all there is to do.
        saved: the checkpoint to resume from, None when no optimizer step was done or nothing saves checkpoints.
    """

    def __init__(self, trainer: "Trainer", status: int, reason: str, advice: str = ""):
        """
        Args:
            trainer: which is stopped, in all of its processes alike.
            status: exit status of the command.
            reason: in a line.
            advice: what to do about it.
        """
        # The first process of a node tells the status. Were another's not 0, Lightning's launcher and torchrun would
        # kill the first one, which may still be writing its logs.
        super().__init__(status if trainer.local_rank == 0 else 0)
        self.reason = reason
        self.advice = advice
        self.saved: str | None = None

    def __str__(self) -> str:
        saved = f"saved in {self.saved}: go on with --ckpt_path last" if self.saved else "nothing to save yet"
        return f"{self.reason}; {saved}{self.advice}"
