"""Fits on forked ranks, configured as `lrsa fit` is, and their gradients."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from lightning import Callback
from torch import distributed as dist

from lrsa_lightning.commands.training import LRSACLI
from tests import warm
from tests.distributed.ranks import on_ranks
from tests.processes import free_port, place


class KeepGradients(Callback):
    """Writes the full gradients of the first optimizer step, before they are clipped."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        engine = getattr(trainer.strategy, "deepspeed_engine", None)
        if trainer.global_step > 0 or (engine is not None and not engine.is_gradient_accumulation_boundary()):
            return
        gradients = {name: _whole(p, engine) for name, p in pl_module.named_parameters() if p.requires_grad}
        if trainer.is_global_zero:
            torch.save(gradients, Path(trainer.default_root_dir) / "gradients.pt")


def _whole(parameter, engine) -> torch.Tensor:
    if engine is not None:
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(parameter).clone()
    gradient = parameter.grad
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient.clone()


STRATEGIES = {
    "ddp": ("lrsa_lightning.distributed.SPDDPStrategy", {}),
    "fsdp2": ("lrsa_lightning.distributed.SPModelParallelStrategy", {}),
    **{f"zero{stage}": ("lrsa_lightning.distributed.SPDeepSpeedStrategy", {"stage": stage}) for stage in (1, 2, 3)},
}


def strategy(name: str, size: int = 1, kind: str = "auto") -> dict[str, str]:
    """The option for a strategy with a degree and a kind of sequence parallelism."""
    class_path, options = STRATEGIES[name]
    options = {**options, "sequence_parallel": {"size": size, "kind": kind}}
    return {"trainer.strategy": json.dumps({"class_path": class_path, "init_args": options})}


@dataclass
class Fit:
    """A run's metrics, and the gradients of its first step by parameter."""

    rows: list[dict]
    gradients: dict[str, torch.Tensor]

    def curve(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if name in row]


def fit(size: int, options: dict[str, str], tmp_path: Path, ckpt_path: str | None = None) -> Fit:
    """Runs a fit with these options on ``size`` ranks. The run's directory is tmp_path / runs / x."""
    warm.up()
    # As under torchrun: Lightning then takes the processes as they are.
    torchrun = {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0", **place(0, size, free_port())}
    os.chdir(tmp_path)
    with patch.dict(os.environ, torchrun):
        # Parsed once, before the fork: it takes most of the time of so small a run.
        options = {**options, "trainer.devices": str(size)}
        cli = LRSACLI([f"--{key}={value}" for key, value in options.items()], run=False)
        on_ranks(size, _fit, cli, ckpt_path, tmp_path=tmp_path, joined=False)
    run = tmp_path / "runs" / "x"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return Fit(rows, torch.load(run / "gradients.pt", weights_only=True) if (run / "gradients.pt").exists() else {})


def _fit(cli: LRSACLI, ckpt_path: str | None) -> None:
    os.environ["LOCAL_RANK"] = os.environ["RANK"]
    cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=ckpt_path)
    if dist.is_initialized():
        dist.barrier()
