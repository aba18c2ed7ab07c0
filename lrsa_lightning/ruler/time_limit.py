"""The time of an evaluation: what still fits, and how long the rest takes."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from time import monotonic

from lrsa_lightning.ruler.batches import Batch, Group


class TimeLimit:
    """Decides for all ranks what an evaluation still has time for. Its time begins when it is made.

    Attributes:
        seconds: of the evaluation; None: no limit.
    """

    def __init__(self, seconds: float | None = None, agree: Callable[[bool], bool] = bool):
        """
        Args:
            seconds: of the evaluation; None: no limit.
            agree: a decision of each rank -> the first rank's, in all of them.
        """
        self.seconds = seconds
        self._agree, self._started = agree, monotonic()
        self._rates: dict[int, float] = {}
        self._done: Counter[int] = Counter()

    @property
    def left(self) -> float:
        """Seconds until the limit; infinite without one."""
        return float("inf") if self.seconds is None else self._started + self.seconds - monotonic()

    def admits(self, batches: Iterable[Batch] = ()) -> bool:
        """Whether there is time for these batches. All ranks must call it."""
        return self.seconds is None or self._agree(self.left > self.expected(batches))

    def admitted(self, groups: Iterable[Group]) -> Iterator[Batch]:
        """The batches for which there is time. A group begins only if there is time for all of it.

        All ranks must take them, each after `took` of the one before.
        """
        for group in groups:
            if self.admits(group):
                yield from takewhile(lambda _: self.admits(), group)

    def took(self, batch: Batch, seconds: float) -> None:
        """Takes note of a batch's time. The best rate counts: the first batches also compile their kernels."""
        self._done[batch.length] += batch.tokens
        rate = seconds / batch.tokens
        self._rates[batch.length] = min(rate, self._rates.get(batch.length, rate))

    def expected(self, batches: Iterable[Batch]) -> float:
        """Seconds of these batches, by the rate at the nearest length that was measured; 0 before the first one."""
        return sum(batch.tokens * self._rate(batch.length) for batch in batches)

    def rest(self, batches: Iterable[Batch]) -> float:
        """Seconds of those of these batches that have not been measured."""
        done = sum(tokens * self._rate(length) for length, tokens in self._done.items())
        return self.expected(batches) - done

    def has_measured(self, batches: Iterable[Batch]) -> bool:
        """Whether each length was measured."""
        return {batch.length for batch in batches} <= self._rates.keys()

    def _rate(self, length: int) -> float:
        nearest = min(self._rates, key=lambda known: abs(known - length), default=None)
        return self._rates.get(nearest, 0.0)
