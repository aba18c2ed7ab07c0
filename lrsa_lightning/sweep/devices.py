"""Which devices a cell runs on: those that are visible, dealt out among the cells that run at a time."""

import os
from dataclasses import dataclass, field

from lrsa_lightning.errors import InputError

VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES"}


@dataclass(frozen=True)
class Slot:
    """A place where one cell runs at a time.

    Attributes:
        name: for people.
        environment: what its processes have beside this one's.
    """

    name: str
    environment: dict[str, str] = field(default_factory=dict)


def make_slots(jobs: int | None = None, devices: list[str] | None = None, kind: str = "cuda") -> list[Slot]:
    """One slot a device, or `jobs` of them with equal shares; without devices one slot.

    Args:
        jobs: number of slots; one a device, or one, when None.
        devices: names of the devices; those visible when None.
        kind: cuda or npu, of the given devices.

    Raises:
        InputError: there are fewer devices than jobs, or they do not divide.
    """
    if devices is None:
        kind, devices = visible_devices()
    jobs = jobs or max(1, len(devices))
    if not devices:
        return [Slot("cpu" if jobs == 1 else f"cpu, {number} of {jobs}") for number in range(1, jobs + 1)]
    if len(devices) % jobs:
        raise InputError(f"--jobs {jobs}: {len(devices)} devices do not divide into so many; give a divisor")
    share = len(devices) // jobs
    groups = [",".join(devices[start : start + share]) for start in range(0, len(devices), share)]
    return [Slot(f"{kind} {group}", {VISIBLE[kind]: group}) for group in groups]


def visible_devices() -> tuple[str, list[str]]:
    """NPUs where one can be used, else CUDA's, by the names that the environment gives them, or by number."""
    import torch

    from lrsa_lightning.npu import NPUAccelerator

    kind = "npu" if NPUAccelerator.is_available() else "cuda"
    count = getattr(torch, kind).device_count()
    named = [name.strip() for name in os.environ.get(VISIBLE[kind], "").split(",") if name.strip()]
    return kind, (named or [str(number) for number in range(count)])[:count]
