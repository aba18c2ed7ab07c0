"""What a GPU did in some steps: how long it was busy, and which kernels took the time."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

# The first pattern that fits names the group: FlashAttention-4's kernels have "cutlass" in their names too.
_GROUPS = {
    "attention": (
        r"flash|fmha|attention|attn|sdpa|triton_tem|_(std|keep|attend|combine)_kernel|_extend_(backward_)?kernel"
    ),
    "matmul": r"gemm|nvjet|cutlass|xmma|cublas|splitk|gemv",
    "optimizer": r"multi_tensor|adam|foreach",
    "elementwise": (
        r"elementwise|triton|norm|rope|rotary|swiglu|silu|copy|cat|memcpy|memset|fill|reduce|softmax|cross_entropy|"
        r"index|gather|scatter|embedding|liger"
    ),
}
_BETWEEN_HOST_AND_DEVICE = re.compile(r"Memcpy (HtoD|DtoH)")


class Kernel(NamedTuple):
    """One run of a kernel, or a copy, on the device.

    Attributes:
        name: as the profiler gives it.
        start: microseconds.
        end: microseconds.
    """

    name: str
    start: float
    end: float


def device_kernels(profiler) -> list[Kernel]:
    """What a torch profiler recorded on the device."""
    from torch.autograd import DeviceType

    return [
        Kernel(event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]


def busy_ms(kernels: Iterable[Kernel]) -> float:
    """Milliseconds in which at least one kernel ran. Copies between host and device do not count."""
    total, until = 0.0, float("-inf")
    spans = sorted((start, end) for name, start, end in kernels if not _BETWEEN_HOST_AND_DEVICE.search(name))
    for start, end in spans:
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total / 1000


def group_of(name: str) -> str:
    """attention, matmul, optimizer, elementwise, host copies or other."""
    if _BETWEEN_HOST_AND_DEVICE.search(name):
        return "host copies"
    return next((group for group, words in _GROUPS.items() if re.search(words, name, re.IGNORECASE)), "other")


def ms_by_name(kernels: Iterable[Kernel], steps: int) -> list[tuple[str, float, float]]:
    """Name, milliseconds a step and calls a step of each kernel, the longest first."""
    time, calls = Counter(), Counter()
    for name, start, end in kernels:
        time[name] += (end - start) / 1000 / steps
        calls[name] += 1 / steps
    return [(name, ms, calls[name]) for name, ms in time.most_common()]


def ms_by_group(kernels: Iterable[Kernel], steps: int) -> dict[str, float]:
    """Milliseconds a step of each group, the longest first. Kernels that overlap both count."""
    time = Counter()
    for name, start, end in kernels:
        time[group_of(name)] += (end - start) / 1000 / steps
    return dict(time.most_common())


def profile_figures(kernels: Sequence[Kernel], steps: int) -> dict[str, Any]:
    """Shares and times of some profiled steps.

    Returns:
        idle, the share without a kernel of the time from the first kernel to the last: the queue is empty when the
        profile starts, which is the profile's doing; span_ms and busy_ms of a step; groups and kernels, also of a step.
    """
    span = (max(kernel.end for kernel in kernels) - min(kernel.start for kernel in kernels)) / 1000
    busy = busy_ms(kernels)
    return {
        **{"idle": 1 - busy / span, "busy_ms": busy / steps, "span_ms": span / steps},
        **{"groups": ms_by_group(kernels, steps), "kernels": ms_by_name(kernels, steps)},
    }
