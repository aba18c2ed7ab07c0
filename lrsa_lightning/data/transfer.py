"""A micro-batch on its way to the device."""

from typing import Any

import torch
from torch import Tensor

from lrsa_lightning.loss import label_positions


def for_transfer(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A micro-batch that costs the host no wait for the device.

    Returns:
        the micro-batch with label_positions, int64 [T]: the device cannot say how many label tokens there are without
        a wait. For CUDA its tensors are in pinned memory, from which a transfer is asynchronous.
    """
    batch = {**batch, "label_positions": label_positions(batch["labels"])}
    if device.type != "cuda":
        return batch
    return {name: z.pin_memory() if isinstance(z, Tensor) else z for name, z in batch.items()}
