"""How long a RULER check of a training run may take."""

from time import monotonic
from typing import Literal

# Before the first step a user waits to see that the run works.
FIRST_SECONDS = 35.0
# Of the training time between two checks.
SHARE = 0.1


def automatic_seconds(trained: float) -> float:
    """The limit after so many seconds of training since the check before."""
    return max(FIRST_SECONDS, SHARE * trained)


class CheckTime:
    """Seconds that a check may take.

    Automatically, a check takes `SHARE` of the longest training time between two checks so far, or `FIRST_SECONDS`,
    whichever is longer. A check without training takes the time it needs.

    Args:
        given: seconds; None: no limit; auto.
    """

    def __init__(self, given: float | Literal["auto"] | None):
        self._given = given
        self._trains_since: float | None = None
        self._longest = 0.0

    @property
    def is_limited(self) -> bool:
        """Whether a check in training has a limit."""
        return self._given is not None

    def of_next(self, in_training: bool) -> float | None:
        """Seconds of the check that begins now; None: no limit."""
        if self._given != "auto":
            return self._given
        if not in_training:
            return None
        if self._trains_since is not None:
            self._longest = max(self._longest, monotonic() - self._trains_since)
        return automatic_seconds(self._longest)

    def training_goes_on(self) -> None:
        """Takes note that training begins, or goes on after a check."""
        self._trains_since = monotonic()
