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

    def start(self, x: Tensor, rows: Tensor, sent: list[int], expected: list[int]) -> "Exchange":
        """Starts an all-gather and messages from rank to rank, differentiable, as one.

        Args:
            x: what all ranks get.
            rows: messages, the first ``sent[0]`` rows for rank 0, and so on.
            sent: numbers of rows for each rank.
            expected: numbers of rows that come from each rank.
        """
        return Exchange(self, x, rows, sent, expected)


class Exchange:
    """An all-gather and messages on their way, so that what is computed before `wait` hides them.

    In the backward, too: gradients set out where `wait` was called, and are waited for where the exchange was started.
    One function for both kinds, since a rank that receives no message would otherwise leave it out of its backward,
    and the order of two backwards may differ between ranks: either is a deadlock. For the same reason every rank must
    use what any `wait` returns.
    """

    def __init__(self, group: SequenceGroup, x: Tensor, rows: Tensor, sent: list[int], expected: list[int]):
        self.group, self.sent, self.expected = group, sent, expected
        self.under_way: list[tuple[Tensor, Any]] = []
        self._results = _Start.apply(x, rows, self)

    def wait(self) -> tuple[Tensor, Tensor]:
        """To be called once.

        Returns:
            [P, *x.shape], whose gradient is summed over the ranks, and the rows received, in the order of the ranks.
        """
        # Let go of, since their graph holds this object.
        results, self._results = self._results, None
        return _Wait.apply(*results, self)

    def arrivals(self) -> list[Tensor]:
        """What was under way, all of it arrived."""
        arrived, self.under_way = [_wait(*transfer) for transfer in self.under_way], []
        return arrived


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        return _wait(*_exchange(x, group, [1] * group.size, [1] * group.size))

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _AllToAll.apply(grad, ctx.group), None


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor, exchange: Exchange):
        ctx.exchange, group = exchange, exchange.group
        gathering = _gather(x, group, "all_gather")
        exchange.under_way = [gathering, _exchange(rows, group, exchange.sent, exchange.expected)]
        return tuple(result for result, _ in exchange.under_way)

    @staticmethod
    def backward(ctx, *_):
        return *ctx.exchange.arrivals(), None


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gathered: Tensor, received: Tensor, exchange: Exchange):
        ctx.exchange = exchange
        exchange.arrivals()
        return gathered, received

    @staticmethod
    def backward(ctx, grad_gathered: Tensor, grad_received: Tensor):
        exchange = ctx.exchange
        group = exchange.group
        reducing = _reduce(grad_gathered, group)
        exchange.under_way = [reducing, _exchange(grad_received, group, exchange.expected, exchange.sent)]
        # They reach `_Start`, whose own gradients are what is under way.
        return grad_gathered, grad_received, None


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
