"""Lightning's strategies on NPUs: one device; over HCCL, distributed data parallel and DeepSpeed's ZeRO."""

import os
from importlib.util import find_spec
from typing import Literal

import torch
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.strategies.strategy import Strategy
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from lrsa_lightning.distributed import SPDDPStrategy, SPDeepSpeedStrategy
from lrsa_lightning.errors import InputError


class NPUMixedPrecision(MixedPrecision):
    """bf16-mixed and 16-mixed under ``torch.autocast("npu")``. Lightning's own autocasts on CUDA."""

    def __init__(self, precision: Literal["16-mixed", "bf16-mixed"], scaler: GradScaler | None = None):
        if precision == "16-mixed" and scaler is None:
            from torch_npu.npu.amp import GradScaler as NPUGradScaler

            # torch's own scaler inverts the scale in float64 and does not read the overflow flags of older chips.
            scaler = NPUGradScaler()
        super().__init__(precision, "npu", scaler)


class OnNPU(Strategy):
    """Base of the strategies on NPUs. It refuses other accelerators, and `precision: bf16-mixed` autocasts on NPUs."""

    def setup_environment(self) -> None:
        """
        Raises:
            InputError: the accelerator is another, for example the CPU under `auto`.
        """
        if (name := self.accelerator.name()) != "npu":
            raise InputError(f"{type(self).__name__} is for accelerator npu, not {name}: set trainer.accelerator: npu")
        super().setup_environment()

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self._random_state = torch.npu.get_rng_state(self.root_device)

    def on_validation_end(self) -> None:
        """Restores training's random numbers. Lightning's sanity check restores those of CPU and CUDA only."""
        torch.npu.set_rng_state(self._random_state, self.root_device)
        super().on_validation_end()

    @property
    def precision_plugin(self) -> Precision:
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, plugin: Precision | None) -> None:
        if isinstance(plugin, MixedPrecision) and plugin.device == "cuda":
            plugin = NPUMixedPrecision(plugin.precision)
        Strategy.precision_plugin.fset(self, plugin)


class SingleNPUStrategy(OnNPU, SingleDeviceStrategy):
    """The one NPU of `trainer.devices`."""

    strategy_name = "npu_single"

    def __init__(self, accelerator=None, checkpoint_io=None, precision_plugin=None):
        """Arguments as in Lightning's strategies. The Trainer sets the device after it has parsed `devices`."""
        super().__init__("cpu", accelerator, checkpoint_io, precision_plugin)

    @property
    def parallel_devices(self) -> None:
        """None. The Trainer sets it to the parsed `trainer.devices`."""

    @parallel_devices.setter
    def parallel_devices(self, devices: list[torch.device]) -> None:
        if len(devices) > 1:
            raise InputError(f"npu_single is for one device, not {len(devices)}: set trainer.strategy to npu_ddp")
        self._root_device = devices[0]


class OnNPUs(OnNPU):
    """Base of the strategies on several NPUs. Mixed in before a Lightning strategy."""

    def setup_distributed(self) -> None:
        super().setup_distributed()
        unbind_device()


class NPUDDPStrategy(OnNPUs, SPDDPStrategy):
    """Distributed data parallel over HCCL, with sequence parallelism."""

    strategy_name = "npu_ddp"

    def __init__(self, *args, start_method: Literal["popen", "spawn"] = "popen", **kwargs):
        """
        Args:
            start_method: of the processes. A forked process cannot use an NPU that its parent has used.

        Raises:
            InputError: the start method is neither popen nor spawn.
        """
        if start_method not in ("popen", "spawn"):
            raise InputError(f"npu_ddp: start_method {start_method!r} cannot work with NPUs, take popen or spawn")
        super().__init__(*args, start_method=start_method, **kwargs)

    def _setup_model(self, model: torch.nn.Module) -> DistributedDataParallel:
        # As in DDPStrategy, which opens a CUDA stream.
        with torch.npu.stream(torch.npu.Stream()):
            return DistributedDataParallel(model, device_ids=self.determine_ddp_device_ids(), **self._ddp_kwargs)


class NPUDeepSpeedStrategy(OnNPUs, SPDeepSpeedStrategy):
    """DeepSpeed ZeRO 1, 2 or 3 over HCCL, with sequence parallelism. Arguments as in SPDeepSpeedStrategy."""

    strategy_name = "npu_deepspeed"

    def __init__(self, *args, **kwargs):
        if find_spec("torch_npu") is not None:
            # Before SPDeepSpeedStrategy looks for devices: torch_npu may be imported later, with the accelerator.
            os.environ.setdefault("DS_ACCELERATOR", "npu")
        super().__init__(*args, **kwargs)

    def setup_environment(self) -> None:
        import deepspeed

        # ZeRO-3 would sum gradient norms over the ranks in float64. HCCL supports that on the newest chips only.
        deepspeed.get_accelerator().is_fp64_supported = lambda: False
        super().setup_environment()


def unbind_device() -> None:
    """Lets torch make gloo groups, for example for Lightning's barriers.

    torch would look for gloo on the device that Lightning has bound to the world's group.
    """
    torch.distributed.group.WORLD.bound_device_id = None
