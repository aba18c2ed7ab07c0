"""Fabric for processes that evaluate without a Trainer. Lightning's own does not know NPUs."""

import torch
from lightning import Fabric
from lightning.fabric.strategies import DDPStrategy, SingleDeviceStrategy

from lrsa_lightning.npu.accelerator import NPUAccelerator
from lrsa_lightning.npu.strategies import unbind_device


def make_fabric(num_devices: int) -> Fabric:
    """Fabric on NPUs where one can be used, else on CUDA GPUs, else on the CPU.

    Args:
        num_devices: processes, each on a device of its own.

    Raises:
        InputError: there are fewer NPUs.
    """
    if not NPUAccelerator.is_available():
        return Fabric(accelerator="auto" if torch.cuda.is_available() else "cpu", devices=num_devices)
    # For an accelerator that it does not know, Fabric chooses the CPU.
    strategy = SingleDeviceStrategy("npu:0") if num_devices == 1 else _SeveralNPUs()
    return Fabric(accelerator=NPUAccelerator(), devices=num_devices, strategy=strategy)


class _SeveralNPUs(DDPStrategy):
    """Over HCCL."""

    def _setup_distributed(self) -> None:
        super()._setup_distributed()
        unbind_device()
