"""The devices of each cell: the visible devices are split among the cells that run at the same time."""

import os
from collections.abc import Mapping
from typing import NamedTuple

from lrsa_lightning.errors import InputError

_VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES"}


class Slot(NamedTuple):
    """A set of devices that runs one cell at a time.

    Attributes:
        name: for people.
        environment: variables for the cell's process, in addition to those of this process.
    """

    name: str
    environment: Mapping[str, str]


def make_slots(jobs: int | None = None, devices: list[str] | None = None) -> list[Slot]:
    """Splits the devices equally into slots.

    Args:
        jobs: number of slots. None makes a slot of each device, or one slot without devices.
        devices: names of CUDA devices. None takes the visible NPUs, or the visible CUDA devices where there are none.

    Raises:
        InputError: the number of devices is not a multiple of the number of jobs.
    """
    kind, devices = _visible_devices() if devices is None else ("cuda", devices)
    jobs = jobs or max(1, len(devices))
    if not devices:
        return [Slot("cpu" if jobs == 1 else f"cpu, {number} of {jobs}", {}) for number in range(1, jobs + 1)]
    if len(devices) % jobs:
        raise InputError(f"--jobs {jobs} does not divide the number of devices, {len(devices)}: give a divisor")
    size = len(devices) // jobs
    groups = [",".join(devices[start : start + size]) for start in range(0, len(devices), size)]
    return [Slot(f"{kind} {group}", {_VISIBLE[kind]: group}) for group in groups]


def _visible_devices() -> tuple[str, list[str]]:
    """The kind of the devices, and their names in the environment, or their numbers."""
    import torch

    from lrsa_lightning.npu import NPUAccelerator

    kind = "npu" if NPUAccelerator.is_available() else "cuda"
    count = getattr(torch, kind).device_count()
    named = [name.strip() for name in os.environ.get(_VISIBLE[kind], "").split(",") if name.strip()]
    return kind, (named or [str(number) for number in range(count)])[:count]
