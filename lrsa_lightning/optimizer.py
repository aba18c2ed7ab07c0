"""AdamW, the gradients' norm, and the learning rate over a run: linear warm-up, then cosine to 0."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.nn import Parameter

_warn = rank_zero_only(logging.getLogger(__name__).warning)


def adamw(
    parameters: Iterable[Parameter], lr: float, betas: tuple[float, float], weight_decay: float, fused: bool
) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone, over the parameters that are trained."""
    trained = [p for p in parameters if p.requires_grad]
    # ZeRO-3 cuts a parameter into flat parts and remembers its shape.
    ndims = [len(getattr(p, "ds_shape", p.shape)) for p in trained]
    matrices = [p for p, ndim in zip(trained, ndims, strict=True) if ndim >= 2]
    vectors = [p for p, ndim in zip(trained, ndims, strict=True) if ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]  # DeepSpeed takes no empty one, and LoRA has no vectors
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)


def gradient_norm(parameters: Sequence[Parameter]) -> Tensor:
    """The 2-norm of all gradients, on all ranks where FSDP2 shards them."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def warmup_cosine(warmup_steps: int, total_steps: float) -> Callable[[int], float]:
    """The factor of the peak learning rate for an optimizer step, given its number from 0.

    Args:
        warmup_steps: W; step i of the warm-up has (i + 1) / W of the peak.
        total_steps: steps of the run; infinity where only a time or a signal ends it. Step total_steps would have 0.
    """
    if math.isinf(total_steps):
        _warn("the run has no number of steps: model.lr stays at its peak, set trainer.max_steps to let it fall")
    elif 0 < total_steps <= warmup_steps:
        _warn("model.warmup_steps %d: the run ends after %d, before model.lr falls", warmup_steps, total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor
