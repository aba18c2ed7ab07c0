"""ZeRO-3 alone: partitioning the first rank's weights, and loading universal checkpoints with the run's settings."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import deepspeed
import torch
from torch import distributed
from torch.nn import Module, Parameter
from torch.optim import Optimizer
from torch.utils import swap_tensors


def partition(model: Module, config: dict[str, Any], remote_device: str | None, device: torch.device) -> None:
    """Partitions each parameter among the ranks and copies the buffers to all of them. A second call does nothing.

    Args:
        model: with weights on the first rank, on the meta device elsewhere.
        config: DeepSpeed's.
        remote_device: device of the partitions, Lightning's argument.
        device: of this rank.
    """
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty_like(buffer, device=device) if buffer.is_meta else buffer.to(device)
            distributed.broadcast(module._buffers[name], 0)
    dtype = torch.bfloat16 if config.get("bf16", {}).get("enabled") else None
    deepspeed.zero.Init(_OneByOne(model, dtype), config_dict_or_path=config, remote_device=remote_device)


class _OneByOne(Module):
    """Shows DeepSpeed one parameter at a time with memory allocated: it broadcasts each one from the first rank."""

    def __init__(self, model: Module, dtype: torch.dtype | None):
        super().__init__()
        self.model, self.dtype = model, dtype

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        for parameter in self.model.parameters(recurse):
            if not hasattr(parameter, "ds_id"):
                self._materialise(parameter)
            yield parameter

    def _materialise(self, parameter: Parameter) -> None:
        dtype = self.dtype or parameter.dtype
        if parameter.is_meta:
            # The object stays: its name, tied weights and the optimizer refer to it.
            empty = Parameter(torch.empty_like(parameter, device="cpu", dtype=dtype), parameter.requires_grad)
            swap_tensors(parameter, empty)
        else:
            parameter.data = parameter.data.to(dtype)


@contextmanager
def groups_kept_apart(optimizer: Optimizer) -> Iterator[None]:
    """Undoes what ZeRO-3 does to parameter groups when it loads a universal checkpoint.

    DeepSpeed gives all groups the settings of the first one: vectors would decay too. It also gives them one tensor as
    step count: each group would advance it for all.
    """
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    yield
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    for state in optimizer.state.values():
        state["step"] = deepcopy(state["step"])
