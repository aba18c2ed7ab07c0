"""The progress of long work as lines of a log, for output that no bar can be drawn on."""

import logging
from datetime import timedelta
from time import monotonic

log = logging.getLogger(__name__)
_EVERY_S = 10.0


class ProgressLines:
    """Logs how far work is, every ten seconds at most.

    Attributes:
        done: parts so far.
    """

    def __init__(self, what: str, total: int, unit: str = "batches"):
        """
        Args:
            what: the work.
            total: its parts.
            unit: the parts' name.
        """
        self._what, self._total, self._unit = what, total, unit
        self.done = 0
        self._started = self._last = monotonic()

    def advance(self, at: str = "", left: float | None = None) -> None:
        """One more part is done.

        Args:
            at: the part's name.
            left: seconds; by the average time of the parts when None.
        """
        self.done += 1
        now = monotonic()
        if now - self._last < _EVERY_S:
            return
        self._last = now
        if left is None:
            left = (now - self._started) / self.done * (self._total - self.done)
        done = f"{self.done} of {self._total} {self._unit}"
        log.info("%s: %s done%s, %s left", self._what, done, at and f" ({at})", timedelta(seconds=round(max(left, 0))))
