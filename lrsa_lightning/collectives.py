"""What ranks share in a step. The host waits for no device: collectives are queued on it, or run between hosts.

Lightning's own reductions wait at a barrier of all devices.
"""

from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, on the device."""
    return _reduced(values, dist.ReduceOp.SUM)


def max_over_ranks(values: Tensor) -> Tensor:
    """The maximum of a tensor over all ranks, on the device."""
    return _reduced(values, dist.ReduceOp.MAX)


def gather_over_ranks(values: Tensor) -> Tensor:
    """The tensors of all ranks, on the device: [ranks, *values.shape]."""
    if not dist.is_initialized():
        return values.unsqueeze(0)
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values)
    return torch.stack(parts)


def _reduced(values: Tensor, op: dist.ReduceOp) -> Tensor:
    values = values.clone()
    if dist.is_initialized():
        dist.all_reduce(values, op)
    return values


class Hosts:
    """The processes of all ranks, which agree on numbers of the host."""

    @cached_property
    def _group(self) -> dist.ProcessGroup | None:
        return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")

    def largest(self, number: int) -> int:
        """The largest number of all processes. All of them must call this at the same point."""
        value = torch.tensor(number, device="cpu")
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self._group)
        return int(value)
