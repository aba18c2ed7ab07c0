"""DeepSpeed's ZeRO on any device: CUDA GPUs, Ascend NPUs, and CPUs for tests."""

import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.deepspeed import _DEEPSPEED_AVAILABLE
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from lrsa_lightning.distributed import zero_config
from lrsa_lightning.distributed.zero_checkpoints import ZeroCheckpoints
from lrsa_lightning.errors import InputError
from lrsa_lightning.ranges import checked


class ZeroStrategy(ZeroCheckpoints):
    """Lightning's strategy on any device, with gradients summed in float32. Under ZeRO-3 one rank reads the weights.

    bf16-mixed and bf16-true are the same here: weights in bf16, master weights in float32.
    """

    @checked
    def __init__(self, *args, stage: Literal[1, 2, 3] = 2, **kwargs):
        """
        Args:
            stage: 1 divides the optimizer's states among the ranks, 2 also the gradients, 3 also the weights.

        Raises:
            InputError: DeepSpeed is not installed, or its configuration sets what a setting of the run decides.
        """
        if not _DEEPSPEED_AVAILABLE:
            raise InputError("the strategy sp_deepspeed needs DeepSpeed: pip install 'lrsa-lightning[deepspeed]'")
        # DeepSpeed chooses its device at its first import, by the installed packages, not by the devices present.
        os.environ.setdefault("DS_ACCELERATOR", _device_type())
        super().__init__(*args, stage=stage, **kwargs)
        zero_config.check_config(self.config)

    def _load_config(self, config: str | Path | dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            # A copy, because the run adds its settings and the user may pass one dictionary to two strategies.
            return deepcopy(super()._load_config(config))
        except (MisconfigurationException, OSError, ValueError) as error:
            raise InputError(f"the strategy's DeepSpeed config {config} cannot be read: {error}") from error

    def setup_environment(self) -> None:
        """Skips Lightning's check for CUDA.

        Raises:
            InputError: DeepSpeed runs on another device, or the device or host lacks what the configuration needs.
        """
        import deepspeed

        device, accelerator = self.root_device.type, deepspeed.get_accelerator()
        if (chosen := accelerator.device_name()) != device:
            raise InputError(f"DeepSpeed runs on {chosen}, the trainer on {device}: set DS_ACCELERATOR={device}")
        zero_config.check_precision(self.config, self.precision_plugin.precision, accelerator.is_fp16_supported())
        zero_config.check_compiler(self.config)
        if device == "cpu":
            # DeepSpeed distinguishes processes by device index, which CPUs do not have.
            self.parallel_devices = [torch.device("cpu", index) for index in range(len(self.parallel_devices))]
            # DeepSpeed would compile collectives of its own for a minute; gloo has all of them.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        DDPStrategy.setup_environment(self)

    def _get_process_group_backend(self) -> str:
        if self._process_group_backend is None and self.root_device.type == "npu":
            return "hccl"  # Lightning chooses gloo
        return super()._get_process_group_backend()

    def _auto_select_batch_size(self) -> int:
        """For DeepSpeed's throughput figure alone. Lightning's version builds a second data loader for it."""
        return getattr(self.lightning_module.trainer.datamodule, "micro_batch_size", 1)

    def _format_config(self) -> None:
        zero_config.sum_gradients_in_float32(self.config)
        super()._format_config()
        if self.lightning_module is not None and self.lightning_module.trainer.training:
            micro_batches = self.config["gradient_accumulation_steps"]
            zero_config.check_accumulation(self.config, self.precision_plugin.precision, micro_batches)

    @contextmanager
    def model_sharded_context(self) -> Generator[None, None, None]:
        """Under ZeRO-3 the first rank alone reads or initialises the weights; the others build the model on meta.

        Lightning's version builds the model in pieces. It silently skips transformers' initialisation and reads a
        pretrained model on every rank.
        """
        self._init_config_if_needed()
        with torch.device("meta") if self.zero_stage_3 and not self.is_global_zero else nullcontext():
            yield

    def init_deepspeed(self) -> None:
        from lrsa_lightning.distributed.zero_files import ShardFiles

        with warnings.catch_warnings():
            # The module's override logs the norm where DeepSpeed does not, and leaves clipping to DeepSpeed here.
            warnings.filterwarnings("ignore", message="Since DeepSpeed handles gradient clipping")
            super().init_deepspeed()
        self.deepspeed_engine.checkpoint_engine = ShardFiles()

    def _init_optimizers(self) -> tuple[Optimizer, LRSchedulerConfig | None]:
        """Offloaded states need DeepSpeed's vectorised AdamW, which it compiles at first use."""
        optimizer, scheduler = super()._init_optimizers()
        if self.config.get("zero_optimization", {}).get("offload_optimizer"):
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            settings = {name: optimizer.defaults[name] for name in ("lr", "betas", "eps", "weight_decay")}
            # The same dictionaries of the groups: the scheduler writes the learning rate there.
            optimizer = DeepSpeedCPUAdam(optimizer.param_groups, **settings)
        return optimizer, scheduler

    # After the optimizer is made: it reads the parameters' shapes, which ZeRO-3 flattens.
    def _setup_model_and_optimizer(self, model: Module, optimizer, lr_scheduler=None):
        self._partition(model)
        return super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)

    def _initialize_deepspeed_inference(self, model: Module) -> None:
        self._partition(model)
        super()._initialize_deepspeed_inference(model)

    def _partition(self, model: Module) -> None:
        if self.zero_stage_3:
            from lrsa_lightning.distributed.zero3 import partition

            partition(model, self.config, self.remote_device, self.root_device)

    def backward(self, closure_loss: Tensor, optimizer, *args, **kwargs) -> Tensor:
        # Lightning has divided by the accumulation steps already. A second division would make clipping too weak.
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)


def _device_type() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "npu" if hasattr(torch, "npu") and torch.npu.is_available() else "cpu"
