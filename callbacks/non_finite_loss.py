"""A NaN or infinite loss or gradient never reaches the weights."""

import logging
from typing import Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import DeepSpeedPrecision
from torch import Tensor
from torch.distributed.tensor import DTensor

from lrsa_lightning.data.resume_progress import ends_step, take_back_step
from lrsa_lightning.errors import InputError, Stopped
from lrsa_lightning.ranges import PositiveInt, checked
from lrsa_lightning.rank_guard import name_ranks

log = logging.getLogger(__name__)
STATUS = 3


class NonFiniteLoss(Callback):
    """Stops the run, or skips the optimizer step, when a loss or a gradient is not finite on any device.

    Before each optimizer step the devices share what they found, in one small collective. Only then the callback waits
    for the device. A run that stops saves the state after its last complete step: `--ckpt_path last` comes to the same
    step again. A skipped step counts as a step: data and learning rate go on. ``train/skipped_steps`` counts them.
    DeepSpeed hides the gradients: the callback then checks the loss alone, and cannot skip steps. DeepSpeed itself
    drops gradients that are not finite, and does not say so.
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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """
        Raises:
            InputError: steps are to be skipped under DeepSpeed, whose engine steps by itself.
        """
        if self.policy == "skip" and isinstance(trainer.precision_plugin, DeepSpeedPrecision):
            raise InputError(
                "NonFiniteLoss cannot skip steps under DeepSpeed, whose engine steps by itself: set its policy to "
                "stop, or trainer.strategy to sp_fsdp2 or sp_ddp"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finite = None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        finite = torch.isfinite(loss.detach())
        self._finite = finite if self._finite is None else self._finite & finite

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer) -> None:
        if not ends_step(trainer):
            return  # DeepSpeed calls this hook after each micro-batch
        fault = self._fault(trainer, pl_module)
        self._in_a_row = self._in_a_row + 1 if fault else 0
        if fault and (self.policy == "stop" or self._in_a_row > self.most):
            pl_module.meter.take_back_step()
            self._stop(trainer, fault)
        if fault:
            optimizer.zero_grad(set_to_none=True)  # the optimizer leaves a parameter without a gradient as it is
            self._skipped += 1
            if trainer.is_global_zero:
                log.warning("step %d is skipped: %s", trainer.global_step + 1, fault)
        if self.policy == "skip":
            self.log("train/skipped_steps", float(self._skipped))

    def _fault(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """What is not finite, and on which ranks. All ranks return the same text, which is empty if all is finite.

        One loss spoils the gradients of all ranks that average them. The text therefore names the loss first.
        """
        finite, self._finite = [self._finite], None
        if _gradients_are_ours(trainer):
            finite.append(_gradients_finite(pl_module))
        of_ranks = trainer.strategy.all_gather(torch.stack(finite).to(torch.uint8)).view(-1, len(finite)).T.tolist()
        for name, flags in zip(("loss", "gradient"), of_ranks, strict=False):
            if not all(flags):
                return f"the {name} is NaN or infinite on {name_ranks([r for r, flag in enumerate(flags) if not flag])}"
        return ""

    def _stop(self, trainer: Trainer, fault: str) -> None:
        take_back_step(trainer)
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


def _gradients_are_ours(trainer: Trainer) -> bool:
    """Not DeepSpeed's, and not those of float16: its gradient scaler checks them, and infinite ones are no fault."""
    plugin = trainer.precision_plugin
    return not isinstance(plugin, DeepSpeedPrecision) and getattr(plugin, "scaler", None) is None


def _gradients_finite(pl_module: LightningModule) -> Tensor:
    """Whether this process's part of the gradients is finite, in one pass over them."""
    gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
    local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    return torch.isfinite(torch.nn.utils.get_total_norm(local, norm_type=float("inf")))
