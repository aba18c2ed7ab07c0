"""The devices of each cell: the visible devices are split among the cells that run at the same time."""

import os
from dataclasses import dataclass, field

from lrsa_lightning.errors import InputError

VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES"}


@dataclass(frozen=True)
class Slot:
    """A set of devices that runs one cell at a time.

    Attributes:
        name: for people.
        environment: variables for the cell's process, in addition to those of this process.
    """

    name: str
    environment: dict[str, str] = field(default_factory=dict)


def make_slots(jobs: int | None = None, devices: list[str] | None = None, kind: str = "cuda") -> list[Slot]:
    """Splits the devices equally into slots.

    Args:
        jobs: number of slots. None makes a slot of each device, or one slot without devices.
        devices: names of the devices; the visible ones when None.
        kind: of the given devices, cuda or npu.

    Raises:
        InputError: the number of devices is not a multiple of the number of jobs.
    """
    if devices is None:
        kind, devices = visible_devices()
    jobs = jobs or max(1, len(devices))
    if not devices:
        return [Slot("cpu" if jobs == 1 else f"cpu, {number} of {jobs}") for number in range(1, jobs + 1)]
    if len(devices) % jobs:
        raise InputError(f"--jobs {jobs} does not divide the number of devices, {len(devices)}: give a divisor")
    size = len(devices) // jobs
    groups = [",".join(devices[start : start + size]) for start in range(0, len(devices), size)]
    return [Slot(f"{kind} {group}", {VISIBLE[kind]: group}) for group in groups]


def visible_devices() -> tuple[str, list[str]]:
    """NPUs where there are any, else CUDA devices; by their names in the environment, or by number."""
    import torch

    from lrsa_lightning.npu import NPUAccelerator

    kind = "npu" if NPUAccelerator.is_available() else "cuda"
    count = getattr(torch, kind).device_count()
    named = [name.strip() for name in os.environ.get(VISIBLE[kind], "").split(",") if name.strip()]
    return kind, (named or [str(number) for number in range(count)])[:count]
