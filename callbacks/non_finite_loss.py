"""A loss or gradient that is NaN or infinite never reaches the weights."""

import logging
from typing import Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import DeepSpeedPrecision
from torch import Tensor
from torch.distributed.tensor import DTensor

from lrsa_lightning.distributed.deepspeed import ZeroStrategy
from lrsa_lightning.errors import InputError, Stopped
from lrsa_lightning.ranges import PositiveInt, checked
from lrsa_lightning.rank_guard import name_ranks

log = logging.getLogger(__name__)
STATUS = 3


class NonFiniteLoss(Callback):
    """Stops the run, or leaves the optimizer step out, when a loss or a gradient is not finite on any device.

    The devices tell each other once an optimizer step, before it is taken: one small collective, and the one time that
    the callback waits for the device. A run that stops saves the state after its last whole step, so that
    `--ckpt_path last` comes to the same step again. A step that is left out counts as one: data and learning rate go
    on; ``train/skipped_steps`` counts them. DeepSpeed keeps the gradients to itself: there the loss alone is looked at,
    and gradients that are not finite it drops by itself, without a word.
    """

    @checked
    def __init__(self, policy: Literal["stop", "skip"] = "stop", most: PositiveInt = 10):
        """
        Args:
            policy: stop ends the run with exit status 3; skip leaves the step out, on all devices.
            most: after so many steps left out in a row the run stops all the same.
        """
        self.policy = policy
        self.most = most
        self._skipped = self._in_a_row = 0
        self._finite: Tensor | None = None
        self._is_stopping = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """
        Raises:
            InputError: DeepSpeed's engine, which steps by itself, runs without the strategy that can leave steps out.
        """
        is_deepspeed = isinstance(trainer.precision_plugin, DeepSpeedPrecision)
        if self.policy == "skip" and is_deepspeed and not isinstance(trainer.strategy, ZeroStrategy):
            raise InputError(
                "NonFiniteLoss.policy skip is not to be had under Lightning's DeepSpeed strategy, whose engine takes "
                "its steps by itself: set it to stop, or trainer.strategy to sp_deepspeed"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finite, self._is_stopping = None, False

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        finite = torch.isfinite(loss.detach())
        self._finite = finite if self._finite is None else self._finite & finite

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer) -> None:
        if trainer.fit_loop._should_accumulate():
            return  # DeepSpeed calls this hook after each micro-batch
        fault = self._fault(trainer, pl_module)
        self._in_a_row = self._in_a_row + 1 if fault else 0
        if fault and (self.policy == "stop" or self._in_a_row > self.most):
            pl_module.forget_window()
            self._stop(trainer, fault)
        if fault:
            self._skip(trainer, optimizer, fault)
        if self.policy == "skip":
            self.log("train/skipped_steps", float(self._skipped))

    def _fault(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """What is not finite, and on which ranks; the same text on all of them, empty where there is nothing.

        Ranks that average their gradients have all of them spoilt by one loss, so that the loss is named first.
        """
        finite, self._finite = [self._finite], None
        if _gradients_are_ours(trainer):
            finite.append(_gradients_finite(pl_module))
        of_ranks = trainer.strategy.all_gather(torch.stack(finite).to(torch.uint8)).view(-1, len(finite)).T.tolist()
        for name, flags in zip(("loss", "gradient"), of_ranks, strict=False):
            if not all(flags):
                return f"the {name} is NaN or infinite on {name_ranks([r for r, flag in enumerate(flags) if not flag])}"
        return ""

    def _skip(self, trainer: Trainer, optimizer, fault: str) -> None:
        if isinstance(trainer.strategy, ZeroStrategy):
            trainer.strategy.skip_step()
        else:
            optimizer.zero_grad(set_to_none=True)  # a parameter without a gradient is left as it is
        self._skipped += 1
        if trainer.is_global_zero:
            log.warning("step %d is left out: %s", trainer.global_step + 1, fault)

    def _stop(self, trainer: Trainer, fault: str) -> None:
        # To Lightning the micro-batch is then done, as when a signal comes at its end, and the epoch is not.
        progress = trainer.fit_loop.epoch_loop.batch_progress
        progress.increment_processed()
        progress.is_last_batch = False
        self._is_stopping = True
        many = f", the last of {self._in_a_row} such steps in a row" if self.policy == "skip" else ""
        advice = (
            "\n  The same step fails again unless the device was at fault: look at its samples, lower model.lr or "
            "raise model.warmup_steps; NonFiniteLoss with policy: skip leaves such steps out"
        )
        raise Stopped(trainer, STATUS, f"stopped before step {trainer.global_step + 1}: {fault}{many}", advice)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """Gives the step that was not taken its batch back: the loader counts it as read."""
        if self._is_stopping:
            (loader,) = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
            loader["consumed"] -= trainer.datamodule.global_batch_size

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self._skipped, "in_a_row": 0 if self._is_stopping else self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._skipped, self._in_a_row = state_dict["skipped"], state_dict["in_a_row"]


def _gradients_are_ours(trainer: Trainer) -> bool:
    """Not DeepSpeed's; and a gradient scaler of float16 looks at its own, where infinite ones are no fault."""
    plugin = trainer.precision_plugin
    return not isinstance(plugin, DeepSpeedPrecision) and getattr(plugin, "scaler", None) is None


def _gradients_finite(pl_module: LightningModule) -> Tensor:
    """Of this process's part of the gradients, in one pass over them."""
    gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
    local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    return torch.isfinite(torch.nn.utils.get_total_norm(local, norm_type=float("inf")))
