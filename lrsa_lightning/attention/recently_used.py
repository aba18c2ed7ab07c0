"""What the layers of a forward, and its backward, share: made by the first that asks, and kept while there is room.

Packed rows bring new lengths with every batch. A number of entries is no bound for them: a batch may have many short
samples or a few long ones, and the tile lists of a sample grow with the square of its length.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import update_wrapper
from typing import Any

import torch

# Kept however much they take: a single sequence needs its lists for the forward and for the backward.
_ALWAYS_KEPT = 4


class RecentlyUsed:
    """A function whose most recently used results are kept up to a limit on their size."""

    def __init__(self, make: Callable, size: Callable[..., int], limit: int):
        """
        Args:
            make: the function; its arguments are hashable.
            size: bytes of a result, given the same arguments.
            limit: bytes of all results together.
        """
        update_wrapper(self, make)
        self._make, self._size, self._limit = make, size, limit
        self._results: OrderedDict[tuple, Any] = OrderedDict()

    def __call__(self, *arguments) -> Any:
        if arguments not in self._results:
            with torch.inference_mode(False):  # what a validation makes is kept, and a backward may have to save it
                self._results[arguments] = self._make(*arguments)
            self._make_room()
        self._results.move_to_end(arguments)
        return self._results[arguments]

    def cache_clear(self) -> None:
        self._results.clear()

    def _make_room(self) -> None:
        total = sum(self._size(*arguments) for arguments in self._results)
        while total > self._limit and len(self._results) > _ALWAYS_KEPT:
            arguments, _ = self._results.popitem(last=False)
            total -= self._size(*arguments)


def recently_used(size: Callable[..., int], limit: int = 2**28) -> Callable[[Callable], RecentlyUsed]:
    """Keeps a function's results as `RecentlyUsed` does; 256 MiB of them by default."""
    return lambda make: RecentlyUsed(make, size, limit)
