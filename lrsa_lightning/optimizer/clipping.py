"""Gradient clipping, and the gradients' norm that it shares with the log and with callbacks."""

from collections.abc import Sequence

import torch
from lightning import LightningModule
from lightning.pytorch.plugins import DeepSpeedPrecision, Precision
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer


def clip(
    module: LightningModule, optimizer: Optimizer, gradient_clip_val: float | None, gradient_clip_algorithm: str | None
) -> None:
    """Clips as Lightning does. One norm of the gradients serves clipping, the log and `on_gradient_norm` hooks.

    Args:
        module: a LongContextModule.
        optimizer: whose gradients are clipped.
        gradient_clip_val: Lightning's.
        gradient_clip_algorithm: Lightning's.
    """
    plugin, norm, parameters = module.trainer.precision_plugin, None, []
    if not isinstance(plugin, DeepSpeedPrecision):
        parameters = list(plugin.main_params(optimizer))
        norm = _gradient_norm(parameters)
    if knows_norm := _clips_as_torch_does(plugin):
        module.step_log.add({"train/grad_norm": norm})
    for callback in module.trainer.callbacks:
        if hasattr(callback, "on_gradient_norm"):
            callback.on_gradient_norm(module.trainer, module, optimizer, norm)
    if knows_norm and gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
        torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
    else:
        module.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)


def _gradient_norm(parameters: Sequence[Parameter]) -> Tensor:
    """The 2-norm of all gradients, on all ranks where FSDP2 shards them."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def _clips_as_torch_does(plugin: Precision) -> bool:
    """False for DeepSpeed and Lightning's FSDP, where a process does not hold all gradients."""
    return type(plugin).clip_grad_by_norm is Precision.clip_grad_by_norm and not isinstance(plugin, DeepSpeedPrecision)
