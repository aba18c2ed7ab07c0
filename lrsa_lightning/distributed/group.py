"""The ranks that share a sequence, and collectives among them, with gradients.

Free of any strategy: whoever has made a process group can use it.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

# torch 2.13 gives them new names and deprecates the old ones.
if hasattr(dist, "all_gather_single"):
    _all_gather, _reduce_scatter = dist.all_gather_single, dist.reduce_scatter_single
else:
    _all_gather, _reduce_scatter = dist.all_gather_into_tensor, dist.reduce_scatter_tensor


@dataclass(frozen=True)
class SequenceGroup:
    """This process's place among the ranks that share a sequence.

    Attributes:
        rank: in the group.
        size: P, the sequence-parallel degree.
        process_group: torch's handle.
        received: elements this rank has been sent by others, by collective.
    """

    rank: int
    size: int
    process_group: Any = None
    received: Counter = field(default_factory=Counter, compare=False)

    @classmethod
    def of_world(cls, size: int) -> "SequenceGroup":
        """The group of this process when each ``size`` neighbouring ranks share a sequence; all ranks must call it."""
        rank, found = dist.get_rank(), None
        for first in range(0, dist.get_world_size(), size):
            ranks = range(first, first + size)
            group = dist.new_group(ranks)
            if rank in ranks:
                found = cls(rank - first, size, group)
        return found

    @torch.no_grad()
    def all_gather(self, x: Tensor) -> Tensor:
        """What each rank gave, [P, *x.shape]; without gradient."""
        return _wait(*_gather(x, self, "all_gather_no_grad"))

    def all_to_all(self, x: Tensor) -> Tensor:
        """Row i of the P rows of x goes to rank i; row i of the result came from there. Differentiable."""
        return _AllToAll.apply(x, self)

    def gather_and_pass_on(
        self, x: Tensor, rows: Tensor, sent: list[int], expected: list[int]
    ) -> tuple[Tensor, Tensor]:
        """An all-gather and messages from rank to rank, differentiable, as one.

        One function, since a rank that receives no message would otherwise leave it out of its backward, and the order
        of two backwards may differ between ranks: either is a deadlock.

        Args:
            x: what all ranks get.
            rows: messages, the first ``sent[0]`` rows for rank 0, and so on.
            sent: numbers of rows for each rank.
            expected: numbers of rows that come from each rank.

        Returns:
            [P, *x.shape], whose gradient is summed over the ranks, and the rows received, in the order of the ranks.
        """
        return _GatherAndPassOn.apply(x, rows, self, sent, expected)


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        return _wait(*_exchange(x, group, [1] * group.size, [1] * group.size))

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _AllToAll.apply(grad, ctx.group), None


class _GatherAndPassOn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor, group: SequenceGroup, sent: list[int], expected: list[int]):
        ctx.group, ctx.sent, ctx.expected = group, sent, expected
        gathering, passing = _gather(x, group, "all_gather"), _exchange(rows, group, sent, expected)
        return _wait(*gathering), _wait(*passing)

    @staticmethod
    def backward(ctx, grad_gathered: Tensor, grad_rows: Tensor):
        reducing = _reduce(grad_gathered, ctx.group)
        passing = _exchange(grad_rows, ctx.group, ctx.expected, ctx.sent)
        return _wait(*reducing), _wait(*passing), None, None, None


def _wait(result: Tensor, work) -> Tensor:
    work.wait()
    return result


def _gather(x: Tensor, group: SequenceGroup, name: str):
    gathered = x.new_empty(group.size, *x.shape)
    group.received[name] += x.numel() * (group.size - 1)
    return gathered, _all_gather(gathered.flatten(0, 1), x.contiguous(), group=group.process_group, async_op=True)


def _reduce(grad: Tensor, group: SequenceGroup):
    own = grad.new_empty(grad.shape[1:])
    group.received["reduce_scatter"] += own.numel() * (group.size - 1)
    rows = grad.contiguous().flatten(0, 1)
    return own, _reduce_scatter(own, rows, group=group.process_group, async_op=True)


def _exchange(x: Tensor, group: SequenceGroup, sent: list[int], expected: list[int]):
    got = x.new_empty(sum(expected), *x.shape[1:])
    group.received["all_to_all"] += (sum(expected) - expected[group.rank]) * x.shape[1:].numel()
    process_group = group.process_group
    return got, dist.all_to_all_single(got, x.contiguous(), expected, sent, group=process_group, async_op=True)
