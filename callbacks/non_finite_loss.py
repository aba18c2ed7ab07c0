"""A NaN or infinite loss or gradient never reaches the weights."""

import logging
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import DeepSpeedPrecision
from torch import Tensor
from torch.optim import Optimizer

from lrsa_lightning.collectives import gather_over_ranks
from lrsa_lightning.data.resume_progress import StepStart, ends_step
from lrsa_lightning.errors import InputError, Stopped
from lrsa_lightning.ranges import PositiveInt, checked
from lrsa_lightning.run.rank_guard import name_ranks
from lrsa_lightning.step_log import StepRow

log = logging.getLogger(__name__)
STATUS = 3
_FINITE = "finite"  # of a row until it is judged


class NonFiniteLoss(Callback):
    """Stops the run, or skips the optimizer step, when a loss or a gradient is not finite on any device.

    Before each optimizer step the devices share what they found, in one small collective. On CUDA the fused optimizer
    then skips a spoiled step without the host, which learns of it when it reads the metrics. A run that is to stop
    skips all steps until then, and takes them back. On other devices the host reads the result before each step.

    A run that stops saves the state after its last complete step: `--ckpt_path last` comes to the same step again. A
    skipped step counts as a step: data and learning rate go on. ``train/skipped_steps`` counts them. DeepSpeed hides
    the gradients: the callback then checks the loss alone, and cannot skip steps. DeepSpeed itself drops gradients that
    are not finite, and does not say so.
    """

    @checked
    def __init__(self, policy: Literal["stop", "skip"] = "stop", most: PositiveInt = 10):
        """
        Args:
            policy: stop ends the run with exit status 3; skip skips the step on all devices.
            most: skipped steps in a row; the run stops at the next one.
        """
        self.policy = policy
        self.most = most
        self._skipped = self._in_a_row = 0
        self._finite: Tensor | None = None
        self._checks: dict[int, _Check] = {}
        self._device_in_a_row: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """
        Raises:
            InputError: steps are to be skipped under DeepSpeed, whose engine steps by itself.
        """
        if self.policy == "skip" and _is_deepspeed(trainer):
            raise InputError(
                "NonFiniteLoss cannot skip steps under DeepSpeed, whose engine steps by itself: set its policy to "
                "stop, or trainer.strategy to sp_fsdp2 or sp_ddp"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finite, self._checks, self._device_in_a_row = None, {}, None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        finite = torch.isfinite(loss.detach())
        self._finite = finite if self._finite is None else self._finite & finite

    def on_gradient_norm(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, norm: Tensor | None
    ) -> None:
        """Skips the step if its loss or the norm of its gradients is not finite, or stops before it."""
        if not ends_step(trainer):
            return  # DeepSpeed clips after each micro-batch
        flags, self._finite = [self._finite], None
        # float16's gradient scaler checks the gradients, and infinite ones are no fault.
        if norm is not None and getattr(trainer.precision_plugin, "scaler", None) is None:
            flags.append(torch.isfinite(norm))
        of_ranks = gather_over_ranks(torch.stack(flags).to(torch.uint8))
        step, finite = trainer.global_step + 1, of_ranks.bool().all()
        self._checks[step] = _Check(of_ranks, StepStart(trainer), pl_module.meter.seen_before)
        if skips_on_device(trainer, optimizer):
            self._skip_on_device(optimizer, finite)
            pl_module.step_log.add({_FINITE: finite})
            return
        if not self._judge(trainer, pl_module, step, bool(finite)):
            optimizer.zero_grad(set_to_none=True)  # the optimizer leaves a parameter without a gradient as it is
        pl_module.step_log.add(self._count())

    def on_steps_read(self, trainer: Trainer, pl_module: LightningModule, rows: list[StepRow]) -> None:
        """Learns which steps the device has skipped.

        Raises:
            Stopped: at one of them the run was to stop. The rows of this step and of later ones are removed.
        """
        for index, row in enumerate(rows):
            if _FINITE in row.values:
                finite = bool(row.values.pop(_FINITE))
                try:
                    self._judge(trainer, pl_module, row.step, finite)
                except Stopped:
                    del rows[index:]
                    raise
                row.values.update(self._count())

    def _skip_on_device(self, optimizer: Optimizer, finite: Tensor) -> None:
        """Lets the fused optimizer skip this step by torch's interface for gradient scalers, which is a tensor."""
        before = torch.full_like(finite, self._in_a_row, dtype=torch.int32)
        before = before if self._device_in_a_row is None else self._device_in_a_row
        # Once too many have been skipped, none is taken any more: `_judge` will take them all back.
        most = 0 if self.policy == "stop" else self.most
        self._device_in_a_row = torch.where(finite & (before <= most), 0, before + 1)
        optimizer.found_inf = (self._device_in_a_row > 0).float()

    def _judge(self, trainer: Trainer, pl_module: LightningModule, step: int, finite: bool) -> bool:
        """Counts a spoiled step, or stops the run before it; returns whether the step is fine."""
        check = self._checks.pop(step)
        self._in_a_row = 0 if finite else self._in_a_row + 1
        if finite:
            return True
        fault = _fault(check.of_ranks)
        if self.policy == "stop" or self._in_a_row > self.most:
            self._checks.clear()
            pl_module.meter.take_back_to(check.seen_before)
            check.start.take_back(trainer)
            self._stop(trainer, fault)
        self._skipped += 1
        if trainer.is_global_zero:
            log.warning("step %d is skipped: %s", step, fault)
        return False

    def _count(self) -> Mapping[str, float]:
        return {"train/skipped_steps": float(self._skipped)} if self.policy == "skip" else {}

    def _stop(self, trainer: Trainer, fault: str) -> None:
        many = f", the last of {self._in_a_row} such steps in a row" if self.policy == "skip" else ""
        self._in_a_row = 0
        advice = (
            "\n  The same step fails again unless the device was at fault: look at its samples, lower model.lr or "
            "raise model.warmup_steps. NonFiniteLoss with policy: skip skips such steps, but not under DeepSpeed"
        )
        raise Stopped(trainer, STATUS, f"stopped before step {trainer.global_step + 1}: {fault}{many}", advice)

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self._skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._skipped, self._in_a_row = state_dict["skipped"], state_dict["in_a_row"]


class _Check(NamedTuple):
    """What was found at a step: 1 where all is finite, uint8 [ranks, loss and gradient]; and the state before it."""

    of_ranks: Tensor
    start: StepStart
    seen_before: Tensor


def _fault(of_ranks: Tensor) -> str:
    """What is not finite, and on which ranks.

    One loss spoils the gradients of all ranks that average them. The text therefore names the loss first.
    """
    found = dict(zip(("loss", "gradient"), of_ranks.T.tolist(), strict=False))
    name = next(name for name, flags in found.items() if not all(flags))
    ranks = name_ranks([rank for rank, flag in enumerate(found[name]) if not flag])
    return f"the {name} is NaN or infinite on {ranks}"


def skips_on_device(trainer: Trainer, optimizer: Optimizer) -> bool:
    """Whether the optimizer can skip a step without the host. Elsewhere than on CUDA the way is not proven."""
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return fused and trainer.strategy.root_device.type == "cuda" and not _is_deepspeed(trainer)


def _is_deepspeed(trainer: Trainer) -> bool:
    return isinstance(trainer.precision_plugin, DeepSpeedPrecision)
