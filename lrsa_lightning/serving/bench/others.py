"""How much of this machine's CPU other programs use while something is measured."""

import os
from time import perf_counter

import psutil


class OthersCPU:
    """Measures for a `with` block.

    Attributes:
        fraction: of all cores, 0 to 1, that went to processes other than this one and its children.
    """

    fraction = 0.0

    def __enter__(self) -> "OthersCPU":
        self._start, self._busy, self._own = perf_counter(), _busy_s(), _own_s()
        return self

    def __exit__(self, *_) -> None:
        available = (perf_counter() - self._start) * (os.cpu_count() or 1)
        others = (_busy_s() - self._busy) - (_own_s() - self._own)
        self.fraction = min(1.0, max(0.0, others / available))


def _busy_s() -> float:
    times = psutil.cpu_times()
    return times.user + times.nice + times.system


def _own_s() -> float:
    own = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (own, *own.children(recursive=True)))
