"""Ascend NPUs. Importing this package registers the accelerator and the strategies with Lightning.

YAML uses their names. torch_npu is imported only when one of them is used.
"""

from typing import Any

from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from lrsa_lightning import precision
from lrsa_lightning.npu.accelerator import NPUAccelerator
from lrsa_lightning.npu.strategies import (
    NPUDDPStrategy,
    NPUDeepSpeedStrategy,
    NPUMixedPrecision,
    SingleNPUStrategy,
)

__all__ = [
    "NPUAccelerator",
    "NPUDDPStrategy",
    "NPUDeepSpeedStrategy",
    "NPUMixedPrecision",
    "SingleNPUStrategy",
    "resolve_auto",
]

AcceleratorRegistry.register("npu", NPUAccelerator, description="Ascend NPU")
for _strategy in (SingleNPUStrategy, NPUDDPStrategy, NPUDeepSpeedStrategy):
    StrategyRegistry.register(_strategy.strategy_name, _strategy, description=_strategy.__doc__.splitlines()[0])


def resolve_auto(trainer: Any) -> None:
    """Replaces `auto` in the Trainer's arguments where there are NPUs: Lightning does not look for them.

    Args:
        trainer: namespace with accelerator, strategy, devices and num_nodes; changed in place.

    Raises:
        InputError: accelerator npu is given and cannot be used.
    """
    if trainer.accelerator == "auto" and NPUAccelerator.is_available():
        trainer.accelerator = "npu"
    given = getattr(trainer.accelerator, "class_path", trainer.accelerator)
    if isinstance(given, str) and given.rpartition(".")[2] in ("npu", "NPUAccelerator"):
        accelerator = NPUAccelerator()
        if trainer.strategy != "auto":
            return
        count = accelerator.auto_device_count() if trainer.devices == "auto" else trainer.devices
        is_single = len(accelerator.parse_devices(count)) == 1 and trainer.num_nodes == 1
        several = NPUDeepSpeedStrategy if getattr(trainer, "precision", None) == precision.NAME else NPUDDPStrategy
        trainer.strategy = (SingleNPUStrategy if is_single else several).strategy_name
