"""Times optimizer steps and new tokens without a wait in each of them, and the card's matrix and copy rates."""

import time
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from bench.kernels import device_kernels, profile_figures


class Measured(Exception):
    """Ends a run whose steps are measured. Nothing is saved: a last checkpoint would take half a minute."""


class StepClock:
    """Warm-up steps, then measured steps, then profiled steps. The device is waited for only between the three.

    A step is an optimizer step, or a new token a row.

    Attributes:
        total: steps of all three.
    """

    def __init__(self, device: torch.device, warmup: int, steps: int, profiled: int):
        self._is_cuda = device.type == "cuda"
        self._warmup, self._steps = warmup, steps
        self._profiled = profiled if self._is_cuda else 0
        self.total = warmup + steps + self._profiled
        self._taken = 0
        self._marks: list[Any] = []
        self._figures: dict[str, Any] = {}
        self._profiler = None

    def tick(self) -> None:
        """Call it after each step.

        Raises:
            Measured: it was the last step.
        """
        self._taken += 1
        after_warmup = self._taken - self._warmup
        if after_warmup == 0:
            self._synchronize()
        if 0 <= after_warmup <= self._steps:
            self._marks.append(self._mark())
        if after_warmup == self._steps:
            self._end_window()
        if self._taken == self.total:
            self._end_profile()
            raise Measured

    @property
    def figures(self) -> dict[str, Any]:
        """median_ms, mean_ms and ms of the measured steps, peak_gib, reserved_gib, and what the profile found.

        On a GPU a step's time is that between the ends of two steps in the device's queue.
        """
        return self._figures

    def _synchronize(self) -> None:
        if self._is_cuda:
            torch.cuda.synchronize()

    def _mark(self) -> tuple[float, Any]:
        event = None
        if self._is_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return time.perf_counter(), event

    def _end_window(self) -> None:
        self._synchronize()
        ended = time.perf_counter()
        pairs = list(pairwise(self._marks))
        if self._is_cuda:
            steps = [start.elapsed_time(end) for (_, start), (_, end) in pairs]
        else:
            steps = [1000 * (end - start) for (start, _), (end, _) in pairs]
        mean = 1000 * (ended - self._marks[0][0]) / self._steps
        self._figures |= {"median_ms": median(steps), "mean_ms": mean, "ms": steps}
        if self._is_cuda:
            self._figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            self._figures["reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
        if self._profiled:
            self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self._profiler.start()

    def _end_profile(self) -> None:
        if self._profiler is None:
            return
        self._synchronize()
        self._profiler.stop()
        if kernels := device_kernels(self._profiler):  # none where the driver allows no profile
            self._figures |= profile_figures(kernels, self._profiled)


class TokenClock:
    """Times a prompt, then new tokens.

    Attributes:
        steps: counts the tokens after the first one.
        prefill_s: seconds until the first new token was known.
    """

    def __init__(self, device: torch.device, steps: StepClock):
        self.steps = steps
        self.prefill_s: float | None = None
        self._device = device
        _wait(device)
        self._started = time.perf_counter()

    def tick(self) -> None:
        """Call it after each new token.

        Raises:
            Measured: it was the last token.
        """
        if self.prefill_s is not None:
            return self.steps.tick()
        _wait(self._device)
        self.prefill_s = time.perf_counter() - self._started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def copy_rate(device: torch.device, size: int = 2**30) -> float:
    """Bytes per second, read and written, of a copy on the device: the median of some copies."""
    size = size if device.type == "cuda" else 2**20
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(10):
        _wait(device)
        started = time.perf_counter()
        target.copy_(source)
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size / median(seconds[2:])  # the first ones wake the device up


def matrix_rate(device: torch.device, size: int = 8192) -> float:
    """Operations per second of a square bfloat16 product, the median of a second's batches of back-to-back calls.

    On a CPU the matrices are small, and the figure only shows that the command works.
    """
    size, calls = (size, 20) if device.type == "cuda" else (256, 2)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for batch in range(48):
        started = time.perf_counter()
        for _ in range(calls):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        if batch >= 16:  # in the first half second the clock of the device still rises
            seconds.append((time.perf_counter() - started) / calls)
    return 2 * size**3 / median(seconds)
