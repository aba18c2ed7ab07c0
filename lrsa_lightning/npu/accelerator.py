"""Ascend NPUs for Lightning's Trainer (`accelerator: npu`), and a Fabric for processes that evaluate without one."""

import logging
from importlib.util import find_spec
from typing import Any

import torch
from lightning import Fabric
from lightning.fabric.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.accelerators import Accelerator

from lrsa_lightning.errors import InputError
from lrsa_lightning.npu.environment import VISIBLE, require_npu
from lrsa_lightning.npu.strategies import OnNPU, unbind_device

log = logging.getLogger(__name__)


class NPUAccelerator(Accelerator):
    """Ascend NPUs through torch_npu. It needs one of the strategies npu_single, npu_ddp and npu_deepspeed."""

    def __init__(self):
        """
        Raises:
            InputError: no NPU can be used; the message says why.
        """
        require_npu()

    def setup_device(self, device: torch.device) -> None:
        """
        Raises:
            InputError: the device is no NPU. Lightning's strategy `auto` passes the CPU to unknown accelerators.
        """
        if device.type != "npu":
            raise InputError(
                f"accelerator npu received the device {device}: set trainer.strategy to npu_single (one device) or "
                "npu_ddp (several)"
            )
        torch.npu.set_device(device)

    def setup(self, trainer) -> None:
        """
        Raises:
            InputError: the strategy is not for NPUs. Lightning's own would compute in the wrong precision or crash.
        """
        if not isinstance(trainer.strategy, OnNPU):
            raise InputError(
                f"{type(trainer.strategy).__name__} does not run on NPUs: set trainer.strategy to npu_single, npu_ddp "
                "or npu_deepspeed"
            )

    def teardown(self) -> None:
        torch.npu.empty_cache()

    def get_device_stats(self, device: torch.device) -> dict[str, Any]:
        """The allocator's statistics, with the keys of `torch.cuda.memory_stats`."""
        return torch.npu.memory_stats(device)

    @staticmethod
    def parse_devices(devices: int | str | list[int]) -> list[int]:
        """Indices of the devices among the visible ones; -1 means all.

        Raises:
            InputError: an index is not visible.
        """
        if isinstance(devices, str):
            devices = [int(n) for n in devices.strip(", ").split(",")] if "," in devices else int(devices)
        count = torch.npu.device_count()
        if isinstance(devices, int):
            devices = list(range(count if devices == -1 else devices))
        if unknown := [n for n in devices if not 0 <= n < count]:
            raise InputError(
                f"trainer.devices asks for NPU {max(unknown)}, but {count} are visible, from 0 ({VISIBLE})"
            )
        return list(devices)

    @staticmethod
    def get_parallel_devices(devices: list[int]) -> list[torch.device]:
        return [torch.device("npu", n) for n in devices]

    @staticmethod
    def auto_device_count() -> int:
        return torch.npu.device_count()

    @staticmethod
    def is_available() -> bool:
        """Whether an NPU can be used. If torch_npu is installed but no NPU can be used, the log says why."""
        if find_spec("torch_npu") is None:
            return False
        try:
            require_npu()
        except InputError as reason:
            log.warning("torch_npu is installed, but no NPU can be used: %s", reason)
            return False
        return True

    @staticmethod
    def name() -> str:
        return "npu"


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
    def _setup_distributed(self) -> None:
        super()._setup_distributed()
        unbind_device()
