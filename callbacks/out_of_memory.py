"""Advice for a run that is out of a device's memory."""

import logging
import os

import torch
from lightning import Callback, LightningModule, Trainer

from lrsa_lightning.library_errors import is_out_of_memory

log = logging.getLogger(__name__)
_SEGMENTS = "expandable_segments:True"
_ALLOCATOR = {"cuda": "PYTORCH_ALLOC_CONF", "npu": "PYTORCH_NPU_ALLOC_CONF"}


class OutOfMemoryAdvice(Callback):
    """On out-of-memory, logs how much of the device's memory is in use, and lists the settings that reduce it.

    The error goes on unchanged. Each rank reports its own device.
    """

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        device = trainer.strategy.root_device
        if device.type in _ALLOCATOR and is_out_of_memory(exception):
            log.error("%s is out of memory: %s. To lower it: %s", device, _use(device), "; ".join(_ways(trainer)))


def _use(device: torch.device) -> str:
    memory = torch.get_device_module(device)
    figures = {
        "GiB": memory.mem_get_info(device)[1],
        "at the peak": memory.max_memory_allocated(device),
        "reserved": memory.max_memory_reserved(device),
    }
    return ", ".join(f"{value / 2**30:.1f} {name}" for name, value in figures.items())


def _ways(trainer: Trainer) -> list[str]:
    """Settings that the run does not use yet, the cheapest first."""
    device = trainer.strategy.root_device.type
    ways = []
    if _SEGMENTS not in os.environ.get(_ALLOCATOR[device], ""):
        ways.append(f"{_ALLOCATOR[device]}={_SEGMENTS}")
    if trainer.lightning_module.recompute not in ("full", "offload"):
        ways.append("model.recompute: full")
    if (rows := getattr(trainer.datamodule, "micro_batch_size", 1)) > 1:
        ways.append(f"data.micro_batch_size: 1 instead of {rows}")
    files = ("npu_zero2_sp2.yaml", "npu_zero3_sp2.yaml") if device == "npu" else ("zero2_sp2.yaml", "zero3_sp4.yaml")
    return [*ways, f"more devices that share each sequence, as in configs/trainer/{files[0]} and {files[1]}"]
