"""A sequence-parallel group: its ranks divide each sequence. Collectives among them, with gradients.

Nothing here depends on a strategy: any process group of torch will do.
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
    """This process in its sequence-parallel group.

    Attributes:
        rank: of this process in the group.
        size: P, the sequence-parallel degree.
        process_group: torch's handle.
        received: elements that this rank has received from others, by collective.
    """

    rank: int
    size: int
    process_group: Any = None
    received: Counter = field(default_factory=Counter, compare=False)

    @classmethod
    def of_world(cls, size: int) -> "SequenceGroup":
        """The group of this process when each ``size`` neighbouring ranks form one. All ranks must call it."""
        rank, found = dist.get_rank(), None
        for first in range(0, dist.get_world_size(), size):
            ranks = range(first, first + size)
            group = dist.new_group(ranks)
            if rank in ranks:
                found = cls(rank - first, size, group)
        return found

    @torch.no_grad()
    def all_gather(self, x: Tensor) -> Tensor:
        """The x of every rank, [P, *x.shape]; without gradient."""
        return _wait(*_gather(x, self, "all_gather_no_grad"))

    def all_to_all(self, x: Tensor) -> Tensor:
        """Sends row i of the P rows of x to rank i. Row i of the result comes from rank i. Differentiable."""
        return _AllToAll.apply(x, self)

    def start(self, x: Tensor, rows: Tensor, sent: list[int], expected: list[int]) -> "Exchange":
        """Starts an all-gather and messages from rank to rank as one differentiable function.

        Args:
            x: tensor to all-gather.
            rows: messages: the first ``sent[0]`` rows go to rank 0, the next ``sent[1]`` to rank 1, and so on.
            sent: number of rows for each rank.
            expected: number of rows from each rank.
        """
        return Exchange(self, x, rows, sent, expected)


class Exchange:
    """An all-gather and messages under way. Computation before `wait` overlaps with them.

    The backward overlaps too: it sends the gradients where the forward waited, and waits where the forward started.
    One autograd function covers both collectives. With two of them a rank without a message would skip one backward,
    and ranks could run the two in different order; each is a deadlock. For the same reason every rank must use the
    result of every `wait`.
    """

    def __init__(self, group: SequenceGroup, x: Tensor, rows: Tensor, sent: list[int], expected: list[int]):
        self.group, self.sent, self.expected = group, sent, expected
        self.under_way: list[tuple[Tensor, Any]] = []
        self._results = _Start.apply(x, rows, self)

    def wait(self) -> tuple[Tensor, Tensor]:
        """Waits for the exchange. Call it once.

        Returns:
            the x of every rank, [P, *x.shape], with a gradient that is summed over the ranks; and the received rows, in
            the order of the ranks.
        """
        # The graph of the results holds this object: keeping them here would be a reference cycle.
        results, self._results = self._results, None
        return _Wait.apply(*results, self)

    def arrivals(self) -> list[Tensor]:
        """Waits for the transfers under way and returns their tensors."""
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
        exchange, group = ctx.exchange, ctx.exchange.group
        reducing = _reduce(grad_gathered, group)
        exchange.under_way = [reducing, _exchange(grad_received, group, exchange.expected, exchange.sent)]
        # Autograd passes these to `_Start`, which returns the transferred gradients in their place.
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
