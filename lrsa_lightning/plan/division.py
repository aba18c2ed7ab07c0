"""What devices share: from `trainer.strategy` as the configuration gives it, without making the strategy."""

import json
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, StrategyRegistry

from lrsa_lightning.distributed.deepspeed import ZeroStrategy
from lrsa_lightning.distributed.sequence_parallel import SequenceParallel
from lrsa_lightning.distributed.zero_config import offloads, stage_of
from lrsa_lightning.errors import InputError

Kind = Literal["single", "ddp", "zero", "fsdp2"]


@dataclass(frozen=True)
class Division:
    """How devices divide the model and the sequences.

    Attributes:
        kind: single and ddp divide nothing of the model; zero does by its stage; fsdp2 divides everything.
        devices: of all hosts.
        stage: ZeRO's.
        offloads_optimizer: optimizer states and master weights are in the host's memory.
        offloads_weights: the weights are there too.
        sequence_parallel: how a group of ranks divides each sequence.
    """

    kind: Kind = "single"
    devices: int = 1
    stage: int = 0
    offloads_optimizer: bool = False
    offloads_weights: bool = False
    sequence_parallel: SequenceParallel = SequenceParallel()  # noqa: RUF009  frozen

    def __post_init__(self):
        self.sequence_parallel.check_world(self.devices)

    @property
    def degree(self) -> int:
        """The sequence-parallel degree."""
        return self.sequence_parallel.size

    @property
    def data_parallel_size(self) -> int:
        return self.devices // self.degree

    def __str__(self) -> str:
        model = {"single": "one device", "ddp": "DDP", "zero": f"ZeRO-{self.stage}", "fsdp2": "FSDP2"}[self.kind]
        offload = " with offload" if self.offloads_optimizer or self.offloads_weights else ""
        sharing = f", {self.degree} share a sequence ({self.sequence_parallel.kind})" if self.degree > 1 else ""
        return f"{model}{offload}{sharing}"

    @classmethod
    def of(cls, strategy: Any, devices: int) -> "Division":
        """
        Args:
            strategy: the value of trainer.strategy: a name, or a namespace of class_path and init_args.
            devices: of all hosts.

        Raises:
            InputError: the plan does not cover the strategy, or the degree does not divide the devices.
        """
        if isinstance(strategy, str):
            if strategy == "auto":
                return cls("ddp" if devices > 1 else "single", devices)
            known = StrategyRegistry[strategy.lower()]
            strategy_class, given = known["strategy"], dict(known["init_params"])
        else:
            strategy_class, given = resolve_name(strategy.class_path), vars(strategy.get("init_args") or {})
        sequence = _sequence_parallel(given.get("sequence_parallel"))
        if issubclass(strategy_class, ZeroStrategy):
            return cls("zero", devices, **_zero(given), sequence_parallel=sequence)
        kinds = {SingleDeviceStrategy: "single", DDPStrategy: "ddp", ModelParallelStrategy: "fsdp2"}
        for base, kind in kinds.items():
            if issubclass(strategy_class, base):
                if kind == "single" and devices > 1:
                    raise InputError(f"trainer.strategy {strategy_class.__name__} is for one device, not {devices}")
                return cls(kind, devices, sequence_parallel=sequence)
        raise InputError(f"the plan does not cover trainer.strategy {strategy_class.__name__}")


def _sequence_parallel(given: Any) -> SequenceParallel:
    return SequenceParallel.of(given if given is None or isinstance(given, SequenceParallel) else dict(vars(given)))


def _zero(given: dict[str, Any]) -> dict[str, Any]:
    """Stage and offload by the arguments of the strategy, or by DeepSpeed's own configuration."""
    config = given.get("config")
    if config is None:
        return {
            "stage": given.get("stage", 2),
            "offloads_optimizer": bool(given.get("offload_optimizer")),
            "offloads_weights": bool(given.get("offload_parameters")),
        }
    if not isinstance(config, dict):
        config = json.loads(Path(config).read_text(encoding="utf-8"))
    return {
        "stage": stage_of(config),
        "offloads_optimizer": offloads(config, "offload_optimizer"),
        "offloads_weights": offloads(config, "offload_param"),
    }
