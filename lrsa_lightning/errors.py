"""The exceptions that the commands print without a traceback, and how their messages name things."""

from collections.abc import Collection
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning import Trainer


class InputError(ValueError):
    """The user gave something wrong. The message says what, where, what was expected and what to do."""


class Stopped(SystemExit):
    """Ends training between two optimizer steps; `Checkpoints` saves the state to resume from.

    The trainer stops in all of its processes alike, and the command ends with the exit status.

    Attributes:
        reason: in one line.
        advice: what to do about it; empty if resuming is all there is to do.
        saved: the checkpoint to resume from; None before the first optimizer step, or if nothing saves checkpoints.
    """

    def __init__(self, trainer: "Trainer", status: int, reason: str, advice: str = ""):
        # Only the first process of a node reports the status. If another one's were not 0, Lightning's launcher and
        # torchrun would kill the first one, which may still be writing its logs.
        super().__init__(status if trainer.local_rank == 0 else 0)
        self.reason = reason
        self.advice = advice
        self.saved: str | None = None

    def __str__(self) -> str:
        saved = f"saved in {self.saved}: go on with --ckpt_path last" if self.saved else "nothing to save yet"
        return f"{self.reason}; {saved}{self.advice}"


def listed(names: Collection[str], most: int = 3) -> str:
    """The first of some names, and how many more there are."""
    first = ", ".join([*names][:most])
    return first if len(names) <= most else f"{first} and {len(names) - most} more"


def suggestion(name: str, known: Collection[str]) -> str:
    """What a misspelt name probably means, as the end of a sentence; empty if no known name resembles it."""
    near = get_close_matches(name, known, n=1)
    return f": did you mean {near[0]}?" if near else ""
