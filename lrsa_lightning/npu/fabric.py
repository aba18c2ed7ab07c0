"""Processes that only evaluate, without a Trainer: on NPUs too, which Lightning's Fabric does not know."""

import torch
from lightning import Fabric
from lightning.fabric.strategies import DDPStrategy, SingleDeviceStrategy

from lrsa_lightning.npu.accelerator import NPUAccelerator


def make_fabric(num_devices: int) -> Fabric:
    """Fabric on NPUs where one can be used, else on CUDA GPUs, else on the CPU.

    Args:
        num_devices: processes, each on a device of its own.

    Raises:
        InputError: there are fewer NPUs.
    """
    if not NPUAccelerator.is_available():
        return Fabric(accelerator="auto" if torch.cuda.is_available() else "cpu", devices=num_devices)
    # Fabric's own choice for an accelerator that it does not know is the CPU.
    strategy = SingleDeviceStrategy("npu:0") if num_devices == 1 else _SeveralNPUs()
    return Fabric(accelerator=NPUAccelerator(), devices=num_devices, strategy=strategy)


class _SeveralNPUs(DDPStrategy):
    """Over HCCL."""

    def _setup_distributed(self) -> None:
        super()._setup_distributed()
        unbind_device()


def unbind_device() -> None:
    """Lets groups of gloo, such as Lightning's barriers, be made: torch would look for their part on the device that
    Lightning has bound to the world's group."""
    torch.distributed.group.WORLD.bound_device_id = None
