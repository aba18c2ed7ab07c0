"""Lightning's strategies on NPUs: one device, and distributed data parallel over HCCL."""

from typing import Literal

import torch
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.strategy import Strategy
from torch.nn.parallel import DistributedDataParallel

from lrsa_lightning.errors import InputError
from lrsa_lightning.npu.environment import require_npu
from lrsa_lightning.npu.precision import on_npu


class OnNPU(Strategy):
    """What the strategies of NPUs share: `precision: bf16-mixed` becomes an autocast for NPUs."""

    @property
    def precision_plugin(self) -> Precision:
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, plugin: Precision | None) -> None:
        Strategy.precision_plugin.fset(self, on_npu(plugin))


class SingleNPUStrategy(OnNPU, SingleDeviceStrategy):
    """One NPU: that of `trainer.devices`."""

    strategy_name = "npu_single"

    def __init__(self, device: str = "npu:0", accelerator=None, checkpoint_io=None, precision_plugin=None):
        """
        Args:
            device: replaced by the one that `trainer.devices` names.
            accelerator: as in Lightning, like those below.
        """
        require_npu()  # before it, torch does not know the name of the device
        super().__init__(device, accelerator, checkpoint_io, precision_plugin)

    @property
    def parallel_devices(self) -> None:
        """None: the Trainer sets it to what `trainer.devices` came to."""

    @parallel_devices.setter
    def parallel_devices(self, devices: list[torch.device]) -> None:
        if len(devices) > 1:
            raise InputError(f"npu_single is for one device, not {len(devices)}: set trainer.strategy to npu_ddp")
        self._root_device = devices[0]


class OnNPUs(OnNPU):
    """What the strategies of several NPUs share. Mixed in before a Lightning strategy."""

    def setup_distributed(self) -> None:
        super().setup_distributed()
        # Lightning binds the device. A later group of gloo, such as Lightning's own, would look for its part on it.
        torch.distributed.group.WORLD.bound_device_id = None


class NPUDDPStrategy(OnNPUs, DDPStrategy):
    """Distributed data parallel over HCCL."""

    strategy_name = "npu_ddp"

    def __init__(self, *args, start_method: Literal["popen", "spawn"] = "popen", **kwargs):
        """
        Args:
            start_method: of the processes; an NPU that was used cannot be taken along by a fork.

        Raises:
            InputError: it is another.
        """
        if start_method not in ("popen", "spawn"):
            raise InputError(f"npu_ddp: start_method {start_method!r} cannot work with NPUs, take popen or spawn")
        require_npu()
        super().__init__(*args, start_method=start_method, **kwargs)

    def _setup_model(self, model: torch.nn.Module) -> DistributedDataParallel:
        # As in DDPStrategy, which opens a stream of CUDA.
        with torch.npu.stream(torch.npu.Stream()):
            return DistributedDataParallel(model, device_ids=self.determine_ddp_device_ids(), **self._ddp_kwargs)
