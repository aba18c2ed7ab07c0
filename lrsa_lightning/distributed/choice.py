"""Checks `trainer.strategy`: in the configuration, and then against the settings of the run."""

import re
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from lightning import Trainer
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    Strategy,
    StrategyRegistry,
)

from lrsa_lightning import precision
from lrsa_lightning.data.datamodule import LongContextDataModule
from lrsa_lightning.data.sampler import accumulation_steps
from lrsa_lightning.distributed.deepspeed import ZeroStrategy
from lrsa_lightning.distributed.strategies import SequenceParallelStrategy
from lrsa_lightning.distributed.zero_config import check_accumulation
from lrsa_lightning.errors import InputError

_REASON = re.compile(r"Parser key .*: (?!Does not validate)|not accepted|No module|Not a valid|no attribute")
# Lightning's own ignore settings of the run. Ours replace them.
_OURS = {DeepSpeedStrategy: "sp_deepspeed", ModelParallelStrategy: "sp_fsdp2"}


def check_choice(given: Any) -> None:
    """Checks the text of the configuration.

    The parser accepts any text as a name. A mapping with a wrong argument would end as "invalid strategy name".

    Args:
        given: from the configuration: a name, a mapping as text, or the parsed entry of a class.

    Raises:
        InputError: the strategy does not exist, has a wrong argument, or is Lightning's own where there is one of ours.
    """
    if isinstance(given, str):
        _check_mapping(given) if given.lstrip().startswith("{") else _check_name(given)
        return
    name = str(getattr(given, "class_path", "")).rpartition(".")[2]
    for theirs, ours in _OURS.items():
        if name == theirs.__name__:
            raise InputError(f"trainer.strategy {name} is Lightning's own: take {ours}")


def _check_name(name: str) -> None:
    if name.lower().startswith("deepspeed"):
        raise InputError(f"trainer.strategy {name} is Lightning's own: take sp_deepspeed, with its stage")
    names = ["auto", *StrategyRegistry.available_strategies()]
    if name.lower() not in names:
        some = [other for other in names if other in ("auto", "ddp") or other.startswith(("sp_", "npu_"))]
        raise InputError(f"trainer.strategy is {name!r}, but must be one of {', '.join(some)}, or a class_path")


def _check_mapping(text: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--strategy", type=Strategy)
    try:
        parser.parse_object({"strategy": yaml.safe_load(text)})
    except (ArgumentError, yaml.YAMLError) as error:
        lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
        # The parser names each type that the value does not have. For a mapping the last lines say why.
        reason = next((line for line in reversed(lines) if _REASON.search(line)), " ".join(lines))
        raise InputError(f"trainer.strategy {text}: {reason}") from error


def resolve_auto(trainer: Any) -> None:
    """Replaces `auto` by FSDP2 where bf16-master runs in several processes: Lightning's choice, DDP, cannot run it.

    Args:
        trainer: namespace with accelerator, strategy, devices, num_nodes and precision; changed in place.
    """
    if trainer.strategy != "auto" or getattr(trainer, "precision", None) != precision.NAME:
        return
    accelerator = CPUAccelerator if trainer.accelerator == "cpu" else CUDAAccelerator
    if not accelerator.is_available():
        return
    devices = accelerator.auto_device_count() if trainer.devices in ("auto", -1, "-1") else trainer.devices
    count = devices if isinstance(devices, int) else len(accelerator.parse_devices(devices))
    if count * trainer.num_nodes > 1:
        trainer.strategy = "sp_fsdp2"


def check_strategy(trainer: Trainer) -> None:
    """Refuses strategies that would not train by the run's settings, before any data or weight is read.

    Raises:
        InputError: the strategy is Lightning's own and there is one of ours, or ZeRO does not support a setting.
    """
    strategy = trainer.strategy
    for theirs, ours in _OURS.items():
        if isinstance(strategy, theirs) and not isinstance(strategy, SequenceParallelStrategy):
            raise InputError(f"trainer.strategy is Lightning's own {type(strategy).__name__}: take {ours}")
    if isinstance(strategy, DDPStrategy) and isinstance(strategy.precision_plugin, precision.MasterPrecision):
        raise InputError(
            "trainer.precision bf16-master does not run under DDP, which reduces gradients before they reach the "
            "float32 masters: set trainer.strategy to sp_fsdp2 or sp_deepspeed, or trainer.precision to bf16-mixed"
        )
    if not isinstance(strategy, ZeroStrategy):
        return
    if trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
        raise InputError(
            "DeepSpeed clips by the norm alone: set trainer.gradient_clip_algorithm to norm, or leave it out"
        )
    if trainer.training:
        data, micro_batches = trainer.datamodule, trainer.accumulate_grad_batches
        if isinstance(data, LongContextDataModule):  # it sets the trainer's number later, with the samples
            ranks = strategy.data_parallel_size
            micro_batches = accumulation_steps(data.global_batch_size, data.micro_batch_size, ranks)
        check_accumulation(strategy.config, trainer.precision, micro_batches)
